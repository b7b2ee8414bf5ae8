"""Whether patches and pairs belong to the surfaces and to each other as they are now."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxcyto.brain.sampling.pairs import Pairs
from jaxcyto.brain.sampling.patches import Patches
from jaxcyto.brain.surfaces.surface import Surface
from jaxcyto.errors import InputError

# A patch lies on the surface it names (float32 mm), or at another depth of the same cortex.
ON_SURFACE_MM = 0.01
THICKEST_MM = 12.0


def check_points(path: Path, patches: Patches, surfaces: Sequence[Surface | None]) -> None:
    """Whether patches lie where they say, on the surfaces as they are now.

    Raises:
        InputError: a hemisphere or triangle that is not there, or points off the surface.
    """
    again = "; run `jaxcyto sample` again"
    if patches.hemisphere.min(initial=0) < 0 or patches.hemisphere.max(initial=0) >= len(surfaces):
        raise InputError(f"{path}: hemisphere: names one that is not there{again}")
    at_depth = patches.settings.get("depth") is not None
    for index, surface in enumerate(surfaces):
        own = patches.hemisphere == index
        if surface is None or not own.any():
            continue
        face = patches.face[own]
        if face.min() < 0 or face.max() >= len(surface.faces):
            raise InputError(f"{path}: face: names triangles that the surface has not{again}")
        corners = surface.vertices[surface.faces[face]]
        point = np.einsum("nk,nkd->nd", patches.bary[own], corners)
        off_mm = np.linalg.norm(point - patches.position_mm[own], axis=1).max()
        if not off_mm <= (THICKEST_MM if at_depth else ON_SURFACE_MM):
            raise InputError(
                f"{path}: patches lie up to {off_mm:.3g} mm off the surface; "
                f"it has changed since they were drawn{again}"
            )


def check_pairs(path: Path, pairs: Pairs, patches: Patches) -> None:
    """Whether pairs fit their patches.

    Raises:
        InputError: patches that are not there, of two hemispheres or splits, or a distance below 0.
    """
    again = "; run `jaxcyto pair` again"
    both = np.concatenate([pairs.first, pairs.second])
    if both.min(initial=0) < 0 or both.max(initial=-1) >= len(patches):
        raise InputError(f"{path}: names patches that are not there{again}")
    for name in ("hemisphere", "split"):
        of = getattr(patches, name)
        if (of[pairs.first] != of[pairs.second]).any():
            raise InputError(f"{path}: pairs patches of different {name}{again}")
    if pairs.distance_mm.min(initial=0) < 0:
        raise InputError(f"{path}: distance_mm: below zero{again}")
