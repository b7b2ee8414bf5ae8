"""What the network sees of a section through one window, and where there is tissue at all."""

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
    """A section to predict: its image, its map's (height, width) and, if the network takes it, its
    atlas."""

    name: str
    section: Section
    shape: tuple[int, int]
    atlas: AtlasImage | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class WindowImages:
    """One window: image uint8 [tile, tile, 1], atlas uint8 [a, a, A], tissue bool [n, n].

    `tissue` is where the network has something to say: map px whose receptive field, taken in whole
    map px, holds tissue.
    """

    tissue: np.ndarray
    image: np.ndarray
    atlas: np.ndarray | None = None


def map_shape(section: Section, out_um: float) -> tuple[int, int]:
    """(height, width) of a section's map of pixels of `out_um`; the last ones may overhang."""
    assert section.pixel_um is not None
    height, width = (math.ceil(side * section.pixel_um / out_um - 1e-6) for side in section.shape)
    return height, width


def read_window(
    source: SectionSource, tiling: Tiling, um_per_px: float, row: int, column: int
) -> WindowImages | None:
    """Reads the window whose first map px is (row, column); None if it is without tissue.

    Tissue is what differs from the background by more than `TISSUE_MARGIN` gray values on the
    map's grid. It does not depend on the size of windows, so neither does the map. Where the file
    holds an image of a resolution between the section's and the map's, windows without tissue are
    read from that one only.

    Raises:
        InputError: the section or its atlas is damaged there.
    """
    section, geometry = source.section, tiling.geometry
    stride, side = geometry.output_stride, tiling.output
    out_um = um_per_px * stride
    reach = geometry.label_offset // stride  # of the receptive field to either side, map px
    coarse_side = side + 2 * reach
    image = None
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
    """Whether there is tissue within `reach` px; smaller by `reach` on every side."""
    if tissue.any():
        for axis in (0, 1):
            tissue = maximum_filter1d(tissue, 2 * reach + 1, axis=axis)
    return tissue[reach : len(tissue) - reach, reach : tissue.shape[1] - reach]
