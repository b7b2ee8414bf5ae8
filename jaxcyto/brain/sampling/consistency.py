"""Check that patches and pairs fit each other and the present surfaces."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxcyto.brain.sampling.pairs import Pairs
from jaxcyto.brain.sampling.patches import Patches
from jaxcyto.brain.surfaces.surface import Surface
from jaxcyto.errors import InputError

ON_SURFACE_MM = 0.01  # a patch lies on the surface it names, but for the rounding of float32
THICKEST_MM = 12.0  # a patch at another depth is at most this far from that surface


def check_points(path: Path, patches: Patches, surfaces: Sequence[Surface | None]) -> None:
    """Check that the stored positions of patches lie on the present surfaces.

    Args:
        path: the file of the patches, for messages.
        patches: the patches.
        surfaces: the surface of each hemisphere. None skips a hemisphere.

    Raises:
        InputError: if a hemisphere or triangle does not exist, or a patch lies off the surface.
    """
    again = "; run `jaxcyto sample` again"
    if patches.hemisphere.min(initial=0) < 0 or patches.hemisphere.max(initial=0) >= len(surfaces):
        raise InputError(f"{path}: hemisphere: names one that does not exist{again}")
    at_depth = patches.settings.get("depth") is not None
    for index, surface in enumerate(surfaces):
        own = patches.hemisphere == index
        if surface is None or not own.any():
            continue
        face = patches.face[own]
        if face.min() < 0 or face.max() >= len(surface.faces):
            raise InputError(f"{path}: face: names triangles that the surface does not have{again}")
        corners = surface.vertices[surface.faces[face]]
        point = np.einsum("nk,nkd->nd", patches.bary[own], corners)
        off_mm = np.linalg.norm(point - patches.position_mm[own], axis=1).max()
        if not off_mm <= (THICKEST_MM if at_depth else ON_SURFACE_MM):
            raise InputError(
                f"{path}: patches lie up to {off_mm:.3g} mm off the surface; "
                f"it has changed since they were drawn{again}"
            )


def check_pairs(path: Path, pairs: Pairs, patches: Patches) -> None:
    """Check that pairs fit their patches.

    Args:
        path: the file of the pairs, for messages.
        pairs: the pairs.
        patches: their patches.

    Raises:
        InputError: if a patch does not exist, a pair spans two hemispheres or splits, or a distance
            is below 0.
    """
    again = "; run `jaxcyto pair` again"
    both = np.concatenate([pairs.first, pairs.second])
    if both.min(initial=0) < 0 or both.max(initial=-1) >= len(patches):
        raise InputError(f"{path}: names patches that do not exist{again}")
    for name in ("hemisphere", "split"):
        of = getattr(patches, name)
        if (of[pairs.first] != of[pairs.second]).any():
            raise InputError(f"{path}: pairs patches of different {name}{again}")
    if pairs.distance_mm.min(initial=0) < 0:
        raise InputError(f"{path}: distance_mm: below zero{again}")
