"""Read the result files of run.py and define the columns of docs/results.md."""

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.evidence.plan import ALL_ROWS, STUDIES
from jaxcyto.errors import InputError

Results = dict[tuple[str, str, int], dict[str, Any]]  # (study, row, seed): kind -> record


def read_results(folder: Path) -> Results:
    """Read all result files of a size.

    Older records of segmentations lack `training_pixels`. They get it from a record with the same
    annotated sections.

    Args:
        folder: the folder of a size, with one folder per study.

    Returns:
        The records by (study, row, seed), and by kind within each.

    Raises:
        InputError: a file is damaged.
    """
    found: Results = defaultdict(dict)
    for path in sorted(folder.glob("*/*.json")):
        try:
            record = json.loads(path.read_text())
            _check(record)
            found[record["study"], record["row"], record["seed"]][record["kind"]] = record
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path}: damaged ({error!r}). Delete it and run benchmarks/evidence/run.py again."
            ) from None
    segmented = [kinds["segment"] for kinds in found.values() if "segment" in kinds]
    pixels = {_drawn(r): r["training_pixels"] for r in segmented if "training_pixels" in r}
    for record in segmented:
        record.setdefault("training_pixels", pixels.get(_drawn(record)))
    return dict(found)


# Fields that the page and its figures read without a check. "| None" marks fields that are null
# where the test sections have no annotation.
NEEDED: dict[str, dict[str, Any]] = {
    "pretext": {"curves": dict},
    "segment": {
        "test": dict | None, "confusion": list | None, "classes": list, "curves": dict,
        "annotated": list,
    },
    "probes": {"heads": dict | None, "map": dict},
    "baseline": {"models": dict},
}  # fmt: skip
ALWAYS = {
    "study": str, "row": str, "seed": int, "seconds": int | float, "device": str, "finished": str,
}  # fmt: skip


def _check(record: dict[str, Any]) -> None:
    """Check that a record has the fields in `ALWAYS` and `NEEDED`.

    Raises:
        KeyError: a field is missing.
        TypeError: a field has the wrong type.
        ValueError: the study is unknown.
    """
    for key, kind in (ALWAYS | NEEDED[record["kind"]]).items():
        if not isinstance(record[key], kind):
            raise TypeError(f"{key} = {record[key]!r:.40}")
    if record["study"] not in STUDIES:
        raise ValueError(f"unknown study {record['study']!r}")


def _drawn(record: dict[str, Any]) -> tuple[str, ...]:
    """Return the brain that a row segments and its annotated sections, as a key."""
    return STUDIES[record["study"]].segmented, *map(str, record["annotated"])


# ---- columns: each reads one value of a row, study and seed -------------------------------------

Read = Callable[[dict[str, Any]], float | None]
Column = tuple[str, str, Read]  # title, format, reader of the value


def _probe(*keys: str) -> Read:
    """Return a reader of a nested value of the probes."""

    def read(found: dict[str, Any]) -> float | None:
        value = found.get("probes", {})
        for key in keys:
            value = (value or {}).get(key)
        return value  # type: ignore[return-value]

    return read


def _head(key: str, term: str, axis: int | None = None) -> Read:
    """Return a reader of an error of the network's own outputs.

    The reader returns None for rows that do not train this output, that is, rows without a loss
    term whose name contains `term`.
    """

    def read(found: dict[str, Any]) -> float | None:
        record = found.get("probes") or {}
        terms = ALL_ROWS[record["row"]].terms if record else ()
        value = (record.get("heads") or {}).get(key)
        if value is None or not any(term in repr(each.function) for each in terms):
            return None
        return value if axis is None else value[axis]

    return read


def _times_larger(found: dict[str, Any]) -> float | None:
    """Divide the median squared distance of neighbors at borders by the one within areas."""
    border, within = (_probe("neighbors", f"median_{k}")(found) for k in ("border", "within"))
    return border / within if border is not None and within else None


def _segment(key: str) -> Read:
    """Return a reader of a test score of the segmentation."""
    return lambda found: (found.get("segment", {}).get("test") or {}).get(key)


def _dice_of_seen(found: dict[str, Any]) -> float | None:
    """Return the mean Dice of the test areas that have at least one training pixel."""
    record = found.get("segment") or {}
    pixels = record.get("training_pixels")
    if not pixels or not record["test"]:
        return None
    areas = [entry["name"] for entry in record["classes"] if entry["kind"] == "area"]
    dice = record["test"]["dice"]
    seen = [dice[name] for name in areas if pixels.get(name) and dice[name] is not None]
    return float(np.mean(seen)) if seen else None


def _wrong_in_cortex(found: dict[str, Any]) -> float | None:
    """Return the percentage of wrong pixels among those annotated as an area or other cortex."""
    record = found.get("segment") or {}
    if not record.get("confusion"):
        return None
    matrix = np.array(record["confusion"])
    cortex = [entry["kind"] in ("area", "cortex") for entry in record["classes"]]
    if not matrix[cortex].any():
        return None
    return float(100 * (1 - np.diag(matrix)[cortex].sum() / matrix[cortex].sum()))


COLUMNS: tuple[Column, ...] = (
    ("distance error, mm", ".2f", _head("distance_mae_mm", "distance_loss")),
    ("coordinate error, mm", ".2f", _head("coordinate_mae_mm", "coordinate_loss")),
    ("Dice, areas", ".3f", _segment("dice_macro_areas")),
    ("Dice, areas seen", ".3f", _dice_of_seen),
    ("err_seg, %", ".1f", _segment("err_seg_percent")),
    ("wrong in cortex, %", ".1f", _wrong_in_cortex),
    ("k-NN, %", ".1f", _probe("knn", "accuracy_percent")),
    ("linear, %", ".1f", _probe("linear", "accuracy_percent")),
    ("border AUC", ".2f", _probe("neighbors", "auc")),
)
DETAILS: tuple[Column, ...] = (
    ("distance error, mm", ".2f", _head("distance_mae_mm", "distance_loss")),
    ("of the median, mm", ".2f", _head("distance_mae_mm_constant", "distance_loss")),
    *(
        (f"{name}, mm", ".2f", _head("coordinate_mae_mm_per_axis", "coordinate_loss", axis))
        for axis, name in enumerate("xyz")
    ),
    ("position probe, mm", ".2f", _probe("readout", "coordinate_mae_mm")),
    ("of the median, mm", ".2f", _probe("readout", "coordinate_mae_mm_constant")),
    ("border / within", ".2f", _times_larger),
    ("rank corr., curvature", ".2f", _probe("neighbors", "spearman_curvature")),
    ("rank corr., obliqueness", ".2f", _probe("neighbors", "spearman_obliqueness")),
)


def values(results: Results, study: str, row: str, title: str) -> dict[int, float]:
    """Return the values of the column `title` of `COLUMNS` for a row, by seed."""
    read = next(read for each, _, read in COLUMNS if each == title)
    return by_seed(results, study, row, read)


def by_seed(results: Results, study: str, row: str, read: Read) -> dict[int, float]:
    """Return the values of a row, by seed. Seeds without a value are left out."""
    found = {
        seed: read(record)
        for (each, name, seed), record in results.items()
        if (each, name) == (study, row)
    }
    return {seed: float(value) for seed, value in sorted(found.items()) if value is not None}


def cell(found: dict[int, float], form: str) -> str:
    """Format the mean over seeds, with the sample standard deviation if there are two or more."""
    if not found:
        return ""
    numbers = list(found.values())
    mean = format(float(np.mean(numbers)), form)
    return mean if len(numbers) < 2 else f"{mean} ± {format(float(np.std(numbers, ddof=1)), form)}"
