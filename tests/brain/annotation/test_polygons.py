"""Test `jaxcyto annotate`, which makes label images of GeoJSON polygons."""

import json
import shutil
import subprocess
import sys
import tracemalloc
import warnings
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tifffile
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.path import Path as Outline
from minimal_brain import LABEL_PX, PIXEL_UM, make_ball, replace
from scipy.spatial import cKDTree

from jaxcyto.brain.annotation import polygons as module
from jaxcyto.brain.annotation.geojson import Annotation, read_annotations
from jaxcyto.brain.annotation.outlines import area
from jaxcyto.brain.annotation.polygons import Painted, annotate_brain, rasterize
from jaxcyto.brain.check import check_brain
from jaxcyto.brain.manifest import AreaClass, read_brain
from jaxcyto.cli import main
from jaxcyto.errors import InputError

SHAPE = (40, 50)
SQUARE = [[10, 20], [30, 20], [30, 60], [10, 60], [10, 20]]  # x 10 ... 30, y 20 ... 60


@pytest.fixture(scope="module")
def ball(tmp_path_factory) -> Path:
    return make_ball(tmp_path_factory.mktemp("brains") / "ball")


@pytest.fixture
def brain(ball, tmp_path) -> Path:
    return shutil.copytree(ball, tmp_path / "ball")


def feature(name, *rings, **changes):
    geometry = {"type": "Polygon", "coordinates": list(rings)}
    found = {"type": "Feature", "id": "PathAnnotationObject", "geometry": geometry}
    found["properties"] = {"classification": {"name": name, "colorRGB": -3670016}}
    return found | changes


def export(path: Path, *features) -> Path:
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def run(*arguments):
    return CliRunner().invoke(main, [str(each) for each in arguments])


def by_matplotlib(rings, shape) -> np.ndarray:
    """Test every pixel center by the even-odd rule: the parity over all rings."""
    row, column = np.mgrid[: shape[0], : shape[1]]
    centers = np.stack([column.ravel(), row.ravel()], 1)
    inside = np.zeros(len(centers), int)
    for ring in rings:
        # Matplotlib fills where a ring overlaps itself. Fans of triangles never do, so their parity
        # gives the even-odd rule.
        for first, second in pairwise(ring[1:]):
            inside += Outline([ring[0], first, second, ring[0]]).contains_points(centers)
    return (inside % 2).reshape(shape).astype(bool)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), corners=st.integers(3, 12), rings=st.integers(1, 3))
def test_pixel_centers_inside_by_the_even_odd_rule(seed, corners, rings):
    """Compare random polygons that cross themselves and the border with matplotlib."""
    rng = np.random.default_rng(seed)
    points = [rng.uniform(-15, 60, (corners, 2)) for _ in range(rings)]
    found = rasterize([Annotation(3, [points], [], "")], SHAPE)
    assert set(np.unique(found)) <= {3, 255}
    np.testing.assert_array_equal(found == 3, by_matplotlib(points, SHAPE))


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32 - 1))
def test_neighbors_share_no_pixel_and_leave_none(seed):
    """Cut a square by a line whose ends are pixel centers. The outer edges run through centers."""
    rng = np.random.default_rng(seed)
    x = np.sort(rng.integers(5, 30, 2)).astype(float)
    left = np.array([[0, 0], [x[0], 0], [x[1], 30], [0, 30]], float)
    right = np.array([[x[0], 0], [30, 0], [30, 30], [x[1], 30]], float)
    painted = Painted()
    both = [Annotation(0, [[left]], [], ""), Annotation(1, [[right]], [], "")]
    found = rasterize(both, SHAPE, painted=painted)
    assert not painted.over and not painted.crossing
    assert (found[:30, :30] < 2).all() and (found < 2).sum() == 900


def test_bands_and_one_go_are_alike(monkeypatch):
    points = np.random.default_rng(0).uniform(0, 40, (30, 2))
    whole = rasterize([Annotation(0, [[points]], [], "")], SHAPE)
    monkeypatch.setattr(module, "BAND_PX", 7)
    np.testing.assert_array_equal(rasterize([Annotation(0, [[points]], [], "")], SHAPE), whole)
    assert 0.1 < (whole == 0).mean() < 0.9


