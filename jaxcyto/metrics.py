"""Metrics as (sum, count) states: a dict, name -> (sum, count).

States of several batches or devices are added, and divided once at the end, so that a padded last
batch weighs what it holds: never means of means. Inside a mapped step, add them with
`jax.lax.psum(state, axis_name)`; on the host, with `merge`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcyto.losses import IGNORE, predicted_distance

Metrics = Mapping[str, tuple[jax.Array | np.ndarray, jax.Array | np.ndarray]]


# ---- pre-training -------------------------------------------------------------------------------


def predictions_mm(
    outputs: Mapping[str, jax.Array],
    *,
    distance_scale_mm: float,
    low_mm: jax.Array,
    high_mm: jax.Array,
) -> dict[str, jax.Array]:
    """Outputs of the network, from scaled units back to mm.

    Args:
        outputs: `features` [B, 2, F] and `coordinates` [B, 2, 3], scaled units.
        distance_scale_mm: mean distance of the training pairs, mm.
        low_mm: [3] lowest training coordinates, scaled to -1.
        high_mm: [3] highest training coordinates, scaled to 1.

    Returns:
        `distance` [B] and `coordinates` [B, 2, 3], both mm, float32.
    """
    low, high = jnp.asarray(low_mm)[None, None], jnp.asarray(high_mm)[None, None]
    return {
        "distance": predicted_distance(outputs["features"]) * distance_scale_mm,
        "coordinates": low + (outputs["coordinates"] + 1) / 2 * (high - low),
    }


def pretext_metrics(
    predicted: Mapping[str, jax.Array], batch: Mapping[str, jax.Array]
) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Errors of one batch, in mm.

    * `distance_mae_mm`: mean over pairs of |predicted - true distance|;
    * `coordinate_mae_mm`: mean over patches of the Euclidean distance of predicted and true
      position in 3D;
    * `coordinate_mae_mm_per_axis`: mean over patches of |predicted - true coordinate|, one value
      for each of x, y, z.

    Args:
        predicted: `distance` [B] and `coordinates` [B, 2, 3], mm. A constant predictor, broadcast
            to these shapes, is scored in the same way.
        batch: `distance` [B] and `coordinates` [B, 2, 3], mm; `valid` bool [B], if present, leaves
            the other pairs out.

    Returns:
        The state: (sum, count), float32; scalars, but a sum of shape [3] for the errors per axis.

    Raises:
        ValueError: on shapes that do not match.
    """
    for name in ("distance", "coordinates"):
        if predicted[name].shape != batch[name].shape:
            raise ValueError(
                f"predicted {name} has shape {predicted[name].shape},"
                f" batch['{name}'] has shape {batch[name].shape}"
            )
    valid = batch.get("valid", None)
    if valid is None:
        valid = jnp.ones(batch["distance"].shape, bool)
    if valid.shape != batch["distance"].shape:
        raise ValueError(
            f"batch['valid'] has shape {valid.shape}, expected [B] = {batch['distance'].shape}"
        )
    # Padding may hold anything, NaN included: it is replaced, not multiplied by zero.
    distance = jnp.where(valid, jnp.abs(predicted["distance"] - batch["distance"]), 0)
    offset = predicted["coordinates"] - batch["coordinates"]
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
    """Annotated pixels by annotated class (rows) and predicted class (columns), per example.

    Args:
        predicted: class numbers [B, h, w].
        label: class numbers [B, h, w]; 255 = not annotated, counted nowhere.
        num_classes: C.
        valid: bool [B]; matrices of the others are zero.

    Returns:
        [B, C, C] float32; whole numbers, exact up to 2^24.

    Raises:
        ValueError: on shapes that do not match.
    """
    if predicted.ndim != 3 or predicted.shape != label.shape:
        raise ValueError(f"predicted {predicted.shape}, label {label.shape}; expected [B, h, w]")
    counted = label != IGNORE
    if valid is not None:
        counted = counted & valid[:, None, None]
    # products of zeros and ones, so exact in any precision of the matrix unit
    rows = jax.nn.one_hot(jnp.where(counted, label, num_classes), num_classes)
    columns = jax.nn.one_hot(predicted, num_classes)
    return jnp.einsum("bhwr,bhwc->brc", rows, columns)


def segmentation_scores(
    confusion: np.ndarray, names: Sequence[str], areas: Sequence[bool]
) -> dict[str, Any]:
    """Scores of a confusion matrix summed over everything that is scored.

    * `dice`: for each class 2 TP / (2 TP + FP + FN), in annotated pixels (TP: annotated and
      predicted as the class, FP: predicted only, FN: annotated only). None where no pixel is
      annotated as the class.
    * `dice_macro`: mean of these over the annotated classes; `dice_macro_areas`: over the annotated
      cytoarchitectonic areas. None if there are none. That Spitzer et al. average like this is an
      assumption.
    * `err_seg_percent`: percentage of annotated pixels with another class predicted (that the
      paper's err_seg is this is an assumption, almost certain).
    * `pixels`: annotated pixels.

    Args:
        confusion: [C, C], rows annotated, columns predicted; further columns: pixels without a
            prediction, which are wrong.
        names: of the classes.
        areas: whether each class is an area, and not other cortex, white matter or background.
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


def merge(*states: Metrics) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Adds states on the host, in float64; a name may be missing from some of them."""
    merged: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for state in states:
        for name, (total, count) in state.items():
            old_total, old_count = merged.get(name, (np.float64(0), np.float64(0)))
            merged[name] = (
                old_total + np.asarray(total, np.float64),
                old_count + np.asarray(count, np.float64),
            )
    return merged


def compute(state: Metrics) -> dict[str, float | list[float]]:
    """Means, ready for JSON; NaN where nothing was counted."""
    result: dict[str, float | list[float]] = {}
    for name, (total, count) in state.items():
        total, count = np.asarray(total, np.float64), np.asarray(count, np.float64)
        result[name] = (total / count if count > 0 else np.full_like(total, np.nan)).tolist()
    return result
