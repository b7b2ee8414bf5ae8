"""What the folder of a run says, as plain values: finished or not, of either task.

`Gathered` and the dataclasses in it are also what `jaxcyto report --json` prints.
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
    """How far a run is. Times are UTC, as "2026-11-22 21:38"; None: nothing was logged yet."""

    finished: bool
    steps: int  # taken
    steps_planned: int | None  # None: not known without the data
    first_log: str | None
    last_log: str | None


@dataclasses.dataclass(frozen=True)
class Scores:
    """One test of a segmentation: at the end of training, or by `jaxcyto evaluate`.

    `test`, `sections` and `confusion` are those of results.json, see `scores.sum_sections`.
    """

    title: str
    brain: str | None  # name of its folder; None: the test at the end of training
    split: str
    test: dict[str, Any]
    sections: dict[str, dict[str, Any]]
    confusion: list[list[int]]


@dataclasses.dataclass(frozen=True)
class Throughput:
    """Rates are medians over the lines of metrics.jsonl.

    `seconds_in_steps` leaves out validation; `seconds_logged` is from the first line to the last,
    with everything between them, also the time that a run was stopped.
    """

    unit: str  # "patches" or "images"
    per_second: float
    data_wait_share: float  # of the time, 0 ... 1
    seconds_in_steps: float
    seconds_logged: float


@dataclasses.dataclass(frozen=True)
class Gathered:
    """All figures of a run.

    Attributes:
        name: of its folder.
        path: of its folder, as given.
        task: "pretraining" or "segmentation".
        status: how far it is.
        config: config.json.
        data: one entry for each brain.
        skipped: how often each file could not be read.
        test: pre-training only: the test errors of results.json; None: not there yet.
        test_train_mode: the same with the statistics of each batch.
        scores: segmentation only; the one to look at comes first.
        curves: (steps, values) by the names of metrics.jsonl.
        throughput: None: too little was logged.
        environment: one entry for each start of the run, the last one last.
        missing: what is not there, and how to get it.
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
        """Of a segmentation."""
        return read_classes(Path(self.path) / "config.json", self.config.get("classes", []), [])


def gather(run: Path, brains: Sequence[Path] = ()) -> Gathered:
    """Reads a run's folder, and of the brains that it names their tables.

    Args:
        run: the folder.
        brains: where brains are that are not where the config says, and others it was tested on.

    Raises:
        InputError: not a run, one of its files is damaged, or one of `brains` is no brain.
    """
    if find(run).exported:
        raise InputError(
            f"{run}: an export: it has no curves, and README.md beside it tells its test; report "
            "the run that it was made from"
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
            found = files.read_json(path, files.results, task)
            scores.append(_scores(f"{brain}, {split}", brain, split, found))
    # first what a reader asks for: whole sections of the test
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


def _scores(title: str, brain: str | None, split: str, found: dict[str, Any]) -> Scores:
    return Scores(title, brain, split, found["test"], found["sections"], found["confusion"])


def _planned(config: dict[str, Any], data: list[BrainData]) -> int | None:
    """Steps of the whole run, as `config.total_steps`."""
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
        examples *= 2 if unit == "patches" else 1
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
    """What the page cannot show, and how to get it, by the section of the page."""
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
    if not tested and done:
        missing["scores"] = "The data has no test examples: give some sections the split test."
    elif not tested:
        missing["scores"] = f"The test comes after the last step. {continued}"
    if gathered.task == "pretraining":
        if not (run / pair_predictions.FILE).is_file():
            missing["predictions"] = (
                f"Predictions of the test pairs come with the end of training. {continued}"
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
            f"No section is predicted yet. Do so{when}: `jaxcyto evaluate {path} {brain}`"
        )
    elif predicted - known:
        names = ", ".join(sorted(predicted - known))
        missing["sections"] = f"Sections are read from the brain folders, of {names}. "
        missing["sections"] += _unread(gathered) or LOOK
    return missing


LOOK = "Run the report where the run was started, or give `--brain FOLDER`."


def _unread(gathered: Gathered) -> str:
    """Faults of the brains, and what to do; "" without any."""
    faults = [brain.fault.rstrip(".") for brain in gathered.data if brain.fault]
    return f"{'; '.join(faults)}. {LOOK}" if faults else ""
