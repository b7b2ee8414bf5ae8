"""Test the segmentation of real tissue: a sulcus with a mask, and ten small patches."""

import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import maximum_filter, minimum_filter

from jaxcyto.brain.check import check_brain
from jaxcyto.brain.manifest import read_brain
from jaxcyto.brain.sections.label_image import LABEL_UM, section_label
from jaxcyto.brain.sections.section import open_section
from jaxcyto.config import ModelConfig
from jaxcyto.predict import open_class_map
from jaxcyto.runs.metrics_file import read_metrics

PATH = Path(__file__).resolve().parents[2] / "benchmarks" / "evidence" / "real_segmentation.py"
TINY = ModelConfig(stem_kernel=3, stem_stride=1, widths=(4, 4))


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location(PATH.stem, PATH)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def brains(shared_data, example, tmp_path_factory):
    """Write the brain folders "sulcus", "gmwm" and "v1"."""
    folder = tmp_path_factory.mktemp("brains")
    found = {"sulcus": example.lay_out_sulcus(shared_data, folder / "sulcus")}
    for scheme in example.SCHEMES:
        found[scheme] = example.lay_out_patches(shared_data, folder / scheme, scheme)
    return found


def run(example, root, workdir, um_per_px=32.0, sections=()):
    """Train for three steps and return both scores."""
    settings = example.config(root, um_per_px, 60, 3, TINY)
    settings.data.train_sections = sections
    settings.log_every, settings.eval_every, settings.batch_stats_steps = 1, 9, 1
    found = example.train_and_evaluate(settings, workdir)
    assert found["steps"] == 3
    return found


def annotated(root):
    """Yield each section's row, image and label resampled to the image grid (nearest neighbor)."""
    for row in read_brain(root).sections:
        with open_section(row.image, row.pixel_um) as section:
            image = section.read(0, 0, *section.shape)
        with section_label(row, image.shape) as label:
            small = label.read(0, 0, *label.shape)
        lines, columns = (
            np.minimum(((np.arange(n) + 0.5) * row.pixel_um / LABEL_UM).astype(int), side - 1)
            for n, side in zip(image.shape, small.shape, strict=True)
        )
        yield row, image, small[np.ix_(lines, columns)]


def assert_within_a_pixel(label, truth):
    """Check that they differ only where the truth has two classes within one pixel."""
    border = maximum_filter(truth, 3) != minimum_filter(truth, 3)
    assert not (label != truth)[~border].any()
    assert (label != truth).mean() < 0.01


# ---- layout --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sulcus", "gmwm", "v1"])
def test_brains_have_no_fault(brains, name):
    assert check_brain(brains[name]).faults == []


def test_sulcus_images_and_labels_match_the_files(brains, shared_data):
    """Compare images with crops of the file, and labels with the mask (255 if not annotated)."""
    folder = shared_data / "histology/columns_cut300"
    whole = np.asarray(Image.open(folder / "cut_300.tif"))
    mask = (np.asarray(Image.open(folder / "cortex_mask.png")) > 0).astype(np.uint8)
    columns = {"train": slice(0, 640), "test": slice(682, 1024)}
    for row, image, label in annotated(brains["sulcus"]):
        wanted = np.full_like(mask, 255)
        wanted[:, columns[row.split]] = mask[:, columns[row.split]]
        width = {"train": 682, "test": 1024}[row.split]  # training does not see the right third
        np.testing.assert_array_equal(image, whole[:, :width])
        assert_within_a_pixel(label, wanted[:, :width])
        with pytest.raises(AssertionError):  # the check fails for a shift of three px
            assert_within_a_pixel(label, np.roll(wanted, 3, axis=1)[:, :width])


@pytest.mark.parametrize("fold", ["upper", "lower"])
def test_folds_stay_within_the_training_part(example, fold):
    seen, scored = (np.zeros((1932, 1024), bool) for _ in range(2))
    (shown, annotated), (context, held_out) = (example.PARTS[fold][k] for k in ("train", "val"))
    seen[shown], scored[held_out] = True, True
    assert not (seen & scored).any() and not seen[:, 682:].any()
    for inner, outer in ((annotated, shown), (held_out, context)):
        assert all(
            o.start <= i.start and i.stop <= o.stop for i, o in zip(inner, outer, strict=True)
        )
    assert not scored[annotated].any() and not scored[:, 640:].any()


