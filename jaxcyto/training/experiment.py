"""What the loop asks of a task on its data: pre-training or segmentation."""

from pathlib import Path
from typing import Any, Protocol

import grain
import numpy as np

from jaxcyto import metrics
from jaxcyto.data.skipping import Skipped
from jaxcyto.training.evaluator import Evaluator
from jaxcyto.training.state.state import State
from jaxcyto.training.step import Batch, Task


class Experiment(Protocol):
    """One task on its data: pre-training or segmentation."""

    unit: str  # of what is counted as throughput
    selects: str  # the scalar of `validate` whose lowest value picks the best checkpoint

    @property
    def task(self) -> Task: ...

    @property
    def steps(self) -> int: ...

    @property
    def examples_per_step(self) -> int: ...

    @property
    def identity(self) -> dict[str, Any]:
        """Fields of config.json that a run which continues must find unchanged."""
        ...

    @property
    def trained_on(self) -> list[dict[str, str]]:
        """The brains that the weights come from, for environment.json; see `runs.TRAINED_ON`."""
        ...

    def describe(self) -> str:
        """The data, in one line."""
        ...

    def init_state(self, fresh: bool) -> State:
        """The state before the first step; not `fresh`: about to be replaced by a checkpoint."""
        ...

    @property
    def can_validate(self) -> bool:
        """Whether there are validation data."""
        ...

    @property
    def skipped(self) -> Skipped | None:
        """What `data.on_error` = "skip" has left out; None: nothing may be."""
        ...

    @property
    def resident(self) -> Batch:
        """Fields that stay on the devices: each batch of a training step holds them, too."""
        ...

    def train_batches(self, seed: int, for_steps: bool = False, **share: int) -> grain.MapDataset:
        """Endless; element k is the batch of step k + 1.

        Args:
            seed: of the order.
            for_steps: whether training steps take them: then they lack what is `resident`, and
                what could not be read is noted in `skipped`.
            share: `parallel.share`, which part of each batch; else all of it.
        """
        ...

    def name_examples(self, index: np.ndarray) -> str:
        """What a batch holds, for an error message."""
        ...

    def summary(self, errors: metrics.Metrics) -> dict[str, float]:
        """Scalars of (sum, count) states."""
        ...

    def headline(self, values: dict[str, float]) -> str:
        """The one of these that the progress line shows."""
        ...

    def validate(self, evaluator: Evaluator, state: State) -> dict[str, float] | None:
        """Scalars to log; None without data."""
        ...

    def finish(self, evaluator: Evaluator, state: State, workdir: Path) -> dict[str, Any]:
        """The content of results.json; prints a table and draws the figures.

        All processes evaluate; those other than process 0 return and write nothing.
        """
        ...
