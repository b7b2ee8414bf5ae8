"""Run the units of run.py that train, and write the result file of any unit."""

import dataclasses
import itertools
import json
import os
import platform
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.evidence.plan import ALL_ROWS, Size, pretext_config, segment_config
from benchmarks.provenance import commit
from jaxcyto.brain.manifest import read_brain
from jaxcyto.config import Config, SegmentConfig
from jaxcyto.config_io import to_json
from jaxcyto.data.pair_batches import PairSource, fit_scales
from jaxcyto.data.pair_table import open_pairs
from jaxcyto.data.segment_table import open_windows
from jaxcyto.runs.metrics_file import read_metrics
from jaxcyto.training import loop
from jaxcyto.utils.files import atomic_write

CURVE_POINTS = 25  # curves are averaged in at most this many bins


@dataclasses.dataclass(frozen=True)
class Unit:
    """One step of the experiment. `kind` is "pretext", "segment", "probes" or "baseline"."""

    kind: str
    study: str
    row: str
    seed: int

    @property
    def name(self) -> str:
        """The result file's path within the folder of a size, without its suffix."""
        row = self.row.replace("/", "over").replace(" ", "_")
        return f"{self.study}/row_{row}_seed_{self.seed}_{self.kind}"


def run_folder(out: Path, brain: str, row: str, seed: int, kind: str) -> Path:
    """Return the folder of a training run.

    The folder does not depend on the study, so that studies share pre-training runs.
    """
    return (
        out
        / "runs"
        / brain
        / f"row_{row.replace('/', 'over').replace(' ', '_')}"
        / (f"seed_{seed}_{kind}")
    )


def write_result(path: Path, unit: Unit, seconds: float, found: dict[str, Any]) -> None:
    """Write one result file, with its time, commit, device and package versions.

    Args:
        path: the JSON file, whose folder is made.
        unit: the unit that was run.
        seconds: its wall-clock time.
        found: its results.
    """
    record = {
        **dataclasses.asdict(unit),
        **found,
        "seconds": round(seconds, 1),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "device": _device(),
        "versions": {name: version(name) for name in ("jax", "flax", "optax", "numpy")},
        "title": ALL_ROWS[unit.row].title if unit.row in ALL_ROWS else unit.row,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(json.dumps(rounded(record), indent=1).encode() + b"\n")


def pretrain(size: Size, brain: Path, row: str, seed: int, run: Path) -> dict[str, Any]:
    """Train a row's pretext task in the folder `run`, and return its test errors and curves."""
    config = pretext_config(size, brain, ALL_ROWS[row], seed)
    config = _with_distance_scale(config, ALL_ROWS[row].distance_scale)
    results = loop.train(config, run)
    return {
        "steps": results["steps"],
        "pairs": results["pairs"],
        "test": results.get("test"),
        "curves": curves(run, ("distance_mae_mm", "coordinate_mae_mm"), "loss"),
        "training_seconds": _trained_seconds(run),
        "config": _config(run),
    }


def segment(
    size: Size, brain: Path, row: str, seed: int, run: Path, init_from: Path | None, longer: int
) -> dict[str, Any]:
    """Train a row's segmentation in the folder `run`, and return its test scores and curves.

    Args:
        size: sizes of the experiment.
        brain: the brain folder to segment.
        row: a key of `ALL_ROWS`.
        seed: seed of the run.
        run: the run folder.
        init_from: a finished pre-training run, or None to train from scratch.
        longer: factor on the size's steps.
    """
    config = segment_config(size, brain, row, seed, init_from, longer)
    results = loop.train(config, run)
    return {
        "steps": results["steps"],
        "annotated": list(config.data.train_sections),
        "training_pixels": _training_pixels(config),
        "test": results.get("test"),
        "confusion": results.get("confusion"),
        "classes": to_json(read_brain(brain).classes),
        "curves": curves(run, ("err_seg_percent", "dice_macro_areas"), "loss"),
        "training_seconds": _trained_seconds(run),
        "config": _config(run),
    }


def _training_pixels(config: SegmentConfig) -> dict[str, int]:
    """Count the annotated pixels of each class that training images are drawn from."""
    table = open_windows(config.data, config.model)
    names = (each.name for each in table.classes)
    return dict(zip(names, table.class_pixels("train").tolist(), strict=True))


def curves(run: Path, errors: tuple[str, ...], loss: str) -> dict[str, list[list[float]]]:
    """Read the curves of a run.

    Args:
        run: the run folder.
        errors: names of errors, read for training and validation.
        loss: name of the training loss.

    Returns:
        Lists of [step, value] by key of metrics.jsonl, averaged in `CURVE_POINTS` bins.
    """
    lines = read_metrics(run / "metrics.jsonl")
    keys = [f"train/{loss}", *(f"{part}/{key}" for key in errors for part in ("train", "val"))]
    found = {}
    for key in keys:
        series = [[line["step"], line[key]] for line in lines if key in line]
        bins = np.array_split(np.array(series), min(CURVE_POINTS, len(series))) if series else []
        found[key] = [part.mean(axis=0).tolist() for part in bins]
    return found


def _with_distance_scale(config: Config, factor: float) -> Config:
    """Scale the unit of the predicted distance by `factor`."""
    if factor == 1:
        return config
    table = open_pairs(config.data)
    scales = fit_scales(PairSource(table, config.data), table)
    scales = dataclasses.replace(scales, distance_mm=factor * scales.distance_mm)
    return dataclasses.replace(config, scales=scales)


def rounded(value: Any) -> Any:
    """Round floats in nested values to five significant digits, to keep files small.

    Floats that are not finite become None, because JSON has no NaN.
    """
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(f"{value:.5g}") if np.isfinite(value) else None
    return value


def _config(run: Path) -> dict[str, Any]:
    """Return the resolved config without paths and without how often a run writes or evaluates."""
    config = json.loads((run / "config.json").read_text())
    kept = ("seed", "model", "loss", "augment", "optim", "scales", "steps", "encoder_rate",
            "batch_stats_steps", "pairs_sha256", "annotation_sha256")  # fmt: skip
    data = {key: value for key, value in config["data"].items() if key not in ("brains", "threads")}
    return {key: config[key] for key in kept if key in config} | {"data": data}


def _trained_seconds(run: Path) -> float:
    """Return the training time of a run that ends now, summed over its starts.

    The last session counts up to now. An earlier one counts from its start to its last line in
    metrics.jsonl, because its end is not recorded.
    """
    starts = [start["time"] for start in json.loads((run / "environment.json").read_text())]
    lines = [line["time"] for line in read_metrics(run / "metrics.jsonl")]
    seconds = time.time() - starts[-1]
    for first, end in itertools.pairwise(starts):
        seconds += max((t for t in lines if first <= t < end), default=first) - first
    return round(seconds, 1)


def _device() -> str:
    """Describe the devices in words."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return f"{jax.device_count()} x {device.device_kind}"
    return f"{os.cpu_count()} CPU cores, {platform.machine()}"
