"""Values of patches as maps on a surface, and such maps as GIFTI for Connectome Workbench."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import sparse

from jaxcyto.brain.surfaces.gifti import gifti_array, write_gifti
from jaxcyto.brain.surfaces.smoothing import neighbor_mean
from jaxcyto.brain.surfaces.surface import Surface


def vertex_means(
    surface: Surface, face: np.ndarray, bary: np.ndarray, values: np.ndarray, reach_mm: float
) -> np.ndarray:
    """The mean over the patches near each vertex, float32 [V, C]; NaN where none is near.

    A patch counts at the nearest corner of its triangle and from there on along the edges of the
    mesh, never across a sulcus: as far as a random walk comes that stays or goes on, each with
    probability 1/2, in reach / mean edge steps. Its weight is the walk's, near patches weigh more.

    Args:
        surface: the mesh.
        face: triangles of the patches [N].
        bary: barycentric coordinates [N, 3].
        values: of the patches [N, C].
        reach_mm: how far a patch stands for the surface around it.
    """
    number = len(surface.vertices)
    corner = surface.faces[face, bary.argmax(axis=1)]
    at = sparse.csr_array((np.ones(len(face)), (corner, np.arange(len(face)))), (number, len(face)))
    total = np.column_stack([at @ values.astype(np.float64), at.sum(axis=1)])
    sides = surface.vertices[surface.faces] - surface.vertices[np.roll(surface.faces, 1, axis=1)]
    edge_mm = max(float(np.linalg.norm(sides, axis=2).mean()), 1e-9)
    mean = neighbor_mean(number, surface.faces)
    for _ in range(int(np.ceil(reach_mm / edge_mm))):
        total = (total + mean @ total) / 2
    weight = total[:, -1:]
    found = np.full((number, values.shape[1]), np.nan)
    np.divide(total[:, :-1], weight, out=found, where=weight > 0)
    return found.astype(np.float32)


def write_maps(path: Path, hemisphere: str, names: Sequence[str], maps: np.ndarray) -> None:
    """Writes maps [V, C] as a GIFTI metric file, one array each with its name; NaN: no value."""
    arrays = [
        gifti_array(values.astype(np.float32), "NIFTI_INTENT_NONE", name)
        for name, values in zip(names, maps.T, strict=True)
    ]
    write_gifti(path, arrays, hemisphere)
