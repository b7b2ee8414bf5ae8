"""Test that traced classes are polygons near the pixels' borders, and fill to the same map."""

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial import cKDTree

from jaxcyto.brain.annotation.outlines import TOLERANCE_PX, area, signed_area, trace
from jaxcyto.brain.annotation.scanline import winding_number

NOT_PREDICTED = 255


def random_map(seed: int) -> np.ndarray:
    """Draw specks, smooth regions or stripes, some of them with pixels that have no class."""
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 32, 2))
    noise = rng.standard_normal((rng.integers(1, 5), *shape))
    sigma = (0, *rng.choice([0, 0.6, 1.5, 3], 2))
    label = ndimage.gaussian_filter(noise, sigma).argmax(0).astype(np.uint8)
    label[rng.random(shape) < rng.choice([0, 0.2])] = NOT_PREDICTED
    return label


def fill(polygons, shape) -> tuple[np.ndarray, np.ndarray]:
    """Fill polygons. Return the classes, and in how many polygons each pixel lies."""
    label, count = np.full(shape, NOT_PREDICTED, np.uint8), np.zeros(shape, int)
    for number, parts in polygons.items():
        for rings in parts:
            start = np.concatenate(rings) - 0.5
            end = np.concatenate([np.roll(ring, -1, 0) for ring in rings]) - 0.5
            inside = winding_number(start, end, 0, *shape) % 2 == 1
            label[inside] = number
            count += inside
    return label, count


def dense(rings, step: float = 0.02) -> np.ndarray:
    pieces = []
    for ring in rings:
        for a, b in zip(ring, np.roll(ring, -1, 0), strict=True):
            along = np.linspace(0, 1, 2 + int(np.hypot(*(b - a)) / step))[:, None]
            pieces.append(a + along * (b - a))
    return np.concatenate(pieces)


def pixel_borders(label: np.ndarray, number: int) -> np.ndarray:
    inside = np.pad(label == number, 1)
    along = np.linspace(0, 1, 51)
    rows, columns = np.nonzero(inside[:, 1:] != inside[:, :-1])
    upright = [
        np.stack([np.full(51, x), y - 1 + along], 1) for y, x in zip(rows, columns, strict=True)
    ]
    rows, columns = np.nonzero(inside[1:] != inside[:-1])
    level = [
        np.stack([x - 1 + along, np.full(51, y)], 1) for y, x in zip(rows, columns, strict=True)
    ]
    return np.concatenate(upright + level)


def crossings(rings) -> int:
    """Count pairs of lines that cross in their inner parts."""
    a = np.concatenate(rings)
    b = np.concatenate([np.roll(ring, -1, 0) for ring in rings])

    def side(p, q, r):
        return (q - p)[..., 0] * (r - p)[..., 1] - (q - p)[..., 1] * (r - p)[..., 0]

    split = side(a[:, None], b[:, None], a) * side(a[:, None], b[:, None], b) < -1e-9
    return int((split & split.T).sum())


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 2**32 - 1))
def test_polygons_fill_to_the_same_map(seed):
    label = random_map(seed)
    polygons = trace(label, [NOT_PREDICTED])
    filled, count = fill(polygons, label.shape)
    np.testing.assert_array_equal(filled, label)
    np.testing.assert_array_equal(count, label != NOT_PREDICTED)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1))
def test_neighbors_share_their_lines(seed):
    """Check that each line within the image belongs to two polygons, in opposite directions."""
    label = random_map(seed)
    height, width = label.shape
    ways: Counter = Counter()
    for ring in (ring for parts in trace(label).values() for rings in parts for ring in rings):
        points = [tuple(point) for point in ring.tolist()]
        ways.update(zip(points, points[1:] + points[:1], strict=True))
    for (a, b), count in ways.items():
        at_border = all(x in (0, width) or y in (0, height) for x, y in (a, b))
        assert count == 1 and (at_border or (b, a) in ways)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1))
def test_polygons_are_valid(seed):
    """Check parts, holes and rings as GeoJSON and QuPath expect them."""
    label = random_map(seed)
    for number, parts in trace(label, [NOT_PREDICTED]).items():
        assert len(parts) == ndimage.label(label == number)[1]
        for rings in parts:
            within = fill({0: [rings[:1]]}, label.shape)[0] == 0
            assert within[fill({0: [rings]}, label.shape)[0] == 0].all()
            assert all(len(np.unique(ring, axis=0)) == len(ring) >= 3 for ring in rings)
            assert crossings(rings) == 0
            assert all(area(rings[0]) > area(hole) for hole in rings[1:])
            assert all(signed_area(rings[0]) * signed_area(hole) < 0 for hole in rings[1:])


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1))
def test_lines_lie_within_the_tolerance_of_the_borders(seed):
    label = random_map(seed)
    for number, parts in trace(label, [NOT_PREDICTED]).items():
        lines = dense([ring for rings in parts for ring in rings])
        borders = pixel_borders(label, number)
        assert cKDTree(borders).query(lines)[0].max() < TOLERANCE_PX + 0.01
        assert cKDTree(lines).query(borders)[0].max() < TOLERANCE_PX + 0.01


@pytest.mark.parametrize("slope", [0, 0.1, 0.33, 0.5, 1, 2, 10])
def test_straight_borders_need_few_points(slope):
    row, column = np.mgrid[:60, :60] + 0.5
    ((ring,),) = trace((row < slope * column + 3.3).astype(np.uint8), [0]).values()
    assert len(ring[0]) <= 14


def test_squares_keep_their_corners_and_holes():
    label = np.zeros((9, 12), np.uint8)
    label[2:7, 3:9] = 1
    label[4:6, 5:7] = 2
    polygons = trace(label, [0])
    outline, hole = polygons[1][0]
    assert {tuple(point) for point in outline} == set(itertools.product((3, 9), (2, 7)))
    assert {tuple(point) for point in hole} == set(itertools.product((5, 7), (4, 6)))
    assert {tuple(point) for point in polygons[2][0][0]} == {tuple(point) for point in hole}
    assert set(polygons) == {1, 2}


def test_polygons_end_at_the_border_of_the_image():
    ring = trace(np.zeros((3, 4), np.uint8), size=(2.4, 3.7))[0][0][0]
    assert {tuple(point) for point in ring} == set(itertools.product((0, 3.7), (0, 2.4)))
