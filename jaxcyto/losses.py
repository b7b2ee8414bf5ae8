"""Loss terms: pure functions `(outputs, batch) -> [B]` that return one float32 value per example.

Pre-training terms read the outputs `features` [B, 2, F] and `coordinates_scaled` [B, 2, 3]. Their
targets are `batch["distance_scaled"]` [B] and `batch["coordinates_scaled"]` [B, 2, 3], which the
training step derives from `distance_mm` and `coordinates_mm`. A term never falls back from scaled
units to millimeters. It raises an error if its target is missing.

Segmentation terms read the output `logits` [B, h, w, C] and `batch["label"]` [B, h, w]. Pixels with
the label 255 are not annotated and contribute to no term.

To add your own term, write a function of the same form in your own file. See docs/losses.md.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import DictKey

from jaxcyto.errors import InputError

Arrays = Mapping[str, jax.Array]
Loss = Callable[[Arrays, Arrays], jax.Array]
Terms = Sequence[Any]  # pairs (function, weight), or `config.Term`s

FORMS = ("l1", "l2", "huber")
IGNORE = 255  # label of pixels that are not annotated
# Old key -> new key, for losses that were written for version 0.1.
RENAMED_OUTPUTS = {"coordinates": "coordinates_scaled"}
RENAMED_FIELDS = {
    "distance": "distance_mm",
    "coordinates": "coordinates_mm",
    "all_distances": "all_distances_mm",
    "distance_target": "distance_scaled",
    "coordinate_target": "coordinates_scaled",
    "all_distances_target": "all_distances_scaled",
}


# ---- terms of pre-training ----------------------------------------------------------------------


def predicted_distance(features: jax.Array) -> jax.Array:
    """Return the squared Euclidean distance of features (Spitzer et al. 2018, section 2).

    No square root is taken, so the gradient at equal features is zero and not NaN.

    Args:
        features: [B, 2, F], scaled units.

    Returns:
        [B] float32, predicted distance in scaled units.

    Raises:
        ValueError: the features have another shape.
    """
    if features.ndim != 3 or features.shape[1] != 2:
        raise ValueError(f"outputs['features'] has shape {features.shape}, expected [B, 2, F]")
    features = _at_least_float32(features)
    return jnp.sum(jnp.square(features[:, 0] - features[:, 1]), axis=-1)


def distance_loss(
    outputs: Arrays, batch: Arrays, *, form: str = "l1", huber_delta: float = 1.0
) -> jax.Array:
    """Compare predicted and true distance along the surface.

    Args:
        outputs: `features` [B, 2, F].
        batch: `distance_scaled` [B].
        form: "l1", "l2" (the plain square, without the factor 1/2) or "huber". The paper does not
            specify it, so the default is an assumption. On a phantom, "l2" and "huber" predict
            distances 0.3 to 0.4 mm better, but after fine-tuning "l1" is not worse (three seeds,
            docs/results.md).
        huber_delta: error at which "huber" changes from quadratic to linear, scaled units.

    Returns:
        [B] float32.

    Raises:
        ValueError: the form is unknown, or shapes do not match.
        InputError: the target is missing.
    """
    predicted = predicted_distance(outputs["features"])
    target = _target(batch, "distance_scaled", predicted.shape)
    return _outer(predicted - target, form, huber_delta)


def coordinate_loss(
    outputs: Arrays, batch: Arrays, *, form: str = "l1", huber_delta: float = 1.0
) -> jax.Array:
    """Compare predicted and true 3D position, averaged over both patches and the three axes.

    Averaging over axes instead of summing is an assumption.

    Args:
        outputs: `coordinates_scaled` [B, 2, 3].
        batch: `coordinates_scaled` [B, 2, 3].
        form: "l1", "l2" (the plain square, without the factor 1/2) or "huber". The paper does not
            specify it, so the default is an assumption. On a phantom, "l2" and "huber" predict
            distances 0.3 to 0.4 mm better, but after fine-tuning "l1" is not worse (three seeds,
            docs/results.md).
        huber_delta: error at which "huber" changes from quadratic to linear, scaled units.

    Returns:
        [B] float32.

    Raises:
        ValueError: the form is unknown, or shapes do not match.
        InputError: the target is missing.
    """
    predicted = _at_least_float32(outputs["coordinates_scaled"])
    if predicted.ndim != 3 or predicted.shape[1:] != (2, 3):
        raise ValueError(
            f"outputs['coordinates_scaled'] has shape {predicted.shape}, expected [B, 2, 3]"
        )
    target = _target(batch, "coordinates_scaled", predicted.shape)
    return jnp.mean(_outer(predicted - target, form, huber_delta), axis=(1, 2))


# ---- terms of segmentation ----------------------------------------------------------------------


def cross_entropy(outputs: Arrays, batch: Arrays) -> jax.Array:
    """Average the softmax cross-entropy over the annotated pixels of each example.

    An example without annotated pixels contributes 0. Weighing all examples equally, regardless of
    how many of their pixels are annotated, is an assumption.

    Args:
        outputs: `logits` [B, h, w, C].
        batch: `label` [B, h, w], class indices. 255 means not annotated.

    Returns:
        [B] float32, in nats.

    Raises:
        ValueError: shapes do not match.
    """
    logits, label, annotated = _pixels(outputs, batch)
    values = optax.losses.softmax_cross_entropy_with_integer_labels(logits, label)
    return _mean_where(values, annotated)


def focal_loss(outputs: Arrays, batch: Arrays, *, gamma: float = 2.0) -> jax.Array:
    """Sum the focal losses of each class against the others (Lin et al. 2017, eq. 4).

    Args:
        outputs: `logits` [B, h, w, C].
        batch: `label` [B, h, w], class indices. 255 means not annotated.
        gamma: exponent that lowers the weight of pixels that are already classified correctly.

    Returns:
        [B] float32, mean over the annotated pixels of an example (0 without any).

    Raises:
        ValueError: shapes do not match.
    """
    logits, label, annotated = _pixels(outputs, batch)
    one_hot = jax.nn.one_hot(label, logits.shape[-1])
    values = optax.losses.sigmoid_focal_loss(logits, one_hot, gamma=gamma)
    return _mean_where(jnp.sum(values, axis=-1), annotated)


def dice_loss(outputs: Arrays, batch: Arrays, *, smooth: float = 1.0) -> jax.Array:
    """Average the soft Dice loss of each example over all classes (Milletari et al. 2016).

    Args:
        outputs: `logits` [B, h, w, C].
        batch: `label` [B, h, w], class indices. 255 means not annotated.
        smooth: pixel count added to numerator and denominator, so that absent classes cost little.

    Returns:
        [B] float32.

    Raises:
        ValueError: shapes do not match.
    """
    logits, label, annotated = _pixels(outputs, batch)
    classes = logits.shape[-1]
    # Assign pixels without annotation to an extra class, which the mean below leaves out.
    logits = jnp.where(annotated[..., None], logits, -1e9)
    extra = jnp.where(annotated, -1e9, 0.0)[..., None]
    target = jax.nn.one_hot(jnp.where(annotated, label, classes), classes + 1)
    values = optax.losses.dice_loss(
        jnp.concatenate([logits, extra], axis=-1), target, smooth=smooth, reduction="none"
    )
    return jnp.mean(values[:, :classes], axis=-1)


# ---- terms together -----------------------------------------------------------------------------


def batchwise[F: Callable[..., jax.Array]](loss: F) -> F:
    """Mark a term whose value for one example depends on the others (all pairs, contrastive).

    The training step passes the outputs and the batch gathered from all devices to such a term, so
    that its value does not depend on the number of devices. The term returns [B] for the global
    batch.
    """
    loss.batchwise = True  # type: ignore[attr-defined]
    return loss


def is_batchwise(loss: Callable[..., Any]) -> bool:
    """Return whether `batchwise` marks this function, or the one inside a `functools.partial`."""
    return bool(getattr(loss, "batchwise", False) or getattr(_inner(loss), "batchwise", False))


def term_means(terms: Terms, outputs: Arrays, batch: Arrays) -> dict[str, jax.Array]:
    """Average each term over the valid examples, without its weight.

    Args:
        terms: pairs (function, weight). A function that occurs twice gets the suffix `_2`.
        outputs: outputs of the network.
        batch: fields of the batch. If `valid` bool [B] is present, other examples are left out.

    Returns:
        A scalar per term, by the name of its function.

    Raises:
        ValueError: a term does not return one value per example.
        InputError: a term reads a key that was renamed.
    """
    outputs = _Fields(outputs, "outputs", RENAMED_OUTPUTS)
    batch = _Fields(batch, "batch", RENAMED_FIELDS)
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
    """Return the weighted sum of the terms, each averaged over the valid examples.

    Args:
        terms: pairs (function, weight).
        outputs: outputs of the network.
        batch: fields of the batch. If `valid` bool [B] is present, other examples are left out.

    Returns:
        Scalar, float32, without weight decay (see `weight_decay`).

    Raises:
        ValueError, InputError: as `term_means`.
    """
    means = term_means(terms, outputs, batch).values()
    zero = jnp.zeros((), jnp.float32)
    return sum((weight * mean for (_, weight), mean in zip(terms, means, strict=True)), zero)


def weight_decay(params: Any) -> jax.Array:
    """Return ||w||^2 over the kernels of convolutions and dense layers.

    The paper writes lambda ||w||^2 and does not define w. Leaving out batch normalization's scales
    and all biases is an assumption.

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
    """Return logits [B, h, w, C], labels with 0 where not annotated, and the annotated mask."""
    logits, label = _at_least_float32(outputs["logits"]), jnp.asarray(batch["label"])
    if logits.ndim != 4 or label.shape != logits.shape[:3]:
        raise ValueError(
            f"outputs['logits'] has shape {logits.shape}, batch['label'] {label.shape}; expected"
            " [B, h, w, C] and [B, h, w]"
        )
    annotated = label != IGNORE
    return logits, jnp.where(annotated, label, 0).astype(jnp.int32), annotated


