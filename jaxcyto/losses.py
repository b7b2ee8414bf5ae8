"""Loss terms: pure functions `(outputs, batch) -> [B]`, one float32 value per example.

Pre-training: a term reads the outputs of the network (`features` [B, 2, F], `coordinates`
[B, 2, 3], in scaled units) and the batch. Targets in scaled units are `batch["distance_target"]`
[B] and `batch["coordinate_target"]` [B, 2, 3]; the training step puts them beside the fields in mm.
Where they are missing, `distance` and `coordinates` are taken as they are.

Segmentation: outputs are `logits` [B, h, w, C], the batch holds `label` [B, h, w]. Pixels labeled
255 are not annotated and enter no term.

Your own term is a function of the same form in your own file: see docs/losses.md.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import DictKey

Arrays = Mapping[str, jax.Array]
Loss = Callable[[Arrays, Arrays], jax.Array]
Terms = Sequence[Any]  # of (function, weight): pairs, or `config.Term`s

FORMS = ("l1", "l2", "huber")
IGNORE = 255  # label of pixels that nobody annotated


# ---- terms of pre-training ----------------------------------------------------------------------


def predicted_distance(features: jax.Array) -> jax.Array:
    """Squared Euclidean distance of the two feature vectors (Spitzer et al. 2018, section 2).

    Its gradient at equal features is zero, not NaN: no square root is taken.

    Args:
        features: [B, 2, F], scaled units.

    Returns:
        [B] float32, predicted distance in scaled units.
    """
    if features.ndim != 3 or features.shape[1] != 2:
        raise ValueError(f"outputs['features'] has shape {features.shape}, expected [B, 2, F]")
    features = _at_least_float32(features)
    return jnp.sum(jnp.square(features[:, 0] - features[:, 1]), axis=-1)


def distance_loss(
    outputs: Arrays, batch: Arrays, *, form: str = "l1", huber_delta: float = 1.0
) -> jax.Array:
    """Difference of predicted and true distance along the surface.

    Args:
        outputs: `features` [B, 2, F].
        batch: `distance_target` [B] in scaled units, or `distance` [B].
        form: "l1", "l2" (the plain square, without 1/2) or "huber"; the paper does not say which.
            On a phantom the others predict distances 0.3 to 0.4 mm better, and l1 is not worse
            where it counts, after fine-tuning (three seeds, docs/results.md).
        huber_delta: where "huber" turns from quadratic to linear, scaled units.

    Returns:
        [B] float32.

    Raises:
        ValueError: on an unknown form, or shapes that do not match.
    """
    predicted = predicted_distance(outputs["features"])
    target = _target(batch, "distance_target", "distance", predicted.shape)
    return _outer(predicted - target, form, huber_delta)


def coordinate_loss(
    outputs: Arrays, batch: Arrays, *, form: str = "l1", huber_delta: float = 1.0
) -> jax.Array:
    """Difference of predicted and true 3D position, mean over both patches and the three axes.

    The mean over axes, where a sum would do as well, is an assumption.

    Args:
        outputs: `coordinates` [B, 2, 3].
        batch: `coordinate_target` [B, 2, 3] in scaled units, or `coordinates` [B, 2, 3].
        form: "l1", "l2" (the plain square, without 1/2) or "huber"; the paper does not say which.
            On a phantom the others predict distances 0.3 to 0.4 mm better, and l1 is not worse
            where it counts, after fine-tuning (three seeds, docs/results.md).
        huber_delta: where "huber" turns from quadratic to linear, scaled units.

    Returns:
        [B] float32.

    Raises:
        ValueError: on an unknown form, or shapes that do not match.
    """
    predicted = _at_least_float32(outputs["coordinates"])
    if predicted.ndim != 3 or predicted.shape[1:] != (2, 3):
        raise ValueError(f"outputs['coordinates'] has shape {predicted.shape}, expected [B, 2, 3]")
    target = _target(batch, "coordinate_target", "coordinates", predicted.shape)
    return jnp.mean(_outer(predicted - target, form, huber_delta), axis=(1, 2))


# ---- terms of segmentation ----------------------------------------------------------------------


def cross_entropy(outputs: Arrays, batch: Arrays) -> jax.Array:
    """Softmax cross-entropy, mean over the annotated pixels of an example (0 without any).

    That each example weighs the same, however many of its pixels are annotated, is an assumption.

    Args:
        outputs: `logits` [B, h, w, C].
        batch: `label` [B, h, w], class numbers; 255 = not annotated.

    Returns:
        [B] float32, in nats.

    Raises:
        ValueError: on shapes that do not match.
    """
    logits, label, annotated = _pixels(outputs, batch)
    values = optax.losses.softmax_cross_entropy_with_integer_labels(logits, label)
    return _mean_where(values, annotated)


def focal_loss(outputs: Arrays, batch: Arrays, *, gamma: float = 2.0) -> jax.Array:
    """Focal loss of each class against the others, summed over classes (Lin et al. 2017, eq. 4).

    Args:
        outputs: `logits` [B, h, w, C].
        batch: `label` [B, h, w], class numbers; 255 = not annotated.
        gamma: how much less a pixel counts that is already right.

    Returns:
        [B] float32, mean over the annotated pixels of an example (0 without any).

    Raises:
        ValueError: on shapes that do not match.
    """
    logits, label, annotated = _pixels(outputs, batch)
    one_hot = jax.nn.one_hot(label, logits.shape[-1])
    values = optax.losses.sigmoid_focal_loss(logits, one_hot, gamma=gamma)
    return _mean_where(jnp.sum(values, axis=-1), annotated)


def dice_loss(outputs: Arrays, batch: Arrays, *, smooth: float = 1.0) -> jax.Array:
    """Soft Dice loss of an example, mean over all classes (Milletari et al. 2016).

    Args:
        outputs: `logits` [B, h, w, C].
        batch: `label` [B, h, w], class numbers; 255 = not annotated.
        smooth: pixels added to numerator and denominator, so that absent classes cost little.

    Returns:
        [B] float32.

    Raises:
        ValueError: on shapes that do not match.
    """
    logits, label, annotated = _pixels(outputs, batch)
    classes = logits.shape[-1]
    # Pixels without annotation go, as a whole, to one class more, which is then left out.
    logits = jnp.where(annotated[..., None], logits, -1e9)
    extra = jnp.where(annotated, -1e9, 0.0)[..., None]
    target = jax.nn.one_hot(jnp.where(annotated, label, classes), classes + 1)
    values = optax.losses.dice_loss(
        jnp.concatenate([logits, extra], axis=-1), target, smooth=smooth, reduction="none"
    )
    return jnp.mean(values[:, :classes], axis=-1)


# ---- terms together -----------------------------------------------------------------------------


def batchwise[F: Callable[..., jax.Array]](loss: F) -> F:
    """Marks a term whose value for one example depends on the others (all pairs, contrastive).

    The training step hands such a term the outputs and the batch of all devices, gathered, so
    that its value does not depend on their number. It returns [B] for all examples of these.
    """
    loss.batchwise = True  # type: ignore[attr-defined]
    return loss


def is_batchwise(loss: Callable[..., Any]) -> bool:
    """Whether `batchwise` marks this function, or the one inside a `functools.partial`."""
    return bool(getattr(loss, "batchwise", False) or getattr(_inner(loss), "batchwise", False))


def term_means(terms: Terms, outputs: Arrays, batch: Arrays) -> dict[str, jax.Array]:
    """Mean of each term over the valid examples, unweighted, by name of its function.

    Args:
        terms: (function, weight), ...; a function that comes twice gets `_2` on its name.
        outputs: what the network returned.
        batch: the batch; `valid` bool [B], if present, leaves the others out.

    Raises:
        ValueError: if a term does not return one value per example.
    """
    size = len(jax.tree.leaves(dict(outputs))[0])
    valid = batch.get("valid", None)
    if valid is not None and valid.shape != (size,):
        raise ValueError(f"batch['valid'] has shape {valid.shape}, expected [B] = ({size},)")
    means: dict[str, jax.Array] = {}
    for loss, _ in terms:
        name = unique = getattr(_inner(loss), "__name__", type(loss).__name__)
        count = 1
        while unique in means:
            count += 1
            unique = f"{name}_{count}"
        values = loss(outputs, batch)
        if values.shape != (size,):
            raise ValueError(
                f"the loss {name} returned shape {values.shape}, expected one value per example,"
                f" [B] = ({size},)"
            )
        values = _at_least_float32(values)
        if valid is None:
            means[unique] = jnp.mean(values)
        else:
            total = jnp.sum(jnp.where(valid, values, 0))
            means[unique] = total / jnp.maximum(jnp.sum(valid), 1)
    return means


def total_loss(terms: Terms, outputs: Arrays, batch: Arrays) -> jax.Array:
    """Weighted sum of the terms, each averaged over the valid examples.

    Args:
        terms: (function, weight), ...
        outputs: what the network returned.
        batch: the batch; `valid` bool [B], if present, leaves the others out.

    Returns:
        Scalar, float32. Weight decay is not in it: see `weight_decay`.
    """
    means = term_means(terms, outputs, batch).values()
    zero = jnp.zeros((), jnp.float32)
    return sum((weight * mean for (_, weight), mean in zip(terms, means, strict=True)), zero)


def weight_decay(params: Any) -> jax.Array:
    """||w||^2 over the kernels of convolutions and dense layers.

    That batch norm's scales and all biases are spared is an assumption; the paper writes
    lambda ||w||^2 and no more.

    Args:
        params: parameters of a Flax module.

    Returns:
        Scalar, float32.
    """
    total = jnp.zeros((), jnp.float32)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if isinstance(path[-1], DictKey) and path[-1].key == "kernel":
            total += jnp.sum(jnp.square(_at_least_float32(leaf)))
    return total


# ---- helpers ------------------------------------------------------------------------------------


def _outer(error: jax.Array, form: str, huber_delta: float) -> jax.Array:
    if form == "l1":
        return jnp.abs(error)
    if form == "l2":
        return jnp.square(error)
    if form == "huber":
        return optax.losses.huber_loss(error, delta=huber_delta)
    raise ValueError(f"form {form!r} is none of {', '.join(FORMS)}")


def _pixels(outputs: Arrays, batch: Arrays) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Logits [B, h, w, C], labels with 0 for what is not annotated, and what is annotated."""
    logits, label = _at_least_float32(outputs["logits"]), jnp.asarray(batch["label"])
    if logits.ndim != 4 or label.shape != logits.shape[:3]:
        raise ValueError(
            f"outputs['logits'] has shape {logits.shape}, batch['label'] {label.shape}; expected"
            " [B, h, w, C] and [B, h, w]"
        )
    annotated = label != IGNORE
    return logits, jnp.where(annotated, label, 0).astype(jnp.int32), annotated


def _mean_where(values: jax.Array, where: jax.Array) -> jax.Array:
    """Mean [B] over pixels [B, h, w], 0 where there are none."""
    total = jnp.sum(jnp.where(where, values, 0), axis=(1, 2))
    return total / jnp.maximum(jnp.sum(where, axis=(1, 2)), 1)


def _target(batch: Arrays, scaled: str, raw: str, shape: tuple[int, ...]) -> jax.Array:
    name = scaled if scaled in batch else raw
    target = _at_least_float32(batch[name])
    if target.shape != shape:  # silent broadcasting would give a plausible, wrong loss
        raise ValueError(f"batch['{name}'] has shape {target.shape}, the outputs call for {shape}")
    return target


def _at_least_float32(x: jax.Array) -> jax.Array:
    """float32, except that float64 (the reference in tests) stays what it is."""
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _inner(function: Callable[..., Any]) -> Callable[..., Any]:
    while isinstance(function, functools.partial):
        function = function.func
    return function
