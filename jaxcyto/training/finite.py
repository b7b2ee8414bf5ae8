"""Stop a run, or skip its steps, when loss, gradient or state are not finite."""

from typing import Any

import jax
import numpy as np

from jaxcyto.config import Config, SegmentConfig
from jaxcyto.errors import InputError
from jaxcyto.training.experiment import Experiment
from jaxcyto.training.log import logger

AHEAD = 4  # steps in the queue of the device: a signal has to wait for them


class FiniteChecks:
    """The checks of steps that the host has not looked at yet.

    Looking at a value waits for its step, so the host looks at many of them at once and dispatches
    the next steps in the meantime.
    """

    def __init__(self, config: Config | SegmentConfig, experiment: Experiment):
        """Start without pending checks.

        Args:
            config: the run. `optim.skip_nonfinite` steps in a row may be skipped.
            experiment: names the examples of a step that fails.
        """
        self._config, self._experiment = config, experiment
        self._pending: list[tuple[int, Any]] = []

    def add(self, step: int, checks: Any) -> None:
        """Add the "checks" of `step.train_step`, and wait until the queue is short enough."""
        self._pending.append((step, checks))
        if len(self._pending) > AHEAD:
            jax.block_until_ready(self._pending[-AHEAD])

    def check(self) -> None:
        """Look at all pending checks, and log the steps that the optimizer has skipped.

        Raises:
            FloatingPointError: names the first step that is not finite and was not skipped.
        """
        pending, self._pending = self._pending, []
        for step, checks in pending:
            values = {key: value.item() for key, value in jax.device_get(checks).items()}
            loss, gradient, skipped = values["loss"], values["gradient"], values["skipped"]
            finite = np.isfinite(loss) and np.isfinite(gradient)
            if finite and values["finite"] and not skipped:
                continue
            what = f"the loss is {loss:g}, the gradient's norm {gradient:g} at step {step}"
            if finite:
                what += ", but what it makes of parameters or batch statistics is not finite"
            what += f"; {self._examples(step)}"
            if values["finite"] and 0 < skipped <= self._config.optim.skip_nonfinite:
                logger.warning("skipped: %s", what)
                continue
            raise FloatingPointError(
                f"{what}. Lower optim.learning_rate, or set optim.clip_norm or "
                "optim.skip_nonfinite; the last checkpoint is intact"
            )

    def _examples(self, step: int) -> str:
        """Name the examples of a step, which are read again for this."""
        try:
            batch: Any = self._experiment.train_batches(self._config.seed)[step - 1]
        except InputError as error:  # a file has disappeared since
            return f"its examples cannot be read again: {error}"
        return self._experiment.name_examples(batch["index"])