def test_pixels_and_micrometers_count_from_the_corner(brain, tmp_path):
    """Check both units at 32 um, where edges at whole px do not split a label pixel."""
    path = export(tmp_path / "a.geojson", feature("outer", SQUARE))
    for unit, factor in (("px", PIXEL_UM / 16), ("um", 1 / 16)):
        scaled = [[x * 2 / factor, y * 2 / factor] for x, y in SQUARE]
        export(path, feature("outer", scaled))
        annotate_brain(brain, path, unit=unit, overwrite=True)
        label = tifffile.imread(brain / "labels" / "a.tif")
        expected = np.full((LABEL_PX, LABEL_PX), 255, np.uint8)
        expected[40:120, 20:60] = 1
        np.testing.assert_array_equal(label, expected)
    row = read_brain(brain).sections[0]
    assert row.label == brain.resolve() / "labels" / "a.tif"
    assert check_brain(brain).faults == []


def test_holes_parts_and_order(brain, tmp_path):
    hole = [[15, 30], [20, 30], [20, 40], [15, 40], [15, 30]]
    parts = {
        "type": "MultiPolygon",
        "coordinates": [[SQUARE, hole], [[[90, 90], [99, 90], [99, 99]]]],
    }
    features = [
        feature("background", [[0, 0], [100, 0], [100, 100], [0, 100]]),
        feature("inner", geometry=parts),
        feature("outer", [[0, 0], [20, 0], [20, 25], [0, 25]]),
    ]
    path = export(tmp_path / "c.geojson", *features)
    printed = run("annotate", brain, "--geojson", path, "--order", "file")
    assert printed.exit_code == 0, printed.output
    label = tifffile.imread(brain / "labels" / "c.tif")
    assert label[70, 35] == 2 and label[90, 35] == 0  # the hole shows what was painted before
    assert label[45, 30] == 1 and label[188, 194] == 0 and label[201, 201] == 255
    areas = [(label == k).sum() * 0.016**2 for k in range(3)]
    for name, mm2 in zip(("inner", "outer", "background"), areas, strict=True):
        assert f"{name}: {mm2:.4g} mm2" in printed.stdout
    over = 4 * (20 * 40 - 5 * 10) * 0.016**2 + (label == 0)[178:].sum() * 0.016**2
    assert f"inner painted over background: {over:.4g} mm2" in printed.stdout
    assert f"outer painted over inner: {4 * 10 * 5 * 0.016**2:.4g} mm2" in printed.stdout


@pytest.mark.parametrize(
    "classification",
    [{"name": "inner"}, "inner", {"name": "Cortex: inner"}, {"names": ["Cortex", "inner"]}],
)
@pytest.mark.parametrize("layout", ["collection", "list", "one"])
def test_layouts_and_ways_to_name_a_class(ball, tmp_path, classification, layout):
    one = feature("", SQUARE, properties={"classification": classification})
    content = {"collection": {"type": "FeatureCollection", "features": [one]}, "list": [one]}
    path = tmp_path / "x.geojson"
    path.write_text("\ufeff" + json.dumps(content.get(layout, one)), encoding="utf-8")
    (found,) = read_annotations(path, read_brain(ball).classes)
    assert found.number == 0
    np.testing.assert_array_equal(found.polygons[0][0], SQUARE)


def test_what_has_no_class_or_area_is_left_out_and_said(ball, tmp_path):
    line = {"type": "LineString", "coordinates": [[0, 0], [1, 1]]}
    features = [
        feature("inner", SQUARE),
        feature("", SQUARE, properties={}),
        feature("", SQUARE, properties=None),
        feature("Region*", SQUARE),
        feature("inner", geometry=line),
        feature("inner", geometry=None),
        feature("inner", geometry={"type": "Polygon", "coordinates": []}),
        feature("inner", geometry={"type": "MultiPolygon", "coordinates": [[[]]]}),
        feature("inner", geometry={"type": "LineString", "coordinates": []}),
    ]
    path = export(tmp_path / "x.geojson", *features)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert len(read_annotations(path, read_brain(ball).classes)) == 1
    said = [str(each.message) for each in caught]
    for words in (
        "2 feature(s) without a class",
        "1 feature(s) of the ignored class Region*",
        "1 feature(s) that are points or lines (--stroke-um",
        "1 feature(s) without a geometry",
        "3 feature(s) with an empty geometry",
    ):
        assert sum(words in each for each in said) == 1, words
    assert len(said) == 5


