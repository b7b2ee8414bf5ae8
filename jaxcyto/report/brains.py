"""The data of a run, as its brain folders state it now."""

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
    """One brain. Counts are by split; None: does not apply, or could not be read.

    Attributes:
        path: its folder, as the config or the command line names it.
        name, licence, citation: of brain.toml.
        sections: number of section images.
        annotated: of these, with a label image.
        patches, pairs: of pre-training.
        distances_mm: smallest distance between patches of two splits, such as "train-test".
        fault: why something of it is not known; "": all is.
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
    """The brains of a config.json.

    Args:
        config: its content.
        given: folders that replace those of the same name; brains that the config does not name
            are added.
        with_pairs: patches and pairs, too.

    Raises:
        InputError: one of those given is no brain; what the config names may be gone.
    """
    for path in given:
        read_brain(path)
    named = [Path(path) for path in config["data"].get("brains", [])]
    instead = {path.resolve().name: path for path in given}
    paths = [instead.pop(path.name, path) for path in named]
    found = [_read(path, config, with_pairs) for path in paths]
    return found + [_read(path, config, False) for path in instead.values()]


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
    then = config.get("pairs_sha256")
    if isinstance(then, dict) and then.get(brain.root.name) not in (None, file_sha256(path)):
        raise InputError(f"{path}: has changed since this run; its pairs are not shown.")
    names = np.array([*SPLITS, ""])
    return {
        "patches": _by_split(names[patches.split].tolist()),
        "pairs": _by_split(names[patches.split[pairs.first]].tolist()),
        "distances_mm": split_distances_mm(patches),
    }


def _by_split(splits: list[str]) -> dict[str, int]:
    return {split: splits.count(split) for split in SPLITS}
