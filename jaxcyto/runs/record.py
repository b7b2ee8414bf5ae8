"""Check config.json of a run that continues, and record its starts in environment.json."""

import dataclasses
import json
import logging
import os
import platform
import time
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from jaxcyto.brain.manifest import Brain
from jaxcyto.config_io import differences
from jaxcyto.errors import InputError
from jaxcyto.runs.load import training_sections
from jaxcyto.utils.files import write_json

logger = logging.getLogger("jaxcyto")


def read_saved(workdir: Path, scales: type, mark: str) -> dict[str, Any] | None:
    """Read config.json of a run that continues. Return None at the first start.

    Args:
        workdir: run folder.
        scales: dataclass with the fields that `scales` in config.json must have.
        mark: field that only runs of this task have.

    Raises:
        InputError: config.json is damaged, or the run is of the other task.
    """
    path = workdir / "config.json"
    if not path.exists():
        return None
    try:
        saved = json.loads(path.read_text())
        fields = {field.name for field in dataclasses.fields(scales)}
        if mark in saved and saved["scales"].keys() != fields:
            raise ValueError(f"scales should have the fields {', '.join(sorted(fields))}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: damaged ({error}); start in a new --workdir") from None
    if mark not in saved:
        raise InputError(
            f"{workdir}: holds a run of the other task (pre-training or segmentation); start in a "
            "new --workdir"
        )
    return saved


def check_fingerprints(workdir: Path, saved: dict[str, Any]) -> None:
    """Check the fingerprints of the training sections of a run that continues.

    Raises:
        InputError: config.json is damaged.
    """
    try:
        training_sections(saved)
    except ValueError as error:
        raise InputError(
            f"{workdir / 'config.json'}: damaged ({error}); bring back the config.json of this "
            "run, or start in a new --workdir"
        ) from None


def check_saved(
    workdir: Path, saved: dict[str, Any], new: dict[str, Any], fixed: list[str]
) -> None:
    """Compare the config of a run that continues with the one it was started with.

    Changes of fields that are not fixed are logged.

    Args:
        workdir: run folder.
        saved: content of config.json.
        new: config that will replace it.
        fixed: fields that must not have changed.

    Raises:
        InputError: a fixed field or `optim.accumulate` has changed.
    """
    for field in fixed:
        if saved.get(field) != new[field]:
            what = {
                "scales": "with other scales than those of this config",
                "classes": "with other classes than the brains have now",
                "init_from": f"with init_from = {saved.get(field)!r}, which is read at its start",
            }.get(field, "on other data than the brains hold now (a new sample, split or "
                  "annotation may put training data into the test)")  # fmt: skip
            raise InputError(f"{workdir}: this run was started {what}; start in a new --workdir")
    was, now = (table["optim"].get("accumulate", 1) for table in (saved, new))
    if was != now:
        raise InputError(
            f"{workdir}: this run was started with optim.accumulate = {was}, not {now}: its "
            "schedule counts updates; start in a new --workdir"
        )
    known = {key: new[key] for key in new if key in saved}  # an earlier version lacks some fields
    for line in differences(saved, known):
        logger.warning("config differs from that of the run so far: %s", line)


def check_finished(workdir: Path, saved: dict[str, Any], new: dict[str, Any]) -> None:
    """Check that the config of a finished run is the one that trained it.

    Otherwise config.json would be replaced by a config that did not train the weights. Fields that
    did not exist in the version of jaxcyto that trained the run are ignored.

    Args:
        workdir: run folder.
        saved: content of config.json.
        new: config that would replace it.

    Raises:
        InputError: the configs differ in a field that training depends on.
    """
    old = {key: saved[key] for key in TRAINED_BY if key in saved}
    now = {key: new[key] for key in old}
    for key, value in old.items():
        if isinstance(value, dict):
            now[key] = {name: field for name, field in now[key].items() if name in value}
    if changed := differences(old, now):
        raise InputError(
            f"{workdir}: this run is finished and was trained with another config "
            f"({'; '.join(changed)}); start in a new --workdir"
        )


TRAINED_BY = "seed", "model", "augment", "loss", "optim", "encoder_rate"
PACKAGES = "jaxcyto", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy"


def trained_on(brains: Sequence[Brain], task: str) -> list[dict[str, str]]:
    """Describe the brains of a run with the fields `runs.load.TRAINED_ON`."""
    return [
        {
            "brain": brain.root.name,
            "name": brain.name,
            "licence": brain.licence,
            "citation": brain.citation,
            "task": task,
        }
        for brain in brains
    ]


def add_start(workdir: Path, step: int, trained_on: Sequence[dict[str, str]] = ()) -> None:
    """Append an entry on this start of a run to environment.json.

    The entry holds the time, versions, hardware and brains.

    Args:
        workdir: run folder.
        step: steps taken before this start.
        trained_on: brains of the run, recorded for users of the weights. See `trained_on`.
    """
    path = workdir / "environment.json"
    try:
        earlier = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):  # the first start, or the file is damaged
        earlier = []
    start = {
        "step": step,
        "time": round(time.time()),
        "packages": {name: version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpus": os.cpu_count(),
        "processes": jax.process_count(),
        "backend": jax.default_backend(),
        "devices": dict(Counter(device.device_kind for device in jax.devices())),
        "trained_on": list(trained_on),
    }
    write_json(path, [*(earlier if isinstance(earlier, list) else []), start])
