"""Compute the geometric median of points."""

import numpy as np
from scipy.optimize import minimize


def geometric_median(points: np.ndarray) -> np.ndarray:
    """Return the point with the least mean Euclidean distance from points [N, D].

    It is the best constant prediction of positions, as the median is of distances. The mean
    distance is convex, so a descent from the median of each axis finds it.
    """
    points = np.asarray(points, np.float64)
    start = np.median(points, axis=0)
    spread = max(float(np.abs(points - start).mean()), 1e-9)
    scaled = (points - start) / spread

    def mean_distance(place: np.ndarray) -> tuple[float, np.ndarray]:
        offset = place - scaled
        length = np.linalg.norm(offset, axis=1)
        # The gradient at a point itself is undefined. Zero is one of its subgradients.
        unit = offset / np.maximum(length, 1e-12)[:, None]
        return float(length.mean()), unit.mean(axis=0)

    found = minimize(mean_distance, np.zeros(points.shape[1]), jac=True, method="BFGS")
    return start + spread * found.x
