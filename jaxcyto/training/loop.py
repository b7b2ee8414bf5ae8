"""The training loop: data, state, steps, validation, checkpoints, results, in this order.

Resuming: 1. a checkpoint in the run folder is continued from; 2. else training starts from scratch.
Scales always come from the run's config.json if it exists: a run never changes its units.
"""

import dataclasses
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcyto import metrics, plots
from jaxcyto.config import Config, Scales, differences, scales_from_json, to_json, total_steps
from jaxcyto.errors import InputError
from jaxcyto.evaluate import Evaluator, constant_errors, results_table
from jaxcyto.input import PairSource, PairTable, fit_scales, iterate, open_pairs, train_batches
from jaxcyto.models import SiameseNet
from jaxcyto.training import parallel
from jaxcyto.training.checkpoint import Checkpoints
from jaxcyto.training.log import MetricsWriter, Progress, logger
from jaxcyto.training.optim import make_optimizer
from jaxcyto.training.state import State, init_state, parameter_count
from jaxcyto.training.step import Task, train_step
from jaxcyto.validate import validate


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

    config: Config
    workdir: Path
    table: PairTable
    source: PairSource
    task: Task
    evaluator: Evaluator
    steps: int


def train(config: Config, workdir: str | os.PathLike) -> dict[str, Any]:
    """Trains, or continues to train, and evaluates on the test pairs.

    Args:
        config: the run.
        workdir: its folder; made if missing. The same folder continues the same run.

    Returns:
        The content of results.json.

    Raises:
        InputError: bad config or data.
        Interrupted: SIGTERM or Ctrl-C; a checkpoint is written.
        FloatingPointError: the loss is not finite.
    """
    validate(config)
    parallel.check_batch(config.data.batch_pairs)
    workdir = Path(workdir).resolve()
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--workdir {workdir}: cannot be made: {error.strerror}") from None
    if config.prepare is not None:
        config.prepare(config)
    table = open_pairs(config.data)
    source = PairSource(table, config.data)
    scales, table_of_config = _resolve_config(config, workdir, source, table)
    steps = total_steps(config, len(table.of_split("train")))
    optimizer = make_optimizer(config.optim, steps)
    task = Task(make_model(config), config.loss, config.augment, scales, optimizer, config.seed)
    run = Run(config, workdir, table, source, task, Evaluator.of(task), steps)
    side = config.data.patch_px
    state = init_state(task.model, jnp.zeros((1, 2, side, side, 1)), optimizer, config.seed)
    _banner(run, state)

    with Stop() as stop, Checkpoints(workdir / "checkpoints", keep=config.keep) as checkpoints:
        start = checkpoints.latest() or 0
        if start:
            state = checkpoints.restore(start, state)
            if start > steps:
                raise InputError(
                    f"{workdir}: trained for {start} steps, but the config asks for {steps}; "
                    "give at least as many, or another --workdir"
                )
            logger.info("resuming at step %d of %d from %s", start, steps, workdir)
        _write_json(workdir / "config.json", table_of_config)  # now that it is known to fit
        writer = MetricsWriter(workdir, start)
        try:
            state = _steps(run, parallel.replicate(state), start, writer, checkpoints, stop)
        finally:
            writer.close()
    return _finish(run, state)


def make_model(config: Config) -> SiameseNet:
    """The network of a config; its batch norm is local until a step names an axis."""
    model = config.model
    return SiameseNet(
        stem_kernel=model.stem_kernel,
        stem_stride=model.stem_stride,
        widths=tuple(model.widths),
        features=model.features,
        dtype=jnp.dtype(model.dtype),
    )


def _steps(
    run: Run, state: State, start: int, writer: MetricsWriter, checkpoints: Checkpoints, stop: Stop
) -> State:
    """From step `start` to the last. Order matters: step, log, validate, save, next batch."""
    config = run.config
    step_fn = parallel.pmap_train(train_step, task=run.task)
    batches = train_batches(run.source, run.table, config.data, config.seed)
    iterator = iterate(batches, config.data, parallel.place, start)
    progress = Progress(start, run.steps, 2 * config.data.batch_pairs)
    pending: list[tuple[int, jax.Array, jax.Array]] = []  # not yet looked at: dispatch goes ahead
    best = np.inf
    try:
        for step in range(start + 1, run.steps + 1):
            before = time.monotonic()
            batch = next(iterator)
            progress.waited += time.monotonic() - before
            state, measured = step_fn(state, batch)
            scalars = measured["scalars"]
            pending.append((step, scalars["loss"], scalars["l2_gradients"]))

            logs = step % config.log_every == 0 or step in (1, run.steps)
            validates = step % config.eval_every == 0 or step == run.steps
            saves = step % config.checkpoint_every == 0 or step == run.steps
            if logs or validates or saves or stop.signum is not None:
                _check_finite(pending, batches, run.table)
                pending.clear()
            if logs:
                values = _host_values(measured)
                values |= {f"speed/{k}": v for k, v in progress.line(step, values).items()}
                writer.write(step, values)
            if step == start + 1:
                progress.restart(step)  # what came before is compilation
            error = None
            if validates:
                error = _validate(run, state, step, writer)
                progress.restart(step)
            improves = error is not None and error < best
            best = min(best, error) if error is not None else best
            if saves or improves or stop.signum is not None:
                checkpoints.save(step, state, error)
            if stop.signum is not None:
                raise Interrupted(stop.signum)
    finally:
        iterator.close()
    return state


def _host_values(measured: dict[str, Any]) -> dict[str, float]:
    host = jax.device_get(measured)
    values = {f"train/{key}": float(value) for key, value in host["scalars"].items()}
    return values | {f"train/{k}": v for k, v in flat(metrics.compute(host["errors"])).items()}


