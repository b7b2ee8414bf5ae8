"""Test the geometric median."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxcyto.utils.median import geometric_median


def mean_distance(points, place):
    return np.linalg.norm(points - place, axis=1).mean()


@given(st.integers(0, 10_000), st.sampled_from([1, 2, 3]), st.floats(1e-3, 1e3))
def test_no_point_is_nearer_on_average(seed, axes, size):
    rng = np.random.default_rng(seed)
    points = size * rng.gamma(0.5, size=(rng.integers(3, 60), axes))
    place = geometric_median(points)
    least = mean_distance(points, place)
    for step in (0.1, 1e-3):
        for direction in rng.normal(size=(20, axes)):
            assert mean_distance(points, place + size * step * direction) >= least - 1e-6 * size
    for other in (*points, points.mean(axis=0), np.median(points, axis=0)):
        assert mean_distance(points, other) >= least - 1e-6 * size


def test_known_medians():
    # The corner of a triangle with an angle above 120 degrees, and the crossing of the diagonals.
    np.testing.assert_allclose(
        geometric_median(np.array([[0, 0], [10, 1], [-10, 1]])), [0, 0], atol=1e-4
    )
    square = np.array([[0.0, 0], [0, 2], [2, 2], [2, 0]])
    np.testing.assert_allclose(geometric_median(square), [1, 1], atol=1e-5)
    np.testing.assert_allclose(geometric_median(np.array([[3.0, 4, 5]] * 4)), [3, 4, 5])


def test_it_is_not_the_median_of_each_axis():
    points = np.array([[0.0, 0, 1], [0, 1, 0], [1, 0, 0]])
    assert geometric_median(points) == pytest.approx([1 / 3] * 3, abs=1e-5)
