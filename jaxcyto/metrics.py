"""Metrics of the pretext task as (sum, count) states: a dict, name -> (sum, count).

States of several batches or devices are added, and divided once at the end, so that a padded last
batch weighs what it holds: never means of means. Inside a mapped step, add them with
`jax.lax.psum(state, axis_name)`; on the host, with `merge`.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from jaxcyto.losses import predicted_distance

State = Mapping[str, tuple[jax.Array | np.ndarray, jax.Array | np.ndarray]]


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


def mean_metrics(
    values: Mapping[str, jax.Array], valid: jax.Array | None = None
) -> dict[str, tuple[jax.Array, jax.Array]]:
    """State of per-example values [B], such as those of a loss term, over the valid ones."""
    state = {}
    for name, value in values.items():
        keep = jnp.ones(value.shape, bool) if valid is None else valid
        state[name] = (jnp.sum(jnp.where(keep, value, 0)), jnp.sum(keep, dtype=jnp.float32))
    return state


def merge(*states: State) -> dict[str, tuple[np.ndarray, np.ndarray]]:
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


def compute(state: State) -> dict[str, float | list[float]]:
    """Means, ready for JSON; NaN where nothing was counted."""
    result: dict[str, float | list[float]] = {}
    for name, (total, count) in state.items():
        total, count = np.asarray(total, np.float64), np.asarray(count, np.float64)
        result[name] = (total / count if count > 0 else np.full_like(total, np.nan)).tolist()
    return result
