"""Test that each window of a section equals the same crop of the image decoded by tifffile."""

import os
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxcyto.brain.sections import section as sections
from jaxcyto.brain.sections import tiff as tiff_level
from jaxcyto.brain.sections.resample import resample, source_range
from jaxcyto.brain.sections.section import open_section
from jaxcyto.brain.sections.writer import write_section
from jaxcyto.errors import InputError

BACKGROUND = 201
ANY_FIXTURE = list(HealthCheck)


def luma(rgb: np.ndarray) -> np.ndarray:
    return ((rgb[..., :3].astype(np.int64) @ [19595, 38470, 7471] + 32768) >> 16).astype(np.uint8)


def image(height=150, width=203, dtype=np.uint8, samples=1, seed=0) -> np.ndarray:
    """Return a noisy image that is smooth enough for JPEG and spans the range of its dtype."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    channels = [
        0.5
        + 0.4 * np.sin(x / (9 + c) + c) * np.cos(y / (13 - c))
        + 0.05 * rng.random((height, width))
        for c in range(samples)
    ]
    out = (np.stack(channels, -1).clip(0, 1) * np.iinfo(dtype).max).astype(dtype)
    return out[..., 0] if samples == 1 else out


def check_windows(section, whole: np.ndarray, number: int = 25, seed: int = 0) -> None:
    """Compare random windows, most of them across the border, with crops of the padded image."""
    rng = np.random.default_rng(seed)
    margin = 20
    padded = np.pad(whole, margin, constant_values=section.background)
    np.testing.assert_array_equal(section.read(-margin, -margin, *padded.shape), padded)
    for _ in range(number):
        top, bottom = np.sort(rng.integers(0, padded.shape[0] + 1, 2))
        left, right = np.sort(rng.integers(0, padded.shape[1] + 1, 2))
        window = section.read(int(top) - margin, int(left) - margin, bottom - top, right - left)
        assert window.dtype == np.uint8
        np.testing.assert_array_equal(window, padded[top:bottom, left:right])


@pytest.mark.parametrize(
    "name",
    [
        "boxes.tiff",
        "small.svs",
        *(
            f"pytiff_{name}.tif"
            for name in (
                "big_endian_small_example",
                "bigtif_example",
                "bigtif_example_tiled",
                "multi_page",
                "small_example_tiled",
                "tiled_rgb_sample",
                "unicode_imagedescription",
            )
        ),
    ],
)
def test_real_tiffs(shared_data, name):
    path = shared_data / "tiff" / name
    whole = tifffile.imread(path)
    with open_section(path, background=BACKGROUND) as section:
        check_windows(section, whole if whole.ndim == 2 else luma(whole))
        for level, shape in enumerate(section.levels):
            assert tifffile.imread(path, level=level).shape[:2] == shape


def test_all_real_tiffs_are_tried(shared_data):
    names = {path.name for path in (shared_data / "tiff").iterdir()}
    tried = test_real_tiffs.pytestmark[0].args[1]
    assert names == set(tried)


def test_real_sections(shared_data):
    histology = shared_data / "histology"
    for name in ("columns_cut300/cut_300.tif", "fzj_demics/test.tif"):
        check_windows(open_section(histology / name), tifffile.imread(histology / name), 5)
    path = histology / "bigbrain_sections" / "y+2.80_image_81um.png"
    section = open_section(path, 80.9)
    assert section.shape == (1147, 1619)
    check_windows(section, np.asarray(Image.open(path).convert("L")), 5)


def test_pyramid_of_pages(shared_data):
    section = open_section(shared_data / "tiff" / "boxes.tiff", 2.0, BACKGROUND)
    assert section.levels == [(250, 300), (125, 150), (62, 75), (31, 37)]
    assert section.factors == [1, 2, 4, 8]
    second = luma(tifffile.imread(section.path, level=1))
    np.testing.assert_array_equal(section.read_at(4.0, 0, 0, 125, 150), second)


LAYOUTS = {
    "one strip": dict(rowsperstrip=150),
    "strips": dict(rowsperstrip=7),
    "tiles": dict(tile=(32, 48)),
    "big tiles": dict(tile=(256, 256)),
}


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("compression", [None, "lzw", "adobe_deflate", "zstd", "packbits"])
def test_codecs_and_layouts(tmp_path, compression, layout, byteorder):
    path = tmp_path / "section.tif"
    predictors = (False, True) if compression in ("lzw", "adobe_deflate", "zstd") else (False,)
    for bigtiff in (False, True):
        for predictor in predictors:
            for dtype, samples in ((np.uint8, 1), (np.uint16, 1), (np.uint8, 3)):
                whole = image(dtype=dtype, samples=samples)
                tifffile.imwrite(
                    path,
                    whole,
                    photometric="rgb" if samples == 3 else "minisblack",
                    byteorder=byteorder,
                    bigtiff=bigtiff,
                    compression=compression,
                    predictor=predictor,
                    metadata=None,
                    **LAYOUTS[layout],
                )
                gray = luma(whole) if samples == 3 else whole >> (8 * whole.itemsize - 8)
                with open_section(path, background=BACKGROUND) as section:
                    check_windows(section, gray.astype(np.uint8), 6)


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("layout", ["strips", "tiles"])
def test_jpeg(tmp_path, layout, samples):
    path = tmp_path / "section.tif"
    options = {"rowsperstrip": 16} if layout == "strips" else {"tile": (64, 64)}
    photometric = "rgb" if samples == 3 else "minisblack"
    tifffile.imwrite(
        path, image(samples=samples), compression="jpeg", photometric=photometric, **options
    )
    whole = tifffile.imread(path)
    check_windows(open_section(path), luma(whole) if samples == 3 else whole)


def test_planar_rgb_and_alpha(tmp_path):
    path = tmp_path / "section.tif"
    whole = image(samples=3)
    for options in ({"tile": (32, 32)}, {"rowsperstrip": 9}, {"compression": "zstd"}):
        tifffile.imwrite(
            path, np.moveaxis(whole, -1, 0), photometric="rgb", planarconfig="separate", **options
        )
        check_windows(open_section(path), luma(whole), 5)
    rgba = image(samples=4)
    tifffile.imwrite(path, rgba, photometric="rgb", extrasamples=["unassalpha"], tile=(32, 32))
    check_windows(open_section(path), luma(rgba), 5)
    gray = image(samples=2)
    options = {"planarconfig": "contig", "extrasamples": ["unassalpha"]}
    tifffile.imwrite(path, gray, photometric="minisblack", **options)
    check_windows(open_section(path), gray[..., 0], 5)
    whole16 = image(samples=3, dtype=np.uint16)
    tifffile.imwrite(path, whole16, photometric="rgb", tile=(32, 32))
    check_windows(open_section(path), luma(whole16 >> 8), 5)


def test_gray_rules(tmp_path):
    path = tmp_path / "section.tif"
    whole = image()
    tifffile.imwrite(path, whole, photometric="miniswhite")
    check_windows(open_section(path), 255 - whole, 5)
    bits = image() > 128
    tifffile.imwrite(path, bits, photometric="minisblack")
    check_windows(open_section(path), np.where(bits, 255, 0).astype(np.uint8), 5)
    tifffile.imwrite(path, bits, photometric="miniswhite", compression="packbits")
    check_windows(open_section(path), np.where(bits, 0, 255).astype(np.uint8), 5)
    palette = np.random.default_rng(0).integers(0, 65536, (3, 256)).astype(np.uint16)
    tifffile.imwrite(path, whole, photometric="palette", colormap=palette)
    check_windows(open_section(path), luma(palette.T >> 8)[whole], 5)
    twelve = (image(dtype=np.uint16) >> 4).copy()
    twelve[0, 0] = 65535
    tifffile.imwrite(path, twelve, extratags=[(281, 3, 1, 4095, True)])  # MaxSampleValue
    check_windows(open_section(path), np.minimum(twelve >> 4, 255).astype(np.uint8), 5)
    tifffile.imwrite(tmp_path / "section.ome.tif", twelve, metadata={"SignificantBits": 12})
    section = open_section(tmp_path / "section.ome.tif")
    check_windows(section, np.minimum(twelve >> 4, 255).astype(np.uint8), 5)


def test_used_bits_that_the_caller_states(tmp_path):
    twelve = (image(dtype=np.uint16) >> 4).copy()
    twelve[0, 0] = 65535
    rgb = image(dtype=np.uint16, samples=3) >> 4
    path = tmp_path / "section.tif"
    gray = np.minimum(twelve >> 4, 255).astype(np.uint8)
    for options in ({}, {"compression": "zlib"}, {"extratags": [(281, 3, 1, 65535, True)]}):
        tifffile.imwrite(path, twelve, **options)
        assert open_section(path).bits_unstated == ("extratags" not in options)
        check_windows(open_section(path), (twelve >> 8).astype(np.uint8), 3)
        section = pickle.loads(pickle.dumps(open_section(path, None, 255, 12)))
        assert not section.bits_unstated
        check_windows(section, gray, 3)
    tifffile.imwrite(path, rgb, photometric="rgb", tile=(32, 32))
    check_windows(open_section(path, bits=12), luma((rgb >> 4).astype(np.uint8)), 3)
    Image.fromarray(twelve).save(path, "PNG")
    assert open_section(path).bits_unstated and not open_section(path, bits=12).bits_unstated
    check_windows(open_section(path, bits=12), gray, 3)
    tifffile.imwrite(path, image())
    check_windows(
        open_section(path, bits=12), image(), 3
    )  # only images of 16 bits have unused ones


@pytest.mark.parametrize("levels", ["subpages", "pages"])
@pytest.mark.parametrize("form", [{}, {"bigtiff": True}, {"byteorder": ">"}])
def test_a_pyramid_that_is_cut_off_is_refused(tmp_path, levels, form):
    path, whole = tmp_path / "section.tif", image(600, 500)
    with tifffile.TiffWriter(path, **form) as writer:
        writer.write(whole, tile=(64, 64), subifds=2 if levels == "subpages" else None)
        for factor in (2, 4):
            writer.write(whole[::factor, ::factor], tile=(64, 64), subfiletype=1)
    with tifffile.TiffFile(path) as tiff:
        pages = [level.pages[0].aspage() for level in tiff.series[0].levels]
        starts = [page.offset for page in pages]
        ends = [max(np.add(page.dataoffsets, page.databytecounts)) for page in pages]
    assert open_section(path).levels == [(600, 500), (300, 250), (150, 125)]
    data = path.read_bytes()
    for cut in (4, 8, 16, 50, ends[0], starts[1] + 4, ends[1], starts[2] + 4, ends[2] - 1):
        path.write_bytes(data[:cut])
        with pytest.raises(InputError, match=r"section\.tif.*it is truncated"):
            open_section(path)


def test_a_folder_of_ome_zarr_is_named(tmp_path):
    path = tmp_path / "section.ome.zarr"
    path.mkdir()
    with pytest.raises(InputError, match="cannot be read: not a file"):
        open_section(path)
    (path / ".zattrs").write_text("{}")
    with pytest.raises(InputError, match=r"an OME-Zarr image.*pyramidal OME-TIFF"):
        open_section(path)


def test_missing_tiles_are_background(tmp_path):
    path = tmp_path / "section.tif"
    whole = image(128, 128)
    tifffile.imwrite(path, whole, tile=(32, 32), compression="zstd")
    with tifffile.TiffFile(path, mode="r+") as tiff:
        for name in ("TileOffsets", "TileByteCounts"):
            tag = tiff.pages[0].tags[name]
            tag.overwrite([0 if i in (3, 9) else value for i, value in enumerate(tag.value)])
    whole[:32, 96:] = BACKGROUND
    whole[64:96, 32:64] = BACKGROUND
    check_windows(open_section(path, background=BACKGROUND), whole, 5)


@pytest.mark.parametrize("compression", [None, "zstd", "deflate"])
@pytest.mark.parametrize("tile", [256, 64])
def test_written_section(tmp_path, compression, tile):
    whole = image(333, 411)
    path = tmp_path / "section.tif"
    blocks = (whole[row : row + 50] for row in range(0, 333, 50))
    write_section(
        path, blocks, 2.0, shape=whole.shape, tile=tile, compression=compression, levels=3
    )
    assert [p.name for p in tmp_path.iterdir()] == ["section.tif"]
    section = open_section(path, background=BACKGROUND)
    assert section.levels == [(333, 411), (167, 206), (84, 103)]
    assert section.pixel_um == pytest.approx(2.0, rel=1e-6)
    check_windows(section, whole)
    expected = whole
    for level in (1, 2):
        even = np.pad(expected, [(0, side % 2) for side in expected.shape], mode="edge")
        height, width = even.shape
        sums = even.reshape(height // 2, 2, width // 2, 2).sum((1, 3), dtype=int)
        expected = ((sums + 2) // 4).astype(np.uint8)
        np.testing.assert_array_equal(tifffile.imread(path, level=level), expected)
        np.testing.assert_array_equal(
            section.read_at(2.0 * 2**level, 0, 0, *expected.shape), expected
        )
    first = path.read_bytes()
    write_section(path, whole, 2.0, tile=tile, compression=compression, levels=3)
    assert path.read_bytes() == first
    with tifffile.TiffFile(path) as tiff:
        assert tiff.is_bigtiff and tiff.pages[0].tile == (tile, tile)


def test_writer_leaves_nothing_behind(tmp_path):
    with pytest.raises(ValueError, match="100 rows written; 150 expected"):
        write_section(tmp_path / "section.tif", [image()[:100]], 2.0, shape=(150, 203))
    with pytest.raises(InputError, match="cannot be written"):
        write_section(tmp_path / "absent" / "section.tif", image(), 2.0)
    assert list(tmp_path.iterdir()) == []


def exact_resample(whole, ratio, top, left, height, width, background) -> np.ndarray:
    """Resample by area or linear interpolation in float64, one axis after the other."""

    def weights(start, size, length):
        matrix = np.zeros((size, length + 1))  # the last column is the background
        for m in range(start, start + size):
            if ratio < 1:
                position = ratio * (m + 0.5) - 0.5
                low = int(np.floor(position))
                shares = {low: 1 - (position - low), low + 1: position - low}
            else:
                begin, end = m * ratio, (m + 1) * ratio
                shares = {
                    k: (min(end, k + 1) - max(begin, k)) / ratio
                    for k in range(int(np.floor(begin)), int(np.ceil(end)))
                }
            for k, share in shares.items():
                matrix[m - start, k if 0 <= k < length else length] += share
        return matrix

    padded = np.pad(whole.astype(float), ((0, 1), (0, 1)), constant_values=background)
    rows, columns = (
        weights(start, size, length)
        for start, size, length in zip((top, left), (height, width), whole.shape, strict=True)
    )
    return rows @ padded @ columns.T


@pytest.mark.parametrize("um_per_px", [0.7, 1.99, 2.0, 2.6, 3.0, 4.0, 5.5, 6.0, 8.0, 37.0])
def test_resampling_is_by_area(tmp_path, um_per_px):
    path = tmp_path / "section.tif"
    whole = image(97, 81)
    write_section(path, whole, 2.0, tile=32)
    section = open_section(path, 2.0, BACKGROUND)
    height, width = (int(side * 2 / um_per_px) + 6 for side in whole.shape)
    out = section.read_at(um_per_px, -3, -2, height, width)
    expected = exact_resample(whole, um_per_px / 2, -3, -2, height, width, BACKGROUND)
    assert np.abs(out - expected).max() <= 0.5 + 0.01


@given(
    um_per_px=st.one_of(st.floats(0.5, 60), st.sampled_from([2.0, 4.0, 6.0, 10.0, 16.0])),
    levels=st.integers(1, 4),
    data=st.data(),
)
@settings(max_examples=80, deadline=None, suppress_health_check=ANY_FIXTURE)
def test_any_resampled_window_is_a_crop(tmp_path, um_per_px, levels, data):
    path = tmp_path / f"section{levels}.tif"
    if not path.exists():
        write_section(path, image(97, 81), 2.0, tile=32, levels=levels)
    section = open_section(path, 2.0, BACKGROUND)
    height, width = (min(int(side * 2 / um_per_px) + 8, 90) for side in section.shape)
    full = section.read_at(um_per_px, -4, -4, height, width)
    top, left = data.draw(st.integers(0, height)), data.draw(st.integers(0, width))
    bottom, right = data.draw(st.integers(top, height)), data.draw(st.integers(left, width))
    window = section.read_at(um_per_px, top - 4, left - 4, bottom - top, right - left)
    np.testing.assert_array_equal(window, full[top:bottom, left:right])


def test_bands_do_not_show(tmp_path, monkeypatch):
    path = tmp_path / "section.tif"
    write_section(path, image(), 2.0, levels=2)
    section = open_section(path, background=BACKGROUND)
    for um_per_px in (1.3, 3.1, 6.0):
        full = section.read_at(um_per_px, -3, -3, 60, 70)
        with monkeypatch.context() as patch:
            patch.setattr(sections, "MAX_SOURCE_PX", 500)
            np.testing.assert_array_equal(section.read_at(um_per_px, -3, -3, 60, 70), full)


@given(value=st.integers(0, 255), ratio=st.floats(0.1, 20), start=st.integers(-50, 50))
@settings(max_examples=100, deadline=None)
def test_a_flat_image_stays_flat(value, ratio, start):
    first, last = source_range(start, 7, ratio)
    source = np.full((last - first, last - first), value, np.uint8)
    np.testing.assert_array_equal(
        resample(source, start, start, 7, 7, ratio), np.full((7, 7), value)
    )


def test_pixel_size_of_the_file(tmp_path):
    path = tmp_path / "section.tif"
    whole = image()
    stated = {
        "cm": (dict(resolution=(5000, 5000), resolutionunit="CENTIMETER"), 2.0),
        "inch": (dict(resolution=(25400, 25400), resolutionunit="INCH"), 1.0),
        "screen": (dict(resolution=(72, 72), resolutionunit="INCH"), None),
        "none": (dict(resolution=(5000, 5000), resolutionunit="NONE"), None),
        "oblong": (dict(resolution=(5000, 2500), resolutionunit="CENTIMETER"), None),
        "ome": (dict(ome=True, metadata={"PhysicalSizeX": 1.5, "PhysicalSizeY": 1.5}), 1.5),
    }
    for name, (options, expected) in stated.items():
        tifffile.imwrite(path, whole, **options)
        assert open_section(path).pixel_um == (expected and pytest.approx(expected)), name
        assert open_section(path, 3.0).pixel_um == 3.0
        if expected is None:
            with pytest.raises(InputError, match=r"section\.tif: states no pixel size"):
                open_section(path).read_at(4.0, 0, 0, 5, 5)


def test_svs_states_its_pixel_size(shared_data):
    assert open_section(shared_data / "tiff" / "small.svs").pixel_um == 0.499


def test_threads_pickles_and_closing(tmp_path):
    path = tmp_path / "section.tif"
    whole = image(600, 500)
    write_section(path, whole, 2.0, tile=64, compression="zstd")
    section = open_section(path, 4.0, BACKGROUND)

    def read(number: int) -> bool:
        top, left = np.random.default_rng(number).integers(0, 400, 2)
        return np.array_equal(
            section.read(top, left, 90, 99), whole[top : top + 90, left : left + 99]
        )

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(200)))
    copy = pickle.loads(pickle.dumps(section))
    assert (copy.path, copy.pixel_um, copy.background) == (path, 4.0, BACKGROUND)
    section.close()
    check_windows(section, whole, 3)
    check_windows(copy, whole, 3)


def test_many_sections_need_no_descriptors(tmp_path):
    path = tmp_path / "section.tif"
    write_section(path, image(), 2.0)
    held = [open_section(path) for _ in range(20)]
    used = {int(name) for name in os.listdir("/dev/fd")}
    held += [open_section(path) for _ in range(20)]
    assert all(section.read(0, 0, 9, 9).shape == (9, 9) for section in held)
    assert (
        len(set(map(int, os.listdir("/dev/fd"))) - used) <= 1
    )  # the descriptor of the listing itself


def test_only_the_rows_of_a_window_are_read(tmp_path, monkeypatch):
    path = tmp_path / "section.tif"
    whole = image(400, 10_000)
    tifffile.imwrite(path, whole, rowsperstrip=400)
    section = open_section(path)
    read = []
    preadv = tiff_level.os.preadv
    monkeypatch.setattr(
        tiff_level.os, "preadv", lambda fd, to, at: read.append(len(to[0])) or preadv(fd, to, at)
    )
    np.testing.assert_array_equal(section.read(100, 700, 60, 50), whole[100:160, 700:750])
    assert sum(read) == 60 * 50


def test_small_images(tmp_path):
    rgb = image(samples=3)
    for mode, pixels, expected in (
        ("L", image(), image()),
        ("RGB", rgb, luma(rgb)),
        ("RGBA", image(samples=4), luma(image(samples=4))),
        ("I;16", image(dtype=np.uint16), image(dtype=np.uint16) >> 8),
        ("1", image() > 128, np.where(image() > 128, 255, 0)),
    ):
        picture = Image.fromarray(pixels)
        assert picture.mode == mode
        picture.save(tmp_path / "section.tif", "PNG")  # the content decides, not the name
        check_windows(open_section(tmp_path / "section.tif"), expected.astype(np.uint8), 5)


def test_refused_in_words(tmp_path, monkeypatch):
    path = tmp_path / "section.tif"

    def refused(message: str, whole=None, **options):
        if whole is not None:
            tifffile.imwrite(path, whole, **options)
        with pytest.raises(InputError, match=message) as caught:
            open_section(path)
        assert "section.tif" in str(caught.value)

    refused("cannot be read")
    path.write_bytes(b"")
    refused("the file is empty")
    path.write_bytes(b"a letter")
    refused("not a readable TIFF, PNG or JPEG")
    path.write_bytes(b"II*\0" + bytes(10))
    refused("not a readable TIFF: it has no page")
    path.write_bytes(b"II*\0\xff\xff\xff\x7f")
    refused("not a readable TIFF: page 1 begins at byte 2147483647, .* 8 bytes; it is truncated")
    path.write_bytes(b"II+\0\x08\0\0\0")
    refused("not a readable TIFF: page 1 is missing, .* it is truncated")
    refused("float32 samples", image().astype(np.float32))
    refused("int16 samples", image().astype(np.int16))
    refused("uint32 samples", image().astype(np.uint32))
    refused("5 planes", np.stack([image()] * 5), photometric="minisblack")
    refused("colors are", image(samples=4), photometric="separated")
    for options in (
        {"photometric": "minisblack", "planarconfig": "contig"},
        {"photometric": "rgb"},  # with two more samples, as some microscopes write five channels
    ):
        refused("5 channels in one page.*gray image of its own", image(samples=5), **options)
    five = np.moveaxis(image(samples=5), -1, 0)
    refused("5 channels", five, photometric="minisblack", planarconfig="separate")
    two = image(samples=2)
    refused("2 channels", two, photometric="minisblack", planarconfig="contig")
    Image.new("CMYK", (5, 5)).save(path, "JPEG")
    refused("pixels are CMYK")
    Image.new("L", (3000, 10)).save(path, "PNG")
    monkeypatch.setattr(sections, "MAX_PIXELS", 10_000)
    refused("3000 x 10 px.*write it as tiled TIFF")
    monkeypatch.setattr(tiff_level, "MAX_SEGMENT_BYTES", 1 << 12)
    refused("one strip unpacks to", image(), compression="zstd", rowsperstrip=150)
    for pixel_um in (0, -1.0, float("nan")):
        with pytest.raises(InputError, match="positive number"):
            open_section(path, pixel_um)


@pytest.mark.parametrize("compression", [None, "zstd", "jpeg", "lzw"])
def test_truncated_and_corrupt(tmp_path, compression):
    path = tmp_path / "section.tif"
    tifffile.imwrite(path, image(), tile=(32, 32), compression=compression)
    data = path.read_bytes()
    with tifffile.TiffFile(path) as tiff:
        offset, count = tiff.pages[0].dataoffsets[9], tiff.pages[0].databytecounts[9]
    path.write_bytes(data[: offset + count // 2])
    with pytest.raises(InputError, match=r"section\.tif: tile 9 .*truncated"):
        open_section(path)
    path.write_bytes(data)
    section = open_section(path)
    path.write_bytes(data[: offset + count // 2])  # while the section is in use
    with pytest.raises(InputError, match=r"section\.tif: changed while"):
        section.read(0, 0, *section.shape)
    if compression in ("zstd", "jpeg"):
        path.write_bytes(data[:offset] + bytes(count) + data[offset + count :])
        with pytest.raises(InputError, match=r"section\.tif: tile 9 cannot be decoded"):
            open_section(path).read(0, 0, *section.shape)
        assert open_section(path).read(0, 0, 32, 32).shape == (32, 32)


@given(data=st.data())
@settings(max_examples=400, deadline=None, suppress_health_check=ANY_FIXTURE)
def test_damaged_headers_are_read_or_refused(tmp_path, data):
    path = tmp_path / "section.tif"
    good = tmp_path / "good.tif"
    if not good.exists():
        write_section(good, image(60, 70), 2.0, tile=32, compression="zstd", levels=2)
    damaged = bytearray(good.read_bytes())
    with tifffile.TiffFile(good) as tiff:
        start = tiff.pages[0].offset
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(4, 15) | st.integers(start, start + 330))
        damaged[min(place, len(damaged) - 1)] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged)
    try:
        section = open_section(path)
        height, width = section.shape
        section.read(0, 0, min(height, 99), min(width, 99))
        if section.pixel_um:
            section.read_at(2 * section.pixel_um, 0, 0, 20, 20)
    except InputError as error:
        assert "section.tif" in str(error)


def test_a_lying_jpeg_is_not_unpacked(tmp_path):
    path = tmp_path / "section.tif"
    tifffile.imwrite(path, image(), tile=(64, 64), compression="jpeg")
    data = bytearray(path.read_bytes())
    frame = data.index(b"\xff\xc0")
    assert data[frame + 5 : frame + 9] == b"\x00\x40\x00\x40"
    data[frame + 5 : frame + 9] = b"\xfd\xe8\xfd\xe8"
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"tile 0 cannot be decoded: .* announces 4225000000 px"):
        open_section(path).read(0, 0, 9, 9)


@pytest.mark.parametrize("bigtiff", [False, True])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_pages_that_lead_back_are_refused(tmp_path, bigtiff, byteorder):
    """Refuse a last page that links to the first. tifffile alone would follow the loop."""
    path = tmp_path / "loop.tif"
    with tifffile.TiffWriter(path, bigtiff=bigtiff, byteorder=byteorder) as writer:
        for _ in range(3):
            writer.write(np.zeros((16, 16), np.uint8), contiguous=False)
    with tifffile.TiffFile(path) as tiff:
        last, first = tiff.pages[-1], tiff.pages[0]
        size = (8, 20, 8) if bigtiff else (2, 12, 4)
        link = last.offset + size[0] + len(last.tags) * size[1]
        target = first.offset.to_bytes(size[2], "little" if byteorder == "<" else "big")
    data = bytearray(path.read_bytes())
    assert data[link : link + size[2]] == bytes(size[2])
    open_section(path, 1.0).close()
    data[link : link + size[2]] = target
    path.write_bytes(data)
    with pytest.raises(InputError, match="does not end"):
        open_section(path, 1.0)
