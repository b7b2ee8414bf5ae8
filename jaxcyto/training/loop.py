"""The training loop: data, state, steps, checkpoints, validation and results, in this order.

What differs between the tasks is in `Experiment`. A start resumes in this order:
1. It continues from a checkpoint in the run folder.
2. Without a checkpoint it starts from scratch, or from the weights of another run (`init_from`).
Scales come from the config.json of the run folder if it exists, because a run never changes its
units. A validation that was cut off is made up for.
"""

import contextlib
import dataclasses
import functools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxcyto.config import Config, InputScales, Scales, SegmentConfig
from jaxcyto.config_io import to_json
from jaxcyto.data.loading import iterate
from jaxcyto.data.skipping import Skipped
from jaxcyto.errors import InputError
from jaxcyto.models.cpu import kernels
from jaxcyto.runs import record
from jaxcyto.runs.load import save_weights
from jaxcyto.runs.metrics_file import SKIPPED, read_metrics, skipped_files
from jaxcyto.training.devices import distributed, parallel
from jaxcyto.training.evaluator import Evaluator
from jaxcyto.training.experiment import Experiment
from jaxcyto.training.finite import FiniteChecks
from jaxcyto.training.lock import locked
from jaxcyto.training.log import MetricsWriter, ProgressLine, logger
from jaxcyto.training.pretext import open_pretraining
from jaxcyto.training.signals import Interrupted, Stop
from jaxcyto.training.state.checkpoint import Checkpoints
from jaxcyto.training.state.optim import learning_rate
from jaxcyto.training.state.state import State, parameter_count
from jaxcyto.training.step import train_step
from jaxcyto.utils.files import write_json
from jaxcyto.validate import batch_size, validate


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """What stays the same from the first step to the last."""

    config: Config | SegmentConfig
    workdir: Path
    experiment: Experiment
    evaluator: Evaluator


def train(config: Config | SegmentConfig, workdir: str | os.PathLike) -> dict[str, Any]:
    """Train a network, or continue to train it, and evaluate it on the test data.

    Args:
        config: the run. Its type decides the task.
        workdir: the run folder, created if missing. The same folder continues the same run.

    Returns:
        The content of results.json.

    Raises:
        InputError: config or data are not valid, or another process runs in this folder.
        Interrupted: SIGTERM or Ctrl-C was received. A checkpoint holds what was trained.
        FloatingPointError: the loss is not finite.
        OSError: a file could not be written. The last checkpoint is intact.
    """
    validate(config)
    kernels.switch(config.onednn)
    parallel.check_batch(*batch_size(config))
    distributed.check_same("config", to_json(config))
    workdir = Path(workdir).resolve()
    distributed.from_first(functools.partial(_make_folder, workdir))
    lock = locked(workdir) if distributed.is_first() else contextlib.nullcontext()
    with Stop() as stop, lock:
        return _train(config, workdir, stop)


def _train(config: Config | SegmentConfig, workdir: Path, stop: Stop) -> dict[str, Any]:
    """Train in a folder that this job holds the lock of."""
    # ---- data ----
    if config.prepare is not None:
        distributed.from_first(functools.partial(config.prepare, config))
    saved, experiment = _open(config, workdir)
    resolved = _resolve(config, experiment, saved, workdir)
    logger.info(
        "%d process(es), %d %s device(s)",
        jax.process_count(),
        jax.device_count(),
        jax.local_devices()[0].platform,
    )
    logger.info("%s", experiment.describe())
    evaluator = Evaluator.of(experiment.task, config.data.threads, stop.check)
    run = Run(config, workdir, experiment, evaluator)

    with Checkpoints(workdir / "checkpoints", keep=config.keep) as checkpoints:
        # ---- state ----
        start = checkpoints.latest() or 0
        state = _first_state(run, checkpoints, start)
        if start == experiment.steps and saved is not None:
            record.check_finished(workdir, saved, resolved)
        logger.info("%d parameters; %d steps", parameter_count(state.params), experiment.steps)
        if distributed.is_first():
            write_json(workdir / "config.json", resolved)  # only now that data and state fit it
            record.add_start(workdir, start, experiment.trained_on)
        state = parallel.replicate(parallel.broadcast_state(state))

        # ---- steps ----
        writer = MetricsWriter(workdir if distributed.is_first() else None, start)
        try:
            with stop.together():
                state = _steps(run, state, start, writer, checkpoints, stop)
                with stop.held():
                    checkpoints.close()
        finally:
            writer.close()

        # ---- weights and results ----
        step, state = _chosen_weights(run, checkpoints, state)
    return _finish(run, step, state)