@pytest.mark.parametrize("scheme", ["gmwm", "v1"])
def test_patches_keep_their_labels(brains, shared_data, scheme):
    """Resample labels from 39 um to 16 um and back, and compare them within a pixel."""
    folder = shared_data / "histology/spitzer_histoseg_patches"
    splits = []
    for row, image, label in annotated(brains[scheme]):
        index = row.name.rsplit("_", 1)[1]
        stem = folder / f"{scheme}_train_{index}"
        np.testing.assert_array_equal(image, np.asarray(Image.open(f"{stem}_image.png")))
        assert_within_a_pixel(label, np.asarray(Image.open(f"{stem}_label.png")))
        splits.append(row.split)
    assert splits == ["train"] * 3 + ["test"] * 2


def test_a_label_pixel_gets_the_class_that_covers_most_of_it(example):
    """Check 8 um (majority of 2x2 px), 16 um (unchanged) and 39 um (borders within half a px)."""
    label = np.zeros((4, 6), np.uint8)
    label[:2, :2] = [[2, 2], [2, 1]]
    label[2:, 4:] = [[1, 1], [0, 1]]
    np.testing.assert_array_equal(example.label_image(label, 8.0), [[2, 0, 0], [0, 0, 1]])
    np.testing.assert_array_equal(example.label_image(label, 16.0), label)
    halves = np.repeat([[0, 1]], 12, axis=0).repeat(12, axis=1).astype(np.uint8)
    fine = example.label_image(halves, 39.0)
    assert fine.shape == (round(12 * 39 / 16), round(24 * 39 / 16))
    border = round(12 * 39 / 16)  # the border rounded to a whole px
    assert (fine[:, : border - 1] == 0).all() and (fine[:, border + 1 :] == 1).all()


# ---- runs ----------------------------------------------------------------------------------------


def test_train_and_evaluate_on_the_sulcus(brains, example, tmp_path, capsys):
    found = run(example, brains["sulcus"], tmp_path / "run")
    windows, maps = found["windows"], found["maps"]
    assert windows["pixels"] == maps["pixels"] == math.ceil(342 / 8) * math.ceil(1932 / 8)
    assert maps["dice"]["cortex"] == pytest.approx(windows["dice"]["cortex"], abs=0.02)
    assert capsys.readouterr().out.count("Dice, mean of classes") == 2
    where = tmp_path / "run" / "evaluation" / "sulcus" / "test"
    assert json.loads((where / "results.json").read_text())["test"] == maps
    assert (where / "sections" / "test.png").stat().st_size > 10_000


@pytest.mark.parametrize("scheme", ["gmwm", "v1"])
def test_train_and_evaluate_on_patches(brains, example, tmp_path, scheme):
    """Train and test with an entirely white image, which must give finite values."""
    found = run(example, brains[scheme], tmp_path / "run")
    for scores in (found["windows"], found["maps"]):
        assert list(scores["dice"]) == [entry.name for entry in example.SCHEMES[scheme]]
        assert all(0 <= value <= 1 for value in scores["dice"].values())
        assert 0 <= scores["err_seg_percent"] <= 100
    assert found["windows"]["pixels"] == found["maps"]["pixels"] == 2 * 89**2
    for line in read_metrics(tmp_path / "run" / "metrics.jsonl"):
        assert all(math.isfinite(v) for v in line.values() if isinstance(v, float))
    if scheme == "gmwm":
        path = tmp_path / "run" / "evaluation" / "gmwm" / "test" / "results.json"
        white = json.loads(path.read_text())["sections"]["gmwm_3"]
        assert white["dice"] == {"background": 1.0, "gray matter": None, "white matter": None}
        path = tmp_path / "run" / "predictions" / "gmwm" / "gmwm_3.ome.tif"
        maps = open_class_map(path)
        assert (maps.read(0, 0, *maps.shape) == 0).all()


@pytest.mark.filterwarnings("ignore:no training pixel of gray matter, white matter")
def test_training_on_a_white_image_alone(brains, example, tmp_path):
    """Train on constant batches, whose variance of zero must not be divided by."""
    run(example, brains["gmwm"], tmp_path / "run", sections=("gmwm_0",))
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert saved["scales"] == {"input_mean": 255.0, "input_std": 1.0}
