"""Test the phantom's geometry against closed forms, and sections against their surfaces."""

import dataclasses
import json

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.spatial import cKDTree

from jaxcyto.brain.annotation.prisms import inside_white, rasterize
from jaxcyto.brain.manifest import read_brain
from jaxcyto.brain.sections.section import open_section
from jaxcyto.brain.surfaces.surface import read_surface
from jaxcyto.brain.surfaces.vertex_labels import read_labels
from jaxcyto.errors import InputError
from jaxcyto.phantom import cortex as phantom_shape
from jaxcyto.phantom import writer as phantom_write
from jaxcyto.phantom.acquisition import Look
from jaxcyto.phantom.annotation import displaced
from jaxcyto.phantom.cells import Stamps
from jaxcyto.phantom.cortex import Cortex, normalized_profiles
from jaxcyto.phantom.given_surfaces import GivenHemisphere, paint_surfaces
from jaxcyto.phantom.make import make_phantom, phantom_cortex
from jaxcyto.phantom.paint import CELL, NEUROPIL, SectionPainter, enlarge
from jaxcyto.phantom.settings import (
    PRESETS,
    PhantomSettings,
    coronal_plans,
    cut_cortex,
    image_affine,
)

SMALL = PhantomSettings(
    seed=5, long_axis_mm=14, mesh_subdivisions=4, num_areas=5, num_other=2, num_sections=4,
    spacing_mm=2.5,
)  # fmt: skip
PLAIN = Look(gain=1.0, offset=0.0, blur_um=0.5, background=250.0, noise=0.0, artifacts=())
OUTER_MM, INNER_MM = 2.0, 1.0


@pytest.fixture(scope="module")
def brain(tmp_path_factory):
    return read_brain(make_phantom(tmp_path_factory.mktemp("one") / "toy", SMALL, workers=1))


@pytest.fixture(scope="module")
def null_brain(tmp_path_factory):
    null = dataclasses.replace(SMALL, null=True)
    return read_brain(make_phantom(tmp_path_factory.mktemp("null") / "toy", null, workers=1))


def shell(profile_rows) -> Cortex:
    """Make a hollow ball with one profile, so that every section has a closed form."""
    sphere, faces = phantom_shape.icosphere(5)
    count = len(sphere)
    rows = (np.tile(np.asarray(row, float), (count, 1)) for row in profile_rows)
    pial, white = sphere * OUTER_MM, sphere * INNER_MM
    return Cortex(
        pial=pial,
        white=white,
        faces=faces,
        area=np.zeros(count, np.int32),
        profiles=normalized_profiles(*rows),
        skew=np.zeros(count, np.float32),
        starts=(0, count),
    )


def shell_painter(um_per_px: float, y_mm: float = 0.0, look: Look = PLAIN):
    share = [0.1, 0.15, 0.25, 0.1, 0.2, 0.2]
    cortex = shell((share, [0.02, 0.3, 0.1, 0.35, 0.08, 0.2], [6, 8, 10, 7, 12, 9]))
    side = 280
    affine = np.array([[0.016, 0, 0, 0], [0, 0, 0, y_mm], [0, -0.016, 0, 0]])
    affine[:, 3] -= (side - 1) / 2 * (affine[:, 0] + affine[:, 1])
    cut = cut_cortex(cortex, affine)
    painter = SectionPainter(cortex, cut, (side, side), look, um_per_px, (1, 2), (0,))
    center = (side - 1) / 2
    row, column = np.mgrid[:side, :side]
    radius_mm = np.sqrt(0.016**2 * ((row - center) ** 2 + (column - center) ** 2) + y_mm**2)
    return painter, cut, cortex, radius_mm


@pytest.mark.parametrize("y_mm", [0.0, 0.7, 1.4])
def test_cut_of_a_shell_is_a_ring_without_gaps(y_mm):
    _, cut, _, radius = shell_painter(16, y_mm)
    triangle = rasterize(cut, 0, *radius.shape)
    white = inside_white(cut, 0, *radius.shape)
    tolerance = 0.004  # mm, because chords of the icosphere lie inside the ball
    ring = (radius > INNER_MM) & (radius < OUTER_MM - tolerance)
    assert (triangle[ring] >= 0).all()
    assert (triangle[radius > OUTER_MM] < 0).all()
    assert white[radius < INNER_MM - tolerance].all()
    assert not white[radius > INNER_MM].any()