def _make_folder(workdir: Path) -> None:
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--workdir {workdir}: cannot be made: {error.strerror}") from None


def _open(
    config: Config | SegmentConfig, workdir: Path
) -> tuple[dict[str, Any] | None, Experiment]:
    """Read the config.json of a run that continues, and open the data.

    All processes use the scales of process 0.
    """
    open_data: Callable[[dict[str, Any] | None], Experiment]
    if isinstance(config, SegmentConfig):
        from jaxcyto.training.segment import open_segmentation  # imports matplotlib, one second

        open_data, scales, mark = (
            functools.partial(open_segmentation, config),
            InputScales,
            "classes",
        )
    else:
        open_data, scales, mark = (
            functools.partial(open_pretraining, config),
            Scales,
            "pairs_sha256",
        )
    fits_only = config.steps == 0  # a head is fitted again, and nothing continues
    saved = distributed.from_first(
        lambda: None if fits_only else record.read_saved(workdir, scales, mark)
    )
    if saved is not None:
        return saved, open_data(saved["scales"])
    first = open_data(None) if distributed.is_first() else None
    fitted = distributed.from_first(lambda: first and to_json(first.task.scales))
    return None, first or open_data(fitted)


def _resolve(
    config: Config | SegmentConfig,
    experiment: Experiment,
    saved: dict[str, Any] | None,
    workdir: Path,
) -> dict[str, Any]:
    """Return the content of config.json.

    Raises:
        InputError: the run was started on other data or with other scales, or the config asks for
            the best weights of a run that has nothing to validate on.
    """
    scales = to_json(experiment.task.scales)
    resolved = {**to_json(config), "scales": scales, **experiment.identity}
    distributed.check_same("data", resolved)
    # The images of the first start count. A run of an earlier version goes on without any.
    key = "training_fingerprints"
    if saved is None:
        resolved[key] = distributed.from_first(experiment.training_fingerprints)
    elif key in saved:
        record.check_fingerprints(workdir, saved)
        resolved[key] = saved[key]
    if saved is not None:
        given = {} if config.scales is None else {"scales": to_json(config.scales)}
        record.check_saved(workdir, saved, resolved | given, [*experiment.identity, *given])
    if config.weights == "best" and not experiment.can_validate:
        raise InputError(
            "config: weights = 'best' needs validation data, but the split val is empty; use "
            "'last', or fill the split column of the section tables"
        )
    return resolved


def _first_state(run: Run, checkpoints: Checkpoints, start: int) -> State:
    """Return the state that the steps start from: a checkpoint, or the initial one.

    Raises:
        InputError: the checkpoint does not fit, or it has more steps than the config asks for.
    """
    state = run.experiment.init_state(fresh=not start)
    if not start:
        return state
    if distributed.is_first():
        state = checkpoints.restore(state)
    steps = run.experiment.steps
    if start > steps:
        raise InputError(
            f"{run.workdir}: trained for {start} steps, but the config asks for {steps}; "
            "give at least as many, or another --workdir"
        )
    logger.info("resuming at step %d of %d from %s", start, steps, run.workdir)
    return state


