"""Test that class maps as polygons become label images again, and count what changes."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
from click.testing import CliRunner
from minimal_brain import LABEL_PX, PIXEL_UM, SIDE_PX, make_ball
from scipy.ndimage import distance_transform_cdt
from segment_run import CLASSES, write_run

from jaxcyto.brain.annotation.polygons import annotate_brain
from jaxcyto.brain.check import check_brain
from jaxcyto.brain.manifest import read_brain
from jaxcyto.brain.sections.label_image import majority
from jaxcyto.cli import main
from jaxcyto.models import UNet
from jaxcyto.phantom.make import make_phantom
from jaxcyto.phantom.settings import PhantomSettings
from jaxcyto.predict import open_class_map
from jaxcyto.predict.maps import write_class_map
from jaxcyto.predict.outlines import write_outlines
from jaxcyto.predict.planes import Plane

SMALL = UNet(3, 3, 1, (8, 8, 8, 8))
PHANTOM = PhantomSettings(
    long_axis_mm=14, mesh_subdivisions=4, num_areas=5, num_other=2, num_sections=4, spacing_mm=1.5
)


@pytest.fixture(scope="module")
def phantom(tmp_path_factory) -> Path:
    return make_phantom(tmp_path_factory.mktemp("phantom") / "toy", PHANTOM, workers=1)


def map_and_back(brain, folder: Path, label: np.ndarray, pixel_um: float) -> np.ndarray:
    """Write a class map, trace it, and annotate its section with the polygons."""
    row = next(row for row in brain.sections if row.label is not None)
    plane = Plane(folder, label.shape)
    plane.write(0, label)
    write_class_map(folder / "map.ome.tif", plane, pixel_um, brain.classes, "")
    path = folder / f"{row.name}.geojson"
    write_outlines(path, row, open_class_map(folder / "map.ome.tif"), brain.classes)
    annotate_brain(brain.root, path, overwrite=True)
    return tifffile.imread(brain.root / "labels" / f"{row.name}.tif")


@pytest.mark.parametrize("factor", [1, 2])
def test_round_trip_on_the_phantom(phantom, tmp_path, factor):
    """Take the annotation of a section for its class map, at 16 and at 32 um.

    At 16 um, map and label image have the same pixels, and none changes. At 32 um, label pixels
    within half a pixel of the map from a border may change, which is one label pixel.
    """
    brain = read_brain(shutil.copytree(phantom, tmp_path / "toy"))
    row = next(row for row in brain.sections if row.label is not None)
    label = tifffile.imread(row.label)
    label = label[: label.shape[0] // 2 * 2, : label.shape[1] // 2 * 2]
    coarse = majority(label, factor)
    back = map_and_back(brain, tmp_path, coarse, 16.0 * factor)[: label.shape[0], : label.shape[1]]
    expected = coarse.repeat(factor, 0).repeat(factor, 1)
    changed = back != expected
    print(f"{16 * factor} um: {changed.sum()} of {changed.size} label pixels changed")
    assert len(np.unique(expected)) >= 6
    if factor == 1:
        assert not changed.any()
        return
    inner = np.ones(expected.shape, bool)  # pixels whose neighbors have their class
    inner[1:] &= expected[1:] == expected[:-1]
    inner[:-1] &= expected[1:] == expected[:-1]
    inner[:, 1:] &= expected[:, 1:] == expected[:, :-1]
    inner[:, :-1] &= expected[:, 1:] == expected[:, :-1]
    corner = distance_transform_cdt(inner, "chessboard") > 1
    assert not changed[corner].any()
    assert changed.mean() < 0.02
    assert (majority(back, 2) != coarse).mean() < 0.01


def predict(*arguments):
    return CliRunner().invoke(main, ["predict", *map(str, arguments), "--tile", "180"])


def test_predict_correct_annotate(tmp_path):
    """Predict polygons, add a correction as QuPath would write it, and annotate with them."""
    run, ball = write_run(tmp_path / "run", SMALL), make_ball(tmp_path / "ball")
    result = predict(run, ball, "--section", "a", "--geojson")
    assert result.exit_code == 0, result.output
    folder = run / "predictions" / "ball"
    path = folder / "a.geojson"
    content = json.loads(path.read_text())
    assert sorted(content) == ["features", "type"]
    named = {item["name"]: list(bytes.fromhex(item["color"][1:])) for item in CLASSES}
    corner = SIDE_PX * np.array([1, 1])
    for feature in content["features"]:
        assert sorted(feature) == ["geometry", "properties", "type"]
        properties = feature["properties"]
        assert properties["objectType"] == "annotation"
        classification = properties["classification"]
        assert classification["color"] == named[classification["name"]]
        for polygon in feature["geometry"]["coordinates"]:
            for ring in polygon:
                assert ring[0] == ring[-1] and len(ring) >= 4
                assert (np.array(ring) >= 0).all() and (np.array(ring) <= corner).all()
    names = [each["properties"]["classification"]["name"] for each in content["features"]]
    assert len(set(names)) == len(names) >= 2

    annotate_brain(ball, folder, overwrite=True)
    label = tifffile.imread(ball / "labels" / "a.tif")
    predicted = open_class_map(folder / "a.ome.tif")
    factor = round(predicted.pixel_um / 16)
    numbers = predicted.read(0, 0, *predicted.shape).repeat(factor, 0).repeat(factor, 1)
    assert (label != numbers[:LABEL_PX, :LABEL_PX]).mean() < 0.03

    # a correction on top of the others: 20 x 20 px within the tissue
    square = [[100, 100], [120, 100], [120, 120], [100, 120], [100, 100]]
    corrected = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [square]},
        "properties": {"objectType": "annotation", "classification": {"name": "outer"}},
    }
    content["features"].insert(0, corrected)
    path.write_text(json.dumps(content))
    annotate_brain(ball, folder, overwrite=True)
    label = tifffile.imread(ball / "labels" / "a.tif")
    step = PIXEL_UM / 16
    window = slice(round(100 * step), round(120 * step))
    assert (label[window, window] == 1).all()
    assert check_brain(ball).faults == []


def test_polygons_of_finished_sections_are_written_once(tmp_path):
    run, ball = write_run(tmp_path / "run", SMALL), make_ball(tmp_path / "ball")
    assert predict(run, ball, "--section", "a").exit_code == 0
    path = run / "predictions" / "ball" / "a.geojson"
    assert not path.exists()
    result = predict(run, ball, "--section", "a", "--geojson")
    assert "1 section(s) finished before" in result.stdout and path.exists()
    written = path.stat().st_mtime_ns
    predict(run, ball, "--section", "a", "--geojson")
    assert path.stat().st_mtime_ns == written  # a correction in place is not overwritten
    os.utime(ball / "a.tif", (1, 1))  # the map is computed again, and so are its polygons
    predict(run, ball, "--section", "a")
    assert not path.exists()


def test_polygons_end_with_the_image(tmp_path):
    """Trace a map whose last row and column extend beyond the image by a third of a pixel."""
    brain = read_brain(make_ball(tmp_path / "ball"))
    row = brain.sections[0]
    plane = Plane(tmp_path, (3, 3))
    plane.write(0, np.zeros((3, 3), np.uint8))
    write_class_map(tmp_path / "a.ome.tif", plane, 3000.0, brain.classes, "")
    write_outlines(
        tmp_path / "a.geojson", row, open_class_map(tmp_path / "a.ome.tif"), brain.classes
    )
    (found,) = json.loads((tmp_path / "a.geojson").read_text())["features"]
    ((ring,),) = found["geometry"]["coordinates"]
    assert {tuple(point) for point in ring} == {(0, 0), (0, 250), (250, 0), (250, 250)}
