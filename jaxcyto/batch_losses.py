"""Loss terms of pre-training that compare all patches of a batch (`losses.batchwise`).

The paper does not use them. Both read the distances between all patches of the batch, which the
loader adds if `data.all_distances` is True. `jaxcyto pair BRAIN --all-distances` writes them. Row
and column 2 i + j belong to patch j of pair i.
"""

import jax
import jax.numpy as jnp
import optax

from jaxcyto.losses import Arrays, batchwise, required


@batchwise
def all_pairs_distance_loss(outputs: Arrays, batch: Arrays) -> jax.Array:
    """Compare predicted and true distance of each patch to all others of its hemisphere.

    A batch of B pairs holds B (2B - 1) distances, and using all of them needs no further forward
    pass.

    Args:
        outputs: `features` [B, 2, F], scaled units.
        batch: `all_distances_scaled` [2B, 2B], infinite between hemispheres.

    Returns:
        [B] float32, absolute error averaged over both patches of a pair and over their partners.

    Raises:
        ValueError: the features have another shape.
        InputError: the batch has no such distances.
    """
    features = _patches(outputs)
    predicted = jnp.sum(jnp.square(features[:, None] - features[None]), axis=-1)
    target = required(batch, "all_distances_scaled")
    use = jnp.isfinite(target) & ~jnp.eye(len(features), dtype=bool)
    # Replace inf before the subtraction, because inf times zero in the gradient would be NaN.
    error = jnp.where(use, jnp.abs(predicted - jnp.where(use, target, 0.0)), 0.0)
    return _per_pair(error.sum(axis=1) / jnp.maximum(use.sum(axis=1), 1))


@batchwise
def colocation_loss(
    outputs: Arrays, batch: Arrays, *, near_mm: float = 2.0, temperature: float = 0.1
) -> jax.Array:
    """Contrast patches that are close along the cortex with patches that are far apart.

    This follows CytoNet's SpatialNCE (2025). It is InfoNCE (van den Oord et al. 2018, eq. 4) on the
    cosine of features, and all patches within `near_mm` are positives. Each positive is compared
    with the negatives alone, and the logarithms are averaged, as in Khosla et al. 2020, eq. 2, but
    without the other positives in the denominator. Patches of the other hemisphere are not used as
    negatives, because their location may correspond. Radius and temperature are assumptions.

    Args:
        outputs: `features` [B, 2, F].
        batch: `all_distances_mm` [2B, 2B], infinite between hemispheres. Draw near pairs
            (`jaxcyto pair --within`), so that every patch has a positive.
        near_mm: distance along the cortex up to which patches are positives.
        temperature: temperature of the softmax.

    Returns:
        [B] float32, in nats. A patch without a positive contributes 0.

    Raises:
        ValueError: the features have another shape.
        InputError: the batch has no such distances.
    """
    features = _patches(outputs)
    # The lower bound keeps the gradient of a zero vector finite.
    unit = features / optax.safe_norm(features, 1e-6, axis=-1, keepdims=True)
    logits = unit @ unit.T / temperature
    distance = required(batch, "all_distances_mm")
    others = ~jnp.eye(len(features), dtype=bool)
    positive = (distance <= near_mm) & others
    negative = (distance > near_mm) & jnp.isfinite(distance)
    # Use -1e9 instead of -inf, because a row without negatives would give a NaN gradient.
    against = jax.nn.logsumexp(jnp.where(negative, logits, -1e9), axis=1, keepdims=True)
    nats = jnp.where(positive, jnp.logaddexp(logits, against) - logits, 0.0)
    return _per_pair(nats.sum(axis=1) / jnp.maximum(positive.sum(axis=1), 1))


def _patches(outputs: Arrays) -> jax.Array:
    """Return the features [2B, F] float32 of all patches of the batch."""
    features = outputs["features"]
    if features.ndim != 3 or features.shape[1] != 2:
        raise ValueError(f"outputs['features'] has shape {features.shape}, expected [B, 2, F]")
    return features.reshape(-1, features.shape[-1]).astype(jnp.float32)


def _per_pair(values: jax.Array) -> jax.Array:
    """Average [2B] over both patches of each pair, giving [B]."""
    return values.reshape(-1, 2).mean(axis=1)
