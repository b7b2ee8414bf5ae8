"""Summarize the brain folders of a run in their current state."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxcyto.brain.manifest import SPLITS, Brain, read_brain
from jaxcyto.brain.sampling.consistency import check_pairs
from jaxcyto.brain.sampling.pairs import load_pairs
from jaxcyto.brain.sampling.patches import load_patches
from jaxcyto.brain.sampling.splits import split_distances_mm
from jaxcyto.errors import InputError
from jaxcyto.utils.files import file_sha256


@dataclasses.dataclass(frozen=True)
class BrainData:
    """A summary of one brain.

    Counts are given by split. A value is None if it does not apply or could not be read.

    Attributes:
        path: brain folder, as the config or the command line names it.
        name, licence, citation: fields of brain.toml.
        sections: counts of section images.
        annotated: counts of section images with a label image.
        patches, pairs: counts of patches and pairs, for pre-training.
        distances_mm: smallest distance between patches of two splits, by names such as
            "train-test".
        fault: why a value could not be read, or "" if all were read.
    """

    path: str
    name: str = ""
    licence: str = ""
    citation: str = ""
    sections: dict[str, int] | None = None
    annotated: dict[str, int] | None = None
    patches: dict[str, int] | None = None
    pairs: dict[str, int] | None = None
    distances_mm: dict[str, float] | None = None
    fault: str = ""


def read_brains(config: dict[str, Any], given: Sequence[Path], with_pairs: bool) -> list[BrainData]:
    """Summarize the brains of a run.

    A brain of the config that cannot be read gets a `fault`.

    Args:
        config: content of config.json.
        given: brain folders. A folder replaces the brain of the same name in the config. Others
            are added.
        with_pairs: whether to read patches and pairs, too.

    Raises:
        InputError: one of `given` is not a brain folder.
    """
    for path in given:
        read_brain(path)
    named = [Path(path) for path in config["data"].get("brains", [])]
    replacements = {path.resolve().name: path for path in given}
    paths = [replacements.pop(path.name, path) for path in named]
    data = [_read(path, config, with_pairs) for path in paths]
    return data + [_read(path, config, False) for path in replacements.values()]


def _read(path: Path, config: dict[str, Any], with_pairs: bool) -> BrainData:
    try:
        brain = read_brain(path)
    except (InputError, OSError) as error:
        return BrainData(str(path), fault=str(error))
    data = BrainData(
        path=str(path),
        name=brain.name,
        licence=brain.licence,
        citation=brain.citation,
        sections=_by_split([row.split for row in brain.sections]),
        annotated=_by_split([row.split for row in brain.sections if row.label is not None]),
    )
    if not with_pairs:
        return data
    try:
        return dataclasses.replace(data, **_pairs(brain, config))
    except (InputError, OSError) as error:
        return dataclasses.replace(data, fault=str(error))


def _pairs(brain: Brain, config: dict[str, Any]) -> dict[str, Any]:
    path = brain.root / str(config["data"].get("pairs"))
    pairs = load_pairs(path)
    patches = load_patches(brain.root / pairs.patches_file, brain)
    check_pairs(path, pairs, patches)
    trained_on = config.get("pairs_sha256")  # by brain, when the run was started
    if isinstance(trained_on, dict) and trained_on.get(brain.root.name) not in (
        None,
        file_sha256(path),
    ):
        raise InputError(f"{path}: has changed since this run, so its pairs are not shown.")
    names = np.array([*SPLITS, ""])
    return {
        "patches": _by_split(names[patches.split].tolist()),
        "pairs": _by_split(names[patches.split[pairs.first]].tolist()),
        "distances_mm": split_distances_mm(patches),
    }


def _by_split(splits: list[str]) -> dict[str, int]:
    return {split: splits.count(split) for split in SPLITS}