def test_a_folder_of_exports(brain, tmp_path):
    """Check files named after sections or their images. An empty file is left out."""
    folder = tmp_path / "export"
    folder.mkdir()
    export(folder / "a.geojson", feature("inner", SQUARE))
    export(folder / "b.tif.geojson", feature("outer", SQUARE))
    export(folder / "c.json")
    before = (brain / "b_label.tif").read_bytes()
    for options in ((), ("--overwrite",)):
        with pytest.warns(UserWarning, match=r"c\.json: no polygon with a class"):
            result = run("annotate", brain, "--geojson", folder, *options)
        if not options:
            assert result.exit_code == 2 and "b_label.tif; add --overwrite" in result.stderr
            assert not (brain / "labels").exists()
    assert result.exit_code == 0 and "2 label image(s)" in result.stdout
    rows = read_brain(brain).sections
    assert [row.label and row.label.parent.name for row in rows] == ["labels", "labels", None]
    assert (brain / "b_label.tif").read_bytes() == before and not list(brain.glob(".*"))
    assert [row.split for row in rows] == ["train", "train", "test"]


OUTSIDE = [[0, 0], [100, 0], [100, 100], [0, 100], [0, 0]]
LEFT = [[10, 10], [40, 10], [40, 40], [10, 40], [10, 10]]  # 30 x 30 px with a hole of 10 x 10 px
HOLE = [[20, 20], [20, 30], [30, 30], [30, 20], [20, 20]]
RIGHT = [[30, 30], [60, 30], [60, 60], [30, 60], [30, 30]]  # partly over LEFT
SMALL = [[90, 90], [99, 90], [99, 99]]
WITHIN = [[45, 45], [50, 45], [50, 50], [45, 50], [45, 45]]


def qupath(name, color, *rings):
    """Write a feature as QuPath 0.5 does."""
    found = feature(name, *rings, id="6f7f8a36-3b0c-4d3e-9d0e-0a2d6b2e4f11")
    classification = {"name": name, "color": color}
    found["properties"] = {"objectType": "annotation", "classification": classification}
    return found


def test_smaller_annotations_lie_over_larger_ones(brain, tmp_path):
    """Paint an export whose last annotation is the outline of the slice, at 32 um / px."""
    features = [
        qupath("inner", [170, 0, 0], WITHIN),
        qupath("inner", [170, 0, 0], LEFT, HOLE),
        qupath("outer", [0, 170, 0], RIGHT),
        qupath("background", [255, 255, 255], OUTSIDE),
    ]
    path = export(tmp_path / "a.geojson", *features)
    printed = run("annotate", brain, "--geojson", path)
    assert printed.exit_code == 0 and not printed.stderr, printed.output
    found = tifffile.imread(brain / "labels" / "a.tif")[:200:2, :200:2]
    expected = np.full((100, 100), 2, np.uint8)
    expected[30:60, 30:60] = 1  # 900 px: below inner, which has 800 px
    expected[10:40, 10:40] = 0
    expected[20:30, 20:30] = 2  # the hole
    expected[45:50, 45:50] = 0
    np.testing.assert_array_equal(found, expected)
    mm2 = 0.032**2
    assert f"inner: {825 * mm2:.4g} mm2\nouter: {775 * mm2:.4g} mm2\n" in printed.stdout
    assert f"inner painted over outer: {125 * mm2:.4g} mm2" in printed.stdout

    with pytest.warns(UserWarning, match="ends with 0 mm2: painted over by") as caught:
        printed = run("annotate", brain, "--geojson", path, "--order", "file", "--overwrite")
    assert f"inner: 0 mm2\nouter: 0 mm2\nbackground: {1e4 * mm2:.4g} mm2\n" in printed.stdout
    assert "background painted over inner" in printed.stdout
    assert [str(each.message).split()[1] for each in caught] == ["inner", "outer"]


