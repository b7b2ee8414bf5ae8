"""Evaluation steps, pmapped once for a whole run: batch statistics, errors and predictions."""

import dataclasses
from collections.abc import Callable
from typing import Any

import grain
import jax
import numpy as np

from jaxcyto import metrics
from jaxcyto.data.loading import iterate
from jaxcyto.training.devices import parallel
from jaxcyto.training.state.state import State
from jaxcyto.training.step import Task, eval_step, from_moments, statistics_step


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """The evaluation steps of a task; `threads` read ahead, `between` is called between batches."""

    errors: Callable[[State, Any], Any]
    statistics: Callable[[State, Any], Any]
    threads: int
    between: Callable[[], None]

    @classmethod
    def of(cls, task: Task, threads: int, between: Callable[[], None]) -> "Evaluator":
        return cls(
            errors=parallel.pmap_eval(eval_step, (None, None), task=task),
            statistics=parallel.pmap_eval(statistics_step, None, task=task),
            threads=threads,
            between=between,
        )

    def reestimate(self, state: State, batches: grain.MapDataset, steps: int) -> State:
        """The state with batch statistics averaged over the first `steps` of training batches.

        Of `batches`, here and in `run`, a process gives its share; the result is that of all.

        The running averages of training lag behind the parameters, and at 1x1 the last layer's
        see few values. Variances average as second moments, so the result is that of one large
        batch. Nothing is augmented.
        """
        total: Any = None
        for batch in iterate(batches[:steps], self.threads, parallel.place):
            self.between()
            moments = self.statistics(state, batch)
            total = moments if total is None else jax.tree.map(jax.numpy.add, total, moments)
        if total is None:
            return state
        mean = jax.tree.map(lambda x: x / steps, total)
        return dataclasses.replace(state, batch_stats=parallel.replicate(from_moments(mean)))

    def run(
        self, state: State, batches: grain.MapDataset
    ) -> tuple[dict[str, metrics.Metrics], dict[str, np.ndarray]]:
        """Errors and predictions over all batches; padding (`valid` False) is left out.

        Returns:
            (sum, count) states in "eval" and in "train_mode"; the task's predictions [N, ...] and
            the examples' `index` [N], in the order of the batches.
        """
        total: dict[str, Any] = {}
        parts = []
        for batch in iterate(batches, self.threads, parallel.place):
            self.between()
            errors, kept = jax.device_get(self.errors(state, batch))
            total = {mode: metrics.merge(total.get(mode, {}), errors[mode]) for mode in errors}
            valid = kept.pop("valid")
            parts.append({key: value[valid] for key, value in kept.items()})
        return total, {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
