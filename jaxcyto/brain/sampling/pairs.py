"""Pairs of patches with their distance along the cortex: the targets of the pretext task."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np

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
    """Pairs of patches, P of them.

    Attributes:
        first, second: patches, int32 [P].
        distance_mm: along the surface, float32 [P].
        patches_file: name of the file of patches, in the same folder.
        patches_sha256: its hash.
        settings: method, seed and so on; plain values.
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
        """Writes one npz, atomically and without pickle."""
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
    """Reads pairs.npz and checks that its patches are those beside it.

    Raises:
        InputError: if it is missing, damaged or foreign, or its patches have changed.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; run `jaxcyto pair` first")
    with naming_damage(path, "file of pairs", "run `jaxcyto pair` again"):
        pairs = Pairs(**read_arrays(path, PAIRS_FORMAT, SCHEMA))
    if Path(pairs.patches_file).name != pairs.patches_file:
        raise InputError(f"{path}: patches_file = {pairs.patches_file!r} leaves the folder")
    faults: list[str] = []
    root = Path(os.path.realpath(path.parent))
    patches = inside(root, path, "patches_file", pairs.patches_file, faults)
    if patches is None:
        raise InputError(f"{faults[0]}; run `jaxcyto pair` again")
    if file_sha256(patches) != pairs.patches_sha256:
        raise InputError(
            f"{path}: made from another {pairs.patches_file} than the one beside it; "
            "run `jaxcyto pair` again"
        )
    return pairs


def distances_path(root: Path, patches_file: str) -> Path:
    """Where the distances between all patches of a file lie: patches_distances.npy beside it."""
    return root / f"{Path(patches_file).stem}_distances.npy"


def open_distances(root: Path, pairs: Pairs, num_patches: int) -> MatrixFile:
    """The distances [N, N] mm between all patches, which stay on disk.

    Raises:
        InputError: not there, damaged, or not those of these pairs.
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
