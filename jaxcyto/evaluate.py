"""Numbers of a trained network on pairs it has not seen, beside the best constant predictor."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxcyto import metrics
from jaxcyto.config import DataConfig, Scales
from jaxcyto.input import PairSource, PairTable, eval_batches, iterate, train_batches
from jaxcyto.training import parallel
from jaxcyto.training.state import State
from jaxcyto.training.step import Task, eval_step, from_moments, statistics_step


@dataclasses.dataclass(frozen=True, eq=False)
class Predictions:
    """Predictions for pairs, in mm: `distance` [P], `coordinates` [P, 2, 3]; `index` [P]."""

    index: np.ndarray
    distance: np.ndarray
    coordinates: np.ndarray


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """The evaluation steps, pmapped once for a whole run."""

    errors: Callable[[State, Any], Any]
    statistics: Callable[[State, Any], Any]

    @classmethod
    def of(cls, task: Task) -> "Evaluator":
        return cls(
            errors=parallel.pmap_eval(eval_step, (None, 0), task=task),
            statistics=parallel.pmap_eval(statistics_step, None, task=task),
        )

    def reestimate(
        self, state: State, source: PairSource, table: PairTable, config: DataConfig, steps: int
    ) -> State:
        """The state with batch statistics averaged over `steps` training batches.

        The running averages of training lag behind the parameters, and at 1x1 the last layer's
        see few values. Variances average as second moments, so the result is that of one large
        batch. The batches are the first ones of a fixed order, without augmentation.
        """
        batches = train_batches(source, table, config, seed=0)
        total: Any = None
        for batch in iterate(batches[:steps], config, parallel.place):
            moments = self.statistics(state, batch)
            total = moments if total is None else jax.tree.map(jax.numpy.add, total, moments)
        if total is None:
            return state
        mean = jax.tree.map(lambda x: x / steps, total)
        return dataclasses.replace(state, batch_stats=parallel.replicate(from_moments(mean)))

    def run(
        self,
        state: State,
        source: PairSource,
        table: PairTable,
        config: DataConfig,
        pairs: np.ndarray,
    ) -> tuple[dict[str, dict[str, Any]], Predictions]:
        """Errors over the given pairs, in eval and in train mode, and the predictions.

        Returns:
            {"eval": {name: mm}, "train_mode": {name: mm}} and the predictions in the order of
            `pairs`.
        """
        total: Any = None
        parts = []
        for batch in iterate(eval_batches(source, table, config, pairs), config, parallel.place):
            errors, predicted = self.errors(state, batch)
            errors = jax.device_get(errors)
            total = (
                errors
                if total is None
                else {mode: metrics.merge(total[mode], errors[mode]) for mode in total}
            )
            wanted = {key: batch[key] for key in ("index", "valid")} | predicted
            wanted = parallel.join_devices(wanted)
            parts.append({key: value[wanted["valid"]] for key, value in wanted.items()})
        joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        predictions = Predictions(joined["index"], joined["distance"], joined["coordinates"])
        return {mode: metrics.compute(total[mode]) for mode in total}, predictions


def constant_errors(table: PairTable, pairs: np.ndarray, scales: Scales) -> dict[str, Any]:
    """Errors of always predicting the training medians (`scales`): the floor to beat.

    Returns:
        `distance_mae_mm_constant`, `coordinate_mae_mm_constant` and
        `coordinate_mae_mm_per_axis_constant`, defined as in `metrics.pretext_metrics`.
    """
    distance = np.abs(table.distance_mm[pairs] - scales.distance_median_mm)
    patches = np.stack([table.first[pairs], table.second[pairs]], axis=1)
    offset = table.coordinates_mm[patches] - np.array(scales.coordinate_median_mm)
    return {
        "distance_mae_mm_constant": float(distance.mean()),
        "coordinate_mae_mm_constant": float(np.linalg.norm(offset, axis=-1).mean()),
        "coordinate_mae_mm_per_axis_constant": np.abs(offset).mean(axis=(0, 1)).tolist(),
    }


def results_table(test: dict[str, Any], absolute_x: bool = False) -> str:
    """The test errors as a short table; `absolute_x`: |x| was the target."""
    rows = [
        ("distance, mm", test["distance_mae_mm"], test["distance_mae_mm_constant"]),
        ("coordinates, mm", test["coordinate_mae_mm"], test["coordinate_mae_mm_constant"]),
    ]
    for axis, error, constant in zip(
        ("|x|" if absolute_x else "x", "y", "z"),
        test["coordinate_mae_mm_per_axis"],
        test["coordinate_mae_mm_per_axis_constant"],
        strict=True,
    ):
        rows.append((f"  {axis}", error, constant))
    lines = [f"{'mean absolute error on the test pairs':<40}{'network':>9}{'constant':>10}{'':>9}"]
    for name, error, constant in rows:
        change = 100 * (error / constant - 1) if constant else float("nan")
        lines.append(f"{name:<40}{error:>9.2f}{constant:>10.2f}{change:>+8.0f}%")
    return "\n".join(lines)