@pytest.mark.parametrize("swap", [False, True])
def test_equal_areas_are_painted_in_the_order_of_the_file(brain, tmp_path, swap):
    turn = np.linspace(0, 2 * np.pi, 50)[:-1]
    circle = np.stack([10.1 * np.cos(turn), 10.1 * np.sin(turn)], 1)
    drawn = [circle + 20.3, np.roll(circle, 7, axis=0) + 25.7]
    assert area(2 * drawn[0] - 0.5) != area(2 * drawn[1] - 0.5)  # by rounding
    names = ["inner", "outer"]
    features = [
        feature(name, ring.tolist())
        for name, ring in zip(names, drawn[:: -1 if swap else 1], strict=True)
    ]
    painted = annotate_brain(brain, export(tmp_path / "a.geojson", *features))
    assert "outer painted over inner" in painted and "inner painted over" not in painted


def test_parts_count_with_the_sum_of_their_areas(brain, tmp_path):
    """Paint a correction over an island, which is smaller than it but part of a larger class."""
    island = [[14, 24], [20, 24], [20, 40], [14, 40]]
    parts = {"type": "MultiPolygon", "coordinates": [[island], [RIGHT]]}
    path = export(
        tmp_path / "a.geojson", feature("outer", SQUARE), feature("inner", geometry=parts)
    )
    assert "outer painted over inner" in annotate_brain(brain, path)


def test_areas_are_printed_without_exponents(brain, tmp_path):
    size = 0.5 * 0.016**2 / 0.032**2  # px, of half a label pixel around its center
    low = 20.25 - size / 2
    dot = [[low, low], [low + size, low], [low + size, low + size], [low, low + size]]
    tiny = [[20.6, 20.6], [20.7, 20.6], [20.7, 20.7]]
    path = export(
        tmp_path / "a.geojson",
        feature("inner", dot),
        feature("outer", tiny),
        feature("background", OUTSIDE),
    )
    with pytest.warns(UserWarning, match="class outer was drawn but ends with 0 mm2: its ann"):
        text = annotate_brain(brain, path)
    assert text.splitlines()[1:4] == [
        "inner: 0.000256 mm2",
        "outer: 0 mm2",
        "background: 10.24 mm2",
    ]
    assert Painted(np.full(256, 10**9)).describe(read_brain(brain).classes[:1]) == (
        "0 label image(s) written\ninner: 256000 mm2"
    )


def strokes(*features):
    kinds = {0: "Point", 1: "LineString", 2: "MultiLineString"}
    return [
        feature(name, geometry={"type": kinds[np.ndim(points) - 1], "coordinates": points})
        for name, points in features
    ]


@pytest.mark.parametrize("unit", ["px", "um"])
def test_lines_and_points_have_a_width(brain, tmp_path, unit):
    """Compare with the distance of each pixel center from the line, up to polygons for circles."""
    bent = np.array([[20.0, 30.0], [70.0, 40.0], [75.0, 90.0]])
    point, stroke_um, scale = np.array([120.0, 60.0]), 300.0, 1 if unit == "px" else 32.0
    path = export(
        tmp_path / "a.geojson",
        *strokes(("inner", (scale * bent).tolist()), ("outer", (scale * point).tolist())),
    )
    result = run("annotate", brain, "--geojson", path, "--unit", unit, "--stroke-um", stroke_um)
    assert result.exit_code == 0 and not result.stderr, result.output
    row, column = np.mgrid[:LABEL_PX, :LABEL_PX]
    center = np.stack([column, row], -1) * 0.5 + 0.25  # px of the image
    along = np.clip(np.linspace(0, 1, 2001), 0, 1)[:, None]
    dense = np.concatenate([a + along * (b - a) for a, b in pairwise(bent)])
    radius = stroke_um / 2 / 32
    found = tifffile.imread(brain / "labels" / "a.tif")
    for number, points in enumerate((dense, point[None])):
        distance = cKDTree(points).query(center)[0]
        np.testing.assert_array_equal(found[distance < 0.995 * radius], number)
        assert (found[distance > radius + 1e-3] != number).all()
        assert (distance < 0.995 * radius).sum() > 200