def _steps(
    run: Run, state: State, start: int, writer: MetricsWriter, checkpoints: Checkpoints, stop: Stop
) -> State:
    """Train from step `start` to the last. The order is: step, log, save, validate, next batch.

    Whatever takes long comes after a save, so that a signal there loses nothing. The next start
    repeats what was cut off.
    """
    config, experiment = run.config, run.experiment
    step_fn = parallel.pmap_train(train_step, task=experiment.task)
    finite = FiniteChecks(config, experiment)
    skips = SkipLog(experiment.skipped, writer, start)
    log = StepLog(run, writer, start)
    validations = Validations(run, writer, checkpoints)
    batches = iterate(
        experiment.train_batches(config.seed, for_steps=True, **parallel.share()),
        config.data.threads,
        parallel.place,
        start,
    )
    taken = start  # steps that `state` has taken
    try:
        validations.make_up(start, state)
        for step in range(start + 1, experiment.steps + 1):
            batch = log.wait_for(batches) | experiment.resident
            with stop.held():  # a signal raises Interrupted at the end of this block
                with jax.transfer_guard("disallow"):  # everything is on the devices already
                    state, measured = step_fn(state, batch)
                taken = step
                finite.add(step, measured["checks"])
                saves = validations.due(step) or step % config.checkpoint_every == 0
                if log.due(step) or saves:
                    finite.check()
                    skips.write(step)
                if log.due(step):
                    log.write(step, measured)
                if step == start + 1:
                    log.restart(step)  # the time so far is compilation
                if saves:
                    writer.sync()
                    checkpoints.save(step, state)
            if validations.due(step):
                validations.run(step, state)
                log.restart(step)
    except Interrupted:
        finite.check()
        skips.write(taken)
        writer.sync()
        checkpoints.save(taken, state)
        raise
    finally:
        batches.close()
    return state


class StepLog:
    """The progress line and the scalars of training steps, every `log_every` steps."""

    def __init__(self, run: Run, writer: MetricsWriter, start: int):
        self._run, self._writer = run, writer
        experiment = run.experiment
        self._line = ProgressLine(
            start, experiment.steps, experiment.examples_per_step, experiment.unit
        )
        self._rate = learning_rate(experiment.optim, experiment.steps)

    def due(self, step: int) -> bool:
        """Return whether a step is logged."""
        return step % self._run.config.log_every == 0 or step in (1, self._run.experiment.steps)

    def wait_for(self, batches: Iterator[dict[str, Any]]) -> dict[str, Any]:
        """Return the next batch, and count the time that the step waits for it."""
        before = time.monotonic()
        batch = next(batches)
        self._line.waited += time.monotonic() - before
        return batch

    def write(self, step: int, measured: dict[str, Any]) -> None:
        """Log what `step.train_step` has measured, and the learning rate of the step."""
        measured = jax.device_get(measured)
        values = {key: float(value) for key, value in measured["scalars"].items()}
        errors = self._run.experiment.summary(measured["errors"])
        headline = self._run.experiment.headline(errors)
        skipped = int(values.get("skipped_steps", 0))
        if skipped:
            headline += f"  {skipped} steps skipped"
        rates = self._line.line(step, values["loss"], headline)
        values |= errors | {"learning_rate": self._rate(step, skipped)}
        scalars = {f"train/{key}": value for key, value in values.items()}
        self._writer.write(step, scalars | {f"speed/{key}": value for key, value in rates.items()})

    def restart(self, step: int) -> None:
        """Leave the time since the last line out of the rates."""
        self._line.restart(step)


class SkipLog:
    """The files that could not be read for training steps (`data.on_error` = "skip")."""

    def __init__(self, skipped: Skipped | None, writer: MetricsWriter, start: int):
        self._skipped, self._writer = skipped, writer
        if skipped is not None:
            skipped.take(start)  # metrics.jsonl lists these already

    def write(self, step: int) -> None:
        """Write the files of the steps since the last call."""
        if self._skipped is not None:
            lost = self._skipped.take(step)
            self._writer.write(step, {f"{SKIPPED}{path}": count for path, count in lost.items()})


