"""Test image files that are damaged, truncated, replaced or missing, before or while reading."""

import dataclasses
import json
import logging
import os
import shutil
import time

import numpy as np
import pytest
import tifffile
from minimal_brain import make_ball

from jaxcyto.brain.manifest import read_brain
from jaxcyto.config import AugmentConfig, Config, DataConfig, ModelConfig, SegmentData
from jaxcyto.data.loading import iterate
from jaxcyto.data.pair_batches import PairSource, fit_scales, pair_eval_batches, pair_train_batches
from jaxcyto.data.pair_table import open_pairs
from jaxcyto.data.segment_batches import SegmentSource
from jaxcyto.data.segment_batches import segment_train_batches as segment_batches
from jaxcyto.data.segment_table import open_windows
from jaxcyto.data.skipping import TRIES, ReadError, Skipped
from jaxcyto.errors import InputError
from jaxcyto.runs.metrics_file import read_metrics
from jaxcyto.training import loop
from jaxcyto.training.log import MetricsWriter

SECONDS = 10
NOBODY = 65534
SMALL = ModelConfig(stem_kernel=3, stem_stride=1, widths=(4, 8, 8))


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def empty(path):
    os.truncate(path, 0)


def vanish(path):
    path.unlink()


def overwrite(path):
    """Overwrite the second half, which holds tiles and may hold the directory of the TIFF."""
    size = path.stat().st_size
    with open(path, "r+b") as file:
        file.seek(size // 2)
        file.write(b"\xff" * (size - size // 2))


def replace(path):
    """Replace the file atomically by an image of another size."""
    other = path.with_name("other.tif")
    tifffile.imwrite(other, np.zeros((7, 9), np.uint8))
    os.replace(other, path)


def pipe(path):
    """Replace the file by a pipe that nobody writes to, so that opening it would block."""
    path.unlink()
    os.mkfifo(path)


def loop_of_links(path):
    path.unlink()
    path.symlink_to(path)


def forbid(path):
    path.chmod(0)
    if os.getuid() == 0:  # root could still read the file
        for folder in path.parents:
            folder.chmod(folder.stat().st_mode | 0o011)  # NOBODY still needs the folders
        os.seteuid(NOBODY)


@pytest.fixture(autouse=True)
def permissions():
    yield
    os.seteuid(os.getuid())


DAMAGES = [truncate, empty, vanish, overwrite, replace, pipe, loop_of_links, forbid]
IN_USE = pytest.mark.parametrize("damage", DAMAGES, ids=lambda each: each.__name__)


@pytest.fixture
def brain(tiny_brain, tmp_path):
    return shutil.copytree(tiny_brain, tmp_path / "brain")


@pytest.fixture
def config(brain):
    return DataConfig((str(brain),), patch_px=32, um_per_px=64.0, batch_pairs=8, threads=3)


def opened(config):
    table = open_pairs(config)
    return table, PairSource(table, config)


def training_section(table):
    """Return the row and the entry of a section that an early training pair needs."""
    patches = table.patches[0]
    row = int(patches.section[table.first[table.of_split("train")[0]]])
    return row, table.brains[0].sections[row]


def until_error(batches, threads=3):
    """Read batches until an InputError is raised, check that it came in time, and return it."""
    start = time.monotonic()
    iterator = iterate(batches, threads, lambda x: x)
    with pytest.raises(InputError) as raised:
        for _ in range(1000):
            next(iterator)
    assert time.monotonic() - start < SECONDS
    return raised.value


# ---- the policy "raise" ------------------------------------------------------------------------


@IN_USE
def test_section_that_fails_in_use_is_named(damage, config):
    """The error of a reading thread reaches the caller and names file, section and patch."""
    table, source = opened(config)
    source.open_sections(2, None)
    _, section = training_section(table)
    damage(section.image)
    error = until_error(pair_train_batches(source, table, config, seed=0))
    assert isinstance(error, ReadError) and error.path == section.image
    assert f"section {section.name}, patch " in str(error) and str(section.image) in str(error)


def test_damaged_tile_is_found_when_it_is_read(config):
    """The directory of the file is intact, so only reading the tile can detect the damage."""
    table, source = opened(config)
    _, section = training_section(table)
    gray = tifffile.imread(section.image)
    tifffile.imwrite(section.image, gray, tile=(64, 64), compression="zlib")
    with tifffile.TiffFile(section.image) as tiff:
        pages = [level.pages[0] for level in tiff.series[0].levels]
        tiles = [
            p for page in pages for p in zip(page.dataoffsets, page.databytecounts, strict=True)
        ]
    with open(section.image, "r+b") as file:
        for offset, count in tiles:
            file.seek(offset)
            file.write(b"\0" * count)
    source.open_sections(2, None)
    error = until_error(pair_train_batches(source, table, config, seed=0))
    assert f"section {section.name}, patch " in str(error)
    assert f"{section.image}: tile" in str(error) and "cannot be decoded" in str(error)


@pytest.mark.parametrize("split", ["train", "test"])
def test_header_is_read_before_training(split, config):
    """Otherwise a test section that cannot be opened would fail after days of training."""
    table, source = opened(config)
    patches = table.patches[0]
    index = ["train", "val", "test"].index(split)
    section = table.brains[0].sections[patches.section[patches.split == index][0]]
    truncate(section.image)
    with pytest.raises(ReadError, match=f"section {section.name}, patch .*{section.image.name}"):
        source.open_sections(2, None)
    skipped = Skipped()
    if split == "train":
        source.open_sections(2, skipped)
    else:
        with pytest.raises(ReadError):
            source.open_sections(2, skipped)


@IN_USE
def test_distances_are_not_mapped(damage, brain, config):
    """Reading a memory-mapped file after it was truncated would kill the process by a signal."""
    table, source = opened(dataclasses.replace(config, all_distances=True))
    path = brain / "patches_distances.npy"
    damage(path)
    batches = pair_train_batches(source, table, dataclasses.replace(config, all_distances=True), 0)
    assert str(path) in str(until_error(batches))


@IN_USE
@pytest.mark.parametrize("kind", ["image", "label", "atlas"])
def test_each_image_of_segmentation(kind, damage, tmp_path):
    root = make_ball(tmp_path / "ball")
    config = SegmentData((str(root),), um_per_px=8.0, image_px=44, atlas=True, batch_images=4)
    table = open_windows(config, SMALL)
    path = getattr(table.sections[0].row, kind)
    damage(path)
    error = until_error(segment_batches(SegmentSource(table), table, config, seed=0))
    assert isinstance(error, ReadError) and error.path == path
    assert f"section b of {root}, rows" in str(error) and str(path) in str(error)


def test_missing_image_is_found_when_the_brain_is_opened(brain, config):
    image = read_brain(brain).sections[3].image
    image.unlink()
    with pytest.raises(InputError, match=f"image.*{image.name}"):
        open_pairs(config)


# ---- the policy "skip" -------------------------------------------------------------------------


@pytest.fixture
def damaged(config):
    """Read the first 40 batches, then damage one training section."""
    table, source = opened(config)
    whole = pair_train_batches(source, table, config, seed=3)
    whole = [whole[k] for k in range(40)]
    row, section = training_section(table)
    truncate(section.image)
    return config, table, row, section, whole


def in_section(table, row, batch):
    """Return which pairs [B] of a batch have a patch in the section."""
    pairs = np.stack([table.first[batch["index"]], table.second[batch["index"]]], axis=1)
    return (table.patches[0].section[pairs] == row).any(axis=1)


@pytest.mark.parametrize("threads", [1, 4])
def test_replacements_follow_from_seed_and_step(damaged, threads, caplog):
    """Only pairs of the damaged section are replaced. Replacements are counted and logged once.

    They are the same for any number of threads and processes and any first step.
    """
    config, table, row, section, whole = damaged
    skipped = Skipped()
    batches = pair_train_batches(
        PairSource(table, config), table, config, seed=3, skipped=skipped, for_steps=True
    )
    iterator = iterate(batches, threads, lambda x: x)
    read = [next(iterator) for _ in whole]
    iterator.close()
    lost = 0
    for batch, before in zip(read, whole, strict=True):
        hit = in_section(table, row, before)
        np.testing.assert_array_equal(batch["index"][~hit], before["index"][~hit])
        np.testing.assert_array_equal(batch["patches"][~hit], before["patches"][~hit])
        assert not in_section(table, row, batch).any()
        assert np.isin(batch["index"], table.of_split("train")).all()
        lost += hit.sum()
    assert lost > 5
    again = [batches[k]["index"] for k in (0, 7)]  # read again, which must not count twice
    np.testing.assert_array_equal(again, [read[0]["index"], read[7]["index"]])
    count = skipped.take(len(whole))
    assert list(count) == [str(section.image)] and count[str(section.image)] >= lost
    assert skipped.take(len(whole)) == {}
    assert caplog.text.count("skipped, as others of this file will be") == 1

    late = iterate(
        pair_train_batches(PairSource(table, config), table, config, 3, skipped=Skipped()),
        threads, lambda x: x, start=11,
    )  # fmt: skip
    np.testing.assert_array_equal(next(late)["patches"], read[11]["patches"])
    late.close()
    parts = [
        pair_train_batches(
            PairSource(table, config), table, config, 3, skipped=Skipped(), process=p, processes=2
        )
        for p in range(2)
    ]
    for k in range(5):
        for p in range(2):
            np.testing.assert_array_equal(parts[p][k]["index"], read[k]["index"][p::2])


def test_distances_are_those_of_the_replacements(damaged):
    config, *_ = damaged
    config = dataclasses.replace(config, all_distances=True)
    table, source = opened(config)
    batches = pair_train_batches(source, table, config, seed=3, skipped=Skipped())
    for k in range(10):
        own = batches[k]["all_distances_mm"][np.arange(0, 16, 2), np.arange(1, 16, 2)]
        np.testing.assert_allclose(own, batches[k]["distance_mm"], rtol=1e-5)
    with pytest.raises(InputError, match="takes one process"):
        pair_train_batches(source, table, config, 3, skipped=Skipped(), process=0, processes=2)


def test_segmentation_replaces_too(tmp_path, caplog):
    """One of two training sections loses its label image while batches are read."""
    root = make_ball(tmp_path / "ball")
    text = (root / "sections.csv").read_text().splitlines()
    names = text[0].split(",")
    rows = [dict(zip(names, line.split(","), strict=True)) for line in text[1:]]
    for kind in ("label", "atlas"):
        shutil.copy(root / f"b_{kind}.tif", root / f"a_{kind}.tif")
        rows[0][kind] = f"a_{kind}.tif"
    (root / "sections.csv").write_text(
        "\n".join([text[0], *(",".join(row[name] for name in names) for row in rows)]) + "\n"
    )
    config = SegmentData((str(root),), um_per_px=8.0, image_px=44, atlas=True, batch_images=4)
    table = open_windows(config, SMALL)
    source = SegmentSource(table)
    gone = table.sections[0].row
    assert gone.name == "a"
    before = [source.draw(5, number) for number in range(32)]
    empty(gone.label)

    def read(threads):
        skipped = Skipped()
        batches = segment_batches(source, table, config, 5, skipped=skipped, for_steps=True)
        iterator = iterate(batches, threads, lambda x: x)
        found = [next(iterator) for _ in range(8)]
        iterator.close()
        return found, skipped.take(8)

    (found, count), (other, other_count) = read(1), read(4)
    assert count == other_count and count[str(gone.label)] >= sum(w.section == 0 for w in before)
    for a, b in zip(found, other, strict=True):
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])
    for number, window in enumerate(before):
        now, _ = source.example(5, number, Skipped())
        assert now == window if window.section else now.section == 1
        assert source.describe(5, number, Skipped()) == table.describe_window(now)


def test_if_nothing_can_be_read_it_stops(config):
    table, source = opened(config)
    for section in table.brains[0].sections:
        truncate(section.image)
    skipped = Skipped()
    error = until_error(pair_train_batches(source, table, config, seed=0, skipped=skipped))
    assert f"{TRIES + 1} examples in a row cannot be read. The last error: section" in str(error)
    with pytest.raises(InputError, match="examples in a row cannot be read"):
        fit_scales(source, table, skipped)


def test_evaluation_always_raises(config):
    """Dropping test pairs would change the test."""
    table, source = opened(dataclasses.replace(config, on_error="skip"))
    pairs = table.of_split("test")
    section = table.brains[0].sections[table.patches[0].section[table.first[pairs[0]]]]
    truncate(section.image)
    assert str(section.image) in str(until_error(pair_eval_batches(source, table, config, pairs)))


# ---- while train.py runs -----------------------------------------------------------------------


@pytest.fixture
def training(config):
    config.threads = 2
    return Config(
        data=config,
        model=ModelConfig(stem_kernel=3, stem_stride=1, widths=(4, 4, 8)),
        augment=AugmentConfig(noise=0.1),
        steps=24,
        log_every=1,
        eval_every=100,
        eval_pairs=8,
        batch_stats_steps=2,
        checkpoint_every=4,
    )


def damage_at(monkeypatch, at, damage):
    write = MetricsWriter.write

    def write_and_damage(self, step, values):
        write(self, step, values)
        if step == at:
            damage()

    monkeypatch.setattr(MetricsWriter, "write", write_and_damage)


def test_fault_in_the_middle_of_a_run(training, tmp_path, monkeypatch, caplog):
    """The run stops and names the file. With "skip", the same command runs to the end."""
    table, _ = opened(training.data)
    section = training_section(table)[1]
    times = []

    def damage():
        truncate(section.image)
        times.append(time.monotonic())

    damage_at(monkeypatch, 5, damage)
    folder = tmp_path / "run"
    with pytest.raises(InputError, match=f"section {section.name}, patch .*{section.image.name}"):
        loop.train(training, folder)
    monkeypatch.undo()
    assert time.monotonic() - times[0] < 3 * SECONDS  # steps continue until the file is needed
    done = read_metrics(folder / "metrics.jsonl")[-1]["step"]
    assert 5 <= done < training.steps

    training.data.on_error = "skip"
    with caplog.at_level(logging.WARNING, "jaxcyto"):
        results = loop.train(training, folder)
    count = results["skipped"]
    assert list(count) == [str(section.image)] and count[str(section.image)] > 0
    assert json.loads((folder / "results.json").read_text())["skipped"] == count
    lines = read_metrics(folder / "metrics.jsonl")
    per_step = [line.get(f"skipped/{section.image}", 0) for line in lines]
    assert sum(per_step) == count[str(section.image)]
    assert caplog.text.count("skipped, as others of this file will be") == 1
    assert f"skipped while training: {count[str(section.image)]} times" in caplog.text
