"""Test the order and content of batches of pairs, and the error if a section is unreadable."""

import statistics

import numpy as np
import pytest

from jaxcyto.brain.manifest import read_brain
from jaxcyto.brain.sampling.patches import corner_px
from jaxcyto.brain.sections.section import open_section
from jaxcyto.config import DataConfig, Scales
from jaxcyto.data.loading import iterate
from jaxcyto.data.pair_batches import PairSource, fit_scales, pair_eval_batches, pair_train_batches
from jaxcyto.data.pair_table import open_pairs
from jaxcyto.errors import InputError
from jaxcyto.utils import files
from jaxcyto.utils.median import geometric_median


@pytest.fixture(scope="module")
def config(tiny_brain):
    return DataConfig(
        brains=(str(tiny_brain),), patch_px=32, um_per_px=64.0, batch_pairs=8, all_distances=True
    )


@pytest.fixture(scope="module")
def table(config):
    return open_pairs(config)


@pytest.fixture(scope="module")
def source(config, table):
    return PairSource(table, config)


def test_batch_has_the_contract(config, table, source):
    batch = pair_train_batches(source, table, config, seed=0)[0]
    assert batch["patches"].shape == (8, 2, 32, 32, 1)
    assert batch["patches"].dtype == np.uint8
    assert batch["distance_mm"].dtype == np.float32 and batch["distance_mm"].shape == (8,)
    assert batch["coordinates_mm"].dtype == np.float32 and batch["coordinates_mm"].shape == (
        8,
        2,
        3,
    )
    assert batch["all_distances_mm"].shape == (16, 16)
    assert batch["valid"].all()
    index = batch["index"]
    np.testing.assert_array_equal(batch["distance_mm"], table.distance_mm[index])
    own = batch["all_distances_mm"][np.arange(0, 16, 2), np.arange(1, 16, 2)]
    np.testing.assert_allclose(own, batch["distance_mm"], rtol=1e-5)
    np.testing.assert_array_equal(batch["all_distances_mm"], batch["all_distances_mm"].T)


def test_patch_is_centered_on_its_point(config, table, source):
    """The center of the window is within half a pixel of the patch's center."""
    patches = table.patches[0]
    for j in range(0, len(patches), 97):
        row = table.brains[0].sections[patches.section[j]]
        with open_section(row.image, row.pixel_um) as section:
            left, top = corner_px(patches.center_px[j], section, 64.0, 32)
            ratio = 64.0 / row.pixel_um
            middle = np.array([left, top]) + (32 - 1) / 2
            level0 = ratio * (middle + 0.5) - 0.5
            assert np.abs(level0 - patches.center_px[j]).max() <= ratio / 2 + 1e-9
            np.testing.assert_array_equal(
                source.read_patch(j), section.read_at(64.0, top, left, 32, 32)
            )


def test_order_is_that_of_the_seed_alone(config, table, source):
    """Global batches do not depend on the number of processes or threads or on the first step."""
    whole = [pair_train_batches(source, table, config, seed=5)[k] for k in range(3)]
    for processes in (2, 4):
        parts = [
            pair_train_batches(source, table, config, 5, process=p, processes=processes)
            for p in range(processes)
        ]
        for k, batch in enumerate(whole):
            joined = np.concatenate([part[k]["index"] for part in parts])
            assert sorted(joined) == sorted(batch["index"])
            np.testing.assert_array_equal(parts[1][k]["index"], batch["index"][1::processes])
            rows = np.concatenate([part[k]["all_distances_mm"] for part in parts])
            pairs = np.stack([table.first[joined], table.second[joined]], axis=1).reshape(-1)
            np.testing.assert_array_equal(rows, table.distances_mm(pairs))
    late = iterate(
        pair_train_batches(source, table, config, 5), config.threads, lambda x: x, start=2
    )
    batch = next(late)
    late.close()
    for key, value in whole[2].items():
        np.testing.assert_array_equal(batch[key], value)
    other = pair_train_batches(source, table, config, seed=6)[0]["index"]
    assert not np.array_equal(other, whole[0]["index"])