def test_rasterizing_in_parts_equals_rasterizing_at_once():
    _, cut, _, radius = shell_painter(16)
    whole = rasterize(cut, -3, 290, radius.shape[1])
    parts = [rasterize(cut, top, 29, radius.shape[1]) for top in range(-3, 287, 29)]
    assert (np.concatenate(parts) == whole).all()


def test_layers_of_the_image_follow_the_profile():
    painter, _, cortex, radius = shell_painter(16)
    image = np.concatenate(list(painter.rows(np.empty(radius.shape, np.uint8))))
    darkness = 1 - image / PLAIN.background
    depth = (OUTER_MM - radius) / (OUTER_MM - INNER_MM)
    bounds = np.r_[0, cortex.profiles.bounds[0], 1]
    for layer in range(6):
        low, high = bounds[layer], bounds[layer + 1]
        inside = (depth > low + 0.03) & (depth < high - 0.03)
        expected = NEUROPIL + CELL * cortex.profiles.coverage[0, layer]
        assert darkness[inside].mean() == pytest.approx(expected, abs=0.01)
    assert cortex.profiles.coverage[0].max() * CELL > 0.15  # so the tolerance of 0.01 is small


def test_coarse_image_is_the_area_average_of_the_fine_one():
    images = {}
    for um in (4, 16):
        painter, _, _, radius = shell_painter(um)
        images[um] = np.concatenate(list(painter.rows(np.empty(radius.shape, np.uint8))))
    side = len(radius)
    mean = images[4].reshape(side, 4, side, 4).mean((1, 3))
    inside = (radius > INNER_MM + 0.05) & (radius < OUTER_MM - 0.05)
    fine, coarse = mean[inside], images[16][inside].astype(float)
    assert fine.mean() == pytest.approx(coarse.mean(), abs=1)
    assert np.corrcoef(fine, coarse)[0, 1] > 0.95


def test_equivolumetric_depth_halves_the_volume():
    cortex = shell((np.ones(6), np.ones(6), np.full(6, 8.0)))
    q = phantom_shape.volume_skew(cortex.pial, cortex.white, cortex.faces)
    assert q == pytest.approx((1 - 4) / (1 + 4), rel=1e-3)  # areas 4 pi 1 and 4 pi 4
    for depth in (0.2, 0.5, 0.8):
        radius = OUTER_MM - depth * (OUTER_MM - INNER_MM)
        share = (OUTER_MM**3 - radius**3) / (OUTER_MM**3 - INNER_MM**3)
        # Waehnert's model assumes an area that is linear in depth. On a ball it is quadratic.
        assert depth + q[0] * depth * (depth - 1) == pytest.approx(share, abs=0.03)


@given(st.integers(0, 2**32 - 1), st.sampled_from([2.0, 8.0, 16.0]))
@settings(max_examples=15, deadline=None)
def test_stamps_keep_area_and_place_and_cross_blocks(seed, um_per_px):
    rng = np.random.default_rng(seed)
    stamps = Stamps(um_per_px, blur_um=1.0)
    row, column = rng.uniform(12, 52, (2, 5)).astype(np.float32)
    diameter = rng.uniform(5, 22, 5).astype(np.float32)
    cells = (row, column, diameter, rng.uniform(0, 3, 5).astype(np.float32))
    whole = stamps.draw((64, 64), 0, [cells])
    area = np.pi / 4 * diameter**2
    assert whole.sum() * um_per_px**2 == pytest.approx(area.sum(), rel=0.3)  # sizes are binned
    one = stamps.draw((64, 64), 0, [tuple(values[:1] for values in cells)])
    at = [(one.sum(axis) * np.arange(64)).sum() / one.sum() for axis in (1, 0)]
    # The center of a cell within one pixel is known to half a pixel only.
    assert at == pytest.approx([row[0], column[0]], abs=0.2 if diameter[0] > 2 * um_per_px else 0.5)
    parts = [stamps.draw((size, 64), top, [cells]) for top, size in ((0, 30), (30, 34))]
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-5)


@given(st.integers(1, 8), st.floats(-2, 2), st.floats(-2, 2))
@settings(max_examples=20, deadline=None)
def test_enlarging_a_plane_gives_a_plane(factor, slope, across):
    row, column = np.arange(-1, 7)[:, None], np.arange(9)[None]
    big = enlarge((slope * row + across * column).astype(np.float32), factor)
    y = (np.arange(6 * factor) + 0.5) / factor - 0.5
    x = np.clip((np.arange(9 * factor) + 0.5) / factor - 0.5, 0, 8)  # constant beyond the edge
    np.testing.assert_allclose(big, slope * y[:, None] + across * x, atol=1e-4)


