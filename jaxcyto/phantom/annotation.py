"""Choose the annotated pixels of a section, and make its blurred, displaced atlas."""

import dataclasses
import statistics

import numpy as np
from scipy import ndimage

from jaxcyto.brain.annotation.prisms import evaluate, planes, rasterize, weighted_majority
from jaxcyto.phantom.acquisition import GRID_UM
from jaxcyto.phantom.cortex import Cortex, smooth_field
from jaxcyto.phantom.settings import cut_cortex

ATLAS_GRID = 8  # the atlas is computed at a resolution this many times coarser than the label grid
ATLAS_BLUR_MM = 0.8  # standard deviation of the Gaussian
ATLAS_SHIFT_MM = 1.5  # standard deviation of the displacement per axis
ATLAS_WAVELENGTH_MM = 30.0  # of the displacement
ANNOTATED_WAVELENGTH_MM = 9.0  # of the field whose threshold gives the annotated regions


def annotated(shape: tuple[int, int], fraction: float, rng: np.random.Generator) -> np.ndarray:
    """Draw irregular regions of some mm that are annotated.

    Args:
        shape: (height, width) of the label grid.
        fraction: approximate share of annotated pixels.
        rng: generator.

    Returns:
        bool [height, width], True where annotated.
    """
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
    """Displace the cortex smoothly, like the errors of an atlas that was registered to it."""
    middle = (cortex.pial + cortex.white) / 2
    shift = [smooth_field(middle, ATLAS_WAVELENGTH_MM, rng) for _ in range(3)]
    shift = ATLAS_SHIFT_MM * np.stack(shift, axis=1)
    return dataclasses.replace(cortex, pial=cortex.pial + shift, white=cortex.white + shift)


def atlas_channels(
    moved: Cortex, grid_affine: np.ndarray, shape: tuple[int, int], num_areas: int
) -> np.ndarray:
    """Compute the atlas image of a section, with the probability of each area.

    The masks of the areas in the section's plane are blurred, on a grid ATLAS_GRID times coarser
    than the label grid.

    Args:
        moved: the `displaced` cortex.
        grid_affine: affine [3, 4] of the section's grid, to mm.
        shape: (height, width) of the grid.
        num_areas: number of areas.

    Returns:
        uint8 [num_areas, height, width], 255 = probability 1.
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