def test_scribbles_lie_over_larger_annotations(brain, tmp_path):
    drawn = [
        *strokes(
            ("inner", [[12.0, 22.0], [28.0, 58.0]]), ("inner", [[[40.0, 30.0], [40.0, 31.0]]])
        ),
        feature("inner", geometry={"type": "MultiPoint", "coordinates": [[15, 50], [16, 51]]}),
        feature("outer", SQUARE),
    ]
    path = export(tmp_path / "a.geojson", *drawn)
    text = annotate_brain(brain, path, stroke_um=64)
    assert "inner painted over outer" in text and "outer painted over inner" not in text
    with pytest.warns(UserWarning, match="3 feature.s. that are points or lines .--stroke-um"):
        assert "inner: 0 mm2" in annotate_brain(brain, path, overwrite=True)
    for bad in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="expected a width above 0 um"):
            annotate_brain(brain, path, stroke_um=bad, overwrite=True)


@pytest.mark.parametrize(
    "rings",
    [
        [[[10, 10], [60, 60], [60, 10], [10, 60]]],  # a bow tie: both lobes turn another way
        [[[10, 10], [60, 10], [60, 60], [30, 60], [30, 5], [50, 5], [50, 70], [10, 70]]],
        [SQUARE, [[15, 30], [50, 30], [50, 40], [15, 40]]],  # a hole across the outline
    ],
)
def test_crossing_rings_are_filled_and_named(brain, tmp_path, rings):
    rings = [[[x + 0.03, y + 0.01] for x, y in ring] for ring in rings]  # off the pixel centers
    path = export(tmp_path / "a.geojson", feature("outer", *rings), feature("inner", SMALL))
    with pytest.warns(UserWarning, match=r"features\[0\]: outlines or holes cross") as caught:
        annotate_brain(brain, path)
    assert len(caught) == 1
    found = tifffile.imread(brain / "labels" / "a.tif")
    on_grid = [2 * np.array(ring) - 0.5 for ring in rings]
    np.testing.assert_array_equal(found == 1, by_matplotlib(on_grid, found.shape))


def test_what_lies_beyond_the_image_is_clipped_and_said(brain, tmp_path):
    wide = [[-20, 0], [400, 0], [400, 400], [-20, 400]]
    path = export(tmp_path / "a.geojson", feature("inner", SQUARE), feature("outer", wide))
    with pytest.warns(UserWarning, match=r"a\.geojson: 1 feature\(s\) extend beyond the image"):
        annotate_brain(brain, path)
    assert set(np.unique(tifffile.imread(brain / "labels" / "a.tif"))) == {0, 1}


def test_memory_of_a_large_file(tmp_path):
    """Read 27 MB of positions, which would take seven times as much as lists."""
    ring = ", ".join(f"[{x}.25, {x % 100}.5]" for x in range(150_000))
    one = '{"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [[%s]]}, '
    one += '"properties": {"classification": "inner"}}'
    path = tmp_path / "a.geojson"
    path.write_text("[" + ", ".join([one % ring] * 10) + "]")
    size = path.stat().st_size
    tracemalloc.start()
    try:
        assert len(read_annotations(path, [AreaClass("inner", "#000000", "area")])) == 10
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert size > 27e6 and peak < 3 * size


def nest(depth):
    return '{"type": "Feature", "geometry": ' + "[" * depth + "]" * depth + "}"


NAN = [[float("nan"), 0], [9, 0], [9, 9]]
BAD = {
    "unknown class": (feature("hOc1", SQUARE), "class 'hOc1' is not in brain.toml"),
    "two points": (feature("inner", SQUARE[:2] + SQUARE[:1]), "fewer than 3 different points"),
    "not a number": (feature("inner", NAN), "not finite"),
    "too large": (feature("inner", [[0, 0], [1e300, 0], [9, 9]]), "not finite or over"),
    "ragged": (feature("inner", [[0, 0], [1], [9, 9]]), "not a list of positions"),
    "text": (feature("inner", [["a", "b"], ["c", "d"], ["e", "f"]]), "not a list of positions"),
    "an empty hole": (feature("inner", SQUARE, []), "not a list of positions"),
    "two classes": (
        feature("", SQUARE, properties={"classification": {"name": "inner", "names": ["outer"]}}),
        "two classes, name 'inner' and names 'outer'",
    ),
    "only a line": (
        feature("inner", geometry={"type": "LineString", "coordinates": [[0, 0], [9, 9]]}),
        "add --stroke-um",
    ),
    "flat": (feature("inner", geometry={"type": "Polygon", "coordinates": 3}), "list of rings"),
    "no geometry": (feature("inner", geometry=3), "geometry: expected an object"),
    "a collection": (feature("inner", geometry={"type": "GeometryCollection"}), "Collection'"),
    "class 3": (feature("", SQUARE, properties={"classification": 3}), "expected a name, found 3"),
    "outside": (feature("inner", [[900, 0], [950, 0], [950, 9]]), "lies outside of section a"),
    "tiny": (feature("inner", [[1.1, 1.1], [1.2, 1.1], [1.2, 1.2]]), "cover no pixel"),
    "no class": (None, "no polygon with a class"),
    "not JSON": (b"{", "not valid JSON"),
    "nested": (nest(200_000).encode(), "not valid JSON"),
    "digits": (b"1" * 5000, "not valid JSON"),
    "latin": ('{"name": "\xe9"}'.encode("latin-1"), "not UTF-8"),
    "a number": (b"3", "not GeoJSON features"),
    "geometry": (b'{"type": "Polygon", "coordinates": []}', "not GeoJSON features"),
    "empty": (b"", "the file is empty"),
}