def test_brain_reads_back(brain):
    assert len(brain.sections) == SMALL.num_sections
    kinds = [item.kind for item in brain.classes]
    assert kinds == ["area"] * SMALL.num_areas + ["cortex", "white_matter", "background"]
    assert len({item.color for item in brain.classes}) == len(brain.classes)
    assert {row.split for row in brain.sections} == {""}
    for row in brain.sections:
        with open_section(row.image) as image, open_section(row.label) as label:
            assert image.shape == label.shape
            assert image.pixel_um == pytest.approx(16)
        with tifffile.TiffFile(row.atlas) as atlas:
            assert atlas.series[0].shape == (SMALL.num_areas, *label.shape)


def test_labels_agree_with_the_surfaces(brain):
    """Compare labels with nearest vertices and normals, from the surfaces and the table alone."""
    mid, label, normals, white = [], [], [], []
    for hemisphere in brain.hemispheres:
        pial, inner = read_surface(hemisphere.pial), read_surface(hemisphere.white)
        mid.append((pial.vertices + inner.vertices) / 2)
        label.append(read_labels(hemisphere.labels, len(mid[-1])))
        normals.append(phantom_shape.vertex_normals(inner.vertices, inner.faces))
        white.append(inner.vertices)
    mid, label, normals, white = (np.concatenate(part) for part in (mid, label, normals, white))
    rng, areas = np.random.default_rng(0), 0
    for row in brain.sections:
        classes = tifffile.imread(row.label)
        for index, item in enumerate(brain.classes):
            pixels = rng.permutation(np.argwhere(classes == index))[:300]
            if len(pixels) < 50 or item.kind == "background":
                continue
            points = (row.affine[:, [1, 0]] @ pixels.T + row.affine[:, 3:]).T
            if item.kind == "white_matter":
                near = cKDTree(white).query(points)[1]
                assert (((points - white[near]) * normals[near]).sum(1) < 0.05).mean() > 0.98
            else:
                near = label[cKDTree(mid).query(points, k=7)[1]]
                far_from_border = (near == near[:, :1]).all(1)
                if far_from_border.sum() > 30:
                    assert (near[far_from_border, 0] == index).mean() > 0.97
                    areas += 1
    assert areas > 8


def test_annotation_is_partial_and_atlas_is_rough(brain):
    known, right, wrong = [], [], []
    for row in brain.sections:
        classes, atlas = tifffile.imread(row.label), tifffile.imread(row.atlas)
        known.append((classes != 255).mean())
        assert atlas.astype(int).sum(0).max() <= 255 + len(atlas)
        for index in range(SMALL.num_areas):
            inside = classes == index
            if inside.sum() > 500:
                right.append(atlas[index][inside].mean())
                others = np.delete(atlas, index, 0)[:, inside]
                wrong.append(others.max(0).mean())
    assert 0.3 < np.mean(known) < 0.7
    assert max(known) < 1
    assert np.mean(right) > 1.5 * np.mean(wrong)
    assert min(right) < 0.7 * max(right)  # it is displaced, so it does not reveal the labels


def test_the_atlas_is_displaced_by_millimeters():
    """docs/phantom.md states the length of the displacement on the quickstart's cortex."""
    chosen = PRESETS["quickstart"]
    cortex = phantom_cortex(chosen)
    moved = displaced(cortex, np.random.default_rng((chosen.own_seed, 5)))
    length = np.linalg.norm(moved.pial - cortex.pial, axis=1)
    np.testing.assert_allclose(moved.white - cortex.white, moved.pial - cortex.pial, atol=1e-9)
    assert length.mean() == pytest.approx(2.4, abs=0.05)
    np.testing.assert_allclose(np.percentile(length, [5, 95, 100]), [1.0, 4.3, 5.6], atol=0.05)


def test_null_brain_differs_in_its_texture_only(brain, null_brain):
    same = {path.relative_to(null_brain.root) for path in null_brain.root.rglob("*.*")}
    for path in sorted(same):
        ours, theirs = (brain.root / path).read_bytes(), (null_brain.root / path).read_bytes()
        assert (ours == theirs) == (path.parts[0] != "sections"), path
    profiles = phantom_cortex(dataclasses.replace(SMALL, null=True)).profiles
    assert all((part == part[0]).all() for part in dataclasses.asdict(profiles).values())


