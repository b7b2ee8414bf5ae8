"""Read the JSON files of a run as far as a report shows them, and detect damage."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxcyto.errors import InputError

# the errors that parsing a damaged file can raise
DAMAGE = (OSError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError,
          RecursionError)  # fmt: skip


def read_json(path: Path, take: Callable[..., Any], *arguments: Any) -> Any:
    """Parse a JSON file with `take`. Return None if the file does not exist.

    Args:
        path: the file.
        take: called with the content and `arguments`. Returns the value.
        arguments: further arguments of `take`.

    Raises:
        InputError: the file is damaged. The message says what to do.
    """
    if not path.is_file():
        return None
    try:
        return take(json.loads(path.read_text()), *arguments)
    except DAMAGE as error:
        what = f"{type(error).__name__}: {error}"
        if "evaluation" in path.parts:
            remedy = "run `jaxcyto evaluate` again"
        elif path.name == "environment.json":
            remedy = "remove it; the next start of the run writes another"
        else:
            remedy = _again(path.parent)
        raise InputError(f"{path}: damaged ({what}); {remedy}") from None


def _again(run: Path) -> str:
    return f"remove it and train again with --workdir {run}: a finished run only repeats its test"


def results(found: dict[str, Any], task: str) -> dict[str, Any]:
    """Return the part of results.json that a report shows.

    Raises one of `DAMAGE` where the content is not valid.
    """

    def figure(value: Any) -> float | None:
        if value is not None and not math.isfinite(value):
            raise ValueError(f"{value} among its figures")
        return None if value is None else float(value)

    def figures(table: dict[str, Any]) -> dict[str, Any]:
        return {
            str(key): [figure(v) for v in value] if isinstance(value, list) else figure(value)
            for key, value in table.items()
            if key != "dice"
        }

    def expect(table: dict[str, Any], key: str) -> None:
        """Check that a key holds one number, or three if it is given per axis."""
        length = len(table[key]) if isinstance(table[key], list) else None
        if length != (3 if "per_axis" in key else None):
            raise ValueError(f"{key} = {table[key]}")

    steps = {"steps": int(found["steps"])} if "steps" in found else {}
    if "test" not in found:
        return steps
    if task == "pretraining":
        chosen = {key: figures(found[key]) for key in ("test", "test_train_mode")}
        needed = ("distance_mae_mm", "coordinate_mae_mm", "coordinate_mae_mm_per_axis")
        for key in (*needed, *(f"{key}_constant" for key in needed)):
            expect(chosen["test"], key)
        for key in chosen["test_train_mode"]:
            expect(chosen["test_train_mode"], key)
        return steps | chosen

    def scores(table: dict[str, Any]) -> dict[str, Any]:
        own = figures(table)
        own["dice"] = {str(key): figure(value) for key, value in table["dice"].items()}
        own["pixels"] = int(table["pixels"])
        for key in ("err_seg_percent", "dice_macro", "dice_macro_areas"):
            expect(own, key)
        return own

    confusion = np.array(found["confusion"], np.int64)
    if confusion.ndim != 2 or not len(confusion) <= confusion.shape[1] <= len(confusion) + 1:
        raise ValueError(f"a confusion matrix of shape {confusion.shape}")
    if len(confusion) != len(found["test"]["dice"]):
        raise ValueError("a confusion matrix of other classes than dice")
    sections = {str(name): scores(table) for name, table in found["sections"].items()}
    return steps | {
        "test": scores(found["test"]),
        "sections": sections,
        "confusion": confusion.tolist(),
    }


def environment(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the entries of environment.json. Raises one of `DAMAGE` if they are not valid."""
    return [dict(entry) for entry in found]
