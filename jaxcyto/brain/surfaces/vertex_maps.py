"""Turn values of patches into maps on a surface, and write maps as GIFTI metric files."""

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
    """Calculate a weighted mean over the patches near each vertex.

    A patch belongs to the nearest corner of its triangle. Its weight at a vertex is the probability
    that a random walk along the edges of the mesh leads there from the vertex, in reach / mean edge
    length steps that stay or move with probability 1/2 each. Nearby patches therefore weigh more,
    and none counts across a sulcus.

    Args:
        surface: the mesh.
        face: [N], triangle of each patch.
        bary: [N, 3], its barycentric coordinates.
        values: [N, C], values of the patches.
        reach_mm: distance that limits the walk, mm.

    Returns:
        float32 [V, C], NaN for vertices without a patch in reach.
    """
    num_vertices = len(surface.vertices)
    corner = surface.faces[face, bary.argmax(axis=1)]
    at = sparse.csr_array(
        (np.ones(len(face)), (corner, np.arange(len(face)))), (num_vertices, len(face))
    )
    total = np.column_stack([at @ values.astype(np.float64), at.sum(axis=1)])
    sides = surface.vertices[surface.faces] - surface.vertices[np.roll(surface.faces, 1, axis=1)]
    edge_mm = max(float(np.linalg.norm(sides, axis=2).mean()), 1e-9)
    mean = neighbor_mean(num_vertices, surface.faces)
    for _ in range(int(np.ceil(reach_mm / edge_mm))):
        total = (total + mean @ total) / 2
    weight = total[:, -1:]
    means = np.full((num_vertices, values.shape[1]), np.nan)
    np.divide(total[:, :-1], weight, out=means, where=weight > 0)
    return means.astype(np.float32)


def write_maps(path: Path, hemisphere: str, names: Sequence[str], maps: np.ndarray) -> None:
    """Write maps as a GIFTI metric file for Connectome Workbench.

    Args:
        path: the file to write.
        hemisphere: name of the hemisphere, from which the structure is inferred.
        names: [C], a name for each map.
        maps: [V, C], written as float32. NaN means no value.
    """
    arrays = [
        gifti_array(values.astype(np.float32), "NIFTI_INTENT_NONE", name)
        for name, values in zip(names, maps.T, strict=True)
    ]
    write_gifti(path, arrays, hemisphere)