def test_areas_differ_in_arrangement_not_in_mean_darkness():
    cortex = phantom_cortex(SMALL)
    profiles = cortex.profiles
    share = np.diff(profiles.bounds, prepend=0, append=1, axis=1)
    assert (share > 0).all()
    mean = (share * profiles.coverage).sum(1)
    assert mean == pytest.approx(phantom_shape.MEAN_COVERAGE, rel=1e-4)
    depth = (np.arange(40) + 0.5) / 40
    layer = (depth[None, :, None] > profiles.bounds[:, None]).sum(2)
    curve = np.take_along_axis(profiles.coverage, layer, 1)
    means = np.stack([curve[cortex.area == k].mean(0) for k in range(SMALL.num_areas)])
    gaps = np.abs(means[:, None] - means).mean(2)[np.triu_indices(SMALL.num_areas, 1)]
    assert gaps.min() > 0.1 * phantom_shape.MEAN_COVERAGE


def test_hemispheres_mirror_each_other_without_touching():
    cortex = phantom_cortex(SMALL)
    half = cortex.starts[1]
    assert (cortex.pial[:half] * [-1, 1, 1] == cortex.pial[half:]).all()
    assert cortex.pial[half:, 0].min() > 0.5
    thickness = np.linalg.norm(cortex.pial - cortex.white, axis=1)
    assert 1.5 < np.median(thickness) < 3
    for start, end in zip(cortex.starts, cortex.starts[1:], strict=False):
        faces = cortex.faces[(cortex.faces[:, 0] >= start) & (cortex.faces[:, 0] < end)]
        a, b, c = cortex.white[faces].swapaxes(0, 1)
        assert (np.cross(a, b) * c).sum() > 0  # six times the volume, positive for outward faces


def test_deterministic_whatever_the_number_of_workers(brain, tmp_path):
    few = make_phantom(tmp_path / "toy", SMALL, workers=2)
    files = sorted(path.relative_to(few) for path in few.rglob("*.*"))
    assert len(files) == 3 * SMALL.num_sections + 6 + 2
    for path in files:
        assert (few / path).read_bytes() == (brain.root / path).read_bytes(), path
    other = phantom_cortex(dataclasses.replace(SMALL, seed=6))
    assert (other.pial != phantom_cortex(SMALL).pial).any()


def test_image_affine_puts_grid_pixels_over_image_pixels():
    plan = coronal_plans(phantom_cortex(SMALL), np.array([0.5]), seed=1)[0]
    affine, factor = image_affine(plan, 2.0), 8
    for column, row in ((0, 0), (7, 3)):
        corner = np.array([column * factor + 3.5, row * factor + 3.5, 0, 1])
        grid = plan.affine @ [column, row, 0, 1]
        np.testing.assert_allclose(affine @ corner, grid, atol=1e-12)


def test_nothing_half_written_stays(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(phantom_write, "write_section", fail)
    with pytest.raises(OSError, match="disk full"):
        make_phantom(tmp_path / "toy", SMALL, workers=1)
    assert list(tmp_path.iterdir()) == []


def test_mistakes_are_named(tmp_path):
    with pytest.raises(InputError, match="um_per_px = 3"):
        dataclasses.replace(SMALL, um_per_px=3)
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="already there"):
        make_phantom(tmp_path, SMALL)
    assert (tmp_path / "mine.txt").read_text() == "keep"


def test_given_surfaces(brain, tmp_path):
    hemisphere = brain.hemispheres[1]
    count = len(read_surface(hemisphere.pial).vertices)
    um = np.tile([200, 100, 300, 400, 200, 300], (count, 1))
    um[:10] = 0  # unknown here
    np.savez(tmp_path / "um.npz", um=um.astype(np.uint16))
    files = GivenHemisphere(
        "right", hemisphere.pial, hemisphere.white, hemisphere.labels, tmp_path / "um.npz"
    )
    two = dataclasses.replace(SMALL, num_sections=2, annotated_fraction=1.0)
    out = read_brain(paint_surfaces(tmp_path / "out", [files], (-1, 1), two, workers=1))
    assert [row.affine[1, 3] for row in out.sections] == [-1, 1]
    # Key 0 of a label file means no area, so the first area of the phantom becomes other cortex.
    names = [item.name for item in out.classes]
    assert names[0] == "area 2"
    assert names[-4:] == ["other cortex (5)", "other cortex", "white matter", "background"]
    classes = tifffile.imread(out.sections[0].label)
    assert 255 not in classes
    assert (classes < SMALL.num_areas - 1).any()
    with pytest.raises(InputError, match="meets no surface"):
        paint_surfaces(tmp_path / "far", [files], (100, 101), two)
    np.savez(tmp_path / "um.npz", um=um[:-1])
    with pytest.raises(InputError, match=r"um\.npz"):
        paint_surfaces(tmp_path / "bad", [files], (-1, 1), two)
    assert not (tmp_path / "bad").exists()


