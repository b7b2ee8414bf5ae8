"""Test windows of annotated sections: their position, their sampling, and refused input."""

import dataclasses
import warnings
from pathlib import Path

import numpy as np
import pytest
import tifffile
from minimal_brain import make_ball, replace
from scipy import stats

from jaxcyto.brain.manifest import write_table
from jaxcyto.brain.sections.atlas_image import open_atlas
from jaxcyto.brain.sections.label_image import annotated_blocks, majority
from jaxcyto.config import ModelConfig, SegmentData
from jaxcyto.data.brain_names import brain_names
from jaxcyto.data.loading import iterate
from jaxcyto.data.segment_batches import (
    SegmentSource,
    fit_input_scales,
    segment_eval_batches,
    segment_train_batches,
)
from jaxcyto.data.segment_table import Window, open_window_tables, open_windows
from jaxcyto.errors import InputError

PIXEL_UM = 2.0
SMALL = ModelConfig(stem_kernel=3, stem_stride=1, widths=(4, 8, 8))  # 44 px -> 4, 72 px -> 18
STRIDED = ModelConfig(stem_kernel=5, stem_stride=4, widths=(4, 8, 8))
# (model, um_per_px, image_px). The names give the label pixels along a side of an output pixel.
NETS = {
    "1": (SMALL, 8.0, 44),
    "2": (SMALL, 16.0, 72),
    "8": (SMALL, 64.0, 44),
    "strided": (STRIDED, 2.0, 201),
    "resampled": (STRIDED, 4.0, 169),
}


def write_brain(root: Path, sections: dict[str, tuple[str, np.ndarray]]) -> Path:
    """Write a brain of three classes, two of them areas, from {name: (split, label image)}.

    The gray value is 60 * class + 20 ... 29, or 200 ... 209 where not annotated. Channel k of the
    atlas is 100 ... 149 within class k, and 0 ... 49 elsewhere.
    """
    make_ball(root)
    rng = np.random.default_rng(0)
    rows = []
    for number, (name, (split, label)) in enumerate(sections.items()):
        gray = np.where(label == 255, 200, 20 + 60 * np.minimum(label, 3)).astype(np.uint8)
        image = np.kron(gray, np.ones((8, 8), np.uint8))
        image += rng.integers(10, size=image.shape, dtype=np.uint8)
        atlas = rng.integers(50, size=(2, *label.shape), dtype=np.uint8)
        atlas += 100 * np.stack([label == 0, label == 1]).astype(np.uint8)
        tifffile.imwrite(root / f"{name}.tif", image, tile=(64, 64))
        tifffile.imwrite(root / f"{name}_label.tif", label, tile=(32, 32), compression="zlib")
        tifffile.imwrite(
            root / f"{name}_atlas.tif",
            atlas,
            photometric="minisblack",
            planarconfig="separate",
            tile=(48, 32),
            compression="zlib",
        )
        step = PIXEL_UM / 1000
        rows.append(
            {
                "section": name,
                "image": f"{name}.tif",
                "pixel_um": f"{PIXEL_UM:g}",
                "affine": f"{step} 0 0 0  0 0 0 {number}  0 {-step} 0 0",
                "label": f"{name}_label.tif",
                "atlas": f"{name}_atlas.tif",
                "split": split,
            }
        )
    write_table(root / "sections.csv", rows)
    return root