@pytest.mark.parametrize("name", BAD)
def test_faults_end_in_one_message_and_change_nothing(ball, tmp_path, name):
    content, words = BAD[name]
    path = tmp_path / "a.geojson"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        export(path, *([content] if content else []))
    before = {each: each.read_bytes() for each in ball.iterdir()}
    result = run("annotate", ball, "--geojson", path)
    assert result.exit_code == 2 and isinstance(result.exception, SystemExit), result.output
    (error,) = [line for line in result.stderr.splitlines() if line.startswith("error")]
    assert words in error and str(path) in error
    assert {each: each.read_bytes() for each in ball.iterdir()} == before


def test_files_and_sections_must_match(brain, tmp_path):
    path = export(tmp_path / "drawn.geojson", feature("inner", SQUARE))
    with pytest.raises(
        InputError, match=r"no section or section image .* is named 'drawn'.*--section"
    ):
        annotate_brain(brain, path)
    with pytest.raises(InputError, match="no section 'z'; it lists a, b, c"):
        annotate_brain(brain, path, section="z")
    with pytest.raises(InputError, match="name one file for --section"):
        annotate_brain(brain, tmp_path, section="a")
    with pytest.raises(InputError, match="no file ending in"):
        annotate_brain(brain, brain)
    with pytest.raises(InputError, match="no such file"):
        annotate_brain(brain, tmp_path / "nowhere.geojson")
    annotate_brain(brain, path, section="a")
    shutil.copy(path, tmp_path / "a.geojson")
    shutil.copy(path, tmp_path / "a.tif.geojson")
    path.unlink()
    with pytest.raises(InputError, match="both of section a"):
        annotate_brain(brain, tmp_path)
    replace(brain / "sections.csv", "\na,", "\n../a,")
    with pytest.raises(InputError, match=r"'\.\./a' cannot be the name"):
        annotate_brain(brain, tmp_path / "a.geojson", section="../a")


def test_a_table_changed_meanwhile_is_left_alone(brain, tmp_path, monkeypatch):
    path = export(tmp_path / "a.geojson", feature("inner", SQUARE))
    write = module.write_section

    def slow(*args, **kwargs):
        replace(brain / "sections.csv", "\na,", "\nother,")
        write(*args, **kwargs)

    monkeypatch.setattr(module, "write_section", slow)
    with pytest.raises(InputError, match="changed while it was in use"):
        annotate_brain(brain, path)
    assert not (brain / "labels").exists() and not list(brain.glob(".*"))


def test_memory_follows_the_label_image_not_the_polygon():
    """Fill a comb of 1,000 edges over 10,000 rows.

    It has ten million crossings, which would take 1 GB at about 100 bytes each.
    """
    code = """
import resource
import numpy as np
from jaxcyto.brain.annotation.outlines import area
from jaxcyto.brain.annotation.polygons import rasterize
from jaxcyto.brain.annotation.geojson import Annotation
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
teeth = np.arange(1_000)
comb = np.stack([teeth / 2, np.where(teeth % 2, 9_999.2, 0.2)], 1)
label = rasterize([Annotation(0, [[comb]], [], "")], (10_000, 1_000))
print((label == 0).mean(), peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    share, mib = map(float, done.stdout.split())
    assert share == pytest.approx(0.5 * 0.5, rel=0.02)
    assert mib < 300
