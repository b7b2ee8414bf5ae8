"""The training loop: data, state, steps, validation, checkpoints, results, in this order.

Resuming: 1. a checkpoint in the run folder is continued from; 2. else training starts from scratch,
or from the weights of another run (`init_from`). Scales come from the run's config.json if it
exists: a run never changes its units. What differs between the tasks is in `Experiment`.
"""

import dataclasses
import os
import signal
import time
from pathlib import Path
from typing import Any, Protocol

import grain
import jax
import numpy as np

from jaxcyto import metrics, runs
from jaxcyto.config import Config, InputScales, Scales, SegmentConfig, to_json
from jaxcyto.errors import InputError
from jaxcyto.input import iterate
from jaxcyto.training import parallel, record
from jaxcyto.training.checkpoint import Checkpoints
from jaxcyto.training.evaluator import Evaluator
from jaxcyto.training.log import MetricsWriter, Progress, logger
from jaxcyto.training.pretext import open_pretraining
from jaxcyto.training.segment import open_segmentation
from jaxcyto.training.state import State, parameter_count
from jaxcyto.training.step import Task, train_step
from jaxcyto.validate import batch_size, validate


class Experiment(Protocol):
    """One task on its data: pre-training or segmentation."""

    unit: str  # of what is counted as throughput

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

    def describe(self) -> str:
        """The data, in one line."""
        ...

    def init_state(self, fresh: bool) -> State:
        """The state before the first step; not `fresh`: about to be replaced by a checkpoint."""
        ...

    def train_batches(self, seed: int) -> grain.MapDataset:
        """Endless; element k is the batch of step k."""
        ...

    def name_examples(self, index: np.ndarray) -> str:
        """What a batch holds, for an error message."""
        ...

    def summary(self, errors: metrics.State) -> dict[str, float]:
        """Scalars of (sum, count) states."""
        ...

    def headline(self, values: dict[str, float]) -> str:
        """The one of these that the progress line shows."""
        ...

    def validate(self, evaluator: Evaluator, state: State) -> tuple[dict[str, float], float] | None:
        """Scalars to log and the error that picks the best checkpoint; None without data."""
        ...

    def finish(self, evaluator: Evaluator, state: State, workdir: Path) -> dict[str, Any]:
        """The content of results.json; prints a table and draws the figures."""
        ...


class Interrupted(Exception):
    """A signal ended the run after its checkpoint was written. `signum` is its number."""

    def __init__(self, signum: int):
        super().__init__(f"stopped by {signal.Signals(signum).name}; the same command continues")
        self.signum = signum


