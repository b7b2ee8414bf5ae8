"""Read the image and atlas of a window, and detect where a section has tissue."""

import dataclasses
import math

import numpy as np
from scipy.ndimage import maximum_filter1d

from jaxcyto.brain.sampling.sampling import TISSUE_MARGIN
from jaxcyto.brain.sections.atlas_image import AtlasImage
from jaxcyto.brain.sections.resample import resample
from jaxcyto.brain.sections.section import Section
from jaxcyto.data import windows
from jaxcyto.predict.tiling import Tiling


@dataclasses.dataclass(frozen=True, eq=False)
class SectionSource:
    """A section to predict.

    Attributes:
        name: name of the section.
        section: section image.
        shape: (height, width) of the predicted map in px.
        atlas: atlas image, if the network takes one.
    """

    name: str
    section: Section
    shape: tuple[int, int]
    atlas: AtlasImage | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class WindowImages:
    """The inputs of the network for one window.

    Attributes:
        tissue: map px whose receptive field holds tissue, bool [n, n]. The receptive field is
            rounded to whole map px.
        image: image, uint8 [tile, tile, 1].
        atlas: probabilities of A areas, uint8 [a, a, A], or None without an atlas.
    """

    tissue: np.ndarray
    image: np.ndarray
    atlas: np.ndarray | None = None


def map_shape(section: Section, out_um: float) -> tuple[int, int]:
    """Compute the (height, width) of the map of a section, in pixels of `out_um` micrometers.

    The last row and column may extend beyond the section.
    """
    assert section.pixel_um is not None
    height, width = (math.ceil(side * section.pixel_um / out_um - 1e-6) for side in section.shape)
    return height, width


def read_window(
    source: SectionSource, tiling: Tiling, um_per_px: float, row: int, column: int
) -> WindowImages | None:
    """Read the window whose first map px is (row, column). Return None if it has no tissue.

    A pixel on the grid of the map is tissue if it differs from the background by more than
    `TISSUE_MARGIN` gray values. This does not depend on the size of the windows, so neither does
    the map. If the file has a pyramid level between the resolutions of the network and the map,
    tissue is detected on that level, and windows without tissue are not read at the resolution of
    the network.

    Args:
        source: the section.
        tiling: the windows.
        um_per_px: resolution of the network in micrometers per pixel.
        row: first row of the window in map px.
        column: first column of the window in map px.

    Raises:
        InputError: the section or its atlas is damaged in this window.
    """
    section, geometry = source.section, tiling.geometry
    stride, side = geometry.output_stride, tiling.output
    out_um = um_per_px * stride
    reach = geometry.label_offset // stride  # of the receptive field on either side, in map px
    coarse_side = side + 2 * reach
    image = None
    # 0.999 absorbs rounding errors of pixel sizes
    if any(um_per_px < 0.999 * f * (section.pixel_um or 0) < out_um for f in section.factors):
        coarse = section.read_at(out_um, row - reach, column - reach, coarse_side, coarse_side)
    else:
        image = windows.read_image(section, um_per_px, geometry, row, column, side)
        first = geometry.label_offset - reach * stride
        inside = slice(first, first + coarse_side * stride)
        fine = image[inside, inside, 0]
        coarse = resample(fine, 0, 0, coarse_side, coarse_side, float(stride))
    tissue = _within(np.abs(coarse.astype(np.int16) - section.background) > TISSUE_MARGIN, reach)
    if not tissue.any():
        return None
    if image is None:
        image = windows.read_image(section, um_per_px, geometry, row, column, side)
    if source.atlas is None:
        return WindowImages(tissue, image)
    return WindowImages(
        tissue, image, windows.read_atlas(source.atlas, geometry, row, column, side)
    )


def _within(tissue: np.ndarray, reach: int) -> np.ndarray:
    """Detect tissue within `reach` px (Chebyshev distance).

    Args:
        tissue: bool [h, w].
        reach: distance in px.

    Returns:
        bool [h - 2 * reach, w - 2 * reach], without a margin of `reach` px.
    """
    if tissue.any():
        for axis in (0, 1):
            tissue = maximum_filter1d(tissue, 2 * reach + 1, axis=axis)
    return tissue[reach : len(tissue) - reach, reach : tissue.shape[1] - reach]
