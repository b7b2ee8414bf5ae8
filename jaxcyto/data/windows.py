"""Read windows of a section as the segmentation network sees them, with aligned image and labels.

Rows and columns are pixels of the network's output grid, whose size is `out_um` = um_per_px *
output stride. Pixel m covers the section from out_um * m to out_um * (m + 1) um. Pixels may be
negative or lie beyond the section. There, the image is background, the atlas 0 and the label
UNLABELED.
"""

import math

import numpy as np

from jaxcyto.brain.sections.atlas_image import AtlasImage
from jaxcyto.brain.sections.label_image import LABEL_UM, majority
from jaxcyto.brain.sections.section import Section
from jaxcyto.errors import InputError
from jaxcyto.models.geometry import Geometry


def label_factor(um_per_px: float, geometry: Geometry) -> int:
    """Return the number of label pixels along one side of an output pixel.

    Raises:
        InputError: it is not a whole number.
    """
    out_um = um_per_px * geometry.output_stride
    factor = out_um / LABEL_UM
    if not math.isclose(factor, round(factor), rel_tol=1e-9) or factor < 0.5:
        unit = LABEL_UM / geometry.output_stride
        raise InputError(
            f"data.um_per_px = {um_per_px:g}: the network's output pixels would have {out_um:g} "
            f"um, which must be a whole multiple of {LABEL_UM:g} um, the pixel size of label "
            f"images; give a multiple of {unit:g}"
        )
    return round(factor)


def read_image(
    image: Section, um_per_px: float, geometry: Geometry, row: int, column: int, side: int
) -> np.ndarray:
    """Read the part of the image that the network needs to predict a window.

    Args:
        image: section image.
        um_per_px: resolution of the network in micrometers per pixel.
        geometry: geometry of the network.
        row: first row of the window, px of the output grid.
        column: first column of the window, px of the output grid.
        side: side of the window, px of the output grid.

    Returns:
        Gray values, uint8 [H, W, 1].
    """
    stride, offset = geometry.output_stride, geometry.label_offset
    size = stride * side + geometry.receptive_field
    top, left = stride * row - offset, stride * column - offset
    return image.read_at(um_per_px, top, left, size, size)[..., None]


def read_atlas(
    atlas: AtlasImage, geometry: Geometry, row: int, column: int, side: int
) -> np.ndarray:
    """Read the part of the atlas that the network needs to predict a window.

    The pixels of `atlas` are those of the output grid. For the other arguments see `read_image`.

    Returns:
        uint8 [a, a, channels].
    """
    size = geometry.atlas_size(geometry.output_stride * side + geometry.receptive_field)
    offset = geometry.atlas_offset
    return atlas.read(row - offset, column - offset, size, size)


def read_label(label: Section, factor: int, row: int, column: int, side: int) -> np.ndarray:
    """Read the majority label of each output pixel of a window, uint8 [side, side].

    Args:
        label: label image.
        factor: label pixels along one side of an output pixel.
        row: first row of the window, px of the output grid.
        column: first column of the window, px of the output grid.
        side: side of the window, px of the output grid.
    """
    size = factor * side
    return majority(label.read(factor * row, factor * column, size, size), factor)