def test_painted_cortex_matches_a_real_section(shared_data, tmp_path):
    """Compare gray matter painted on real surfaces with masks drawn by hand on section 1081."""
    folder = shared_data / "bigbrain"
    hemisphere = GivenHemisphere(
        "left",
        folder / "surf" / "tpl-bigbrain_hemi-L_desc-pial.surf.gii",
        folder / "surf" / "tpl-bigbrain_hemi-L_desc-white.surf.gii",
        folder / "labels" / "tpl-bigbrain_hemi-L_desc-vcatlas_hOc.label.gii",
        folder / "maps" / "layer_thickness_L_um_uint16.npz",
    )
    histology = shared_data / "histology" / "bigbrain_sections"
    place = json.loads((histology / "B20_1081_registration.json").read_text())
    one = PhantomSettings(
        num_sections=1, annotated_fraction=1.0, artifacts=0, atlas=False, um_per_px=16
    )
    y = place["y_mm"]
    brain = read_brain(paint_surfaces(tmp_path / "real", [hemisphere], (y, y), one, workers=1))
    names = [item.name for item in brain.classes]
    assert names[:3] == ["hOc1", "hOc2", "hOc3v"]
    section = brain.sections[0]
    classes = tifffile.imread(section.label)
    step = place["um_per_px"] / 1000

    def painted(mask):
        """Resample a mask of painted pixels to the grid of the real section."""
        points = section.affine[:, [1, 0]] @ np.argwhere(mask).T + section.affine[:, 3:]
        column = np.rint((points[0] - place["x0_mm"]) / step).astype(int)
        row = np.rint((place["z0_mm"] - points[2]) / step).astype(int)
        count = np.zeros(place["shape"])
        inside = (column >= 0) & (row >= 0) & (row < len(count)) & (column < count.shape[1])
        np.add.at(count, (row[inside], column[inside]), 1)
        return count > (step / 0.016) ** 2 / 2

    def dice(a, b):
        return 2 * (a & b).sum() / (a.sum() + b.sum())

    drawn = np.array(Image.open(histology / "B20_1081_gmwm.png"))  # 128 gray, 255 white matter
    left = np.arange(drawn.shape[1]) * step + place["x0_mm"] < -1
    white = names.index("white matter")
    assert dice(painted(classes < white)[:, left], (drawn == 128)[:, left]) > 0.87
    assert dice(painted(classes == white)[:, left], (drawn == 255)[:, left]) > 0.92
    # hOc1 was registered from an atlas of other brains, so it is larger than V1 here.
    area = np.array(Image.open(histology / "B20_1081_v1.png")) > 0
    assert dice(painted(classes == 0)[:, left], area[:, left]) > 0.78


def test_colors_of_areas_are_told_apart_with_any_color_vision():
    """Compare colors in CIELAB (D65), as Machado et al. (2009) simulate missing L, M or S cones."""
    vision = [
        np.eye(3),
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
         [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
         [-0.011820, 0.042940, 0.968881]],
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
         [0.004733, 0.691367, 0.303900]],
    ]  # fmt: skip
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    classes = phantom_write.area_classes([f"area{k}" for k in range(12)])
    rgb = np.array([list(bytes.fromhex(each["color"][1:])) for each in classes]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    for seen in vision:
        t = np.clip(linear @ np.transpose(seen), 0, 1) @ xyz.T / xyz.sum(1)
        x, y, z = np.where(t > 0.008856, np.cbrt(t), 7.787 * t + 16 / 116).T
        lab = np.stack([116 * y, 500 * (x - y), 200 * (y - z)], axis=1)
        apart = np.linalg.norm(lab[:, None] - lab, axis=-1) + 99 * np.eye(len(lab))
        assert apart[:12].min() > 12
