"""The protocol between the training loop and the two tasks, pre-training and segmentation."""

from pathlib import Path
from typing import Any, Protocol

import grain
import numpy as np

from jaxcyto import metrics
from jaxcyto.config import OptimConfig
from jaxcyto.data.skipping import Skipped
from jaxcyto.training.evaluator import Evaluator
from jaxcyto.training.state.state import State
from jaxcyto.training.step import Batch, Task


class Experiment(Protocol):
    """A task on its data: pre-training or segmentation."""

    unit: str  # what throughput counts, such as "patches"
    selects: str  # the scalar of `validate` that is lowest for the best checkpoint

    @property
    def task(self) -> Task:
        """The task, which defines the steps."""
        ...

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        ...

    @property
    def optim(self) -> OptimConfig:
        """The optimizer's config, with the learning rate of this run."""
        ...

    @property
    def examples_per_step(self) -> int:
        """Examples, counted in `unit`, of a global batch."""
        ...

    @property
    def identity(self) -> dict[str, Any]:
        """Fields of config.json that must be unchanged if a run continues."""
        ...

    @property
    def trained_on(self) -> list[dict[str, str]]:
        """The brains that the weights come from, for environment.json (`runs.load.TRAINED_ON`)."""
        ...

    def training_fingerprints(self) -> dict[str, str | None]:
        """Return the fingerprints of the training sections for config.json, by BRAIN/SECTION."""
        ...

    def describe(self) -> str:
        """Describe the data in one line."""
        ...

    def init_state(self, fresh: bool) -> State:
        """Return the state before the first step.

        Args:
            fresh: False if a checkpoint will replace the values, so that they do not matter
        """
        ...

    @property
    def can_validate(self) -> bool:
        """Whether there are validation data."""
        ...

    @property
    def skipped(self) -> Skipped | None:
        """The examples skipped so far, or None unless `data.on_error` is "skip"."""
        ...

    @property
    def resident(self) -> Batch:
        """Fields that stay on the devices. The loop adds them to the batch of each step."""
        ...

    def train_batches(self, seed: int, for_steps: bool = False, **share: int) -> grain.MapDataset:
        """Return the endless training batches. Element k is the batch of step k + 1.

        Args:
            seed: seed of their order
            for_steps: whether they are for training steps. If so, they lack the `resident` fields,
                and examples that cannot be read are recorded in `skipped`.
            share: `parallel.share()` for this process's share of each batch. By default, batches
                are complete.
        """
        ...

    def name_examples(self, index: np.ndarray) -> str:
        """Describe the examples of a batch for an error message.

        Args:
            index: [B], the field "index" of the batch
        """
        ...

    def summary(self, errors: metrics.Metrics) -> dict[str, float]:
        """Convert (sum, count) states to scalars by name."""
        ...

    def headline(self, values: dict[str, float]) -> str:
        """Format the scalar of `summary` that the progress line shows."""
        ...

    def validate(self, evaluator: Evaluator, state: State) -> dict[str, float] | None:
        """Return the scalars of a validation, or None without validation data."""
        ...

    def finish(self, evaluator: Evaluator, state: State, workdir: Path) -> dict[str, Any]:
        """Evaluate on the test data, print a table, and draw the figures.

        All processes evaluate. Only process 0 prints and writes.

        Returns:
            The content of results.json, empty in processes other than 0.
        """
        ...
