"""Test features of patches against the network, PairSource, nibabel and label images."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import nibabel
import numpy as np
import pytest
import tifffile
from pretext_run import SCALES, random_variables, write_run

from jaxcyto.brain.manifest import read_brain
from jaxcyto.brain.sampling.patches import load_patches
from jaxcyto.brain.sections.label_image import UNLABELED
from jaxcyto.config import DataConfig
from jaxcyto.data.pair_batches import PairSource
from jaxcyto.data.pair_table import open_pairs
from jaxcyto.errors import InputError
from jaxcyto.models import SiameseNet
from jaxcyto.predict.features import (
    Embedding,
    embed,
    embed_brain,
    forward_all,
    patch_areas,
    read_patches,
)
from jaxcyto.runs.load import load_pretext_run, save_weights

NET = SiameseNet(stem_kernel=3, stem_stride=1, widths=(4, 6, 8), features=5)
SIDE = 32


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "pretext", NET, SIDE)


def images(number: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (number, SIDE, SIDE), np.uint8)


@pytest.mark.parametrize("number", [1, 16, 37])
def test_the_same_as_the_network_on_all_at_once(number):
    variables, patches = random_variables(NET, SIDE), images(number)
    normalized = (patches.astype(np.float32) - 150) / 40
    both = jnp.asarray(np.stack([normalized, normalized], axis=1)[..., None])
    expected = jax.jit(NET.apply)(variables, both)
    features, scaled = forward_all(NET, variables, patches, mean=150.0, std=40.0, batch=16)
    assert features.shape == (number, 5) and features.dtype == np.float32
    np.testing.assert_allclose(features, expected["features"][:, 0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(scaled, expected["coordinates_scaled"][:, 1], rtol=1e-4, atol=1e-5)


def test_a_patch_does_not_depend_on_its_company():
    variables, patches = random_variables(NET, SIDE), images(40)
    whole, _ = forward_all(NET, variables, patches, mean=150.0, std=40.0, batch=16)
    alone, _ = forward_all(NET, variables, patches[21:22], mean=150.0, std=40.0, batch=16)
    np.testing.assert_allclose(alone[0], whole[21], rtol=1e-5, atol=1e-6)


def test_none_at_all():
    features, scaled = forward_all(NET, random_variables(NET, SIDE), [], mean=0.0, std=1.0)
    assert features.shape == (0, 5) and scaled.shape == (0, 3)


def test_reads_only_a_few_batches_ahead_and_tells_how_far_it_is():
    drawn, told = 0, []

    def source():
        nonlocal drawn
        for image in images(100):
            drawn += 1
            yield image

    def progress(done: int, total: int) -> None:
        told.append((done, total))
        assert drawn - done <= 3 * 16

    forward_all(
        NET, random_variables(NET, SIDE), source(), mean=0.0, std=1.0, total=100, batch=16,
        progress=progress,
    )  # fmt: skip
    assert told == [(min(100, 16 * k), 100) for k in range(1, 8)]


def test_coordinates_in_mm(run):
    loaded = load_pretext_run(run)
    _, scaled = forward_all(NET, loaded.variables, images(3), mean=150.0, std=40.0)
    low, high = np.array(SCALES["coordinate_low_mm"]), np.array(SCALES["coordinate_high_mm"])
    found = embed(loaded, images(3)).coordinates_mm
    np.testing.assert_allclose(found, np.interp(scaled, [-2e3, 2e3], [-1e3, 1e3]) * (high - low)
                               + (low + high) / 2, rtol=1e-4)  # fmt: skip


# ---- runs ---------------------------------------------------------------------------------------


def test_a_run_is_read_back(run):
    found = load_pretext_run(run)
    assert found.model == NET and found.patch_px == SIDE and found.um_per_px == 64
    assert found.absolute_x and found.training_sections == {"tiny/0001": None}
    assert found.scales.coordinate_high_mm == (21.0, 30.0, 14.0)
    expected = random_variables(NET, SIDE)
    assert jax.tree.all(jax.tree.map(np.array_equal, found.variables, expected))


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        (("classes",), [], "segmentation run"),
        (("scales",), None, "damaged"),
        (("model", "features"), 0, "features = 0"),
        (("scales", "input_std"), 0, "input_std"),
        (("scales", "distance_mm"), "2", "distance_mm = '2'"),
        (("scales", "input_mean"), "dark", "damaged"),
        (("scales", "coordinate_low_mm"), [1, 2], "coordinate_low_mm"),
        (("scales", "coordinate_high_mm"), [1, 2, "3"], "damaged"),
        (("scales", "unheard_of"), 1, "damaged"),
        (("data", "patch_px"), 500, "do not end in a 1x1"),
        (("data", "um_per_px"), -1, "um_per_px"),
        (("model", "features"), 6, "do not belong together"),
        (("model", "widths"), [4, 6], "damaged|do not belong"),
        (("model", "dtype"), "int8", "dtype"),
        (("training_sections",), [1], "training_sections"),
    ],
)
def test_a_damaged_config_ends_in_one_message(run, tmp_path, where, value, message):
    config = json.loads((run / "config.json").read_text())
    table = config
    for key in where[:-1]:
        table = table[key]
    table[where[-1]] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_weights(tmp_path, random_variables(NET, SIDE))
    with pytest.raises(InputError, match=message) as caught:
        load_pretext_run(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_not_a_run_and_not_finished(run, tmp_path):
    with pytest.raises(InputError, match=r"no config\.json"):
        load_pretext_run(tmp_path)
    (tmp_path / "config.json").write_text((run / "config.json").read_text())
    with pytest.raises(InputError, match="not finished"):
        load_pretext_run(tmp_path)


# ---- a brain ------------------------------------------------------------------------------------


def test_patches_are_those_of_training(tiny_brain):
    brain = read_brain(tiny_brain)
    patches = load_patches(tiny_brain / "patches.npz", brain)
    config = DataConfig(brains=(str(tiny_brain),), patch_px=32, um_per_px=64.0)
    source = PairSource(open_pairs(config), config)
    # in random order, so that sections alternate
    some = np.random.default_rng(0).permutation(len(patches))[:50]
    for number, image in zip(some, read_patches(brain, patches.select(some)), strict=True):
        np.testing.assert_array_equal(image, source.read_patch(number))


def test_a_whole_brain(tiny_brain, run):
    brain = read_brain(tiny_brain)
    patches = load_patches(tiny_brain / "patches.npz", brain)
    loaded = load_pretext_run(run)
    found = embed_brain(loaded, brain, patches)
    expected = embed(loaded, np.stack(list(read_patches(brain, patches))))
    np.testing.assert_array_equal(found.features, expected.features)
    assert len(found.features) == len(patches) and found.features.std(axis=0).min() > 0


def test_patches_of_another_size(tiny_brain, tmp_path):
    brain = read_brain(tiny_brain)
    patches = load_patches(tiny_brain / "patches.npz", brain)
    other = load_pretext_run(write_run(tmp_path / "other", NET, SIDE, um_per_px=16.0))
    with pytest.raises(InputError, match=r"um_per_px = 64.*16.*--out"):
        embed_brain(other, brain, patches)


def test_a_section_that_is_gone_is_named(tiny_brain):
    brain = read_brain(tiny_brain)
    patches = load_patches(tiny_brain / "patches.npz", brain)
    row = brain.sections[patches.section[0]]
    gone = row.image.rename(row.image.with_suffix(".gone"))
    try:
        with pytest.raises(InputError, match=f"section {row.name}"):
            list(read_patches(brain, patches))
    finally:
        gone.rename(row.image)


def test_areas_are_those_of_the_label_files_and_of_the_painted_sections(tiny_brain):
    brain = read_brain(tiny_brain)
    patches = load_patches(tiny_brain / "patches.npz", brain)
    areas = patch_areas(brain, patches)
    painted = np.full(len(patches), UNLABELED)
    for number in range(len(patches)):
        hemisphere = brain.hemispheres[patches.hemisphere[number]]
        labels = nibabel.load(hemisphere.labels)
        faces = nibabel.load(hemisphere.pial).agg_data("triangle")
        vertex = faces[patches.face[number], np.argmax(patches.bary[number])]
        name = labels.labeltable.get_labels_as_dict()[int(labels.agg_data()[vertex])]
        assert brain.classes[areas[number]].name == name
        row = brain.sections[patches.section[number]]
        if row.label is not None:
            x, y = ((patches.center_px[number] + 0.5) * row.pixel_um / 16).astype(int)
            painted[number] = tifffile.imread(row.label)[y, x]
    known = painted != UNLABELED
    assert known.sum() > 30
    # they may differ within half a triangle of a border
    assert (painted == areas)[known].mean() > 0.9


def test_the_name_of_an_earlier_version_is_answered():
    with pytest.raises(AttributeError, match=r"is now Embedding\.coordinates_mm"):
        _ = Embedding(np.zeros((1, 5)), np.zeros((1, 3))).coordinates
