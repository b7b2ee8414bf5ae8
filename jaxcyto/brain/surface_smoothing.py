"""Smoothing along a surface: what heat does in a while."""

import numpy as np
import potpourri3d as pp3d
from scipy import sparse
from scipy.sparse.linalg import splu

from jaxcyto.brain.surfaces import Surface

STEPS = 8  # implicit ones: the variance is right with any number, the Gaussian's shape needs some


def smooth(surface: Surface, values: np.ndarray, fwhm_mm: float) -> np.ndarray:
    """Values [V, C] smoothed by about a Gaussian of this full width at half maximum.

    Heat flow over the time sigma^2 / 2, where FWHM = sigma sqrt(8 ln 2), by implicit steps with the
    cotangent Laplacian (Crane et al. 2013, "Geodesics in heat", section 3.2). Sums over the
    surface, weighted by area, stay as they are; values stay within their range but for the
    rounding of obtuse triangles, which is cut off.
    """
    time = fwhm_mm**2 / (8 * np.log(2)) / 2 / STEPS
    vertices, faces = surface.vertices, surface.faces
    area = pp3d.vertex_areas(vertices, faces)
    mass = sparse.diags(np.maximum(area, 1e-9 * area.mean()))
    matrix = sparse.csc_matrix(mass + time * pp3d.cotan_laplacian(vertices, faces))
    # For symmetric matrices: several times as fast as the default order of columns.
    solver = splu(matrix, "MMD_AT_PLUS_A", diag_pivot_thresh=0, options={"SymmetricMode": True})
    low, high = values.min(), values.max()
    for _ in range(STEPS):
        values = solver.solve(mass @ values.astype(float))
    return np.clip(values, low, high).astype(np.float32)
