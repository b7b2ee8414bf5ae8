"""The training loop: data, state, steps, checkpoints, validation, results, in this order.

Resuming: 1. a checkpoint in the run folder is continued from; 2. else training starts from scratch,
or from the weights of another run (`init_from`). Scales come from the run's config.json if it
exists: a run never changes its units. A validation that was cut off is made up for. What differs
between the tasks is in `Experiment`.
"""

import contextlib
import dataclasses
import functools
import os
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxcyto.config import Config, InputScales, Scales, SegmentConfig
from jaxcyto.config_io import to_json
from jaxcyto.data.loading import iterate
from jaxcyto.errors import InputError
from jaxcyto.runs import record
from jaxcyto.runs.load import save_weights
from jaxcyto.runs.metrics_file import SKIPPED, read_metrics, skipped_files
from jaxcyto.training.devices import distributed, parallel
from jaxcyto.training.evaluator import Evaluator
from jaxcyto.training.experiment import Experiment
from jaxcyto.training.lock import locked
from jaxcyto.training.log import MetricsWriter, ProgressLine, logger
from jaxcyto.training.pretext import open_pretraining
from jaxcyto.training.signals import Interrupted, Stop
from jaxcyto.training.state.checkpoint import Checkpoints
from jaxcyto.training.state.state import State, parameter_count
from jaxcyto.training.step import train_step
from jaxcyto.utils.files import write_json
from jaxcyto.validate import batch_size, validate

AHEAD = 4  # steps that may wait on the device: a signal has to wait for them


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
        InputError: bad config or data, or another process runs in this folder.
        Interrupted: SIGTERM or Ctrl-C; what was trained is in a checkpoint.
        FloatingPointError: the loss is not finite.
        OSError: a file could not be written; the last checkpoint is intact.
    """
    validate(config)
    parallel.check_batch(*batch_size(config))
    distributed.check_same("config", to_json(config))
    workdir = Path(workdir).resolve()
    distributed.from_first(functools.partial(_make_folder, workdir))
    lock = locked(workdir) if distributed.is_first() else contextlib.nullcontext()
    with Stop() as stop, lock:
        return _train(config, workdir, stop)


def _train(config: Config | SegmentConfig, workdir: Path, stop: Stop) -> dict[str, Any]:
    """`train`, with the folder to itself."""
    if config.prepare is not None:
        distributed.from_first(functools.partial(config.prepare, config))
    saved, experiment = _open(config, workdir)
    task, steps = experiment.task, experiment.steps
    resolved = {**to_json(config), "scales": to_json(task.scales), **experiment.identity}
    distributed.check_same("data", resolved)
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
    run = Run(config, workdir, experiment, Evaluator.of(task, config.data.threads, stop.check))

    with Checkpoints(workdir / "checkpoints", keep=config.keep) as checkpoints:
        start = checkpoints.latest() or 0
        state = experiment.init_state(fresh=not start)
        if start:
            if distributed.is_first():
                state = checkpoints.restore(state)
            if start > steps:
                raise InputError(
                    f"{workdir}: trained for {start} steps, but the config asks for {steps}; "
                    "give at least as many, or another --workdir"
                )
            if start == steps and saved is not None:
                record.check_finished(workdir, saved, resolved)
            logger.info("resuming at step %d of %d from %s", start, steps, workdir)
        logger.info("%d parameters; %d steps", parameter_count(state.params), steps)
        if distributed.is_first():
            write_json(workdir / "config.json", resolved)  # now that it is known to fit
            record.add_start(workdir, start, experiment.trained_on)
        writer = MetricsWriter(workdir if distributed.is_first() else None, start)
        state = parallel.replicate(parallel.broadcast_state(state))
        try:
            with stop.together():
                state = _steps(run, state, start, writer, checkpoints, stop)
                with stop.held():
                    checkpoints.close()
        finally:
            writer.close()
    return _finish(run, state)


def _make_folder(workdir: Path) -> None:
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--workdir {workdir}: cannot be made: {error.strerror}") from None


def _open(
    config: Config | SegmentConfig, workdir: Path
) -> tuple[dict[str, Any] | None, Experiment]:
    """config.json of a run that continues, and the data; all processes take process 0's scales."""
    segments = isinstance(config, SegmentConfig)
    scales, mark = (InputScales, "classes") if segments else (Scales, "pairs_sha256")
    saved = distributed.from_first(lambda: record.read_saved(workdir, scales, mark))

    def opened(scales: dict[str, Any] | None) -> Experiment:
        if isinstance(config, SegmentConfig):
            from jaxcyto.training.segment import open_segmentation

            return open_segmentation(config, scales)
        return open_pretraining(config, scales)

    if saved is not None:
        return saved, opened(saved["scales"])
    first = opened(None) if distributed.is_first() else None
    fitted = distributed.from_first(lambda: first and to_json(first.task.scales))
    return None, first or opened(fitted)