def flat(errors: dict[str, Any]) -> dict[str, float]:
    """Errors with those per axis under a name each."""
    values = {}
    for key, value in errors.items():
        if np.ndim(value):
            values |= {f"{key}/{axis}": float(v) for axis, v in zip("xyz", value, strict=True)}
        else:
            values[key] = float(value)
    return values


def _check_finite(
    pending: list[tuple[int, jax.Array, jax.Array]], batches: Any, table: PairTable
) -> None:
    for step, *values in pending:
        loss, gradient = (float(value) for value in jax.device_get(values))
        if not (np.isfinite(loss) and np.isfinite(gradient)):
            pairs = batches[step - 1]["index"]
            patches = [f"{table.first[i]}-{table.second[i]}" for i in pairs]
            raise FloatingPointError(
                f"the loss is {loss}, the gradient's norm {gradient} at step {step}; pairs "
                f"{pairs.tolist()} (patches {', '.join(patches)}). Lower optim.learning_rate "
                "or set optim.clip_norm; the last checkpoint is intact"
            )


def _validate(run: Run, state: State, step: int, writer: MetricsWriter) -> float | None:
    """Errors on the validation pairs with re-estimated statistics; None without such pairs."""
    config = run.config
    pairs = run.table.of_split("val")
    if not len(pairs):
        return None
    # evenly over all of them: pairs are numbered brain by brain
    chosen = np.linspace(0, len(pairs) - 1, min(config.eval_pairs, len(pairs)))
    pairs = pairs[chosen.astype(int)]
    data = (run.source, run.table, config.data)
    state = run.evaluator.reestimate(state, *data, config.batch_stats_steps)
    errors, _ = run.evaluator.run(state, *data, pairs)
    values = {f"val/{key}": value for key, value in flat(errors["eval"]).items()}
    values |= {f"val_train_mode/{k}": v for k, v in flat(errors["train_mode"]).items()}
    writer.write(step, values)
    logger.info(
        "validation at step %d: distance error %.2f mm (batch statistics: %.2f), "
        "coordinate error %.2f mm",
        step,
        values["val/distance_mae_mm"],
        values["val_train_mode/distance_mae_mm"],
        values["val/coordinate_mae_mm"],
    )
    return values["val/distance_mae_mm"]


def _finish(run: Run, state: State) -> dict[str, Any]:
    """Test errors, results.json, figures; prints the table."""
    table, data = run.table, (run.source, run.table, run.config.data)
    pairs = table.of_split("test")
    results: dict[str, Any] = {
        "steps": int(state.step),
        "absolute_x": run.config.data.absolute_x,
        "pairs": {split: len(table.of_split(split)) for split in ("train", "val", "test")},
    }
    state = run.evaluator.reestimate(state, *data, run.config.batch_stats_steps)
    predictions = None
    if len(pairs):
        errors, predictions = run.evaluator.run(state, *data, pairs)
        results["test"] = errors["eval"] | constant_errors(table, pairs, run.task.scales)
        results["test_train_mode"] = errors["train_mode"]
        print(results_table(results["test"], run.config.data.absolute_x), flush=True)
    else:
        logger.warning("no test pairs: results.json has no test errors")
    _write_json(run.workdir / "results.json", results)
    figures = plots.pretext_figures(run.workdir, table, run.source, predictions)
    logger.info("results.json and figures (%s) are in %s", ", ".join(figures), run.workdir)
    return results


def _write_json(path: Path, value: Any) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(value, indent=2) + "\n")
    temporary.replace(path)


def _resolve_config(
    config: Config, workdir: Path, source: PairSource, table: PairTable
) -> tuple[Scales, dict[str, Any]]:
    """Scales of the run, and its config.json; says what changed in it since the first start.

    Raises:
        InputError: the run's config.json is damaged, its pairs are others than those of today, or
            other scales are given.
    """
    path = workdir / "config.json"
    pairs = {str(brain.root.name): key for brain, key in zip(table.brains, table.keys, strict=True)}
    if not path.exists():
        scales = config.scales or fit_scales(source, table)
        return scales, to_json(dataclasses.replace(config, scales=scales)) | {"pairs_sha256": pairs}
    try:
        old = json.loads(path.read_text())
        scales = scales_from_json(old["scales"])
        old_pairs = old["pairs_sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged ({error}); start in a new --workdir") from None
    if old_pairs != pairs:
        raise InputError(
            f"{workdir}: this run was started on other pairs than the brains hold now (a new "
            "sample or split may put training patches into the test); start in a new --workdir"
        )
    if config.scales is not None and config.scales != scales:
        raise InputError(f"{path}: scales are those of the first start; start in a new --workdir")
    new = to_json(dataclasses.replace(config, scales=scales)) | {"pairs_sha256": pairs}
    for line in differences(old, new):
        logger.warning("config differs from the run's so far: %s", line)
    return scales, new


def _banner(run: Run, state: State) -> None:
    table, config = run.table, run.config
    counts = {split: len(table.of_split(split)) for split in ("train", "val", "test")}
    logger.info(
        "%d process(es), %d %s device(s), %d pairs a device and step",
        jax.process_count(),
        jax.device_count(),
        jax.local_devices()[0].platform,
        config.data.batch_pairs // jax.device_count(),
    )
    logger.info(
        "pairs: %s; brains: %s",
        ", ".join(f"{count} {split}" for split, count in counts.items()),
        ", ".join(brain.name for brain in table.brains),
    )
    epochs = run.steps * config.data.batch_pairs / max(1, counts["train"])
    logger.info(
        "%d parameters; %d steps (%.3g epochs)", parameter_count(state.params), run.steps, epochs
    )
