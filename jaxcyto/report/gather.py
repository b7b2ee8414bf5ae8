"""Read a run folder into plain dataclasses, for both tasks and for unfinished runs.

`jaxcyto report --json` prints `Gathered` as JSON.
"""

import dataclasses
import math
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxcyto.brain.manifest import AreaClass, read_classes
from jaxcyto.errors import InputError
from jaxcyto.report import files
from jaxcyto.report.brains import BrainData, read_brains
from jaxcyto.runs import pair_predictions
from jaxcyto.runs.load import find, is_segmentation, read_config
from jaxcyto.runs.metrics_file import read_metrics, skipped_files


@dataclasses.dataclass(frozen=True)
class Status:
    """The progress of a run. Times are UTC such as "2026-11-22 21:38", or None before any log."""

    finished: bool
    steps: int  # steps taken
    steps_planned: int | None  # None: unknown, because the data cannot be read
    first_log: str | None
    last_log: str | None


@dataclasses.dataclass(frozen=True)
class Scores:
    """A test of a segmentation, at the end of training or by `jaxcyto evaluate`.

    `test`, `sections` and `confusion` are copied from results.json. See `scores.sum_sections`.
    """

    title: str
    brain: str | None  # name of the brain folder. None: the test at the end of training
    split: str
    test: dict[str, Any]
    sections: dict[str, dict[str, Any]]
    confusion: list[list[int]]


@dataclasses.dataclass(frozen=True)
class Throughput:
    """Training throughput, with rates as medians over the lines of metrics.jsonl.

    `seconds_in_steps` excludes validation. `seconds_logged` is the time from the first line to the
    last and includes validation and the time that the run was stopped.
    """

    unit: str  # "patches" or "images"
    per_second: float
    data_wait_share: float  # fraction of the time, 0 ... 1
    seconds_in_steps: float
    seconds_logged: float


@dataclasses.dataclass(frozen=True)
class Gathered:
    """All figures of a run.

    Attributes:
        name: name of the run folder.
        path: path of the run folder, as given.
        task: "pretraining" or "segmentation".
        status: progress of the run.
        config: content of config.json.
        data: one entry for each brain.
        skipped: how often each file could not be read in training.
        test: test errors of pre-training from results.json, or None before the test.
        test_train_mode: the same errors when batch normalization uses batch statistics.
        scores: tests of a segmentation, with the most important one first.
        curves: (steps, values) for each name in metrics.jsonl.
        throughput: training throughput, or None if no speed is logged yet.
        environment: one entry for each start of the run, in order.
        missing: for each section of the page without data, how to get the data.
    """

    name: str
    path: str
    task: str
    status: Status
    config: dict[str, Any]
    data: list[BrainData]
    skipped: dict[str, int]
    test: dict[str, Any] | None
    test_train_mode: dict[str, Any] | None
    scores: list[Scores]
    curves: dict[str, tuple[list[int], list[float]]]
    throughput: Throughput | None
    environment: list[dict[str, Any]]
    missing: dict[str, str]

    @property
    def classes(self) -> tuple[AreaClass, ...]:
        """Classes of a segmentation, empty for pre-training."""
        return read_classes(Path(self.path) / "config.json", self.config.get("classes", []), [])


def gather(run: Path, brains: Sequence[Path] = ()) -> Gathered:
    """Read a run folder and the tables of its brains.

    Args:
        run: the run folder.
        brains: brain folders. A folder replaces the brain of the same name in the config. Others
            are added, such as brains that the run was only tested on.

    Raises:
        InputError: `run` is not a run folder, one of its files is damaged, or one of `brains` is
            not a brain folder.
    """
    if find(run).exported:
        raise InputError(
            f"{run}: an export: it has no curves, and its README.md gives the test results; report "
            "the run that was exported"
        )
    config = read_config(run)
    task = "segmentation" if is_segmentation(config) else "pretraining"
    faults: list[str] = []
    read_classes(run / "config.json", config.get("classes", []), faults)
    if faults:
        raise InputError(f"{run / 'config.json'}: damaged ({faults[0]}); train again")
    metrics = run / "metrics.jsonl"
    lines = read_metrics(metrics) if metrics.is_file() else []
    results = files.read_json(run / "results.json", files.results, task) or {}
    data = read_brains(config, brains, with_pairs=task == "pretraining")
    steps = max([line["step"] for line in lines] + [results.get("steps", 0)])
    planned = _planned(config, data)
    scores = []
    if task == "segmentation":
        if results.get("test"):
            scores.append(_scores("End of training", None, "test", results))
        for path in sorted(run.glob("evaluation/*/*/results.json")):
            brain, split = path.parts[-3:-1]
            evaluated = files.read_json(path, files.results, task)
            scores.append(_scores(f"{brain}, {split}", brain, split, evaluated))
    # the most important scores come first: those of whole test sections
    scores.sort(key=lambda entry: (entry.split != "test", entry.brain is None))
    gathered = Gathered(
        name=run.resolve().name,
        path=str(run),
        task=task,
        status=Status(
            finished=results.get("steps", -1) >= (planned or steps),
            steps=steps,
            steps_planned=planned,
            first_log=_utc(lines[0].get("time")) if lines else None,
            last_log=_utc(lines[-1].get("time")) if lines else None,
        ),
        config=config,
        data=data,
        skipped=dict(skipped_files(lines).most_common()),
        test=results.get("test") if task == "pretraining" else None,
        test_train_mode=results.get("test_train_mode"),
        scores=scores,
        curves=_curves(lines),
        throughput=_throughput(lines, config["data"]),
        environment=files.read_json(run / "environment.json", files.environment) or [],
        missing={},
    )
    return dataclasses.replace(gathered, missing=_missing(gathered, run))