def _steps(
    run: Run, state: State, start: int, writer: MetricsWriter, checkpoints: Checkpoints, stop: Stop
) -> State:
    """From step `start` to the last. Order matters: step, log, save, validate, next batch.

    All that takes long comes after a save: a signal there loses nothing, and what was cut off is
    done again by the next start.
    """
    config, experiment, steps = run.config, run.experiment, run.experiment.steps
    step_fn = parallel.pmap_train(train_step, task=experiment.task)
    batches = experiment.train_batches(config.seed, for_steps=True, **parallel.share())
    if experiment.skipped is not None:
        experiment.skipped.take(start)  # stands in metrics.jsonl
    iterator = iterate(batches, config.data.threads, parallel.place, start)
    progress = ProgressLine(start, steps, experiment.examples_per_step, experiment.unit)
    pending: list[tuple[int, Any]] = []  # checks not yet looked at: dispatch goes ahead
    taken = start  # steps, by `state`
    validated = _validated(run)
    checkpoints.best = min(validated, key=validated.__getitem__, default=None)
    try:
        if start and _validates(run, start) and start not in validated:
            _validate(run, state, start, validated, writer, checkpoints)
        for step in range(start + 1, steps + 1):
            before = time.monotonic()
            batch = next(iterator) | experiment.resident
            progress.waited += time.monotonic() - before
            with stop.held():  # else a signal raises Interrupted where it comes
                state, measured = step_fn(state, batch)
                taken = step
                pending.append((step, measured["checks"]))
                if len(pending) > AHEAD:
                    jax.block_until_ready(pending[-AHEAD])
                validates = _validates(run, step)
                saves = validates or step % config.checkpoint_every == 0
                logs = step % config.log_every == 0 or step in (1, steps)
                if logs or saves:
                    _check_finite(pending, run)
                    pending.clear()
                if logs:
                    _log(run, step, measured, progress, writer)
                if logs or saves:
                    _log_skipped(run, step, writer)
                if step == start + 1:
                    progress.restart(step)  # what came before is compilation
                if saves:
                    writer.sync()
                    checkpoints.save(step, state)
            if validates:
                _validate(run, state, step, validated, writer, checkpoints)
                progress.restart(step)
    except Interrupted:
        _check_finite(pending, run)
        _log_skipped(run, taken, writer)
        writer.sync()
        checkpoints.save(taken, state)
        raise
    finally:
        iterator.close()
    return state


def _log(
    run: Run, step: int, measured: dict[str, Any], progress: ProgressLine, writer: MetricsWriter
) -> None:
    """The progress line, and the scalars of a step."""
    measured = jax.device_get(measured)
    values = {key: float(value) for key, value in measured["scalars"].items()}
    errors = run.experiment.summary(measured["errors"])
    headline = run.experiment.headline(errors)
    if skipped := int(values.get("skipped_steps", 0)):
        headline += f"  {skipped} steps skipped"
    rates = progress.line(step, values["loss"], headline)
    scalars = {f"train/{key}": value for key, value in (values | errors).items()}
    writer.write(step, scalars | {f"speed/{key}": value for key, value in rates.items()})