class Validations:
    """The validations of a run, and the step with the lowest error among them."""

    def __init__(self, run: Run, writer: MetricsWriter, checkpoints: Checkpoints):
        self._run, self._writer, self._checkpoints = run, writer, checkpoints
        self._errors = _validation_errors(run)
        checkpoints.best = _lowest(self._errors)

    def due(self, step: int) -> bool:
        """Return whether a validation follows a step."""
        return step % self._run.config.eval_every == 0 or step == self._run.experiment.steps

    def make_up(self, start: int, state: State) -> None:
        """Run the validation of the step that a start continues from, if it was cut off."""
        if start and self.due(start) and start not in self._errors:
            self.run(start, state)

    def run(self, step: int, state: State) -> None:
        """Validate, log the scalars, and have the best checkpoint kept."""
        run = self._run
        values = run.experiment.validate(run.evaluator, _with_statistics(run, state))
        if values is None:
            return
        self._writer.write(step, values)
        if np.isfinite(error := values[run.experiment.selects]):
            self._errors[step] = error
            self._checkpoints.best = _lowest(self._errors)


def _validation_errors(run: Run) -> dict[int, float]:
    """Read the error of each validation so far from metrics.jsonl, by step."""

    def read() -> list[tuple[int, float]]:
        key = run.experiment.selects
        lines = read_metrics(run.workdir / "metrics.jsonl")
        return [(line["step"], line[key]) for line in lines if key in line]

    return dict(distributed.from_first(read))


def _lowest(errors: dict[int, float]) -> int | None:
    return min(errors, key=errors.__getitem__, default=None)


def _with_statistics(run: Run, state: State) -> State:
    """Return the state with re-estimated batch statistics, which evaluation and users get."""
    batches = run.experiment.train_batches(seed=0, for_steps=False, **parallel.share())
    return run.evaluator.reestimate(state, batches, run.config.batch_stats_steps)


def _chosen_weights(run: Run, checkpoints: Checkpoints, state: State) -> tuple[int, State]:
    """Return the step and the state whose weights are written and tested (`config.weights`)."""
    last = run.experiment.steps
    best = last if run.config.weights == "last" else checkpoints.best
    if best is None or best == last:
        return last, state
    like = jax.device_get(state)
    chosen = checkpoints.restore_step(best, like) if distributed.is_first() else like
    logger.info("weights: those of step %d, which has the lowest validation error", best)
    return best, parallel.replicate(parallel.broadcast_state(chosen))


def _finish(run: Run, step: int, state: State) -> dict[str, Any]:
    """Write weights.safetensors, test them, draw the figures, and write results.json."""
    state = _with_statistics(run, state)
    host = jax.device_get(state)
    if distributed.is_first():
        save_weights(run.workdir, {"params": host.params, "batch_stats": host.batch_stats})
        (run.workdir / "figures").mkdir(exist_ok=True)
    results: dict[str, Any] = {"steps": run.experiment.steps}
    results["weights"] = {"from": run.config.weights, "step": step}
    results |= run.experiment.finish(run.evaluator, state, run.workdir)
    if not distributed.is_first():
        return distributed.from_first(dict)
    if run.experiment.skipped is not None:
        results["skipped"] = _skipped_files(run.workdir)
    write_json(run.workdir / "results.json", results)
    logger.info("weights, results.json and figures are in %s", run.workdir)
    return distributed.from_first(lambda: results)


def _skipped_files(workdir: Path) -> dict[str, int]:
    """Count how often each file could not be read while training, and log it."""
    total = skipped_files(read_metrics(workdir / "metrics.jsonl"))
    for path, count in total.most_common():
        logger.warning("skipped while training: %d times %s", count, path)
    return dict(total)