def random_label(seed: int, shape: tuple[int, int], block: int = 8) -> np.ndarray:
    """Draw blocks of one class each, about half of them not annotated."""
    rng = np.random.default_rng(seed)
    coarse = rng.choice(
        [0, 1, 2, 255], (-(-shape[0] // block), -(-shape[1] // block)), p=[0.2, 0.2, 0.1, 0.5]
    )
    return np.kron(coarse, np.ones((block, block))).astype(np.uint8)[: shape[0], : shape[1]]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    sections = {
        "a": ("train", random_label(1, (149, 131))),
        "b": ("train", random_label(2, (96, 160))),
        "c": ("val", random_label(3, (120, 120))),
        "d": ("test", random_label(4, (75, 203))),
        "e": ("exclude", random_label(5, (64, 64))),
    }
    return write_brain(tmp_path_factory.mktemp("annotated") / "brain", sections)


def config_of(root: Path, um_per_px: float = 8.0, image_px: int = 44, **fields) -> SegmentData:
    return SegmentData(
        **{"brains": (str(root),), "atlas": True, "batch_images": 4} | fields,
        um_per_px=um_per_px,
        image_px=image_px,
    )


def opened(root: Path, **fields):
    config = config_of(root, **fields)
    table = open_windows(config, SMALL)
    return config, table, SegmentSource(table)


@pytest.fixture(scope="module", params=NETS)
def net(request, root):
    model, um_per_px, image_px = NETS[request.param]
    table = open_windows(config_of(root, um_per_px, image_px), model)
    return table, SegmentSource(table)


@pytest.fixture(scope="module")
def loader(root):
    return opened(root)


def some_windows(table, number: int) -> list[Window]:
    """Draw windows of one section, many of them across an edge and some far outside."""
    rng = np.random.default_rng(0)
    places = [(-500, 3), (3, -500), (700, 700), (0, 0), (-1, -1)]
    places += rng.integers(-table.side, 160 // table.factor, (20, 2)).tolist()
    return [Window(number, *place) for place in places]


def crop(whole: np.ndarray, top: int, left: int, side: int, fill: int) -> np.ndarray:
    """Crop a square from an image that is surrounded by `fill`."""
    rows, columns = top + np.arange(side), left + np.arange(side)
    down = (rows >= 0) & (rows < whole.shape[0])
    across = (columns >= 0) & (columns < whole.shape[1])
    out = np.full((side, side, *whole.shape[2:]), fill, np.uint8)
    out[np.ix_(down, across)] = whole[np.ix_(rows[down], columns[across])]
    return out


def block_mean(image: np.ndarray, factor: int, fill: int) -> np.ndarray:
    """Average blocks of factor x factor px, rounding half up, with `fill` beyond the edge."""
    height, width = (-(-side // factor) for side in image.shape[:2])
    whole = np.full((height * factor, width * factor, *image.shape[2:]), float(fill))
    whole[: image.shape[0], : image.shape[1]] = image
    blocks = whole.reshape(height, factor, width, factor, *image.shape[2:])
    return np.floor(blocks.mean(axis=(1, 3)) + 0.5).astype(np.uint8)


def block_mode(label: np.ndarray, factor: int) -> np.ndarray:
    """Return the most frequent class of each block, the lowest on ties, or 255 without classes."""
    height, width = (-(-side // factor) for side in label.shape)
    whole = np.full((height * factor, width * factor), 255)
    whole[: label.shape[0], : label.shape[1]] = label
    blocks = whole.reshape(height, factor, width, factor)
    counts = np.stack([(blocks == each).sum(axis=(1, 3)) for each in range(255)])
    return np.where(counts.any(axis=0), counts.argmax(axis=0), 255).astype(np.uint8)


# ---- position of windows ------------------------------------------------------------------------


def test_window_is_a_crop_of_the_whole_section(net):
    table, source = net
    geometry, factor = table.geometry, table.factor
    stride = geometry.output_stride
    um_per_px = 16 * factor / stride
    for number, section in enumerate(table.sections):
        label = block_mode(tifffile.imread(section.row.label), factor)
        atlas = block_mean(np.moveaxis(tifffile.imread(section.row.atlas), 0, 2), factor, 0)
        image = block_mean(tifffile.imread(section.row.image), round(um_per_px / PIXEL_UM), 255)
        for window in some_windows(table, number):
            item = source.read(window)
            place = np.array([window.row, window.column])
            np.testing.assert_array_equal(item["label"], crop(label, *place, table.side, 255))
            corner, side = place - geometry.atlas_offset, len(item["atlas"])
            np.testing.assert_array_equal(item["atlas"], crop(atlas, *corner, side, 0))
            corner, side = stride * place - geometry.label_offset, len(item["image"])
            np.testing.assert_array_equal(item["image"][..., 0], crop(image, *corner, side, 255))


def test_image_atlas_and_labels_are_aligned(net):
    """Where an output pixel has one class only, the image has its gray and the atlas its channel.

    This holds because gray and atlas are painted from the labels.
    """
    table, source = net
    geometry, factor, side = table.geometry, table.factor, table.side
    stride, checked = geometry.output_stride, 0
    wholes = [tifffile.imread(section.row.label) for section in table.sections]
    every = [window for number in range(len(wholes)) for window in some_windows(table, number)]
    for window in every:
        place = factor * window.row, factor * window.column
        fine = crop(wholes[window.section], *place, factor * side, 255)
        blocks = fine.reshape(side, factor, side, factor).swapaxes(1, 2).reshape(side, side, -1)
        pure = (blocks == blocks[..., :1]).all(axis=2)
        item = source.read(window)
        label, offset = item["label"], geometry.label_offset
        image = item["image"][offset : offset + stride * side, offset : offset + stride * side, 0]
        gray = image.reshape(side, stride, side, stride).astype(float).mean(axis=(1, 3))
        offset = geometry.atlas_offset
        atlas = item["atlas"][offset : offset + side, offset : offset + side]
        for each in range(3):
            here = pure & (label == each)
            assert (np.abs(gray[here] - (60 * each + 24.5)) < 30).all()
            assert ((atlas[here] >= 90) == (np.arange(2) == each)).all()
            checked += here.sum()
    assert checked > 200


def test_majority_is_the_mode():
    rng = np.random.default_rng(7)
    for factor in (1, 2, 3, 8):
        label = rng.choice([0, 1, 2, 254], (5 * factor, 7 * factor)).astype(np.uint8)
        blocks = label.reshape(5, factor, 7, factor).swapaxes(1, 2).reshape(5, 7, -1)
        np.testing.assert_array_equal(majority(label, factor), stats.mode(blocks, axis=2).mode)
        label[rng.random(label.shape) < 0.7] = 255
        label[:factor] = 255
        np.testing.assert_array_equal(majority(label, factor), block_mode(label, factor))
        assert (majority(label, factor)[0] == 255).all()


@pytest.mark.parametrize(
    "options",
    [
        {"planarconfig": "separate"},
        {"planarconfig": "separate", "tile": (32, 48), "compression": "lzw"},
        {"planarconfig": "contig"},
        {"planarconfig": "contig", "tile": (32, 16), "compression": "zlib", "predictor": True},
        {"planarconfig": "contig", "rowsperstrip": 7, "compression": "deflate"},
        {"pages": True},
        {"pages": True, "tile": (16, 16), "compression": "zlib"},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_atlas_layouts(tmp_path, options, channels):
    atlas = np.random.default_rng(0).integers(256, size=(channels, 90, 70), dtype=np.uint8)
    options = dict(options)
    pages = options.pop("pages", False)
    if channels == 1:
        options.pop("planarconfig", None)
        tifffile.imwrite(tmp_path / "a.tif", atlas[0], **options)
    else:
        contig = options.get("planarconfig") == "contig"
        data = np.moveaxis(atlas, 0, 2) if contig else atlas
        options["photometric"] = "rgb" if channels == 3 and not pages else "minisblack"
        tifffile.imwrite(tmp_path / "a.tif", data, **options)
    for factor in (1, 4):
        image = open_atlas(tmp_path / "a.tif", factor)
        assert (image.channels, image.shape) == (channels, (90, 70))
        whole = block_mean(np.moveaxis(atlas, 0, 2), factor, 0)
        for top, left in ((0, 0), (-3, 5), (70 // factor, 60 // factor), (3, -4), (500, 0)):
            expected = crop(whole, top, left, 21, 0)
            np.testing.assert_array_equal(image.read(top, left, 21, 21), expected)


# ---- sampling of windows ------------------------------------------------------------------------


def test_every_annotated_pixel_is_evaluated_once(net):
    table, source = net
    seen = {split: table.of_split(split) for split in ("train", "val", "test")}
    assert sorted(np.concatenate(list(seen.values()))) == list(range(len(table.windows)))
    for split, names in (("train", "ab"), ("val", "c"), ("test", "d")):
        assert {table.section_name(number) for number in seen[split]} == set(names)
        pixels = np.zeros(3, np.int64)
        for number, section in enumerate(table.sections):
            if section.row.split != split:
                continue
            whole = block_mode(tifffile.imread(section.row.label), table.factor)
            covered = np.zeros((3000, 3000), int)
            for window in map(table.window, seen[split]):
                if window.section == number:
                    assert (source.read_label(window) != 255).any()
                    rows = slice(window.row, window.row + table.side)
                    covered[rows, window.column : window.column + table.side] += 1
            assert (covered[: whole.shape[0], : whole.shape[1]][whole != 255] == 1).all()
            assert covered.max() == 1
            pixels += np.bincount(whole[whole != 255], minlength=3)
        np.testing.assert_array_equal(table.class_pixels(split), pixels)


def test_classes_are_drawn_evenly(tmp_path):
    """Two classes have a single pixel. The other has 40,000, three quarters in one section."""
    large, small = np.full((300, 220), 255, np.uint8), np.full((220, 120), 255, np.uint8)
    large[:150, :200], small[:100, :100] = 1, 1
    large[250, 100] = 0
    small[200, 100] = 2
    sections = {"a": ("train", large), "b": ("train", small)}
    _, table, source = opened(write_brain(tmp_path / "brain", sections))
    np.testing.assert_array_equal(table.class_pixels("train"), [1, 40000, 1])
    draws = [source.draw(3, number) for number in range(3000)]
    found = [
        np.unique(source.read_label(window)[source.read_label(window) != 255]) for window in draws
    ]
    assert all(len(classes) == 1 for classes in found)  # the classes lie far apart
    drawn = np.bincount([classes[0] for classes in found], minlength=3)
    assert stats.chisquare(drawn).pvalue > 1e-3
    of_large = [w for w, c in zip(draws, found, strict=True) if c[0] == 1]
    share = sum(window.section == 0 for window in of_large)
    assert stats.binomtest(share, len(of_large), 0.75).pvalue > 1e-3
    # The first row of these windows is uniformly distributed, apart from the side of a window.
    rows = [window.row for window in of_large if window.section == 0]
    assert stats.kstest(np.array(rows) + table.side / 2, stats.uniform(0, 150).cdf).pvalue > 1e-3


def test_pixels_at_the_border_are_reached_at_every_place(tmp_path):
    label = np.full((60, 50), 255, np.uint8)
    label[0, 0], label[59, 49], label[0, 49] = 0, 1, 2
    root = write_brain(tmp_path / "brain", {"a": ("train", label)})
    _, table, source = opened(root)
    places = np.zeros((3, table.side, table.side), int)
    for number in range(2400):
        window = source.draw(0, number)
        seen = source.read_label(window)
        (y,), (x,) = np.nonzero(seen != 255)
        places[seen[y, x], y, x] += 1
    assert stats.chisquare(places.ravel()).pvalue > 1e-3


def test_every_pixel_of_a_block_is_drawn(tmp_path):
    """Class 0 has two pixels of one block, so finding the second requires counting the first."""
    label = np.full((60, 50), 255, np.uint8)
    label[0, 0] = label[3, 3] = 0
    label[40, 5], label[40, 40] = 1, 2
    root = write_brain(tmp_path / "brain", {"a": ("train", label)})
    _, table, source = opened(root)
    assert table.side == 4
    draws = [source.draw(0, number) for number in range(900)]
    rows = np.array([window.row for window in draws if window.row < 20])
    expected = np.array([1, 1, 1, 2, 1, 1, 1]) / 8 * len(rows)
    assert stats.chisquare(np.bincount(rows + 3, minlength=7), expected).pvalue > 1e-3


def test_label_images_are_read_in_bands(root, loader, monkeypatch):
    monkeypatch.setattr("jaxcyto.brain.sections.label_image.BAND_PX", 1500)
    np.testing.assert_array_equal(opened(root)[1].blocks, loader[1].blocks)


def test_windows_of_two_sizes_take_one_scan(root, monkeypatch):
    """Both tables equal those of separate scans and share the open sections."""
    config, sizes = config_of(root), [44, 72]
    separate = [open_windows(dataclasses.replace(config, image_px=px), SMALL) for px in sizes]
    scans = []
    scan = annotated_blocks
    monkeypatch.setattr(
        "jaxcyto.data.segment_table.annotated_blocks",
        lambda *arguments: scans.append(arguments[0].name) or scan(*arguments),
    )
    together = open_window_tables(config, SMALL, sizes)
    assert len(scans) == len(set(scans)) == len(together[0].sections)
    for first, second in zip(together[0].sections, together[1].sections, strict=True):
        assert first is second
    for ours, alone in zip(together, separate, strict=True):
        np.testing.assert_array_equal(ours.blocks, alone.blocks)
        np.testing.assert_array_equal(ours.windows, alone.windows)
        assert (ours.side, ours.keys) == (alone.side, alone.keys)
        for split in ("train", "val", "test"):
            assert ours.class_pixels(split).tolist() == separate[0].class_pixels(split).tolist()


def test_batches_are_those_of_the_seed_alone(loader):
    config, table, source = loader
    whole = [segment_train_batches(source, table, config, seed=5)[k] for k in range(6)]
    for k, batch in enumerate(whole):
        assert batch["index"].tolist() == list(range(4 * k, 4 * k + 4))
        for i, number in enumerate(batch["index"]):
            item = source.read(source.draw(5, number))
            for key, value in item.items():
                np.testing.assert_array_equal(batch[key][i], value)
    for processes in (2, 4):
        for process in range(processes):
            part = segment_train_batches(
                source, table, config, 5, process=process, processes=processes
            )
            for k, batch in enumerate(whole):
                for key, value in part[k].items():
                    np.testing.assert_array_equal(value, batch[key][process::processes])
    # another source, another number of threads, another first step
    for threads, start in ((1, 0), (3, 2), (8, 5)):
        own = SegmentSource(open_windows(dataclasses.replace(config, threads=threads), SMALL))
        batches = iterate(
            segment_train_batches(own, table, config, 5), threads, lambda batches: batches, start
        )
        for expected in whole[start:]:
            batch = next(batches)
            for key, value in expected.items():
                np.testing.assert_array_equal(batch[key], value)
        batches.close()
    other = segment_train_batches(source, table, config, seed=6)[0]
    assert (other["image"] != whole[0]["image"]).any()


def test_index_stays_an_int32(loader):
    config, table, source = loader
    batch = segment_train_batches(source, table, config, seed=0)[(1 << 29) + 1]
    assert batch["index"].tolist() == [4, 5, 6, 7] and batch["index"].dtype == np.int32


def test_batch_has_the_contract(tiny_brain):
    config = config_of(tiny_brain, um_per_px=64.0, image_px=72)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "no training pixel of", UserWarning)
        table = open_windows(config, SMALL)
    source = SegmentSource(table)
    areas = sum(each.kind == "area" for each in table.classes)
    assert table.atlas_channels == areas == 6
    numbers = table.of_split("val")
    evaluated = segment_eval_batches(source, table, config, numbers)
    for batch in (segment_train_batches(source, table, config, seed=0)[3], evaluated[0]):
        shapes = {key: (value.shape, value.dtype.name) for key, value in batch.items()}
        assert shapes == {
            "image": ((4, 72, 72, 1), "uint8"),
            "atlas": ((4, 38, 38, areas), "uint8"),
            "label": ((4, 18, 18), "uint8"),
            "index": ((4,), "int32"),
            "valid": ((4,), "bool"),
        }
        assert batch["valid"].all() and (batch["label"] != 255).any(axis=(1, 2)).all()
    found = segment_train_batches(source, table, dataclasses.replace(config, batch_images=64), 0)[
        0
    ]["label"]
    drawn = np.flatnonzero(table.class_pixels("train"))
    assert set(drawn) <= set(np.unique(found)) <= {*drawn, 255}
    without = dataclasses.replace(config, atlas=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "no training pixel of", UserWarning)
        plain = open_windows(without, SMALL)
    batch = segment_train_batches(SegmentSource(plain), plain, without, seed=0)[3]
    assert "atlas" not in batch and plain.atlas_channels == 0
    same = segment_train_batches(source, table, config, seed=0)[3]
    np.testing.assert_array_equal(batch["image"], same["image"])


def test_evaluation_marks_its_padding(loader):
    config, table, source = loader
    numbers = table.of_split("test")[:6]
    batches = segment_eval_batches(source, table, config, numbers)
    assert len(batches) == 2
    assert batches[1]["valid"].tolist() == [True, True, False, False]
    assert batches[1]["index"].tolist() == [*numbers[4:], *numbers[:2]]
    seen = np.concatenate([batches[k]["index"][batches[k]["valid"]] for k in range(2)])
    np.testing.assert_array_equal(seen, numbers)
    for index, label in zip(batches[1]["index"], batches[1]["label"], strict=True):
        np.testing.assert_array_equal(label, source.read_label(table.window(index)))
    assert len(segment_eval_batches(source, table, config, numbers[:0])) == 0


# ---- selection of sections ----------------------------------------------------------------------


def test_training_sections_are_those_named(root):
    config = config_of(root, train_sections=("b",))
    table = open_windows(config, SMALL)
    source = SegmentSource(table)
    assert [section.row.name for section in table.sections] == ["b", "c", "d"]
    assert {source.draw(0, number).section for number in range(50)} == {0}
    assert "b" in source.describe(0, 7) and "1 train, 1 val, 1 test" in table.describe()


def test_several_brains(root, tmp_path):
    other = write_brain(tmp_path / "other", {"a": ("train", random_label(9, (80, 80)))})
    _, table, source = opened(root, brains=(str(root), str(other)))
    assert len(table.sections) == 5 and len(table.keys) == 2
    drawn = {source.draw(0, number).section for number in range(200)}
    assert drawn == {0, 1, 4}
    assert table.section_name(len(table.windows) - 1) == "other/a"
    assert str(other) in table.describe_window(table.window(len(table.windows) - 1))


def test_brains_in_folders_of_one_name_are_told_apart(root, tmp_path):
    (tmp_path / "x").mkdir()
    other = write_brain(tmp_path / "x" / root.name, {"a": ("train", random_label(9, (80, 80)))})
    _, table, _ = opened(root, brains=(str(root), str(other)))
    first, second = f"{root.parent.name}/{root.name}", f"x/{root.name}"
    assert table.training_sections == sorted([f"{first}/a", f"{first}/b", f"{second}/a"])
    assert table.section_name(len(table.windows) - 1) == f"{second}/a"
    names = brain_names([Path("/a/c"), Path("/b/a/c"), Path("/b/d")])
    assert names == ["/a/c", "b/a/c", "d"]


def test_training_sections_of_several_brains(root, tmp_path):
    """Both brains have a section a, so its name alone does not say which is meant."""
    other = write_brain(tmp_path / "other", {"a": ("train", random_label(9, (80, 80)))})
    brains = str(root), str(other)
    table = open_windows(config_of(root, brains=brains, train_sections=("other/a",)), SMALL)
    assert table.training_sections == ["other/a"]
    for name, words in {
        "a": f"write BRAIN/SECTION ({root.name}/a or other/a)",
        "other/b": "no section of that name",
        f"{root.name}/c": "its split is val",
    }.items():
        with pytest.raises(InputError) as caught:
            open_windows(config_of(root, brains=brains, train_sections=(name,)), SMALL)
        assert words in str(caught.value) and f": {root.name}/a, " in str(caught.value)


def test_keys_tell_whether_annotations_are_the_same(tmp_path):
    label = random_label(1, (80, 90))
    sections = {"a": ("train", label), "b": ("val", label)}
    root = write_brain(tmp_path / "brain", sections)
    keys = open_windows(config_of(root), SMALL).keys
    copy = write_brain(tmp_path / "copy", sections)
    assert open_windows(config_of(copy), SMALL).keys == keys
    label[0, 0] = 1 if label[0, 0] != 1 else 2
    tifffile.imwrite(copy / "b_label.tif", label)
    assert open_windows(config_of(copy), SMALL).keys != keys
    replace(root / "sections.csv", "b_atlas.tif,val", "b_atlas.tif,test")
    assert open_windows(config_of(root), SMALL).keys != keys


def test_input_scales_are_those_of_the_draws(loader):
    _, _, source = loader
    scales = fit_input_scales(source)
    gray = np.stack([source.read_image(source.draw(0, number)) for number in range(256)])
    assert scales.input_mean == pytest.approx(gray.mean())
    assert scales.input_std == pytest.approx(gray.std())


def test_a_class_without_training_pixels_is_named(tmp_path):
    label = random_label(1, (80, 90))
    label[label == 1] = 255
    root = write_brain(tmp_path / "brain", {"a": ("train", label)})
    with pytest.warns(UserWarning, match="no training pixel of outer"):
        _, _, source = opened(root)
    assert all((source.read_label(source.draw(0, n)) != 1).all() for n in range(50))


# ---- refused input ------------------------------------------------------------------------------

LABEL = random_label(1, (80, 90))
FAULTS = {
    "no brains": (None, {"brains": ()}, ("data.brains is empty",)),
    "size of the image": (None, {"image_px": 50}, ("data.image_px", "50 px", "48 px and 52 px")),
    "pixel size": (None, {"um_per_px": 10.0}, ("data.um_per_px = 10", "20 um", "multiple of 8")),
    "pixel size too fine": (None, {"um_per_px": 2.0}, ("data.um_per_px = 2", "4 um")),
    "unknown section": (
        None,
        {"train_sections": ("a", "z")},
        ("'z': no section", "sections.csv", "sections of the split train are", ": a"),
    ),
    "section of another split": (None, {"train_sections": ("b",)}, ("'b': its split is val",)),
    "section without label": (
        lambda root: replace(root / "sections.csv", "a_label.tif", ""),
        {"train_sections": ("a",)},
        ("'a': it has no label image",),
    ),
    "no training section": (
        lambda root: replace(root / "sections.csv", "a_atlas.tif,train", "a_atlas.tif,exclude"),
        {},
        ("sections.csv: no section has both a label and the split train",),
    ),
    "empty split": (
        lambda root: replace(root / "sections.csv", "a_atlas.tif,train", "a_atlas.tif,"),
        {},
        ("sections.csv: split: empty for 1", "(a)", "jaxcyto sample"),
    ),
    "one class": (
        lambda root: (root / "brain.toml").write_text(
            (root / "brain.toml").read_text().split("[[classes]]")[0]
        ),
        {},
        ("brain.toml: 0 classes", "two or more"),
    ),
    "label of another size": (
        lambda root: tifffile.imwrite(root / "b_label.tif", LABEL[:-2]),
        {},
        ("section b", "b_label.tif has 78 x 90 px", "80 x 90 px at 16 um"),
    ),
    "unknown class": (
        lambda root: tifffile.imwrite(root / "b_label.tif", np.where(LABEL == 2, 9, LABEL)),
        {},
        ("section b", "b_label.tif holds [9]", "3 classes"),
    ),
    "nothing annotated": (
        lambda root: tifffile.imwrite(root / "a_label.tif", np.full_like(LABEL, 255)),
        {},
        ("section a", "a_label.tif has no annotated pixel", "clear its label"),
    ),
    "no atlas": (
        lambda root: replace(root / "sections.csv", "b_atlas.tif", ""),
        {},
        ("sections.csv: section b: atlas: empty", "data.atlas = False"),
    ),
    "atlas of another size": (
        lambda root: tifffile.imwrite(
            root / "b_atlas.tif", np.zeros((2, 70, 90), np.uint8), photometric="minisblack"
        ),
        {},
        ("section b", "b_atlas.tif has 2 channels of 70 x 90 px", "80 x 90 px"),
    ),
    "atlas channels": (
        lambda root: tifffile.imwrite(
            root / "b_atlas.tif", np.zeros((3, 80, 90), np.uint8), photometric="minisblack"
        ),
        {},
        ("b_atlas.tif has 3 channels", "each of the 2 areas"),
    ),
    "atlas of 16 bits": (
        lambda root: tifffile.imwrite(
            root / "b_atlas.tif", np.zeros((2, 80, 90), np.uint16), photometric="minisblack"
        ),
        {},
        ("b_atlas.tif", "uint16", "expected uint8"),
    ),
    "no tiff": (
        lambda root: (root / "b_atlas.tif").write_bytes(b"nothing"),
        {},
        ("b_atlas.tif: not a readable TIFF", "export it again"),
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_faults(tmp_path, case):
    change, fields, words = FAULTS[case]
    root = write_brain(tmp_path / "brain", {"a": ("train", LABEL), "b": ("val", LABEL)})
    if change is not None:
        change(root)
    with pytest.raises(InputError) as caught:
        open_windows(config_of(root, **fields), SMALL)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_brains_of_other_classes_are_refused(tmp_path):
    first = write_brain(tmp_path / "first", {"a": ("train", LABEL)})
    second = write_brain(tmp_path / "second", {"a": ("train", LABEL)})
    replace(second / "brain.toml", 'name = "outer"', 'name = "other"')
    config = config_of(first, brains=(str(first), str(second)))
    with pytest.raises(InputError, match=r"first/brain\.toml.*second/brain\.toml.*class 1.*other"):
        open_windows(config, SMALL)
    text = (first / "brain.toml").read_text()
    (second / "brain.toml").write_text(text + '[[classes]]\nname = "x"\ncolor = "#000000"\n')
    with pytest.raises(InputError, match="3 and 4 classes"):
        open_windows(config, SMALL)


def test_a_brain_that_is_listed_twice_is_refused(root, tmp_path):
    (tmp_path / "link").symlink_to(root)
    for again in (f"{root}/", str(tmp_path / "link")):
        with pytest.raises(InputError, match=f"{root} is listed twice"):
            open_windows(config_of(root, brains=(str(root), again)), SMALL)


@pytest.mark.parametrize("kind", ["", "_label", "_atlas"])
def test_a_damaged_tile_names_section_and_file(tmp_path, kind):
    root = write_brain(tmp_path / "brain", {"a": ("train", LABEL)})
    path = root / f"a{kind}.tif"
    if not kind:
        tifffile.imwrite(path, tifffile.imread(path), tile=(64, 64), compression="zlib")
    with tifffile.TiffFile(path) as tiff:
        start, size = tiff.pages[0].dataoffsets[0], tiff.pages[0].databytecounts[0]  # pyright: ignore
    data = path.read_bytes()
    damaged = data[:start] + b"\xff" * size + data[start + size :]
    if kind == "_label":  # labels are read when the brain is opened
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"a_label\.tif: tile 0 cannot be decoded"):
            opened(root)
        return
    path.write_bytes(damaged)
    _, _, source = opened(root)
    with pytest.raises(InputError, match=rf"section a of .*a{kind}\.tif: tile 0 cannot be decoded"):
        source.read(Window(0, 0, 0))


def test_a_label_that_changes_while_it_is_in_use(tmp_path):
    root = write_brain(tmp_path / "brain", {"a": ("train", LABEL)})
    _, _, source = opened(root)
    tifffile.imwrite(root / "a_label.tif", np.full_like(LABEL, 255))
    with pytest.raises(
        InputError, match=r"section a of .*a_label\.tif: changed while it was in use"
    ):
        source.draw(0, 0)


def test_batches_are_divided_evenly(loader):
    config, table, source = loader
    with pytest.raises(
        InputError, match=r"data\.batch_images = 4 must be divisible by 3 processes"
    ):
        segment_train_batches(source, table, config, 0, process=0, processes=3)
