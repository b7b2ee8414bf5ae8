"""Test the ribbon curves, their geometry on spheres and tori, and feature changes at borders."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import tifffile
from minimal_brain import make_ball
from pretext_run import write_run
from scipy.spatial import ConvexHull

from jaxcyto.brain.manifest import read_brain
from jaxcyto.brain.registration import registration
from jaxcyto.brain.sections.label_image import UNLABELED
from jaxcyto.brain.surfaces.surface import Surface, hemisphere_surface, read_surface, write_surface
from jaxcyto.errors import InputError
from jaxcyto.explore.border_contrast import (
    BESIDE,
    BORDER,
    UNKNOWN,
    WITHIN,
    embed_curves,
    gap_statistics,
    neighbor_gaps,
)
from jaxcyto.explore.figures import neighbors_figure
from jaxcyto.explore.ribbon_walk import Curves, mean_curvature, walk_ribbons
from jaxcyto.models import SiameseNet
from jaxcyto.predict.features import patch_areas
from jaxcyto.runs.load import load_pretext_run


@pytest.fixture(scope="module")
def ball(tmp_path_factory) -> Path:
    root = make_ball(tmp_path_factory.mktemp("brains") / "ball")
    for name in ("pial.surf.gii", "white.surf.gii"):
        surface = read_surface(root / name)
        write_surface(root / name, Surface(surface.vertices, outward(surface)))
    return root


def outward(surface: Surface) -> np.ndarray:
    """Orient the faces of a sphere outward. Those of a convex hull are not oriented."""
    out = np.linalg.det(surface.vertices[surface.faces]) > 0
    return np.where(out[:, None], surface.faces, surface.faces[:, ::-1])


@pytest.fixture(scope="module")
def curves(ball) -> Curves:
    return walk_ribbons(read_brain(ball), [0, 1, 2], patch_px=32, um_per_px=64.0, step_mm=0.25)


# ---- curves -------------------------------------------------------------------------------------


def test_a_sphere_is_cut_in_circles(ball, curves):
    brain = read_brain(ball)
    assert curves.curve.max() == 2
    for index, y in enumerate((-2.0, 0.0, 2.0)):
        own = np.flatnonzero(curves.patches.section == index)
        assert (curves.curve[own] == index).all() and (np.diff(own) == 1).all()
        points = curves.patches.position_mm[own]
        radius = (2.5**2 - y**2) ** 0.5
        np.testing.assert_allclose(points[:, 1], y, atol=1e-5)
        np.testing.assert_allclose(np.hypot(points[:, 0], points[:, 2]), radius, rtol=0.05)
        assert len(own) == pytest.approx(2 * np.pi * radius / 0.25, rel=0.03, abs=1)
        # evenly spaced along the circle, in one direction
        np.testing.assert_allclose(np.diff(curves.arc_mm[own]), 0.25)
        turn = np.diff(np.unwrap(np.arctan2(points[:, 2], points[:, 0])))
        assert (np.sign(turn) == np.sign(turn[0])).all()
        np.testing.assert_allclose(np.abs(turn), 0.25 / radius, rtol=0.12)
        column, row = curves.patches.center_px[own].T
        place = registration(brain.sections[index])
        np.testing.assert_allclose(place.to_mm(column, row), points, atol=1e-5)


def test_points_lie_in_their_triangles(ball, curves):
    surface = hemisphere_surface(read_brain(ball).hemispheres[0])
    corners = surface.vertices[surface.faces[curves.patches.face]]
    found = (corners * curves.patches.bary[:, :, None]).sum(axis=1)
    np.testing.assert_allclose(found, curves.patches.position_mm, atol=1e-5)


def test_curvature_and_obliqueness_of_a_sphere(curves):
    np.testing.assert_allclose(curves.curvature, 1 / 2.5, rtol=0.1)
    y = np.array([-2.0, 0.0, 2.0])[curves.patches.section]
    expected = np.rad2deg(np.arcsin(np.abs(y) / 2.5))
    assert np.abs(curves.obliqueness - expected).max() < 5
    assert np.abs(curves.obliqueness - expected).mean() < 1.5


def test_a_curve_ends_with_the_image(tmp_path):
    root = make_ball(tmp_path / "ball")
    image = tifffile.imread(root / "b.tif")
    tifffile.imwrite(root / "b.tif", image[:, :125], tile=(64, 64))  # the left half
    (root / "sections.csv").write_text(
        (root / "sections.csv").read_text().replace("b_label.tif", "").replace("b_atlas.tif", "")
    )
    found = walk_ribbons(read_brain(root), [1], patch_px=32, um_per_px=64.0, step_mm=0.25)
    assert (found.patches.center_px[:, 0] <= 124.5).all()
    half = np.pi * 2.5
    lengths = [np.ptp(found.arc_mm[found.curve == k]) for k in range(found.curve.max() + 1)]
    assert half - 1 < sum(lengths) < half  # one arc, or two if the walk starts inside it
    steps = np.linalg.norm(np.diff(found.patches.position_mm, axis=0), axis=1)
    assert (steps[np.diff(found.curve) == 0] < 0.2501).all()


def test_sections_that_miss_the_cortex_are_named(ball):
    with pytest.raises(InputError, match="none given"):
        walk_ribbons(read_brain(ball), [], patch_px=32, um_per_px=64.0)
    with pytest.raises(InputError, match="sections c: no ribbon of 60 mm"):
        walk_ribbons(read_brain(ball), [2], patch_px=32, um_per_px=64.0, step_mm=30.0)


# ---- geometry -----------------------------------------------------------------------------------


def sphere(radius: float, number: int = 3000) -> Surface:
    k = np.arange(number) + 0.5
    z, turn = 1 - 2 * k / number, np.pi * (1 + 5**0.5) * k
    flat = np.sqrt(1 - z**2)
    points = np.stack([flat * np.cos(turn), flat * np.sin(turn), z], -1)
    faces = ConvexHull(points).simplices
    return Surface(radius * points, outward(Surface(points, faces)))


def test_curvature_is_one_over_the_radius_either_way_round():
    surface = sphere(5.0)
    for faces in (surface.faces, surface.faces[:, ::-1]):
        moved = Surface(surface.vertices + 7, faces)
        rough = mean_curvature(moved, 0.0)
        assert rough.mean() == pytest.approx(0.2, rel=0.02) and np.abs(rough - 0.2).max() < 0.05
        np.testing.assert_allclose(mean_curvature(moved), 0.2, rtol=0.05)


def test_curvature_of_a_torus():
    big, small, m, n = 3.0, 2.0, 120, 80  # thick enough that the inside is a saddle
    u, v = np.meshgrid(np.arange(m), np.arange(n), indexing="ij")
    a, b = 2 * np.pi * u.ravel() / m, 2 * np.pi * v.ravel() / n
    ring = big + small * np.cos(b)
    vertices = np.stack([ring * np.cos(a), ring * np.sin(a), small * np.sin(b)], -1)
    corner = np.stack([(u + i) % m * n + (v + j) % n for i, j in ((0, 0), (1, 0), (1, 1), (0, 1))])
    first, second, third, fourth = corner.reshape(4, -1)
    faces = np.concatenate(
        [np.stack([first, second, third], -1), np.stack([first, third, fourth], -1)]
    )
    expected = (big + 2 * small * np.cos(b)) / (2 * small * (big + small * np.cos(b)))
    assert expected.min() < 0
    np.testing.assert_allclose(mean_curvature(Surface(vertices, faces), 0.0), expected, atol=0.02)


# ---- gaps ---------------------------------------------------------------------------------------


def test_gaps_as_counted_one_by_one():
    rng = np.random.default_rng(0)
    features, window = rng.normal(size=(60, 4)), 3
    curve = np.repeat([0, 1, 2], [25, 4, 31])
    areas = np.repeat([0, 1, 2, UNLABELED, 1], [10, 5, 22, 3, 20])
    usable = np.ones(60, bool)
    usable[50] = False
    gaps = neighbor_gaps(features, curve, areas, window=window, usable=usable)
    expected = []
    for k in range(window - 1, 60 - window):
        own = np.arange(k - window + 1, k + window + 1)
        if len(set(curve[own])) > 1 or not usable[own].all():
            continue
        jump = features[k - window + 1 : k + 1].mean(0) - features[k + 1 : k + window + 1].mean(0)
        kind = BESIDE
        if UNLABELED in areas[own]:
            kind = UNKNOWN
        elif areas[k] != areas[k + 1]:
            kind = BORDER
        elif len(set(areas[own])) == 1:
            kind = WITHIN
        expected.append((k, (jump**2).sum(), kind))
    before, distance, kind = map(np.array, zip(*expected, strict=True))
    np.testing.assert_array_equal(gaps.before, before)
    np.testing.assert_allclose(gaps.squared_distance, distance)
    np.testing.assert_array_equal(gaps.kind, kind)
    assert {UNKNOWN, WITHIN, BORDER, BESIDE} == set(kind)


def test_no_gap_in_curves_that_are_too_short():
    assert len(neighbor_gaps(np.zeros((4, 2)), np.zeros(4, int), window=3)) == 0
    assert len(neighbor_gaps(np.zeros((12, 2)), np.repeat([0, 1, 2], 4), window=3)) == 0


def test_a_step_at_the_border_gives_one_and_noise_a_half():
    rng = np.random.default_rng(1)
    areas = np.repeat(np.arange(300) % 5, 12)
    curve = np.zeros(len(areas), int)
    geometry = rng.random((2, len(areas)))
    step = np.eye(5)[areas]
    found = gap_statistics(neighbor_gaps(step, curve, areas), *geometry)
    assert found["auc"] == 1 and found["border"] == 299 and found["within"] == 300 * 7
    assert found["median_border"] == pytest.approx(2) and found["median_within"] == 0
    assert found["spearman_curvature"] is None  # not defined for constant distances
    noise = rng.normal(size=(len(areas), 8))
    found = gap_statistics(neighbor_gaps(noise, curve, areas), *geometry)
    assert abs(found["auc"] - 0.5) < 0.06
    assert abs(found["spearman_curvature"]) < 0.1 and abs(found["spearman_obliqueness"]) < 0.1


def test_rank_correlation_with_what_bends_the_features():
    rng = np.random.default_rng(2)
    curvature = rng.normal(size=200)
    bent = np.abs(curvature)
    features = np.concatenate([[0.0], np.cumsum((bent[1:] + bent[:-1]) / 2)])[:, None]
    gaps = neighbor_gaps(features, np.zeros(200), np.zeros(200), window=1)
    found = gap_statistics(gaps, curvature, -np.abs(curvature))
    assert found["spearman_curvature"] == pytest.approx(1)
    assert found["spearman_obliqueness"] == pytest.approx(-1)
    assert found["auc"] is None and found["median_border"] is None


# ---- on a brain ---------------------------------------------------------------------------------


def test_the_walk_from_sections_to_figure(ball, curves, tmp_path):
    net = SiameseNet(stem_kernel=3, stem_stride=1, widths=(4, 6, 8), features=5)
    run = load_pretext_run(write_run(tmp_path / "run", net, 32))
    brain = read_brain(ball)
    features, usable = embed_curves(run, brain, curves)
    assert features.shape == (len(curves), 5) and usable.all()
    # labels 1 and 2 of the text file have no names, so areas are defined by the z axis here
    areas = (curves.patches.position_mm[:, 2] > 0).astype(int)
    gaps = neighbor_gaps(features, curves.curve, areas, usable=usable)
    found = gap_statistics(gaps, curves.curvature, curves.obliqueness)
    assert 3 <= found["border"] <= 6  # two borders per circle, fewer if the walk starts at one
    figure = neighbors_figure(brain, curves, gaps, [0, 1, 2])
    panels = figure.axes[:3]
    assert sum(len(panel.collections[0].get_offsets()) for panel in panels) == len(gaps)
    ticks = [len(panel.collections[1].get_segments()) for panel in panels]
    assert sum(ticks) == found["border"]
    for panel in panels:
        y = panel.collections[0].get_offsets()[:, 1]
        assert 0 < y.min() < y.max() < 8  # the image has 250 px of 32 um, which is 8 mm
    plt.close(figure)


def test_positions_without_tissue_are_not_used(tmp_path):
    root = make_ball(tmp_path / "ball")
    image = tifffile.imread(root / "a.tif")
    image[:, 125:] = 255
    tifffile.imwrite(root / "a.tif", image, tile=(64, 64))
    brain = read_brain(root)
    curves = walk_ribbons(brain, [0], patch_px=32, um_per_px=32.0, step_mm=0.25)
    net = SiameseNet(stem_kernel=3, stem_stride=1, widths=(4, 6, 8), features=5)
    run = load_pretext_run(write_run(tmp_path / "run", net, 32, um_per_px=32.0))
    _, usable = embed_curves(run, brain, curves)
    column = curves.patches.center_px[:, 0]
    assert usable[column < 120].all() and not usable[column > 140].any()


def test_areas_along_the_ribbon_change_at_the_borders(tiny_brain):
    brain = read_brain(tiny_brain)
    middle = len(brain.sections) // 2
    found = walk_ribbons(brain, [middle], patch_px=32, um_per_px=64.0)
    areas = patch_areas(brain, found.patches)
    gaps = neighbor_gaps(np.eye(len(brain.classes))[areas], found.curve, areas, window=1)
    assert gap_statistics(gaps, found.curvature, found.obliqueness)["auc"] == 1
    assert np.abs(found.curvature).max() < 2 and 0 <= found.obliqueness.min()
    assert found.obliqueness.max() <= 90
