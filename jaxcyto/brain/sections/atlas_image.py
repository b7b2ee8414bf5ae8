"""Read atlas images, which hold the probability of each area as one 8-bit channel.

The value 255 stands for probability 1.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from jaxcyto.brain.manifest import AreaClass
from jaxcyto.brain.section_table import SectionRow
from jaxcyto.brain.sections.headers import open_tiff
from jaxcyto.brain.sections.label_image import LABEL_UM, expected_shape, same_shape
from jaxcyto.brain.sections.resample import resample
from jaxcyto.brain.sections.tiff import TiffLevel, tiff_level
from jaxcyto.errors import InputError
from jaxcyto.utils.unchanged import Stamp, opened_unchanged, stamp


class Pixels(Protocol):
    """The pixels of an atlas image, in a file or in memory."""

    def read_into(self, top: int, left: int, out: np.ndarray) -> None:
        """Read the window from (top, left) into `out` [height, width, channels]."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class AtlasImage:
    """An atlas image, made by `open_atlas` or `array_atlas`. Threads may share it.

    Attributes:
        pixels: the pixels.
        shape: (height, width) px at full resolution.
        channels: number of channels.
        factor: px at full resolution along one side of a pixel that `read` returns.
    """

    pixels: Pixels
    shape: tuple[int, int]
    channels: int
    factor: int

    def read(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Read a window, with 0 outside of the image.

        Pixel m is the mean of px [m factor, (m + 1) factor) of the file. `read` reads the rows that
        the window touches of an uncompressed page, and the whole tiles or strips that it touches of
        a compressed page, with all channels of the page. Files with large compressed strips are
        therefore slow.

        Args:
            top: first row, in pixels of `factor` px.
            left: first column, in pixels of `factor` px.
            height: rows.
            width: columns.

        Returns:
            uint8 [height, width, channels].

        Raises:
            InputError: a tile or strip is truncated or damaged, or the file has changed.
        """
        factor = self.factor
        window = self._read(top * factor, left * factor, height * factor, width * factor)
        if factor == 1:
            return window
        planes = (window[:, :, k] for k in range(self.channels))
        return np.stack([resample(p, 0, 0, height, width, float(factor)) for p in planes], axis=2)

    def _read(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        out = np.zeros((height, width, self.channels), np.uint8)
        y0, y1 = max(top, 0), min(top + height, self.shape[0])
        x0, x1 = max(left, 0), min(left + width, self.shape[1])
        if y0 >= y1 or x0 >= x1:
            return out
        inside = out[y0 - top : y1 - top, x0 - left : x1 - left]
        self.pixels.read_into(y0, x0, inside)
        return out


@dataclasses.dataclass(frozen=True, eq=False)
class _Pages:
    """The pages of a file, which together hold the channels in order.

    The tables of tiles stay in memory. The file is open only while a window is read.
    """

    path: Path
    pages: tuple[TiffLevel, ...]
    stamp: Stamp  # state of the file when it was opened, to detect changes

    def read_into(self, top: int, left: int, out: np.ndarray) -> None:
        share = out.shape[2] // len(self.pages)
        with opened_unchanged(self.path, self.stamp) as fd:
            for index, page in enumerate(self.pages):
                page.read_into(fd, top, left, out[:, :, index * share : (index + 1) * share])


@dataclasses.dataclass(frozen=True, eq=False)
class _Array:
    """Pixels in memory, uint8 [channels, H, W]."""

    channels: np.ndarray

    def read_into(self, top: int, left: int, out: np.ndarray) -> None:
        window = self.channels[:, top : top + out.shape[0], left : left + out.shape[1]]
        out[:] = np.moveaxis(window, 0, 2)


def array_atlas(channels: np.ndarray, factor: int = 1) -> AtlasImage:
    """Make an atlas image of pixels in memory, to be read on a grid `factor` times coarser.

    Args:
        channels: uint8 [A, H, W], 255 = probability 1.
        factor: as in `open_atlas`.
    """
    height, width = channels.shape[1:]
    return AtlasImage(_Array(channels), (height, width), len(channels), factor)


def open_atlas(path: Path, factor: int = 1) -> AtlasImage:
    """Open an atlas image, to be read on a grid `factor` times coarser.

    The channels are the samples of one page, or one page each.

    Raises:
        InputError: the file is not a readable TIFF, is truncated, or has no 8-bit channels.
    """
    before = stamp(path)
    try:
        with open_tiff(path) as tiff:
            series = tiff.series[0]
            axes, shape, dtype = series.axes, series.shape, series.dtype
            others = [axis for axis in axes if axis not in "YX"]
            pages = [page.aspage() for page in series.pages if page is not None]
            plain = all(page.bitspersample == 8 and page.photometric in (1, 2) for page in pages)
            if dtype != np.uint8 or not plain or len(others) > 1 or not {"Y", "X"} <= set(axes):
                raise InputError(
                    f"{path}: an atlas image of {dtype} {list(shape)} ({axes}); expected uint8 "
                    "with one channel for each area"
                )
            sizes = dict(zip(axes, shape, strict=True))
            channels = sizes[others[0]] if others else 1
            if sum(page.samplesperpixel for page in pages) != channels:
                raise InputError(
                    f"{path}: {len(pages)} pages for {channels} channels; write one page for each"
                )
            levels = tuple(tiff_level(path, page, None, as_gray=False) for page in pages)
            pixels = _Pages(Path(path), levels, before)
            return AtlasImage(pixels, (sizes["Y"], sizes["X"]), channels, factor)
    except InputError:
        raise
    except Exception as error:  # tifffile raises many kinds on damaged headers
        raise InputError(
            f"{path}: not a readable TIFF ({error or type(error).__name__}); an atlas image is a "
            "TIFF with one 8-bit channel for each area: export it again"
        ) from None


def section_atlas(
    row: SectionRow,
    section_shape: tuple[int, int],
    classes: Sequence[AreaClass],
    factor: int = 1,
) -> AtlasImage:
    """Open the atlas image of a section and check that it fits the section.

    Args:
        row: the section, with an atlas image.
        section_shape: (height, width) px of the section image at full resolution.
        classes: all classes of the brain.
        factor: as in `open_atlas`.

    Raises:
        InputError: the file is not an atlas image (see `open_atlas`), has another size than the
            section, or not one channel for each class of kind "area".
    """
    assert row.atlas is not None
    atlas = open_atlas(row.atlas, factor)
    areas = sum(each.kind == "area" for each in classes)
    height, width = expected_shape(section_shape, row.pixel_um)
    if atlas.channels != areas or not same_shape(atlas.shape, (height, width)):
        raise InputError(
            f"section {row.name}: atlas {row.atlas} has {atlas.channels} channels of "
            f"{atlas.shape[0]} x {atlas.shape[1]} px; expected one channel for each of the {areas} "
            f"areas of brain.toml and {height} x {width} px at {LABEL_UM:g} um. Write it again on "
            "that grid, or let `jaxcyto carry` make it"
        )
    return atlas
