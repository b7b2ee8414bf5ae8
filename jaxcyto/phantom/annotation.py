"""What surrounds a painted section: which pixels are annotated, and a blurred, displaced atlas."""

import dataclasses
import statistics

import numpy as np
from scipy import ndimage

from jaxcyto.brain.annotation.prisms import evaluate, planes, rasterize, weighted_majority
from jaxcyto.phantom.acquisition import GRID_UM
from jaxcyto.phantom.cortex import Cortex, smooth_field
from jaxcyto.phantom.settings import cut_cortex

ATLAS_GRID = 8  # pixels of the label grid per pixel at which the atlas is computed
ATLAS_BLUR_MM = 0.8
ATLAS_SHIFT_MM = 1.5  # standard deviation per axis
ATLAS_WAVELENGTH_MM = 30.0
ANNOTATED_WAVELENGTH_MM = 9.0


def annotated(shape: tuple[int, int], fraction: float, rng: np.random.Generator) -> np.ndarray:
    """bool [height, width]: irregular regions of some mm, about `fraction` of all pixels."""
    coarse = 8
    small = [-(-side // coarse) for side in shape]
    y, x = np.meshgrid(
        *(np.arange(side) * coarse * GRID_UM / 1000 for side in small), indexing="ij"
    )
    points = np.stack([x.ravel(), y.ravel(), np.zeros(x.size)], axis=1)
    field = smooth_field(points, ANNOTATED_WAVELENGTH_MM, rng).reshape(small)
    if 0 < fraction < 1:
        known = field > statistics.NormalDist().inv_cdf(1 - fraction)
    else:
        known = np.full(small, fraction >= 1)
    return known.repeat(coarse, 0).repeat(coarse, 1)[: shape[0], : shape[1]]


def displaced(cortex: Cortex, rng: np.random.Generator) -> Cortex:
    """The cortex moved by a smooth displacement, as an atlas registered to it would be off."""
    middle = (cortex.pial + cortex.white) / 2
    shift = [smooth_field(middle, ATLAS_WAVELENGTH_MM, rng) for _ in range(3)]
    shift = ATLAS_SHIFT_MM * np.stack(shift, axis=1)
    return dataclasses.replace(cortex, pial=cortex.pial + shift, white=cortex.white + shift)


def atlas_channels(
    moved: Cortex, grid_affine: np.ndarray, shape: tuple[int, int], num_areas: int
) -> np.ndarray:
    """Probability of each area, uint8 [num_areas, height, width], 255 = 1.

    The masks of the areas of a `displaced` cortex in the section's plane, blurred; computed on a
    grid ATLAS_GRID times coarser.
    """
    affine = grid_affine.copy()
    affine[:, 3] += (ATLAS_GRID - 1) / 2 * (affine[:, 0] + affine[:, 1])
    affine[:, :2] *= ATLAS_GRID
    height, width = (-(-side // ATLAS_GRID) for side in shape)
    out = np.zeros((num_areas, height, ATLAS_GRID, width, ATLAS_GRID), np.uint8)
    cut = cut_cortex(moved, affine)
    triangle = rasterize(cut, 0, height, width)
    row, column = np.nonzero(triangle >= 0)
    _, ids, weights, _ = evaluate(cut, planes(cut), triangle[row, column], column, row)
    area = weighted_majority(moved.area[ids], weights)
    sigma = ATLAS_BLUR_MM * 1000 / (GRID_UM * ATLAS_GRID)
    for k in np.unique(area[area < num_areas]):
        mask = np.zeros((height, width), np.float32)
        mask[row[area == k], column[area == k]] = 255
        blurred = np.rint(ndimage.gaussian_filter(mask, sigma)).astype(np.uint8)
        out[k] = blurred[:, None, :, None]
    out = out.reshape(num_areas, height * ATLAS_GRID, width * ATLAS_GRID)
    return out[:, : shape[0], : shape[1]]