def test_every_pair_once_an_epoch(config, table, source):
    pairs = table.of_split("train")
    batches = pair_train_batches(source, table, config, seed=0)
    steps = -(-len(pairs) // 8)
    seen = np.concatenate([batches[k]["index"] for k in range(steps)])[: len(pairs)]
    assert sorted(seen) == sorted(pairs)


def test_evaluation_covers_all_pairs_and_marks_padding(config, table, source):
    pairs = table.of_split("test")[:11]
    batches = pair_eval_batches(source, table, config, pairs)
    assert len(batches) == 2
    assert batches[1]["valid"].tolist() == [True] * 3 + [False] * 5
    seen = np.concatenate([batches[k]["index"][batches[k]["valid"]] for k in range(2)])
    np.testing.assert_array_equal(seen, pairs)


def test_splits_do_not_leak(table):
    patches = table.patches[0]
    for split in ("train", "val", "test"):
        pairs = table.of_split(split)
        sections = np.unique(patches.section[np.r_[table.first[pairs], table.second[pairs]]])
        assert {table.brains[0].sections[s].split for s in sections} == {split}


def test_scales_come_from_training_pairs_alone(config, table, source):
    scales = fit_scales(source, table)
    pairs = table.of_split("train")
    assert scales.distance_mm == pytest.approx(table.distance_mm[pairs].mean(), rel=1e-6)
    patches = np.unique([table.first[pairs], table.second[pairs]])
    low = table.coordinates_mm[patches].min(axis=0)
    np.testing.assert_allclose(scales.coordinate_low_mm, low, rtol=1e-6)
    high = table.coordinates_mm[patches].max(axis=0)
    np.testing.assert_allclose(scales.coordinate_high_mm, high, rtol=1e-6)
    median = scales.distance_median_mm
    assert median == pytest.approx(statistics.median(table.distance_mm[pairs].tolist()), rel=1e-6)
    assert median != pytest.approx(np.median(table.distance_mm), rel=1e-6)
    np.testing.assert_allclose(
        scales.coordinate_median_mm, geometric_median(table.coordinates_mm[patches]), rtol=1e-6
    )
    gray = np.stack([source.read_patch(patch) for patch in patches])  # fewer than SCALE_PATCHES
    assert scales.input_mean == pytest.approx(gray.mean(), rel=1e-6)
    assert scales.input_std == pytest.approx(gray.std(), rel=1e-6)
    assert isinstance(scales, Scales)


def test_two_brains_are_numbered_one_after_the_other(tiny_brain, config, table, tmp_path):
    import dataclasses
    import shutil

    other = shutil.copytree(tiny_brain, tmp_path / "other")
    both = open_pairs(dataclasses.replace(config, brains=(str(tiny_brain), str(other))))
    count, patches = len(table.first), len(table.patches[0])
    np.testing.assert_array_equal(both.first[count:], table.first + patches)
    assert both.locate(patches) == (1, 0) and both.locate(patches - 1) == (0, patches - 1)
    block = both.distances_mm(np.array([0, patches]))
    assert block[0, 0] == block[1, 1] == 0 and np.isinf(block[0, 1])


def test_absolute_x(config):
    import dataclasses

    folded = open_pairs(dataclasses.replace(config, absolute_x=True)).coordinates_mm
    assert (folded[:, 0] >= 0).all() and (folded[:, 1] < 0).any()


def test_pairs_and_patches_are_read_once(config, tiny_brain, monkeypatch):
    opened = []

    def open_file(path):
        opened.append(path.name)
        return open(path, "rb")

    monkeypatch.setattr(files, "open_file", open_file)
    monkeypatch.setattr("jaxcyto.brain.sampling.pairs.file_sha256", None)
    table = open_pairs(config)
    assert sorted(opened) == ["pairs.npz", "patches.npz", "patches_distances.npy"]
    assert table.keys == (files.file_sha256(tiny_brain / "pairs.npz"),)


def test_wrong_size_is_refused(config):
    import dataclasses

    with pytest.raises(InputError, match=r"patches\.npz.*patch_px = 32.*data\.patch_px = 48"):
        open_pairs(dataclasses.replace(config, patch_px=48))
    with pytest.raises(InputError, match="batch_pairs = 100000"):
        changed = dataclasses.replace(config, batch_pairs=100_000)
        table = open_pairs(changed)
        pair_train_batches(PairSource(table, changed), table, changed, 0)


def test_unreadable_section_is_named(tiny_brain, config, tmp_path):
    """If a section is truncated during training, the message names file, section and patch."""
    import dataclasses
    import shutil

    root = tmp_path / "brain"
    shutil.copytree(tiny_brain, root)
    changed = dataclasses.replace(config, brains=(str(root),))
    table = open_pairs(changed)
    source = PairSource(table, changed)
    row = read_brain(root).sections[table.patches[0].section[0]]
    row.image.write_bytes(row.image.read_bytes()[:2000])
    with pytest.raises(InputError, match=rf"section {row.name}, patch 0: .*{row.image.name}"):
        source.read_patch(0)
