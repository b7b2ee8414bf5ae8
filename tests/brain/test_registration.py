"""Test affine registrations in closed form, and coordinate maps against smooth and affine maps."""

from pathlib import Path

import numpy as np
import pytest

from jaxcyto.brain.manifest import SectionRow
from jaxcyto.brain.registration import AffineRegistration, map_registration, registration
from jaxcyto.errors import InputError

SHAPE = (401, 601)
# An oblique plane with orthogonal directions and 0.02 mm pixels.
RIGHT = np.array([0.8, 0.6, 0.0]) * 0.02
DOWN = np.array([0.0, 0.0, -1.0]) * 0.02
ORIGIN = np.array([-5.0, 7.0, 4.0])
AFFINE = np.column_stack([RIGHT, DOWN, [0, 0, 0], ORIGIN])


def nodes_of(function, height=9, width=13):
    rows, columns = np.meshgrid(
        np.linspace(0, SHAPE[0] - 1, height), np.linspace(0, SHAPE[1] - 1, width), indexing="ij"
    )
    return np.float32(function(columns.ravel(), rows.ravel()).reshape(height, width, 3))


def bent(columns, rows):
    """Return points of the plane, warped in it by 0.15 mm per axis and bent out of it by 0.1 mm."""
    plane = AffineRegistration(AFFINE)
    wave = np.sin(columns / 150)[:, None], np.cos(rows / 130)[:, None]
    return (
        plane.to_mm(columns, rows)
        + 0.15 * wave[0] * DOWN / 0.02
        + 0.15 * wave[1] * RIGHT / 0.02
        + 0.1 * wave[0] * wave[1] * plane.normal
    )


def points(number=300, margin=0.0):
    rng = np.random.default_rng(3)
    return (
        rng.uniform(-margin, SHAPE[1] - 1 + margin, number),
        rng.uniform(-margin, SHAPE[0] - 1 + margin, number),
        rng.uniform(-1, 1, number),
    )


def test_affine_closed_form():
    plane = AffineRegistration(AFFINE)
    # The cross product of column and row direction, computed by hand.
    np.testing.assert_allclose(plane.normal, [-0.6, 0.8, 0.0], atol=1e-12)
    np.testing.assert_allclose(
        plane.to_mm([0, 10], [0, 5]), [ORIGIN, ORIGIN + 10 * RIGHT + 5 * DOWN]
    )
    column, row, offset = points()
    mm = plane.to_mm(column, row) + offset[:, None] * plane.normal
    np.testing.assert_allclose(plane.to_px(mm), (column, row, offset), atol=1e-9)


def test_sheared_affine_measures_offset_at_right_angles():
    affine = AFFINE.copy()
    affine[:, 1] += 0.4 * affine[:, 0]
    plane = AffineRegistration(affine)
    column, row, offset = points(20)
    mm = plane.to_mm(column, row) + offset[:, None] * plane.normal
    np.testing.assert_allclose(plane.to_px(mm), (column, row, offset), atol=1e-9)


def test_map_of_an_affine_is_the_affine_also_outside():
    plane = AffineRegistration(AFFINE)
    mapped = map_registration(nodes_of(plane.to_mm), SHAPE, 20.0)
    column, row, offset = points(margin=200)
    np.testing.assert_allclose(mapped.to_mm(column, row), plane.to_mm(column, row), atol=1e-5)
    mm = plane.to_mm(column, row) + offset[:, None] * plane.normal
    np.testing.assert_allclose(mapped.to_px(mm), (column, row, offset), atol=1e-3)
    assert mapped.bend_mm < 1e-5


def test_bent_map_inverts_itself_and_follows_the_warp():
    mapped = map_registration(nodes_of(bent, 41, 61), SHAPE, 20.0)
    column, row, offset = points()
    mm = mapped.to_mm(column, row)
    assert np.abs(mm - bent(column, row)).max() < 0.001  # bilinear between nodes 10 px apart
    assert 0.08 < mapped.bend_mm < 0.2
    mm = mm + offset[:, None] * mapped.normal
    np.testing.assert_allclose(mapped.to_px(mm), (column, row, offset), atol=1e-4)


def test_nodes_lie_corner_to_corner():
    nodes = nodes_of(bent, 5, 4)
    mapped = map_registration(nodes, SHAPE, 20.0)
    corner = mapped.to_mm([0, SHAPE[1] - 1, 200], [0, SHAPE[0] - 1, 100])
    np.testing.assert_allclose(corner, [nodes[0, 0], nodes[-1, -1], nodes[1, 1]], atol=1e-6)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((4, 5, 2), np.float32), "float32 [h, w, 3]"),
        (np.zeros((4, 5, 3), np.int32), "float32 [h, w, 3]"),
        (np.zeros((1, 5, 3), np.float32), "at least 2 x 2"),
        (np.full((4, 5, 3), np.nan, np.float32), "not finite"),
        (np.zeros((4, 5, 3), np.float32), "pixel_um"),
        (nodes_of(lambda c, r: AffineRegistration(1000 * AFFINE).to_mm(c, r)), "pixel_um"),
        (nodes_of(bent)[:, [*range(6), 7, 6, *range(8, 13)]], "folds over"),
        (np.array([{}], object), "not a coordinate map"),
    ],
)
def test_bad_maps_are_refused(tmp_path: Path, array, words):
    path = tmp_path / "map.npy"
    np.save(path, array, allow_pickle=True)
    row = SectionRow(0, "s", tmp_path / "s.png", 20.0, coordinates=path)
    with pytest.raises(InputError, match=r"map\.npy") as error:
        registration(row, SHAPE)
    assert words in str(error.value)


def test_truncated_and_foreign_files_are_refused(tmp_path: Path):
    path = tmp_path / "map.npy"
    np.save(path, nodes_of(bent))
    whole = path.read_bytes()
    row = SectionRow(0, "s", tmp_path / "s.png", 20.0, coordinates=path)
    assert registration(row, SHAPE).bend_mm > 0
    for content in (b"", whole[:40], whole[:-5], b"PK\x03\x04" + whole):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"map\.npy"):
            registration(row, SHAPE)
