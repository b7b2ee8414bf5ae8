"""Read the pairs of all brains of a config: which patches, how far apart, in which split."""

import dataclasses

import numpy as np

from jaxcyto.brain import manifest
from jaxcyto.brain.sampling.consistency import check_pairs
from jaxcyto.brain.sampling.pairs import load_pairs_with_patches, open_distances
from jaxcyto.brain.sampling.patches import Patches
from jaxcyto.config import DataConfig
from jaxcyto.data.brain_names import brain_names
from jaxcyto.errors import InputError
from jaxcyto.utils.matrix_file import MatrixFile


@dataclasses.dataclass(frozen=True, eq=False)
class PairTable:
    """The P pairs of all brains of a config, one brain after the other.

    Patches are indexed over all brains. Patch j of brain k has the index `patch_start[k] + j`.
    """

    brains: tuple[manifest.Brain, ...]
    brain_names: tuple[str, ...]  # see `brain_names`
    patches: tuple[Patches, ...]
    patch_start: (
        np.ndarray
    )  # index of each brain's first patch, and of one past the last [brains + 1]
    first: np.ndarray  # index of the first patch, int64 [P]
    second: np.ndarray  # index of the second patch, int64 [P]
    distance_mm: np.ndarray  # distance along the surface, float32 [P]
    split: np.ndarray  # index into manifest.SPLITS, uint8 [P]
    coordinates_mm: np.ndarray  # target coordinates of all patches, float32 [patches, 3]
    all_distances_mm: tuple[MatrixFile, ...] | None  # distances [N, N] between patches, by brain
    keys: tuple[str, ...]  # SHA-256 of each brain's file of pairs

    def of_split(self, split: str) -> np.ndarray:
        """Return the indices of the pairs in a split, ascending."""
        return np.flatnonzero(self.split == manifest.SPLITS.index(split))

    @property
    def training_rows(self) -> dict[str, tuple[int, int]]:
        """(brain, row of its section table) of all sections with a training patch.

        The keys are BRAIN/SECTION, in ascending order.
        """
        train = manifest.SPLITS.index("train")
        found = {
            f"{self.brain_names[k]}/{self.brains[k].sections[row].name}": (k, row)
            for k, patches in enumerate(self.patches)
            for row in np.unique(patches.section[patches.split == train]).tolist()
        }
        return dict(sorted(found.items()))

    @property
    def training_sections(self) -> list[str]:
        """BRAIN/SECTION of all sections with a training patch, in ascending order."""
        return list(self.training_rows)

    def locate(self, patch: int | np.integer) -> tuple[int, int]:
        """Return (brain, index of the patch in this brain) for the index of a patch."""
        brain = int(np.searchsorted(self.patch_start, patch, side="right")) - 1
        return brain, int(patch - self.patch_start[brain])

    def distances_mm(self, patches: np.ndarray) -> np.ndarray:
        """Return the distances [N, N] in mm between patches [N].

        They are infinite between hemispheres and between brains.

        Raises:
            ValueError: if the table was opened without `all_distances`.
        """
        if self.all_distances_mm is None:
            raise ValueError("the table was opened without all_distances")
        block = np.full((len(patches), len(patches)), np.inf, np.float32)
        brain = np.searchsorted(self.patch_start, patches, side="right") - 1
        for k, matrix in enumerate(self.all_distances_mm):
            rows = np.flatnonzero(brain == k)
            local = patches[rows] - self.patch_start[k]
            block[np.ix_(rows, rows)] = matrix.block(local)
        return block


def open_pairs(config: DataConfig) -> PairTable:
    """Read the brains, patches and pairs that a config names.

    Raises:
        InputError: if a file is missing or damaged, patches were sampled for another size, or a
            brain is listed twice.
    """
    if not config.brains:
        raise InputError("data.brains is empty; give one or more folders with a brain.toml")
    brains, patches, first, second, distance, split = [], [], [], [], [], []
    matrices, keys = [], []
    start = [0]
    for folder in config.brains:
        brain = manifest.read_brain(folder)
        pairs_path = brain.root / config.pairs
        pairs, sampled, key = load_pairs_with_patches(pairs_path, brain)
        check_pairs(pairs_path, pairs, sampled)
        if other := sampled.differs_in_size(config.patch_px, config.um_per_px):
            name, value, wanted = other
            raise InputError(
                f"{brain.root / pairs.patches_file}: sampled with {name} = {value:g}, but "
                f"data.{name} = {wanted:g}; sample again or change the config"
            )
        if config.all_distances:
            matrices.append(open_distances(brain.root, pairs, len(sampled)))
        brains.append(brain)
        keys.append(key)
        patches.append(sampled)
        first.append(pairs.first.astype(np.int64) + start[-1])
        second.append(pairs.second.astype(np.int64) + start[-1])
        distance.append(pairs.distance_mm)
        split.append(sampled.split[pairs.first])
        start.append(start[-1] + len(sampled))
    coordinates = np.concatenate([p.position_mm for p in patches]).astype(np.float32)
    if config.absolute_x:
        coordinates[:, 0] = np.abs(coordinates[:, 0])
    return PairTable(
        brains=tuple(brains),
        brain_names=tuple(brain_names([brain.root for brain in brains])),
        patches=tuple(patches),
        patch_start=np.array(start),
        first=np.concatenate(first),
        second=np.concatenate(second),
        distance_mm=np.concatenate(distance).astype(np.float32),
        split=np.concatenate(split),
        coordinates_mm=coordinates,
        all_distances_mm=tuple(matrices) if config.all_distances else None,
        keys=tuple(keys),
    )
