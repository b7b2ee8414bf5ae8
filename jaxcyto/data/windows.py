"""Windows of a section as the segmentation network sees them: image, atlas and labels aligned.

Rows and columns count pixels of the network's output grid, of `out_um` = um_per_px * output stride
each: pixel m covers the section from out_um * m to out_um * (m + 1) um. They may be negative or
lie beyond the section: there the image is background, the atlas 0, the label UNLABELED.
"""

import math

import numpy as np

from jaxcyto.brain.sections.atlas_image import AtlasImage
from jaxcyto.brain.sections.label_image import LABEL_UM, majority
from jaxcyto.brain.sections.section import Section
from jaxcyto.errors import InputError
from jaxcyto.models.geometry import Geometry


def label_factor(um_per_px: float, geometry: Geometry) -> int:
    """Label pixels along one side of an output pixel.

    Raises:
        InputError: it is no whole number.
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
    """The image patch whose output is `side` pixels from (row, column) on, uint8 [H, W, 1]."""
    stride, offset = geometry.output_stride, geometry.label_offset
    size = stride * side + geometry.receptive_field
    top, left = stride * row - offset, stride * column - offset
    return image.read_at(um_per_px, top, left, size, size)[..., None]


def read_atlas(
    atlas: AtlasImage, geometry: Geometry, row: int, column: int, side: int
) -> np.ndarray:
    """The atlas patch that belongs to it, uint8 [a, a, channels]; `atlas` has the output's grid."""
    size = geometry.atlas_size(geometry.output_stride * side + geometry.receptive_field)
    offset = geometry.atlas_offset
    return atlas.read(row - offset, column - offset, size, size)


def read_label(label: Section, factor: int, row: int, column: int, side: int) -> np.ndarray:
    """The labels of the output, uint8 [side, side]."""
    size = factor * side
    return majority(label.read(factor * row, factor * column, size, size), factor)
