"""Test that a fingerprint stands for the content of a section, and not for its file."""

import itertools
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxcyto.brain.manifest import Brain, SectionRow
from jaxcyto.brain.sections.fingerprint import (
    PARTS,
    SIDE_PX,
    brain_fingerprints,
    fingerprint,
    fingerprints,
)
from jaxcyto.brain.sections.section import Section, array_section, open_section

GRAY = np.random.default_rng(0).integers(256, size=(431, 350), dtype=np.uint8)
STORED = {
    "strips": {},
    "one strip, deflate": {"compression": "zlib", "rowsperstrip": 431},
    "tiles": {"tile": (64, 128)},
    "zstd": {"tile": (256, 256), "compression": "zstd"},
    "lzw with a predictor": {"tile": (32, 32), "compression": "lzw", "predictor": True},
    "big": {"tile": (64, 64), "bigtiff": True, "byteorder": ">"},
    "inverted": {"photometric": "miniswhite"},
    "pyramid": {"tile": (64, 64), "compression": "zlib", "subifds": 1},
}


@pytest.mark.parametrize("kind", STORED)
def test_a_copy_stored_otherwise_has_the_same(tmp_path, kind):
    path, options = tmp_path / "copy.tif", STORED[kind]
    with tifffile.TiffWriter(
        path, bigtiff=options.get("bigtiff", False), byteorder=options.get("byteorder")
    ) as tiff:
        rest = {k: v for k, v in options.items() if k not in ("bigtiff", "byteorder")}
        tiff.write(~GRAY if kind == "inverted" else GRAY, **rest)
        if kind == "pyramid":
            tiff.write(GRAY[::2, ::2], subfiletype=1, tile=(64, 64))
    found = fingerprint(open_section(path, 2.0))
    assert found == fingerprint(array_section(GRAY, 1.0)) and found is not None


def test_a_png_and_rgb_have_the_same(tmp_path):
    Image.fromarray(GRAY).save(tmp_path / "copy.png")
    tifffile.imwrite(tmp_path / "rgb.tif", np.stack([GRAY] * 3, -1), photometric="rgb")
    wanted = fingerprint(array_section(GRAY, 1.0))
    assert fingerprint(open_section(tmp_path / "copy.png")) == wanted
    assert fingerprint(open_section(tmp_path / "rgb.tif")) == wanted


def in_windows(shape: tuple[int, int]) -> np.ndarray:
    """Return which pixels a fingerprint reads, computed as the module describes it."""
    read = np.zeros(shape, bool)
    for y, x in itertools.product(range(1, PARTS), repeat=2):
        top = (shape[0] - min(SIDE_PX, shape[0])) * y // PARTS
        left = (shape[1] - min(SIDE_PX, shape[1])) * x // PARTS
        read[top : top + SIDE_PX, left : left + SIDE_PX] = True
    return read


@settings(deadline=None, max_examples=60)
@given(st.data(), st.integers(1, 300), st.integers(2, 300))
def test_a_pixel_in_a_window_changes_it_and_one_elsewhere_does_not(data, height, width):
    gray = GRAY[:height, :width].copy()
    before = fingerprint(array_section(gray, 1.0))
    row = data.draw(st.integers(0, height - 1))
    column = data.draw(st.integers(0, width - 1))
    gray[row, column] ^= 1
    after = fingerprint(array_section(gray, 1.0))
    assert (after != before) == in_windows(gray.shape)[row, column]


def test_the_windows_are_a_part_of_the_whole():
    read = in_windows(GRAY.shape)
    assert read.sum() == 16 * SIDE_PX**2 < read.size / 5


def test_the_size_belongs_to_it():
    """Images that are smaller than a window, with the same gray values in order."""
    gray = np.arange(16, dtype=np.uint8)
    found = {fingerprint(array_section(gray.reshape(rows, -1), 1.0)) for rows in (1, 2, 4, 8, 16)}
    assert len(found) == 5


def test_empty_sections_have_none():
    assert fingerprint(array_section(np.full((500, 400), 255, np.uint8), 1.0)) is None


def test_sections_that_cannot_be_read_have_none(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", GRAY, tile=(64, 64), compression="zlib")
    section = open_section(tmp_path / "a.tif")
    data = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "b.tif").write_bytes(data[:-3000])
    paths = {"good": "a.tif", "cut off": "b.tif", "missing": "c.tif"}
    found = fingerprints({name: Section(tmp_path / path) for name, path in paths.items()})
    assert found == {"good": fingerprint(section), "cut off": None, "missing": None}
    assert found["good"] is not None
    (tmp_path / "a.tif").write_bytes(data[:100] + b"\xff" * (len(data) - 1500) + data[-1400:])
    assert fingerprint(section) is None


def test_images_of_a_brain_do_not_stay_in_memory(tmp_path, monkeypatch):
    """A PNG is decoded as a whole."""
    Image.fromarray(GRAY).save(tmp_path / "a.png")
    made, init = [], Section.__init__
    monkeypatch.setattr(
        Section, "__init__", lambda self, *args: (made.append(self), init(self, *args))[1]
    )
    row = SimpleNamespace(name="a", image=tmp_path / "a.png", pixel_um=1.0)
    brain = SimpleNamespace(root=tmp_path / "brain", background=255, bits=None)
    found = brain_fingerprints(cast(Brain, brain), [cast(SectionRow, row)])
    assert found == {"brain/a": fingerprint(array_section(GRAY, 1.0))}
    assert made[0]._file is None