def _check_finite(pending: list[tuple[int, Any]], run: Run) -> None:
    """Logs steps that the optimizer has left out (`optim.skip_nonfinite`).

    Raises:
        FloatingPointError: names the first step that is not finite otherwise.
    """
    for step, checks in pending:
        checks = {key: value.item() for key, value in jax.device_get(checks).items()}
        loss, gradient, skipped = checks["loss"], checks["gradient"], checks["skipped"]
        finite = np.isfinite(loss) and np.isfinite(gradient)
        if finite and checks["finite"] and not skipped:
            continue
        what = f"the loss is {loss:g}, the gradient's norm {gradient:g} at step {step}"
        if finite:
            what += ", but what it makes of parameters or batch statistics is not finite"
        try:
            batch: Any = run.experiment.train_batches(run.config.seed)[step - 1]
            what += "; " + run.experiment.name_examples(batch["index"])
        except InputError as error:  # a file is gone since
            what += f"; its examples cannot be read again: {error}"
        if checks["finite"] and 0 < skipped <= run.config.optim.skip_nonfinite:
            logger.warning("skipped: %s", what)
            continue
        raise FloatingPointError(
            f"{what}. Lower optim.learning_rate, or set optim.clip_norm or optim.skip_nonfinite; "
            "the last checkpoint is intact"
        )


def _log_skipped(run: Run, step: int, writer: MetricsWriter) -> None:
    """Writes which files could not be read for the steps since the last time."""
    if run.experiment.skipped is not None:
        lost = run.experiment.skipped.take(step)
        writer.write(step, {f"{SKIPPED}{path}": count for path, count in lost.items()})


def _with_statistics(run: Run, state: State) -> State:
    """The state with batch statistics as evaluation and other programs get them."""
    batches = run.experiment.train_batches(seed=0, for_steps=False, **parallel.share())
    return run.evaluator.reestimate(state, batches, run.config.batch_stats_steps)


def _validates(run: Run, step: int) -> bool:
    return step % run.config.eval_every == 0 or step == run.experiment.steps


def _validate(
    run: Run,
    state: State,
    step: int,
    validated: dict[int, float],
    writer: MetricsWriter,
    checkpoints: Checkpoints,
) -> None:
    """Logs the scalars, adds the one that selects to `validated`, has the best one kept."""
    values = run.experiment.validate(run.evaluator, _with_statistics(run, state))
    if values is None:
        return
    writer.write(step, values)
    error = values[run.experiment.selects]
    if np.isfinite(error):
        validated[step] = error
        checkpoints.best = min(validated, key=validated.__getitem__)


def _validated(run: Run) -> dict[int, float]:
    """The scalar that selects, by step, of the validations so far."""

    def read() -> list[tuple[int, float]]:
        key = run.experiment.selects
        lines = read_metrics(run.workdir / "metrics.jsonl")
        return [(line["step"], line[key]) for line in lines if key in line]

    return dict(distributed.from_first(read))


def _finish(run: Run, state: State) -> dict[str, Any]:
    """weights.safetensors, the test and its figures, results.json."""
    state = _with_statistics(run, state)
    host = jax.device_get(state)
    if distributed.is_first():
        save_weights(run.workdir, {"params": host.params, "batch_stats": host.batch_stats})
        (run.workdir / "figures").mkdir(exist_ok=True)
    results: dict[str, Any] = {"steps": int(host.step)}
    results |= run.experiment.finish(run.evaluator, state, run.workdir)
    if not distributed.is_first():
        return distributed.from_first(dict)
    if run.experiment.skipped is not None:
        results["skipped"] = _skipped(run.workdir)
    write_json(run.workdir / "results.json", results)
    logger.info("weights, results.json and figures are in %s", run.workdir)
    return distributed.from_first(lambda: results)


def _skipped(workdir: Path) -> dict[str, int]:
    """How often each file could not be read while training; says so."""
    total = skipped_files(read_metrics(workdir / "metrics.jsonl"))
    for path, count in total.most_common():
        logger.warning("skipped while training: %d times %s", count, path)
    return dict(total)