def _scores(title: str, brain: str | None, split: str, results: dict[str, Any]) -> Scores:
    return Scores(title, brain, split, results["test"], results["sections"], results["confusion"])


def _planned(config: dict[str, Any], data: list[BrainData]) -> int | None:
    """Return the total steps of the run, as `config.total_steps` computes them.

    Return None if they are unknown.
    """
    try:
        if config.get("steps") is not None:
            return int(config["steps"])
        if any(brain.pairs is None for brain in data):
            return None
        pairs = sum(brain.pairs["train"] for brain in data if brain.pairs is not None)
        return max(1, math.ceil(config["epochs"] * pairs / config["data"]["batch_pairs"]))
    except (KeyError, TypeError, ValueError, ArithmeticError):
        return None


def _utc(seconds: Any) -> str | None:
    try:
        return time.strftime("%Y-%m-%d %H:%M", time.gmtime(seconds))
    except (TypeError, ValueError, OverflowError, OSError):
        return None


def _curves(lines: list[dict[str, Any]]) -> dict[str, tuple[list[int], list[float]]]:
    curves: dict[str, tuple[list[int], list[float]]] = {}
    for line in lines:
        for key, value in line.items():
            if key.startswith(("train/", "val/", "val_train_mode/", "speed/")):
                steps, values = curves.setdefault(key, ([], []))
                steps.append(line["step"])
                values.append(value)
    return curves


def _throughput(lines: list[dict[str, Any]], data: dict[str, Any]) -> Throughput | None:
    for unit, examples in (
        ("patches", data.get("batch_pairs")),
        ("images", data.get("batch_images")),
    ):
        key = f"speed/{unit}_per_second"
        logged = [line for line in lines if line.get(key, 0) > 0]
        if not logged or not isinstance(examples, int):
            continue
        examples *= 2 if unit == "patches" else 1  # a pair has two patches
        before = [0, *(line["step"] for line in logged)]
        times = [line["time"] for line in lines if "time" in line]
        return Throughput(
            unit=unit,
            per_second=statistics.median(line[key] for line in logged),
            data_wait_share=statistics.median(
                line.get("speed/data_wait_share", 0) for line in logged
            ),
            seconds_in_steps=sum(
                (line["step"] - last) * examples / line[key]
                for last, line in zip(before, logged, strict=False)
            ),
            seconds_logged=max(times, default=0) - min(times, default=0),
        )
    return None


def _missing(gathered: Gathered, run: Path) -> dict[str, str]:
    """List the sections of the page that have no data, each with how to get the data."""
    missing = {}
    done, path = gathered.status.finished, gathered.path
    continued = f"The command that started the run, with `--workdir {path}`, continues it."
    if not gathered.curves:
        missing["curves"] = f"Nothing is logged yet. {continued}"
    if gathered.throughput is None:
        missing["throughput"] = f"No speed is logged yet. {continued}"
    if not gathered.environment:
        missing["environment"] = (
            "Not recorded: the run holds no environment.json. Training writes it at each start."
        )
    tested = gathered.test is not None or bool(gathered.scores)
    if not tested and done and gathered.config.get("test") is False:
        missing["scores"] = (
            f"The config has test = False. `jaxcyto evaluate {path} BRAIN` scores it."
        )
    elif not tested and done:
        missing["scores"] = "The data has no test examples: give some sections the split test."
    elif not tested:
        missing["scores"] = f"The test comes after the last step. {continued}"
    if gathered.task == "pretraining":
        if not (run / pair_predictions.FILE).is_file():
            missing["predictions"] = (
                f"The test pairs are predicted at the end of training. {continued}"
            )
        if unread := _unread(gathered):
            missing["pairs"] = f"Pairs are read from the brain folders. {unread}"
        return missing
    predicted = {file.parent.name for file in run.glob("predictions/*/*.ome.tif")}
    known = {Path(brain.path).resolve().name for brain in gathered.data if not brain.fault}
    if not predicted:
        brain = next((brain.path for brain in gathered.data), "BRAIN")
        when = "" if done else " once the run is finished"
        missing["sections"] = (
            f"No section is predicted yet. Predict{when}: `jaxcyto evaluate {path} {brain}`"
        )
    elif predicted - known:
        names = ", ".join(sorted(predicted - known))
        missing["sections"] = f"Sections are read from the brain folders. Not available: {names}. "
        missing["sections"] += _unread(gathered) or LOOK
    return missing


LOOK = "Run the report in the folder where the run was started, or give `--brain FOLDER`."


def _unread(gathered: Gathered) -> str:
    """Return the faults of the brains and their remedy, or "" if there is no fault."""
    faults = [brain.fault.rstrip(".") for brain in gathered.data if brain.fault]
    return f"{'. '.join(faults)}. {LOOK}" if faults else ""
