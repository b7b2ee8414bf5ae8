"""Smooth values along a surface, and smooth its folds away for figures."""

import numpy as np
import potpourri3d as pp3d
from scipy import sparse
from scipy.sparse.linalg import splu

from jaxcyto.brain.surfaces.surface import Surface

# Implicit steps. The variance is right with any number, the shape of a Gaussian needs several.
STEPS = 8
STEP = 0.9  # share of the way to the neighbors' mean. At 1 a vertex's own position has no effect
# Reach of the rounds, 2 sqrt(rounds) edges, as a share of the mesh's extent. Chosen by eye.
SPAN = 0.25
MOST_ROUNDS = 2000


def smooth(surface: Surface, values: np.ndarray, fwhm_mm: float) -> np.ndarray:
    """Smooth values along a surface by approximately a Gaussian.

    The values follow the heat equation for the time sigma^2 / 2, where FWHM = sigma sqrt(8 ln 2),
    in implicit steps with the cotangent Laplacian (Crane et al. 2013, "Geodesics in heat", section
    3.2). The steps keep the sum over the surface, weighted by area. Obtuse triangles can push
    values slightly out of their range, so the result is clipped to the range of the input.

    Args:
        surface: the mesh.
        values: [V, C].
        fwhm_mm: full width at half maximum of the Gaussian, mm.

    Returns:
        float32 [V, C].
    """
    time = fwhm_mm**2 / (8 * np.log(2)) / 2 / STEPS
    vertices, faces = surface.vertices, surface.faces
    area = pp3d.vertex_areas(vertices, faces)
    mass = sparse.diags(np.maximum(area, 1e-9 * area.mean()))
    matrix = sparse.csc_matrix(mass + time * pp3d.cotan_laplacian(vertices, faces))
    # This column order for symmetric matrices is several times as fast as the default.
    solver = splu(matrix, "MMD_AT_PLUS_A", diag_pivot_thresh=0, options={"SymmetricMode": True})
    low, high = values.min(), values.max()
    for _ in range(STEPS):
        values = solver.solve(mass @ values.astype(float))
    return np.clip(values, low, high).astype(np.float32)


def inflate(surface: Surface) -> tuple[Surface, np.ndarray]:
    """Move each vertex toward the mean of its neighbors, repeatedly.

    The result is scaled to the area of the input. Distances and angles change, so use the inflated
    surface for figures and not for measurements.

    Args:
        surface: any mesh. Vertices without a triangle are not smoothed.

    Returns:
        The inflated surface with the same triangles, and whether each vertex lies in a valley of
        the input mesh, bool [V].
    """
    vertices, faces = surface.vertices, surface.faces
    mean = neighbor_mean(len(vertices), faces)
    valley = (mean @ vertices - vertices) * vertex_normals(surface)
    depth = valley.sum(axis=1)
    for _ in range(10):
        depth = mean @ depth
    edges = vertices[faces] - vertices[np.roll(faces, 1, axis=1)]
    edge_mm = np.linalg.norm(edges, axis=2).mean()
    across = SPAN * np.ptp(vertices, axis=0).max() / max(edge_mm, 1e-9)
    moved = vertices
    for _ in range(min(MOST_ROUNDS, int(across**2 / 4) + 1)):
        moved = moved + STEP * (mean @ moved - moved)
    middle = vertices.mean(axis=0)
    shrunk = areas(moved, faces).sum()
    scale = (areas(vertices, faces).sum() / shrunk) ** 0.5 if shrunk else 1.0
    return Surface((moved - moved.mean(axis=0)) * scale + middle, faces), depth > 0


def neighbor_mean(number: int, faces: np.ndarray) -> sparse.csr_array:
    """Build the matrix [V, V] that takes the mean over each vertex's neighbors.

    A vertex without neighbors keeps its value.

    Args:
        number: number of vertices.
        faces: [F, 3].
    """
    start, end = faces.ravel(), np.roll(faces, 1, axis=1).ravel()
    rows, columns = np.concatenate([start, end]), np.concatenate([end, start])
    linked = sparse.csr_array((np.ones(len(rows)), (rows, columns)), shape=(number, number))
    linked.data[:] = 1.0
    count = linked.sum(axis=1)
    alone = sparse.diags_array((count == 0).astype(float))
    return sparse.csr_array(sparse.diags_array(1 / np.maximum(count, 1)) @ linked + alone)


def areas(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Calculate the area of each triangle, [F] in mm^2."""
    first, second, third = (vertices[faces[:, k]] for k in range(3))
    return np.linalg.norm(np.cross(second - first, third - first), axis=1) / 2


def vertex_normals(surface: Surface) -> np.ndarray:
    """Calculate the unit normal of each vertex, [V, 3].

    The normals of its triangles are averaged, weighted by area. The result is 0 without triangles.
    """
    vertices, faces = surface.vertices, surface.faces
    first, second, third = (vertices[faces[:, k]] for k in range(3))
    normal = np.cross(second - first, third - first)
    total = np.stack(
        [np.bincount(faces.ravel(), np.repeat(normal[:, k], 3), len(vertices)) for k in range(3)],
        axis=1,
    )
    return total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12)
