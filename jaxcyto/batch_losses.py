"""Loss terms of pre-training that compare all patches of a batch (`losses.batchwise`).

They are not the paper's. Both read the distances between all patches of the batch, which the
loader adds with `data.all_distances = True` (`jaxcyto pair BRAIN --all-distances`); row and column
2 i + j are patch j of pair i.
"""

import jax
import jax.numpy as jnp
import optax

from jaxcyto.losses import Arrays, batchwise


@batchwise
def all_pairs_distance_loss(outputs: Arrays, batch: Arrays) -> jax.Array:
    """|predicted - true distance| of each patch to all others of its hemisphere in the batch.

    A batch of B pairs holds B (2B - 1) distances, and more of them cost no further forward pass.

    Args:
        outputs: `features` [B, 2, F], scaled units.
        batch: `all_distances_target` [2B, 2B] in scaled units, infinite between hemispheres.

    Returns:
        [B] float32, mean over both patches of a pair and over their partners.
    """
    features = _patches(outputs)
    predicted = jnp.sum(jnp.square(features[:, None] - features[None]), axis=-1)
    target = batch["all_distances_target"]
    use = jnp.isfinite(target) & ~jnp.eye(len(features), dtype=bool)
    # inf is replaced before the subtraction: inf times zero in the gradient would be NaN
    error = jnp.where(use, jnp.abs(predicted - jnp.where(use, target, 0.0)), 0.0)
    return _per_pair(error.sum(axis=1) / jnp.maximum(use.sum(axis=1), 1))


@batchwise
def colocation_loss(
    outputs: Arrays, batch: Arrays, *, near_mm: float = 2.0, temperature: float = 0.1
) -> jax.Array:
    """Contrastive: patches near along the cortex are to be told from those far away.

    In the manner of CytoNet's SpatialNCE (2025): InfoNCE (van den Oord et al. 2018, eq. 4) on the
    cosine of features, positives being all patches within `near_mm`. Each positive stands against
    the negatives alone, its logarithms are averaged (as Khosla et al. 2020, eq. 2, but for the
    other positives in the denominator). Patches of the other hemisphere, whose place may
    correspond, are no negatives. Radius and temperature are assumptions.

    Args:
        outputs: `features` [B, 2, F].
        batch: `all_distances` [2B, 2B] in mm, infinite between hemispheres. Draw pairs that are
            near (`jaxcyto pair --within`), so that every patch has a positive.
        near_mm: distance along the cortex up to which patches count as the same place.
        temperature: of the softmax.

    Returns:
        [B] float32, in nats; a patch without a positive counts 0.
    """
    features = _patches(outputs)
    # the bound keeps the gradient of a zero vector finite
    unit = features / optax.safe_norm(features, 1e-6, axis=-1, keepdims=True)
    logits = unit @ unit.T / temperature
    distance = batch["all_distances"]
    others = ~jnp.eye(len(features), dtype=bool)
    positive = (distance <= near_mm) & others
    negative = (distance > near_mm) & jnp.isfinite(distance)
    # not -inf: a row without negatives would make NaN of the gradient
    against = jax.nn.logsumexp(jnp.where(negative, logits, -1e9), axis=1, keepdims=True)
    nats = jnp.where(positive, jnp.logaddexp(logits, against) - logits, 0.0)
    return _per_pair(nats.sum(axis=1) / jnp.maximum(positive.sum(axis=1), 1))


def _patches(outputs: Arrays) -> jax.Array:
    """Features [2B, F] float32 of all patches of the batch."""
    features = outputs["features"]
    if features.ndim != 3 or features.shape[1] != 2:
        raise ValueError(f"outputs['features'] has shape {features.shape}, expected [B, 2, F]")
    return features.reshape(-1, features.shape[-1]).astype(jnp.float32)


def _per_pair(values: jax.Array) -> jax.Array:
    """[2B] -> [B], the mean over both patches of a pair."""
    return values.reshape(-1, 2).mean(axis=1)
