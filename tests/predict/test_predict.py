"""Test windows, maps, files, surfaces and the command, with interruptions and shards."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import jax
import nibabel
import numpy as np
import pytest
import scipy.stats
import tifffile
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from minimal_brain import PIXEL_UM, SIDE_PX, make_ball, replace
from PIL import Image
from safetensors.numpy import load_file, save_file
from scipy.ndimage import distance_transform_cdt
from segment_run import CLASSES, write_run

from jaxcyto.brain.manifest import AreaClass, read_brain, read_table, write_table
from jaxcyto.brain.sections.section import open_section
from jaxcyto.brain.sections.writer import write_section
from jaxcyto.brain.surfaces.surface import hemisphere_surface
from jaxcyto.cli import main
from jaxcyto.data import windows
from jaxcyto.errors import InputError
from jaxcyto.models import Geometry, UNet
from jaxcyto.models.cpu import kernels as cpu
from jaxcyto.predict import (
    NOT_PREDICTED,
    Outputs,
    Predictor,
    SectionSource,
    map_shape,
    open_class_map,
    predict_brain,
)
from jaxcyto.predict.maps import settings_of, write_class_map, write_probability_map
from jaxcyto.predict.planes import Plane
from jaxcyto.predict.predictor import bytes_per_px, forward, window_bytes
from jaxcyto.predict.reading import read_window
from jaxcyto.predict.section_jobs import open_source, plan
from jaxcyto.predict.surface import write_surface_labels
from jaxcyto.predict.tiling import Tiling, choose_tile
from jaxcyto.runs.load import load_segment_run, save_weights
from jaxcyto.utils.files import atomic_write

SMALL = UNet(3, 3, 1, (8, 8, 8, 8))  # the small network with one block less and fewer channels
PAPER, TINY = Geometry(), Geometry(3, 1, 4)
REACH = 21  # map px of 2 px, half of the receptive field of TINY (84 px)
TILE = 180  # px, which gives 48 map px with TINY
BACKGROUND = 2  # its index in CLASSES


@pytest.fixture
def run(tmp_path) -> Path:
    return write_run(tmp_path / "run", SMALL)


@pytest.fixture
def ball(tmp_path) -> Path:
    return make_ball(tmp_path / "ball")


# ---- which windows ------------------------------------------------------------------------------


@given(st.sampled_from([PAPER, TINY]), st.integers(0, 8), st.tuples(*2 * [st.integers(1, 200)]))
@settings(deadline=None, max_examples=30)
def test_windows_cover_a_map_on_the_period_grid(geometry, periods, shape):
    tiling = Tiling(geometry, choose_tile(geometry, 1, 1, 0, 1) + periods * geometry.period)
    covered = np.zeros(shape, int)
    for row, column in tiling.origins(shape):
        assert row % (geometry.period // geometry.output_stride) == 0
        assert column % (geometry.period // geometry.output_stride) == 0
        covered[row : row + tiling.step, column : column + tiling.step] += 1
    assert (covered == 1).all()
    assert tiling.output - geometry.period < tiling.step <= tiling.output


def sides(geometry: Geometry) -> range:
    return range(geometry.smallest_valid_size, 6000, geometry.period)


def test_large_tiles_by_default():
    assert choose_tile(PAPER, 10**6, 2025, 1e12, 16.0) == 5097
    assert choose_tile(PAPER, 60, 2025, 1e12, 16.0) == 2025  # no larger than the section needs
    assert choose_tile(PAPER, 10**6, 2025, 0.0, 16.0) == 2025  # nor smaller than in training
    side = choose_tile(PAPER, 10**6, 2025, 16.0 * 4000**2, 16.0)
    assert 3900 < side <= 4000


@given(st.integers(1, 5000), st.floats(1e6, 1e10))
def test_default_tiles_are_valid_and_fit(longest, memory):
    side = choose_tile(PAPER, longest, 2025, memory, 16.0)
    tiling = Tiling(PAPER, side)
    assert side == 2025 or 16.0 * side**2 <= memory
    larger = choose_tile(PAPER, 10**6, 2025, memory, 16.0)
    windows = -(-longest // Tiling(PAPER, larger).step)
    assert -(-longest // tiling.step) == windows or side == 2025


@pytest.mark.parametrize("library", [True, False])
def test_memory_estimate_covers_what_is_needed(run, library, monkeypatch):
    if not library:
        monkeypatch.setattr(cpu, "available", lambda: False)
    jax.clear_caches()
    monkeypatch.setattr(cpu, "_kept", {})
    loaded = load_segment_run(run)
    step = partial(forward, model=SMALL, mean=128.0, std=50.0, probabilities=False)
    batch = {"image": np.zeros((1, 460, 460, 1), np.uint8)}
    compiled = jax.jit(step).lower(loaded.variables, batch).compile()
    jax.block_until_ready(compiled(loaded.variables, batch))
    needs = compiled.memory_analysis().temp_size_in_bytes
    needs += sum(each.nbytes for each in cpu._kept.values())
    assert needs < bytes_per_px(SMALL) * 460**2 < 3 * needs
    jax.clear_caches()


def test_windows_may_take_a_share_of_the_memory():
    assert 0 < window_bytes() < 1e15


def test_impossible_tile_names_possible_ones(run):
    with pytest.raises(InputError, match=r"2048 px.* 2025 or 2153"):
        Tiling(PAPER, 2048)
    with pytest.raises(InputError, match="101 px"):
        Predictor(load_segment_run(run), 101)


# ---- the map ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def patchy(tmp_path_factory) -> Path:
    """Write a white section with a patch of noise, so that parts of it are out of reach."""
    path = tmp_path_factory.mktemp("sections") / "patchy.tif"
    return noise_section(path, (400, 440), (120, 180), (220, 320))


def test_map_equals_the_network_over_everything(run, patchy):
    """Compare with a single window over the whole section. Out of reach, it is background."""
    logits, near = untiled(run, patchy), within_reach(patchy)
    assert 0.1 < near.mean() < 0.9
    expected = np.where(near, logits.argmax(-1), BACKGROUND)
    second, first = np.sort(logits, axis=-1)[..., -2:].transpose(2, 0, 1)
    clear = first - second > 2e-4  # elsewhere, an error of 1e-4 in the logits can change the class
    assert clear.mean() > 0.99
    for tile in (132, 460):
        assert (predicted(run, patchy, tile) == expected)[clear].all()
    softmax = np.where(near[..., None], jax.nn.softmax(logits), np.eye(3)[BACKGROUND])
    found = predicted(run, patchy, TILE, probabilities=True)
    assert np.abs(found - 255 * softmax.transpose(2, 0, 1)).max() < 0.6


def test_reduced_images_spare_reading_but_change_nothing(run, tmp_path, monkeypatch):
    tissue = (40, 70), (40, 70)
    plain = noise_section(tmp_path / "plain.tif", (400, 440), *tissue)
    pyramid = noise_section(tmp_path / "pyramid.tif", (400, 440), *tissue, levels=3)
    assert (predicted(run, plain, TILE) == predicted(run, pyramid, TILE)).all()
    tiling = Tiling(TINY, TILE)
    with open_section(pyramid) as section:
        source = SectionSource("s", section, map_shape(section, 32.0))
        assert read_window(source, tiling, 16.0, 0, 0) is not None
        monkeypatch.setattr(windows, "read_image", None)  # a call would fail
        assert read_window(source, tiling, 16.0, 100, 100) is None


def test_without_a_background_class_nothing_is_said_of_the_background(tmp_path, patchy):
    classes = [entry | {"kind": "area"} for entry in CLASSES]
    run = write_run(tmp_path / "run", SMALL, classes=classes)
    near, found = within_reach(patchy), predicted(run, patchy, TILE)
    assert (found[~near] == NOT_PREDICTED).all() and (found[near] < 3).all()


def test_paper_size_is_seam_exact_bit_for_bit(tmp_path):
    """Compare four windows of 2025 px with one of 2281 px that covers the whole map."""
    classes = [{"name": f"{k}", "color": "#000000", "kind": "area"} for k in range(16)]
    run = write_run(tmp_path / "run", UNet(16), um_per_px=2.0, classes=classes)
    image = noise_section(tmp_path / "s.tif", (768, 768), (0, 768), (0, 768), pixel_um=2.0)
    one, *more = (predicted(run, image, tile, probabilities=True) for tile in (2281, 2025))
    assert one.shape == (16, 96, 96) and len(np.unique(one.argmax(0))) > 1
    for found in more:
        assert (found == one).all()


def test_atlas_is_read_along(tmp_path, ball):
    run = load_segment_run(write_run(tmp_path / "run", SMALL, atlas=True))
    brain = read_brain(ball)
    row = brain.sections[1]
    source = open_source(run, brain, row)
    without = dataclasses.replace(source, atlas=dataclasses.replace(source.atlas, shape=(0, 0)))

    def probabilities(predictor: Predictor, source: SectionSource) -> np.ndarray:
        bands = [band.probabilities for band in predictor.section(source)]
        return np.concatenate(bands, axis=1).astype(int)

    small, large = (Predictor(run, tile, probabilities=True) for tile in (180, 300))
    found = probabilities(large, source)
    assert np.abs(probabilities(small, source) - found).max() <= 1
    assert (probabilities(large, without) != found).any()
    report = predict_brain(run.path, ball)
    assert report.predicted == ["b"]
    for name, line in zip("ac", report.failures, strict=True):
        assert line.startswith(f"section {name}: atlas: empty in {ball / 'sections.csv'}, but")
    channels = np.zeros((2, SIDE_PX, SIDE_PX), np.uint8)  # the grid of the image, not of the labels
    tifffile.imwrite(ball / "b_atlas.tif", channels, photometric="minisblack")
    result = CliRunner().invoke(main, ["predict", str(run.path), str(ball), "--section", "b"])
    assert result.exit_code == 1 and not list(run.path.rglob("b.*.tmp"))
    assert "b_atlas.tif has 2 channels of 250 x 250 px; expected" in result.stderr
    assert "500 x 500 px at 16 um. Write it again on that grid" in result.stderr


def test_the_network_gets_an_atlas_of_probabilities(tmp_path):
    """The prediction is that of the model for gray values in SD and an atlas in 0 ... 1."""
    run = load_segment_run(write_run(tmp_path / "run", SMALL, atlas=True))
    rng = np.random.default_rng(0)
    size = TINY.atlas_size(TILE)
    image = rng.integers(256, size=(1, TILE, TILE, 1), dtype=np.uint8)
    atlas = rng.integers(256, size=(1, size, size, 2), dtype=np.uint8)
    inputs = (image.astype(np.float32) - 128) / 50, atlas.astype(np.float32) / 255
    expected = jax.nn.softmax(jax.jit(run.model.apply)(run.variables, *inputs))
    step = partial(forward, model=run.model, mean=128.0, std=50.0, probabilities=True)
    found = jax.jit(step)(run.variables, {"image": image, "atlas": atlas})
    assert np.abs(found["probabilities"] - 255 * expected).max() < 0.6


def noise_section(path: Path, shape, rows, columns, pixel_um: float = 16.0, **options) -> Path:
    """Write a white section with noise in a range of its rows and columns."""
    gray = np.full(shape, 255, np.uint8)
    part = gray[slice(*rows), slice(*columns)]
    part[:] = np.random.default_rng(0).integers(0, 240, part.shape)
    write_section(path, gray, pixel_um, **options)
    return path


def predicted(
    run: Path, image: Path, tile_px: int, probabilities: bool = False, pixel_um=None
) -> np.ndarray:
    """Return the class map [H, W], or the probability map [C, H, W], of an image."""
    loaded = load_segment_run(run)
    predictor = Predictor(loaded, tile_px, probabilities)
    out_um = loaded.out_um
    with open_section(image, pixel_um) as section:
        source = SectionSource("section", section, map_shape(section, out_um))
        bands = list(predictor.section(source))
    assert [band.top for band in bands] == list(range(0, source.shape[0], predictor.tiling.step))
    if probabilities:
        return np.concatenate([band.probabilities for band in bands], axis=1)
    return np.concatenate([band.classes for band in bands])


def untiled(run: Path, image: Path) -> np.ndarray:
    """Return the logits [H, W, C] of the model for a single window over the whole map."""
    loaded = load_segment_run(run)
    with open_section(image) as section:
        height, width = map_shape(section, 32.0)
        side = next(s for s in sides(TINY) if TINY.output_size(s) >= max(height, width))
        window = section.read_at(16.0, -TINY.label_offset, -TINY.label_offset, side, side)
    x = (window[None, ..., None].astype(np.float32) - 128) / 50
    return np.asarray(jax.jit(loaded.model.apply)(loaded.variables, x))[0, :height, :width]


def within_reach(image: Path) -> np.ndarray:
    """Return the map px that have tissue within reach."""
    with open_section(image) as section:
        coarse = section.read_at(32.0, 0, 0, *map_shape(section, 32.0))
    return distance_transform_cdt(coarse >= 245, "chessboard") <= REACH


# ---- files --------------------------------------------------------------------------------------


def test_class_map_reads_back(run, ball):
    report = predict_brain(run, ball, sections=["b"])
    path = run / "predictions" / "ball" / "b.ome.tif"
    assert report.folder == path.parent and report.predicted == ["b"]
    expected = predicted(run, ball / "b.tif", report.tile_px, pixel_um=PIXEL_UM)
    found = open_class_map(path)
    assert (found.pixel_um, found.names) == (32.0, ("inner", "outer", "background"))
    assert (found.read(0, 0, *found.shape) == expected).all()
    assert (found.read(-3, 200, 9, 90)[3:, :50] == expected[:6, 200:]).all()
    assert (found.read(-3, 200, 9, 90)[:3] == NOT_PREDICTED).all()
    with tifffile.TiffFile(path) as tiff:
        assert (tiff.asarray() == expected).all()
        palette = tiff.pages[0].colormap[:, :3].T >> 8
    assert palette.tolist() == [[0xAA, 0, 0], [0, 0xAA, 0], [255, 255, 255]]


def test_files_are_ome_tiff_with_pyramids(tmp_path):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 3, (1301, 2103)).astype(np.uint8)
    planes = [plane_of(tmp_path, 255 * (image == k).astype(np.uint8)) for k in range(3)]
    classes = [
        AreaClass(entry["name"] + " <µ>", entry["color"], entry["kind"]) for entry in CLASSES
    ]
    write_class_map(tmp_path / "c.ome.tif", plane_of(tmp_path, image), 16.0, classes, "digest")
    write_probability_map(tmp_path / "p.ome.tif", planes, 16.0, classes, "digest")
    shapes = [(1301, 2103), (651, 1052), (326, 526), (163, 263)]
    for name, channels in (("c", ()), ("p", (3,))):
        with tifffile.TiffFile(tmp_path / f"{name}.ome.tif") as tiff:
            assert tiff.is_ome and len(tiff.series) == 1
            (series,) = tiff.series
            assert [level.shape for level in series.levels] == [(*channels, *s) for s in shapes]
            assert [level.keyframe.subfiletype for level in series.levels] == [0, 1, 1, 1]
            assert all(level.keyframe.is_tiled for level in series.levels)
            xml = ElementTree.fromstring(tiff.ome_metadata)
        space = "{http://www.openmicroscopy.org/Schemas/OME/2016-06}"
        pixels = xml.find(f"{space}Image/{space}Pixels")
        assert pixels.attrib["PhysicalSizeX"] == pixels.attrib["PhysicalSizeY"] == "16.0"
        assert pixels.attrib["PhysicalSizeXUnit"] == "µm"
        assert settings_of(tmp_path / f"{name}.ome.tif") == "digest"
    names = [channel.attrib["Name"] for channel in pixels.iter(f"{space}Channel")]
    assert names == ["inner <µ>", "outer <µ>", "background <µ>"]
    second = open_class_map(tmp_path / "c.ome.tif").read(0, 0, 650, 1051, level=1)
    fours = image[:1300, :2102].reshape(650, 2, 1051, 2).swapaxes(1, 2).reshape(650, 1051, 4)
    assert (second == scipy.stats.mode(fours, axis=-1).mode).all()
    with open_section(tmp_path / "c.ome.tif") as section:
        assert (section.pixel_um, section.factors) == (16.0, [1, 2, 4, 8])


def plane_of(folder: Path, image: np.ndarray) -> Plane:
    plane = Plane(folder, image.shape)
    plane.write(0, image)
    return plane


def test_what_cannot_be_written_is_named(tmp_path):
    with pytest.raises(InputError, match="absent: cannot be written"):
        Plane(tmp_path / "absent", (2, 3))
    with open("/dev/full", "wb", buffering=0) as full:
        with pytest.raises(OSError, match="No space left") as raised:
            with atomic_write(tmp_path / "picture.png"):
                full.write(b"pixels")
    assert raised.value.filename == str(tmp_path / "picture.png")
    assert not list(tmp_path.iterdir())


def test_overlay_shows_tissue_and_borders(run, ball):
    predict_brain(run, ball, sections=["b"], outputs=Outputs(overlay=True))
    folder = run / "predictions" / "ball"
    picture = np.asarray(Image.open(folder / "b.png").convert("RGB"))
    assert picture.shape[1] == SIDE_PX and picture.shape[0] > SIDE_PX  # the legend is below
    numbers = open_class_map(folder / "b.ome.tif").read(0, 0, SIDE_PX, SIDE_PX)
    assert set(map(tuple, picture[:SIDE_PX][numbers == 2])) <= {(90, 90, 90), (255, 255, 255)}
    assert (picture[:SIDE_PX] == (0xAA, 0, 0)).all(-1).any() == (numbers == 0).any()


# ---- the surface --------------------------------------------------------------------------------


def test_vertices_take_the_class_of_the_section_through_them(tmp_path, ball):
    brain = read_brain(ball)
    classes = load_classes()
    maps = []
    for number, row in enumerate(brain.sections):
        image = np.full((SIDE_PX, SIDE_PX), number, np.uint8)
        image[:, SIDE_PX // 2 :] = NOT_PREDICTED if number == 2 else number
        path = tmp_path / f"{row.name}.ome.tif"
        write_class_map(path, plane_of(tmp_path, image), PIXEL_UM, classes, "")
        maps.append((row, open_class_map(path)))
    ((path, share),) = write_surface_labels(tmp_path, brain.hemispheres, maps, classes)
    file = nibabel.load(path)
    labels = file.darrays[0].data
    table = {label.key: (label.label, label.rgba) for label in file.labeltable.labels}
    assert table[0] == ("unlabeled", (0, 0, 0, 0))
    assert table[1] == ("inner", pytest.approx((0xAA / 255, 0, 0, 1)))
    # Sections are at y = -2, 0 and 2 mm, so each has a reach of 1 mm.
    x, y, _ = hemisphere_surface(brain.hemispheres[0]).vertices.T
    expected = np.where(y < -1, 1, np.where(y < 1, 2, np.where(x < 0, 3, 0)))
    clear = (np.abs(np.abs(y) - 1) > 1e-6) & ((np.abs(x) > 0.04) | (y < 1))
    assert (labels == expected)[clear].all() and clear.mean() > 0.9
    assert share == (labels > 0).mean() and set(labels) == {0, 1, 2, 3}


def load_classes() -> tuple[AreaClass, ...]:
    return tuple(AreaClass(**entry) for entry in CLASSES)


# ---- the command --------------------------------------------------------------------------------


def predict(*arguments) -> Result:
    return CliRunner().invoke(main, ["predict", *map(str, arguments)])


def copies(ball: Path, number: int) -> None:
    """Fill the section table with copies of section b."""
    row = read_table(ball / "sections.csv", [])[1][1]
    write_table(ball / "sections.csv", [row | {"section": f"s{k}"} for k in range(number)])


def test_killed_and_continued(run, ball):
    """Predict on one device in a process that is killed, then on the eight of this process."""
    copies(ball, 12)
    folder = run / "predictions" / "ball"
    shutil.rmtree(folder, ignore_errors=True)
    call = "from jaxcyto.cli import main; main()"
    command = [sys.executable, "-c", call, "predict", run, ball, "--tile", str(TILE)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        while not list(folder.glob("s*.ome.tif")):
            assert process.poll() is None
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("s*.ome.tif")}
    assert 0 < len(before) < 12
    dead, alive = folder / ".s11.ome.tif.1234.tmp", folder / ".s11.ome.tif.1235.tmp"
    dead.write_bytes(b"cut off")
    os.utime(dead, (0, 0))
    alive.write_bytes(b"another process is at work on it")
    result = predict(run, ball, "--tile", TILE)
    assert result.exit_code == 0, result.output
    assert f"{12 - len(before)} section(s) in" in result.stdout
    assert f"{len(before)} section(s) finished before" in result.stdout
    assert alive.exists() and not dead.exists()
    for name, stamp in before.items():
        assert (folder / name).stat().st_mtime_ns == stamp
    found = json.loads(predict(run, ball, "--tile", TILE, "--json").stdout)
    assert sorted(found["finished"]) == sorted(f"s{k}" for k in range(12))
    assert (found["predicted"], found["failures"], found["folder"]) == ([], [], str(folder))
    expected = tifffile.imread(folder / min(before))
    for k in range(12):
        assert (tifffile.imread(folder / f"s{k}.ome.tif") == expected).all()


def finish(run: Path, ball: Path) -> None:
    """Write empty maps with the settings of these files, as if they had been predicted."""
    loaded, brain = load_segment_run(run), read_brain(ball)
    folder = run / "predictions" / "ball"
    folder.mkdir(parents=True, exist_ok=True)
    for task in plan(loaded, brain, brain.sections, folder)[0]:
        about = (
            plane_of(folder, np.zeros(task.shape, np.uint8)),
            32.0,
            loaded.classes,
            task.settings,
        )
        write_class_map(task.class_map, *about)


def unfinished(run: Path, ball: Path, probabilities: bool = False) -> list[str]:
    loaded, brain = load_segment_run(run), read_brain(ball)
    tasks, failures = plan(loaded, brain, brain.sections, run / "predictions" / "ball")
    assert not failures
    return [task.row.name for task in tasks if not task.is_finished(probabilities)]


def test_finished_only_for_the_same_weights_and_images(run, tmp_path, ball):
    assert unfinished(run, ball) == ["a", "b", "c"]
    finish(run, ball)
    assert unfinished(run, ball) == []
    assert unfinished(run, ball, probabilities=True) == ["a", "b", "c"]
    os.utime(ball / "a.tif", ns=(0, 0))
    (run / "predictions/ball/c.ome.tif").write_bytes(b"")
    assert unfinished(run, ball) == ["a", "c"]
    os.utime(ball / "b.tif", ns=(0, 0))  # all files have the same time, as from an archive
    finish(run, ball)
    assert unfinished(run, ball) == []
    rows = [row for _, row in read_table(ball / "sections.csv", [])]
    rows[0]["image"], rows[1]["image"] = "b.tif", "a.tif"
    write_table(ball / "sections.csv", rows)
    assert unfinished(run, ball) == ["a", "b"]
    finish(run, ball)
    replace(run / "config.json", '"input_mean": 128.0', '"input_mean": 127.0')
    assert unfinished(run, ball) == ["a", "b", "c"]
    finish(run, ball)
    save_weights(run, load_segment_run(write_run(tmp_path / "other", SMALL, seed=1)).variables)
    assert unfinished(run, ball) == ["a", "b", "c"]


def test_shards_are_the_whole(run, ball):
    finish(run, ball)
    parts = [predict_brain(run, ball, shard=(i, 2)).finished for i in (1, 2)]
    assert parts == [["a", "c"], ["b"]]


def test_a_bad_section_is_reported_and_the_others_are_finished(run, ball):
    (ball / "a.tif").write_bytes(b"no image")
    image = tifffile.imread(ball / "b.tif")
    tifffile.imwrite(ball / "b.tif", image, tile=(64, 64), compression="zlib")
    with tifffile.TiffFile(ball / "b.tif") as tiff:
        place, size = tiff.pages[0].dataoffsets[10], tiff.pages[0].databytecounts[10]
    with open(ball / "b.tif", "r+b") as file:
        file.seek(place)
        file.write(bytes(size))
    result = predict(run, ball, "--tile", TILE, "--overlay")
    assert result.exit_code == 1
    assert "section a" in result.stderr and "section b" in result.stderr
    assert "tile 10" in result.stderr and "2 section(s) failed" in result.stderr
    names = {path.name for path in (run / "predictions" / "ball").iterdir()}
    assert names == {"c.ome.tif", "c.png"}


@pytest.mark.parametrize("library", ["onednn", "xla"])
def test_outputs_that_are_not_finite_are_no_classes(ball, tmp_path, library, monkeypatch):
    """Finite weights that overflow: the section and the tile are named, and no map is written."""
    if library == "xla":
        monkeypatch.setenv("JAXCYTO_ONEDNN", "0")
    jax.clear_caches()
    run = write_run(tmp_path / "overflow", SMALL)
    leaves = load_file(run / "weights.safetensors")
    for name, leaf in leaves.items():
        if name.endswith("kernel"):
            leaves[name] = leaf * np.float32(1e12)
    save_file(leaves, run / "weights.safetensors")
    report = predict_brain(run, ball)
    jax.clear_caches()
    assert len(report.failures) == 3 and not list(run.rglob("*.ome.tif"))
    for name, message in zip("abc", report.failures, strict=True):
        assert f"section {name}: the output of the network is not finite in the tile" in message


def test_a_missing_image_does_not_stop_the_others(run, ball):
    (ball / "b.tif").unlink()
    result = predict(run, ball)
    assert result.exit_code == 1 and "no file 'b.tif'" in result.stderr
    names = {path.name for path in (run / "predictions" / "ball").iterdir()}
    assert names == {"a.ome.tif", "c.ome.tif"}
    named = predict(run, ball, "--section", "a")  # this section has all its files
    assert named.exit_code == 0 and not named.stderr
    named = predict(run, ball, "--section", "b")
    assert named.exit_code == 2 and "no file 'b.tif'" in named.stderr


def test_wrong_use_is_said_in_one_message(run, ball, tmp_path):
    assert "not the folder of a run" in predict(tmp_path, ball).stderr
    unfinished = write_run(tmp_path / "unfinished", SMALL)
    (unfinished / "weights.safetensors").unlink()
    flat = shutil.copytree(ball, tmp_path / "flat")
    head, _, rest = (flat / "brain.toml").read_text().partition("[[hemispheres]]")
    (flat / "brain.toml").write_text(head + rest[rest.index("[[classes]]") :])
    for arguments, message in [
        ((unfinished, ball), "not finished"),
        ((run, tmp_path), "no brain.toml"),
        ((run, ball, "--section", "z"), "no section 'z'"),
        ((run, ball, "--tile", 101, "--section", "a"), "101 px"),
        ((run, ball, "--shard", "4/3"), "4/3"),
        ((run, ball, "--shard", "1/2", "--surface"), "--surface"),
        ((run, flat, "--surface"), "no [[hemispheres]]"),
    ]:
        result = predict(*arguments)
        assert result.exit_code == 2 and message in result.stderr, result.output
        assert "Traceback" not in result.output
