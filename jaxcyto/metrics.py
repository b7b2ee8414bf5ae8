"""Metrics as dicts that map a name to (sum, count).

Metrics of several batches or devices are added and divided once at the end, so that a padded last
batch is weighted by the examples it holds. Averaging the means of batches would be wrong. Inside a
mapped step, add them with `jax.lax.psum(metrics, axis_name)`. On the host, use `merge`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcyto.losses import IGNORE

Metrics = Mapping[str, tuple[jax.Array | np.ndarray, jax.Array | np.ndarray]]


# ---- pre-training -------------------------------------------------------------------------------


def pretext_metrics(
    predicted: Mapping[str, jax.Array], batch: Mapping[str, jax.Array]
) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Compute the errors of one batch in millimeters.

    * `distance_mae_mm`: mean over pairs of |predicted - true distance|.
    * `coordinate_mae_mm`: mean over patches of the Euclidean distance between predicted and true
      3D position.
    * `coordinate_mae_mm_per_axis`: mean over patches of |predicted - true coordinate|, one value
      for each of x, y and z.

    Args:
        predicted: `distance_mm` [B] and `coordinates_mm` [B, 2, 3]. A constant predictor is scored
            in the same way, after broadcasting to these shapes.
        batch: `distance_mm` [B] and `coordinates_mm` [B, 2, 3]. If `valid` bool [B] is present,
            other pairs are left out.

    Returns:
        (sum, count) by name, float32 scalars. The sum of the errors per axis has shape [3].

    Raises:
        ValueError: shapes do not match.
    """
    for name in ("distance_mm", "coordinates_mm"):
        if predicted[name].shape != batch[name].shape:
            raise ValueError(
                f"predicted {name} has shape {predicted[name].shape},"
                f" batch['{name}'] has shape {batch[name].shape}"
            )
    valid = batch.get("valid", None)
    if valid is None:
        valid = jnp.ones(batch["distance_mm"].shape, bool)
    if valid.shape != batch["distance_mm"].shape:
        raise ValueError(
            f"batch['valid'] has shape {valid.shape}, expected [B] = {batch['distance_mm'].shape}"
        )
    # Padding may hold anything, even NaN, so it is replaced instead of multiplied by zero.
    distance = jnp.where(valid, jnp.abs(predicted["distance_mm"] - batch["distance_mm"]), 0)
    offset = predicted["coordinates_mm"] - batch["coordinates_mm"]
    offset = jnp.where(valid[:, None, None], offset, 0)
    pairs = jnp.sum(valid, dtype=jnp.float32)
    return {
        "distance_mae_mm": (jnp.sum(distance), pairs),
        "coordinate_mae_mm": (jnp.sum(jnp.linalg.norm(offset, axis=-1)), 2 * pairs),
        "coordinate_mae_mm_per_axis": (jnp.sum(jnp.abs(offset), axis=(0, 1)), 2 * pairs),
    }


# ---- segmentation -------------------------------------------------------------------------------


def confusion_matrices(
    predicted: jax.Array, label: jax.Array, num_classes: int, valid: jax.Array | None = None
) -> jax.Array:
    """Count annotated pixels by annotated class (rows) and predicted class (columns).

    Args:
        predicted: class indices [B, h, w].
        label: class indices [B, h, w]. 255 means not annotated and is not counted.
        num_classes: C.
        valid: bool [B]. The matrices of other examples are zero.

    Returns:
        [B, C, C] float32, one matrix per example. Counts are exact up to 2^24.

    Raises:
        ValueError: shapes do not match.
    """
    if predicted.ndim != 3 or predicted.shape != label.shape:
        raise ValueError(f"predicted {predicted.shape}, label {label.shape}; expected [B, h, w]")
    counted = label != IGNORE
    if valid is not None:
        counted = counted & valid[:, None, None]
    # Products of zeros and ones are exact in any precision of the matrix unit.
    rows = jax.nn.one_hot(jnp.where(counted, label, num_classes), num_classes)
    columns = jax.nn.one_hot(predicted, num_classes)
    return jnp.einsum("bhwr,bhwc->brc", rows, columns)


def segmentation_scores(
    confusion: np.ndarray, names: Sequence[str], areas: Sequence[bool]
) -> dict[str, Any]:
    """Compute scores from a confusion matrix that is summed over all scored pixels.

    * `dice`: 2 TP / (2 TP + FP + FN) for each class, in annotated pixels. TP pixels are annotated
      and predicted as the class, FP pixels are only predicted as it, and FN pixels are only
      annotated as it. The value is None if no pixel is annotated as the class.
    * `dice_macro`: mean of `dice` over the annotated classes. `dice_macro_areas` is the mean over
      the annotated cytoarchitectonic areas. Both are None if there are none. It is an assumption
      that Spitzer et al. average in this way.
    * `err_seg_percent`: percentage of annotated pixels for which another class is predicted. It is
      an assumption, almost certain, that this is the paper's err_seg.
    * `pixels`: number of annotated pixels.

    Args:
        confusion: [C, C], annotated class by predicted class. Further columns count pixels without
            a prediction, which are wrong.
        names: names of the classes.
        areas: whether each class is an area, as opposed to other cortex, white matter or
            background.
    """
    confusion = np.asarray(confusion, np.float64)
    right, annotated = np.diag(confusion), confusion.sum(axis=1)
    predicted = confusion.sum(axis=0)[: len(right)]
    with np.errstate(invalid="ignore"):
        dice = 2 * right / (annotated + predicted)
    present = annotated > 0

    def mean(chosen: np.ndarray) -> float | None:
        return float(dice[chosen].mean()) if chosen.any() else None

    total = annotated.sum()
    return {
        "dice_macro_areas": mean(present & np.asarray(areas, bool)),
        "dice_macro": mean(present),
        "err_seg_percent": float(100 * (1 - right.sum() / total)) if total else None,
        "dice": {
            name: float(value) if known else None
            for name, value, known in zip(names, dice, present, strict=True)
        },
        "pixels": int(total),
    }


# ---- states -------------------------------------------------------------------------------------


def merge(*metrics: Metrics) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Add metrics on the host in float64. A name may be missing from some of them."""
    merged: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for one in metrics:
        for name, (total, count) in one.items():
            old_total, old_count = merged.get(name, (np.float64(0), np.float64(0)))
            merged[name] = (
                old_total + np.asarray(total, np.float64),
                old_count + np.asarray(count, np.float64),
            )
    return merged


def compute(metrics: Metrics) -> dict[str, float | list[float]]:
    """Divide sums by counts for JSON. The result is NaN where nothing was counted."""
    result: dict[str, float | list[float]] = {}
    for name, (total, count) in metrics.items():
        total, count = np.asarray(total, np.float64), np.asarray(count, np.float64)
        result[name] = (total / count if count > 0 else np.full_like(total, np.nan)).tolist()
    return result
