"""Export a run as one safetensors file and a model card.

    OUT/model.safetensors   see `export_file.py`
    OUT/README.md           see `model_card.py`

`load_pretext_run`, `load_segment_run` and `init_from` take a run or an export.
"""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from jaxcyto.brain.manifest import inspect_brain
from jaxcyto.errors import InputError
from jaxcyto.runs.export_file import EXPORT, read_metadata, write_export
from jaxcyto.runs.load import (
    TRAINED_ON,
    Place,
    find,
    is_segmentation,
    load_run,
    load_weights,
    read_config,
    read_trained_on,
)
from jaxcyto.runs.model_card import model_card
from jaxcyto.runs.record import trained_on
from jaxcyto.utils.files import atomic_write

CARD = "README.md"
# Fields of results.json that are not by section.
RESULTS = ("steps", "weights", "absolute_x", "pairs", "test")


def export_run(run: str | os.PathLike, out: str | os.PathLike) -> list[Path]:
    """Export a finished run of either task.

    The arrays equal those of the run bit for bit. The config only keeps the names of folders, not
    their paths.

    Args:
        run: folder of a run, or an export to write its model card again.
        out: output folder, created if missing.

    Returns:
        The paths of the two files.

    Raises:
        InputError: the run is unfinished or damaged, or `out` already holds a run or an export.
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: a file; name a folder, which is created if missing")
    for name in (EXPORT, CARD, "config.json"):
        if (out / name).exists():
            raise InputError(f"{out / name}: already there; give a new folder")
    network, place = load_run(run), find(run)
    table = read_metadata(place.weights) if place.exported else _table(place, read_config(run))
    out.mkdir(parents=True, exist_ok=True)
    with atomic_write(out / CARD) as file:
        file.write(model_card(Path(run).resolve().stem, network, table).encode())
    write_export(out / EXPORT, load_weights(run), table)
    return [out / EXPORT, out / CARD]


def _table(place: Place, config: dict[str, Any]) -> dict[str, Any]:
    """Collect the metadata of a run, with the fields `export_file.FIELDS`."""
    brains = config["data"].get("brains", [])
    named = config | {"data": config["data"] | {"brains": [Path(each).name for each in brains]}}
    if config.get("init_from"):
        named["init_from"] = Path(config["init_from"]).name
    results = _read(place.folder / "results.json", dict)
    starts = _read(place.folder / "environment.json", list)
    packages = starts[-1].get("packages", {}) if starts and isinstance(starts[-1], dict) else {}
    return {
        "config": named,
        "results": {key: results[key] for key in RESULTS if key in results},
        "trained_on": _trained_on(place.folder),
        "packages": packages if isinstance(packages, dict) else {},
    }


def _trained_on(run: Path) -> list[dict[str, str]]:
    """Return what `read_trained_on` does, with a fallback for runs of older versions.

    Those did not record their brains, so the current brain folders are read instead.
    """
    recorded = read_trained_on(run)
    if recorded:
        return recorded
    config = read_config(run)
    if config.get("init_from"):
        with contextlib.suppress(InputError):  # it was removed or is damaged
            recorded = _trained_on(Path(config["init_from"]))
    task = "segmentation" if is_segmentation(config) else "pre-training"
    for folder in config["data"].get("brains", []):
        brain, name = inspect_brain(folder)[0], Path(folder).name
        missing = dict.fromkeys(TRAINED_ON, "") | {"brain": name, "name": name, "task": task}
        recorded += [missing] if brain is None else trained_on([brain], task)
    return recorded


def _read(path: Path, kind: type) -> Any:
    """Read a JSON file of a run. Return an empty value if it does not exist."""
    if not path.is_file():
        return kind()
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: damaged ({error}); remove it to export without it") from None
    if not isinstance(content, kind):
        raise InputError(f"{path}: damaged (not a {kind.__name__}); remove it to export without it")
    return content
