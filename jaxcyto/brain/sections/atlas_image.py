"""Atlas images: the probability of each area, one 8-bit channel each (255 = probability 1)."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxcyto.brain.manifest import AreaClass
from jaxcyto.brain.section_table import SectionRow
from jaxcyto.brain.sections.headers import open_tiff
from jaxcyto.brain.sections.label_image import LABEL_UM, expected_shape, same_shape
from jaxcyto.brain.sections.resample import resample
from jaxcyto.brain.sections.tiff import TiffLevel, tiff_level
from jaxcyto.errors import InputError
from jaxcyto.utils.unchanged import Stamp, opened_unchanged, stamp


@dataclasses.dataclass(frozen=True, eq=False)
class AtlasImage:
    """An atlas image; made by `open_atlas`. Threads may share it.

    `pages` together hold the channels, in order. Of each the table of its tiles stays in memory;
    the file is open only while a window is read.
    """

    path: Path
    shape: tuple[int, int]  # (height, width) px
    channels: int
    pages: tuple[TiffLevel, ...]
    stamp: Stamp
    factor: int  # px of the file along one side of a pixel that is read

    def read(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """uint8 [height, width, channels]; pixel m is the mean of px [m factor, (m + 1) factor).

        Outside of the image 0. Of pages that are not compressed only the rows touched are read,
        else the tiles or strips touched, of all channels where they lie together: a file of large
        compressed strips is slow.

        Raises:
            InputError: a tile or strip of the file is cut off or damaged, or the file has changed.
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
        share = self.channels // len(self.pages)
        with opened_unchanged(self.path, self.stamp) as fd:
            for number, page in enumerate(self.pages):
                page.read_into(fd, y0, x0, inside[:, :, number * share : (number + 1) * share])
        return out


def open_atlas(path: Path, factor: int = 1) -> AtlasImage:
    """Opens an atlas image to be read on a grid `factor` times coarser.

    Its channels are the samples of one page or a page each.

    Raises:
        InputError: not a readable TIFF, of another kind, or truncated.
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
            return AtlasImage(
                path=Path(path),
                shape=(sizes["Y"], sizes["X"]),
                channels=channels,
                pages=tuple(tiff_level(path, page, None, as_gray=False) for page in pages),
                stamp=before,
                factor=factor,
            )
    except InputError:
        raise
    except Exception as error:  # a damaged header shows in many ways
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
    """Opens the atlas image of a section whose image has this shape.

    Raises:
        InputError: not an atlas image (see `open_atlas`), of another size than the section, or
            without one channel for each class of kind "area".
    """
    assert row.atlas is not None
    atlas = open_atlas(row.atlas, factor)
    areas = sum(each.kind == "area" for each in classes)
    height, width = expected_shape(section_shape, row.pixel_um)
    if atlas.channels != areas or not same_shape(atlas.shape, (height, width)):
        raise InputError(
            f"section {row.name}: atlas {row.atlas} has {atlas.channels} channels of "
            f"{atlas.shape[0]} x {atlas.shape[1]} px; needed is one for each of the {areas} areas "
            f"of brain.toml, {height} x {width} px at {LABEL_UM:g} um"
        )
    return atlas
