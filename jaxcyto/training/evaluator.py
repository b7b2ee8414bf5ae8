"""Re-estimate batch statistics, and compute errors and predictions of a network."""

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
    """The evaluation steps of a task, which are pmapped once for a whole run.

    Attributes:
        errors: pmapped `step.eval_step`
        statistics: pmapped `step.statistics_step`
        constant: submodules whose batch statistics are constant (`Task.constant_statistics`)
        threads: threads that read batches ahead
        between: called before each batch. The loop uses it to react to signals.
    """

    errors: Callable[[State, Any], Any]
    statistics: Callable[[State, Any], Any]
    constant: tuple[str, ...]
    threads: int
    between: Callable[[], None]

    @classmethod
    def of(cls, task: Task, threads: int, between: Callable[[], None]) -> "Evaluator":
        """Return the evaluator of a task."""
        return cls(
            errors=parallel.pmap_eval(eval_step, (None, None), task=task),
            statistics=parallel.pmap_eval(statistics_step, None, task=task),
            constant=task.constant_statistics,
            threads=threads,
            between=between,
        )

    def reestimate(self, state: State, batches: grain.MapDataset, steps: int) -> State:
        """Return the state with batch statistics averaged over the first `steps` batches.

        The running averages of training lag behind the parameters. In pre-training, the maps of the
        last layer have a single pixel, so its averages are also estimated from few values.
        Variances are averaged as second moments, so the result is that of one large batch. Images
        are not augmented. Constant statistics are left as they are.

        Args:
            state: the state, replicated
            batches: this process's share of the training batches. The result is the same in all
                processes and covers all of their shares.
            steps: count of batches to average over. 0 returns the state unchanged.
        """
        if set(state.batch_stats) <= set(self.constant):
            return state
        total: Any = None
        for batch in iterate(batches[:steps], self.threads, parallel.place):
            self.between()
            moments = self.statistics(state, batch)
            total = moments if total is None else jax.tree.map(jax.numpy.add, total, moments)
        if total is None:
            return state
        mean = jax.tree.map(lambda x: x / steps, total)
        estimated = parallel.replicate(from_moments(mean))
        return dataclasses.replace(state, batch_stats=state.batch_stats | estimated)

    def run(
        self, state: State, batches: grain.MapDataset
    ) -> tuple[dict[str, metrics.Metrics], dict[str, np.ndarray]]:
        """Compute errors and predictions over all batches.

        Padding (`valid` False) is left out.

        Args:
            state: the state, replicated
            batches: this process's share of the batches, at least one. The results cover all
                shares.

        Returns:
            (sum, count) states for each of the task's modes, and the task's predictions [N, ...]
            with the `index` [N] of the examples, in the order of the batches.
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
