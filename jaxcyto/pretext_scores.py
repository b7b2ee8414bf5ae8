"""Score predicted distances and positions beside constants, by correlation and by calibration.

An error in millimeters alone does not tell what a network has learned. The scores here show how
far a constant gets, whether predictions follow the truth, and how much of their error is a wrong
scale or offset, which a line fitted to the test pairs removes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxcyto.utils.median import geometric_median

Predictions = dict[str, np.ndarray]


def constant_errors(
    known: Predictions, distance_median_mm: float, coordinate_median_mm: Sequence[float]
) -> dict[str, Any]:
    """Compute the errors of constant predictions, the baseline.

    Args:
        known: the true `distance_mm` [P] and `coordinates_mm` [P, 2, 3] of the scored pairs.
        distance_median_mm: median distance of the training pairs.
        coordinate_median_mm: geometric median of the training positions.

    Returns:
        The errors of `metrics.pretext_metrics` with the suffix `_constant` for the constants of
        training, and `_own_constant` for the best constants of the scored pairs themselves. The
        latter are no fair baseline, but show how much the pairs differ from those of training.
    """
    distance, points = known["distance_mm"], known["coordinates_mm"].reshape(-1, 3)
    training = distance_median_mm, np.asarray(coordinate_median_mm)
    own = np.median(distance), geometric_median(points)
    errors = {}
    for suffix, (length, place) in (("_constant", training), ("_own_constant", own)):
        errors |= {
            f"distance_mae_mm{suffix}": float(np.abs(distance - length).mean()),
            f"coordinate_mae_mm{suffix}": float(np.linalg.norm(points - place, axis=1).mean()),
            f"coordinate_mae_mm_per_axis{suffix}": np.abs(points - place).mean(axis=0).tolist(),
        }
    return errors


def calibration(known: Predictions, predicted: Predictions) -> dict[str, Any]:
    """Compute how predictions follow the truth, whatever their scale and offset.

    Args:
        known: the true `distance_mm` [P] and `coordinates_mm` [P, 2, 3].
        predicted: the predictions of the same names and shapes.

    Returns:
        `distance_correlation`: Pearson's correlation of predicted and true distance.
        `distance_spread`: standard deviation of the predictions over that of the truth.
        `distance_mae_mm_recalibrated`: mean absolute error after the least-squares line from
        prediction to truth, fitted to the same pairs. The same for positions:
        `coordinate_correlation_per_axis`, `coordinate_spread_per_axis` (lists of 3),
        `coordinate_mae_mm_recalibrated` (mean Euclidean distance, a line for each axis) and
        `coordinate_mae_mm_per_axis_recalibrated`. Correlation and spread are None where they are
        undefined, because predictions or truth are constant.
    """
    distance = _Line(known["distance_mm"], predicted["distance_mm"])
    truth = known["coordinates_mm"].reshape(-1, 3)
    axes = [
        _Line(own, said)
        for own, said in zip(truth.T, predicted["coordinates_mm"].reshape(-1, 3).T, strict=True)
    ]
    residuals = np.stack([axis.residuals for axis in axes], axis=1)
    return {
        "distance_correlation": distance.correlation,
        "distance_spread": distance.spread,
        "distance_mae_mm_recalibrated": float(np.abs(distance.residuals).mean()),
        "coordinate_correlation_per_axis": [axis.correlation for axis in axes],
        "coordinate_spread_per_axis": [axis.spread for axis in axes],
        "coordinate_mae_mm_recalibrated": float(np.linalg.norm(residuals, axis=1).mean()),
        "coordinate_mae_mm_per_axis_recalibrated": np.abs(residuals).mean(axis=0).tolist(),
    }


class _Line:
    """The least-squares line from predictions [N] to the truth [N]."""

    def __init__(self, truth: np.ndarray, predicted: np.ndarray):
        truth, predicted = truth.astype(np.float64), predicted.astype(np.float64)
        own, said = truth.std(), predicted.std()
        covariance = ((truth - truth.mean()) * (predicted - predicted.mean())).mean()
        # Rounding leaves a constant prediction with a deviation of some 1e-16 of its value.
        varies = said > 1e-9 * max(np.abs(predicted).max(), 1e-9)
        slope = covariance / said**2 if varies else 0.0
        self.residuals = truth - truth.mean() - slope * (predicted - predicted.mean())
        self.correlation = float(covariance / (own * said)) if varies and own else None
        self.spread = float(said / own) if own else None


def results_table(test: dict[str, Any], absolute_x: bool = False) -> str:
    """Format the test errors as a table.

    Args:
        test: the errors of `metrics.pretext_metrics`, `constant_errors` and `calibration`.
        absolute_x: whether |x| was the target instead of x.
    """
    names = ("|x|" if absolute_x else "x", "y", "z")
    rows = [("distance, mm", _row(test, "distance")), ("position, mm", _row(test, "coordinate"))]
    rows += [(f"  {name}", _row(test, "coordinate", axis)) for axis, name in enumerate(names)]
    head = ("network", "constant", "", "own const.", "recalib.", "correl.", "spread")
    lines = [f"{'mean error on the test pairs':<30}{''.join(f'{name:>11}' for name in head)}"]
    for name, values in rows:
        lines.append(f"{name:<30}{''.join(f'{value:>11}' for value in values)}")
    return "\n".join(lines)


def _row(test: dict[str, Any], target: str, axis: int | None = None) -> list[str]:
    """Format the scores of distances, of positions, or of positions along an axis."""
    suffix = "" if axis is None else "_per_axis"

    def value(key: str) -> float | None:
        found = test.get(key)
        return found[axis] if axis is not None and found is not None else found

    def number(found: float | None, form: str = ".2f") -> str:
        return "" if found is None else format(found, form)

    mae = f"{target}_mae_mm{suffix}"
    error, constant = value(mae), value(f"{mae}_constant")
    change = f"{100 * (error / constant - 1):+.0f}%" if error is not None and constant else ""
    return [
        number(error),
        number(constant),
        change,
        number(value(f"{mae}_own_constant")),
        number(value(f"{mae}_recalibrated")),
        number(value(f"{target}_correlation{suffix}")),
        number(value(f"{target}_spread{suffix}")),
    ]