class Stop:
    """SIGTERM and Ctrl-C: the first asks the loop to save and leave, the second kills."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Stop":
        for signum in (signal.SIGTERM, signal.SIGINT):
            self._previous[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(self, *_: Any) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def _handle(self, signum: int, _: Any) -> None:
        self.signum = signum
        signal.signal(signum, signal.SIG_DFL)
        logger.info("%s: saving a checkpoint, then leaving", signal.Signals(signum).name)


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """What stays the same from the first step to the last."""

    config: Config | SegmentConfig
    workdir: Path
    experiment: Experiment
    evaluator: Evaluator


def train(config: Config | SegmentConfig, workdir: str | os.PathLike) -> dict[str, Any]:
    """Trains, or continues to train, and evaluates on the test data.

    Args:
        config: the run; its type says which task.
        workdir: its folder; made if missing. The same folder continues the same run.

    Returns:
        The content of results.json.

    Raises:
        InputError: bad config or data.
        Interrupted: SIGTERM or Ctrl-C; a checkpoint is written.
        FloatingPointError: the loss is not finite.
    """
    validate(config)
    parallel.check_batch(*batch_size(config))
    workdir = Path(workdir).resolve()
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--workdir {workdir}: cannot be made: {error.strerror}") from None
    if config.prepare is not None:
        config.prepare(config)
    experiment: Experiment
    if isinstance(config, SegmentConfig):
        saved = record.read_saved(workdir, InputScales, "classes")
        experiment = open_segmentation(config, saved and saved["scales"])
    else:
        saved = record.read_saved(workdir, Scales, "pairs_sha256")
        experiment = open_pretraining(config, saved and saved["scales"])
    task, steps = experiment.task, experiment.steps
    resolved = {**to_json(config), "scales": to_json(task.scales), **experiment.identity}
    if saved is not None:
        given = {} if config.scales is None else {"scales": to_json(config.scales)}
        fixed = [*experiment.identity, *given]
        record.check_saved(workdir, saved, resolved | given, fixed)
    logger.info(
        "%d process(es), %d %s device(s)",
        jax.process_count(),
        jax.device_count(),
        jax.local_devices()[0].platform,
    )
    logger.info("%s", experiment.describe())
    run = Run(config, workdir, experiment, Evaluator.of(task, config.data.threads))

    with Stop() as stop, Checkpoints(workdir / "checkpoints", keep=config.keep) as checkpoints:
        start = checkpoints.latest() or 0
        state = experiment.init_state(fresh=not start)
        if start:
            state = checkpoints.restore(start, state)
            if start > steps:
                raise InputError(
                    f"{workdir}: trained for {start} steps, but the config asks for {steps}; "
                    "give at least as many, or another --workdir"
                )
            logger.info("resuming at step %d of %d from %s", start, steps, workdir)
        logger.info("%d parameters; %d steps", parameter_count(state.params), steps)
        record.write_json(workdir / "config.json", resolved)  # now that it is known to fit
        writer = MetricsWriter(workdir, start)
        try:
            state = _steps(run, parallel.replicate(state), start, writer, checkpoints, stop)
        finally:
            writer.close()
    return _finish(run, state)


def _steps(
    run: Run, state: State, start: int, writer: MetricsWriter, checkpoints: Checkpoints, stop: Stop
) -> State:
    """From step `start` to the last. Order matters: step, log, validate, save, next batch."""
    config, experiment, steps = run.config, run.experiment, run.experiment.steps
    step_fn = parallel.pmap_train(train_step, task=experiment.task)
    batches = experiment.train_batches(config.seed)
    iterator = iterate(batches, config.data.threads, parallel.place, start)
    progress = Progress(start, steps, experiment.examples_per_step, experiment.unit)
    pending: list[tuple[int, jax.Array, jax.Array]] = []  # not yet looked at: dispatch goes ahead
    best = np.inf
    try:
        for step in range(start + 1, steps + 1):
            before = time.monotonic()
            batch = next(iterator)
            progress.waited += time.monotonic() - before
            state, measured = step_fn(state, batch)
            scalars = measured["scalars"]
            pending.append((step, scalars["loss"], scalars["l2_gradients"]))

            logs = step % config.log_every == 0 or step in (1, steps)
            validates = step % config.eval_every == 0 or step == steps
            saves = step % config.checkpoint_every == 0 or step == steps
            if logs or validates or saves or stop.signum is not None:
                _check_finite(pending, batches, experiment)
                pending.clear()
            if logs:
                host = jax.device_get(measured)
                values = {key: float(value) for key, value in host["scalars"].items()}
                errors = experiment.summary(host["errors"])
                rates = progress.line(step, values["loss"], experiment.headline(errors))
                writer.write(
                    step,
                    {f"train/{key}": value for key, value in (values | errors).items()}
                    | {f"speed/{key}": value for key, value in rates.items()},
                )
            if step == start + 1:
                progress.restart(step)  # what came before is compilation
            found = None
            if validates:
                found = _validate(run, state, step, writer)
                progress.restart(step)
            error = None if found is None else found[1]
            improves = error is not None and error < best
            best = min(best, error) if error is not None else best
            if saves or improves or stop.signum is not None:
                checkpoints.save(step, state, error)
            if stop.signum is not None:
                raise Interrupted(stop.signum)
    finally:
        iterator.close()
    return state


def _check_finite(
    pending: list[tuple[int, jax.Array, jax.Array]], batches: Any, experiment: Experiment
) -> None:
    for step, *values in pending:
        loss, gradient = (float(value) for value in jax.device_get(values))
        if not (np.isfinite(loss) and np.isfinite(gradient)):
            raise FloatingPointError(
                f"the loss is {loss}, the gradient's norm {gradient} at step {step}; "
                f"{experiment.name_examples(batches[step - 1]['index'])}. Lower "
                "optim.learning_rate or set optim.clip_norm; the last checkpoint is intact"
            )


def _with_statistics(run: Run, state: State) -> State:
    """The state with batch statistics as evaluation and other programs get them."""
    batches = run.experiment.train_batches(seed=0)
    return run.evaluator.reestimate(state, batches, run.config.batch_stats_steps)


def _validate(
    run: Run, state: State, step: int, writer: MetricsWriter
) -> tuple[dict[str, float], float] | None:
    found = run.experiment.validate(run.evaluator, _with_statistics(run, state))
    if found is not None:
        writer.write(step, found[0])
    return found


def _finish(run: Run, state: State) -> dict[str, Any]:
    """weights.safetensors, the test and its figures, results.json."""
    state = _with_statistics(run, state)
    host = jax.device_get(state)
    runs.save_weights(run.workdir, {"params": host.params, "batch_stats": host.batch_stats})
    (run.workdir / "figures").mkdir(exist_ok=True)
    results = {"steps": int(host.step)}
    results |= run.experiment.finish(run.evaluator, state, run.workdir)
    record.write_json(run.workdir / "results.json", results)
    logger.info("weights, results.json and figures are in %s", run.workdir)
    return results