def _mean_where(values: jax.Array, where: jax.Array) -> jax.Array:
    """Average [B, h, w] over the masked pixels of each example, 0 where there are none."""
    total = jnp.sum(jnp.where(where, values, 0), axis=(1, 2))
    return total / jnp.maximum(jnp.sum(where, axis=(1, 2)), 1)


def _target(batch: Arrays, name: str, shape: tuple[int, ...]) -> jax.Array:
    """Return a target of the batch, at least float32.

    Raises:
        InputError: it is missing.
        ValueError: it has another shape. Broadcasting would give a plausible but wrong loss.
    """
    target = _at_least_float32(required(batch, name))
    if target.shape != shape:
        raise ValueError(f"batch['{name}'] has shape {target.shape}, expected {shape}")
    return target


def required(batch: Arrays, name: str) -> jax.Array:
    """Return a field of the batch that a loss cannot do without.

    Raises:
        InputError: it is missing.
    """
    if name not in batch:
        what = (
            "set data.all_distances = True, so that the loader adds it"
            if name.startswith("all_distances")
            else "losses take scaled targets, which config.Scales converts from millimeters"
        )
        raise InputError(f"batch['{name}'] is missing; {what}")
    return batch[name]


class _Fields(dict):
    """Arrays by name. Using a key of version 0.1 raises an error that names the new key.

    A plain dict that a loss makes of it (`dict(batch)`) no longer does so.
    """

    def __init__(self, arrays: Arrays, kind: str, renamed: Mapping[str, str]):
        super().__init__(arrays)
        self._kind, self._renamed = kind, renamed

    def __missing__(self, key: str) -> jax.Array:
        self._check(key)
        raise KeyError(f"{self._kind}[{key!r}] does not exist; there are {', '.join(self)}")

    def __contains__(self, key: object) -> bool:
        found = super().__contains__(key)
        if not found:
            self._check(key)
        return found

    def get(self, key: str, default: Any = None) -> Any:
        """Return a field or the default, and raise for a renamed key."""
        return self[key] if key in self else default

    def pop(self, key: str, *default: Any) -> Any:
        """Remove and return a field, and raise for a renamed key."""
        return super().pop(key, *default) if key in self else dict[str, Any]().pop(key, *default)

    def copy(self) -> _Fields:
        """Return a copy that raises for renamed keys as well."""
        return _Fields(self, self._kind, self._renamed)

    def __or__(self, other: Any) -> _Fields:
        return _Fields({**self, **other}, self._kind, self._renamed)

    def _check(self, key: object) -> None:
        if new := self._renamed.get(str(key)):
            raise InputError(
                f"a loss reads {self._kind}[{key!r}]; the key is now {self._kind}[{new!r}] "
                "(docs/losses.md lists all of them)"
            )


def _flatten(fields: _Fields) -> tuple[tuple[Any, ...], Any]:
    return tuple(fields.values()), (tuple(fields), fields._kind, tuple(fields._renamed.items()))


def _unflatten(static: Any, values: tuple[Any, ...]) -> _Fields:
    keys, kind, renamed = static
    return _Fields(dict(zip(keys, values, strict=True)), kind, dict(renamed))


# JAX does not treat a subclass of dict as a tree until it is registered. Losses may call `jax.jit`.
jax.tree_util.register_pytree_node(_Fields, _flatten, _unflatten)


def _at_least_float32(x: jax.Array) -> jax.Array:
    """Convert to float32, but keep float64, which tests use as the reference."""
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _inner(function: Callable[..., Any]) -> Callable[..., Any]:
    while isinstance(function, functools.partial):
        function = function.func
    return function
