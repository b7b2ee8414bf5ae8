"""Read and write patches.npz, the file of patches that `jaxcyto sample` makes."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from jaxcyto.brain.manifest import SPLITS, Brain
from jaxcyto.brain.sections.section import Section
from jaxcyto.errors import InputError
from jaxcyto.utils.files import (
    Array,
    Schema,
    atomic_write,
    file_sha256,
    naming_damage,
    read_arrays,
)

PATCHES_FORMAT = "jaxcyto patches 1"
PATCHES_FILE = "patches.npz"


@dataclasses.dataclass(frozen=True, eq=False)
class Patches:
    """The N patches of one brain, sorted by section and by position along its ribbon.

    Attributes:
        section: index of the row in the section table, int32 [N].
        center_px: (column, row) of the center in px of the full resolution, float64 [N, 2].
        position_mm: position of the center, float32 [N, 3].
        hemisphere: index into the brain's hemispheres, int8 [N].
        face: index of the triangle of the surface that carries the distances, int32 [N].
        bary: barycentric coordinates in this triangle, float32 [N, 3].
        split: index into `manifest.SPLITS`, uint8 [N].
        settings: plain values, such as patch_px, um_per_px, depth and seed.
    """

    section: np.ndarray
    center_px: np.ndarray
    position_mm: np.ndarray
    hemisphere: np.ndarray
    face: np.ndarray
    bary: np.ndarray
    split: np.ndarray
    settings: dict

    def __len__(self) -> int:
        return len(self.section)

    def select(self, keep: np.ndarray) -> "Patches":
        """Return the patches that `keep` selects, by indices or as bool [N]."""
        arrays = {name: getattr(self, name)[keep] for name in DTYPES}
        return Patches(**arrays, settings=self.settings)

    def differs_in_size(self, patch_px: int, um_per_px: float) -> tuple[str, float, float] | None:
        """Compare the size of the patches with another one.

        Args:
            patch_px: side in px.
            um_per_px: resolution.

        Returns:
            None if they agree, else the name of the first setting that differs, its stored value
            and the value given here.
        """
        for name, wanted in (("patch_px", patch_px), ("um_per_px", um_per_px)):
            if not np.isclose(self.settings[name], wanted):
                return name, self.settings[name], wanted
        return None

    def save(self, path: str | os.PathLike) -> None:
        """Write one npz, completely or not at all, without pickle."""
        arrays = {name: getattr(self, name) for name in DTYPES}
        with atomic_write(path) as file:
            np.savez(
                file,
                format=PATCHES_FORMAT,
                settings=json.dumps(self.settings, sort_keys=True),
                **arrays,
            )


ARRAYS = {
    "section": Array(np.int32, ("N",), low=0),
    "center_px": Array(np.float64, ("N", 2)),
    "position_mm": Array(np.float32, ("N", 3)),
    "hemisphere": Array(np.int8, ("N",), low=0),
    "face": Array(np.int32, ("N",), low=0),
    "bary": Array(np.float32, ("N", 3)),
    "split": Array(np.uint8, ("N",), high=len(SPLITS) - 1),
}
SCHEMA: Schema = ARRAYS | {"settings": dict}
# The type of each array, and its shape for one patch.
DTYPES = {name: (array.dtype, array.shape[1:]) for name, array in ARRAYS.items()}


def load_patches(path: str | os.PathLike, brain: Brain | None = None) -> Patches:
    """Read patches.npz.

    Args:
        path: the file.
        brain: if given, the patches must belong to this brain in its present state.

    Returns:
        The patches.

    Raises:
        InputError: if the file is missing, damaged or of another kind, or the sections,
            hemispheres or splits of the brain have changed since.
    """
    patches = _read(Path(path))
    if brain is not None:
        check_current(Path(path), patches, brain)
    return patches


def read_patches(path: Path) -> tuple[Patches, str]:
    """Read patches.npz once.

    Returns:
        The patches, and the SHA-256 of the bytes that they were made from.

    Raises:
        InputError: if the file is missing, damaged or of another kind.
    """
    digest = hashlib.sha256()
    return _read(path, digest.update), digest.hexdigest()


def _read(path: Path, update: Callable[[bytes], object] | None = None) -> Patches:
    """Read patches.npz. `update` is as in `files.read_arrays`."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; run `jaxcyto sample` first")
    with naming_damage(path, "file of patches", "run `jaxcyto sample` again"):
        patches = Patches(**read_arrays(path, PATCHES_FORMAT, SCHEMA, update=update))
        for key in ("patch_px", "um_per_px"):
            if not 0 < float(patches.settings.get(key, 1)) < np.inf:
                raise ValueError(f"{key} = {patches.settings[key]}")
    return patches


def corner_px(
    center_px: np.ndarray, section: Section, um_per_px: float, side: int
) -> tuple[int, int]:
    """Return (left, top) of a patch on the grid of `um_per_px` (see `Section.read_at`).

    Args:
        center_px: (column, row) at full resolution. The center of the patch differs from it by at
            most half a pixel of the patch's grid.
        section: the section, which states its full resolution.
        um_per_px: resolution of the patch.
        side: side of the patch, px.
    """
    assert section.pixel_um is not None
    ratio = um_per_px / section.pixel_um
    left, top = np.rint((center_px + 0.5) / ratio - side / 2).astype(int).tolist()
    return left, top


def check_current(path: Path, patches: Patches, brain: Brain) -> None:
    """Check that patches belong to the sections, hemispheres and splits of a brain.

    Raises:
        InputError: if they were drawn from others.
    """
    again = "; run `jaxcyto sample` again"
    if patches.settings.get("sections_sha256") != sections_sha256(brain):
        raise InputError(
            f"{path}: drawn from other sections or hemispheres than {brain.root}{again}"
        )
    if not {"patch_px", "um_per_px"} <= patches.settings.keys():
        raise InputError(f"{path}: does not state the size of its patches{again}")
    if len(patches) and patches.section.max() >= len(brain.sections):
        raise InputError(f"{path}: names a section that does not exist{again}")
    if len(patches) and patches.hemisphere.max() >= len(brain.hemispheres):
        raise InputError(f"{path}: names a hemisphere that does not exist{again}")
    if not patches.settings.get("split_axis"):
        column = np.array([SPLITS.index(row.split) if row.split else -1 for row in brain.sections])
        changed = np.flatnonzero(column[patches.section] != patches.split)
        if len(changed):
            name = brain.sections[patches.section[changed[0]]].name
            raise InputError(f"{path}: the split of section {name} has changed since{again}")


def sections_sha256(brain: Brain) -> str:
    """Return a hash of what patches refer to by index: sections with registration, hemispheres."""
    key = [
        [
            row.name,
            row.image.name,
            row.pixel_um,
            None if row.affine is None else row.affine.tolist(),
            None if row.coordinates is None else file_sha256(row.coordinates),
        ]
        for row in brain.sections
    ]
    names = [[hemisphere.name, hemisphere.surface] for hemisphere in brain.hemispheres]
    return hashlib.sha256(json.dumps([key, names]).encode()).hexdigest()
