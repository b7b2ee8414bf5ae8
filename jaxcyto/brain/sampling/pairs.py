"""Read and write pairs.npz: pairs of patches with their distances along the cortex.

The distances are the targets of the pretext task.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxcyto.brain.manifest import Brain
from jaxcyto.brain.sampling.patches import Patches, check_current, read_patches
from jaxcyto.errors import InputError
from jaxcyto.utils.files import (
    READ_ERRORS,
    Array,
    Schema,
    atomic_write,
    file_sha256,
    inside,
    naming_damage,
    read_arrays,
)
from jaxcyto.utils.matrix_file import MatrixFile, open_matrix

PAIRS_FORMAT = "jaxcyto pairs 1"
PAIRS_FILE = "pairs.npz"
SCHEMA: Schema = {
    "first": Array(np.int32, ("P",), low=0),
    "second": Array(np.int32, ("P",), low=0),
    "distance_mm": Array(np.float32, ("P",), low=0),
    "patches_file": str,
    "patches_sha256": str,
    "settings": dict,
}


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
    """P pairs of patches of one brain.

    Attributes:
        first, second: indices of the patches, int32 [P].
        distance_mm: distance along the surface, float32 [P].
        patches_file: name of the file of the patches, which lies in the same folder.
        patches_sha256: SHA-256 of this file.
        settings: plain values, such as method and seed.
    """

    first: np.ndarray
    second: np.ndarray
    distance_mm: np.ndarray
    patches_file: str
    patches_sha256: str
    settings: dict

    def __len__(self) -> int:
        return len(self.first)

    def save(self, path: str | os.PathLike) -> None:
        """Write one npz, completely or not at all, without pickle."""
        with atomic_write(path) as file:
            np.savez(
                file,
                format=PAIRS_FORMAT,
                first=self.first,
                second=self.second,
                distance_mm=self.distance_mm,
                patches_file=self.patches_file,
                patches_sha256=self.patches_sha256,
                settings=json.dumps(self.settings, sort_keys=True),
            )


def load_pairs(path: str | os.PathLike) -> Pairs:
    """Read pairs.npz and check that its patches are those beside it.

    Raises:
        InputError: if it is missing, damaged or of another kind, or its patches have changed.
    """
    path = Path(path)
    pairs = _read(path)
    _check_patches(path, pairs, file_sha256(_patches_path(path, pairs)))
    return pairs


class PairsWithPatches(NamedTuple):
    """Pairs, their patches, and the SHA-256 of the file of the pairs."""

    pairs: Pairs
    patches: Patches
    sha256: str


def load_pairs_with_patches(path: Path, brain: Brain) -> PairsWithPatches:
    """Read pairs.npz and the patches beside it, each file once.

    Args:
        path: the file of the pairs.
        brain: the patches must belong to this brain in its present state.

    Raises:
        InputError: if a file is missing, damaged or of another kind, the patches are not those of
            the pairs, or the brain has changed since.
    """
    digest = hashlib.sha256()
    pairs = _read(path, digest.update)
    _patches_path(path, pairs)
    patches_path = path.parent / pairs.patches_file
    patches, patches_sha256 = read_patches(patches_path)
    _check_patches(path, pairs, patches_sha256)
    check_current(patches_path, patches, brain)
    return PairsWithPatches(pairs, patches, digest.hexdigest())


def _read(path: Path, update: Callable[[bytes], object] | None = None) -> Pairs:
    """Read pairs.npz. `update` is as in `files.read_arrays`."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; run `jaxcyto pair` first")
    with naming_damage(path, "file of pairs", "run `jaxcyto pair` again"):
        return Pairs(**read_arrays(path, PAIRS_FORMAT, SCHEMA, update=update))


def _patches_path(path: Path, pairs: Pairs) -> Path:
    """Return the file of the patches, links resolved.

    Raises:
        InputError: if it is missing or lies outside of the folder.
    """
    if Path(pairs.patches_file).name != pairs.patches_file:
        raise InputError(f"{path}: patches_file = {pairs.patches_file!r} leaves the folder")
    faults: list[str] = []
    root = Path(os.path.realpath(path.parent))
    patches = inside(root, path, "patches_file", pairs.patches_file, faults)
    if patches is None:
        raise InputError(f"{faults[0]}; run `jaxcyto pair` again")
    return patches


def _check_patches(path: Path, pairs: Pairs, patches_sha256: str) -> None:
    """Check that pairs were made from the patches with this hash.

    Raises:
        InputError: if they were made from others.
    """
    if patches_sha256 != pairs.patches_sha256:
        raise InputError(
            f"{path}: made from another {pairs.patches_file} than the one beside it; "
            "run `jaxcyto pair` again"
        )


def distances_path(root: Path, patches_file: str) -> Path:
    """Return the path of the distances between all patches: patches_distances.npy."""
    return root / f"{Path(patches_file).stem}_distances.npy"


def open_distances(root: Path, pairs: Pairs, num_patches: int) -> MatrixFile:
    """Open the distances [N, N] in mm between all patches. They stay on disk.

    Args:
        root: the brain's folder.
        pairs: the pairs, whose distances must agree with the matrix.
        num_patches: number of patches N.

    Raises:
        InputError: if the file is missing or damaged, or holds other distances than the pairs.
    """
    path = distances_path(root, pairs.patches_file)
    remedy = "write it with `jaxcyto pair BRAIN --all-distances`"
    if not path.exists():
        raise InputError(f"{path}: no such file, the distances between all patches; {remedy}")
    try:
        matrix = open_matrix(path)
    except READ_ERRORS as error:
        raise InputError(f"{path}: no distances between all patches ({error}); {remedy}") from None
    if matrix.size != num_patches:
        raise InputError(
            f"{path}: float32 [{matrix.size}, {matrix.size}], but there are {num_patches} patches; "
            f"{remedy}"
        )
    if not np.allclose(
        matrix.values(pairs.first, pairs.second), pairs.distance_mm, rtol=1e-4, atol=1e-3
    ):
        raise InputError(f"{path}: other distances than in the file of pairs; {remedy}")
    return matrix
