"""Paint one section in blocks of rows: cells one by one, stain, optics and artifacts.

Tissue is laid out on the grid of the label images (`GRID_UM`). Only cells, edges and noise are
drawn at the resolution of the image. Darkness adds up linearly, and cells do not depend on the
resolution. A coarse image is therefore the area average of a fine one, except for noise.
"""

import dataclasses
import statistics
from collections.abc import Iterator

import numpy as np

from jaxcyto.brain.annotation.prisms import (
    Cut,
    evaluate,
    inside_white,
    planes,
    rasterize,
    weighted_majority,
)
from jaxcyto.phantom.acquisition import GRID_UM, Look
from jaxcyto.phantom.cells import Stamps
from jaxcyto.phantom.cortex import Cortex

BLOCK = 64  # rows of the grid that are painted at a time
NEUROPIL, WHITE_MATTER, CELL = 0.28, 0.24, 0.60  # darkness at gain 1. A cell adds to the other two.
WHITE_COVERAGE, WHITE_DIAMETER_UM = 0.03, 6.0  # glia in white matter
COLUMN_UM = 90.0  # approximate distance between radial columns of cells
LAYER_BLEND = 0.04  # share of the depth over which neighboring layers mix
SPREAD = 0.2  # standard deviation of the logarithm of the diameters in a layer
# Quantiles of the normal distribution. Random bytes index this table, which is a fast way to draw
# noise.
GAUSSIAN = np.array([statistics.NormalDist().inv_cdf((k + 0.5) / 256) for k in range(256)])


@dataclasses.dataclass(frozen=True, eq=False)
class Tissue:
    """A block of rows of the grid.

    Attributes:
        tissue: 1 where there is tissue, float32 [height + 2, width]. It has one more row above and
            below, which interpolation needs.
        darkness: darkness of the tissue without cells, float32 [height + 2, width]. It has the same
            two additional rows.
        class_map: class of each pixel, uint8 [height, width].
        coverage: share of the area that cells cover, float32 [height, width].
        diameter_um: median cell diameter, float32 [height, width].
        angle: direction across the layers, radians, float32 [height, width].
    """

    tissue: np.ndarray
    darkness: np.ndarray
    class_map: np.ndarray
    coverage: np.ndarray
    diameter_um: np.ndarray
    angle: np.ndarray


class SectionPainter:
    """Paints one section.

    Args:
        cortex: surfaces, areas and profiles.
        cut: the cut of the surfaces by the plane of the section's grid.
        shape: (height, width) of the grid.
        look: stain, optics and artifacts.
        um_per_px: pixel size of the image. GRID_UM must be an integer multiple of it.
        class_ids: classes of (white matter, background) in the class map.
        seed: sequence of integers. Each block of rows draws from its own generator.
    """

    def __init__(self, cortex: Cortex, cut: Cut, shape, look: Look, um_per_px, class_ids, seed):
        self.cortex, self.cut, self.shape, self.look = cortex, cut, shape, look
        self.white_id, self.background_id = class_ids
        self.seed = tuple(seed)
        self.factor = round(GRID_UM / um_per_px)
        self.planes = planes(cut)
        self.stamps = Stamps(um_per_px, look.blur_um)
        # Columns follow a sum of four plane waves, sampled on the middle of the cortex. The seed is
        # fixed, so that all sections show the same columns.
        middle = (cortex.pial + cortex.white) / 2
        waves = np.random.default_rng(7).standard_normal((3, 4))
        waves *= 2 * np.pi * 1000 / COLUMN_UM / np.linalg.norm(waves, axis=0)
        self.column_phase = (middle @ waves).T.astype(np.float32)

    def rows(self, class_map: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the image from the top in blocks of rows, uint8, and fill the class map.

        Args:
            class_map: uint8 [height, width] of the grid, which is filled block by block.
        """
        height = self.shape[0]
        tops = range(0, height, BLOCK)
        tissue, cells = self._prepare(0)
        reaching = [cells]  # cells of the block and its neighbors, which may reach into the block
        for top in tops:
            following = None
            if top + BLOCK < height:
                following = self._prepare(top + BLOCK)
                reaching.append(following[1])
            class_map[top : top + BLOCK] = tissue.class_map
            yield self._image(top, tissue, reaching)
            if following is not None:
                reaching, (tissue, cells) = [cells, following[1]], following

    def _prepare(self, top: int):
        tissue = self.tissue(top, min(BLOCK, self.shape[0] - top))
        rng = np.random.default_rng((*self.seed, 1, top))
        return tissue, self._cells(tissue, top, rng)

    def tissue(self, top: int, height: int) -> Tissue:
        """Lay out the rows [top, top + height) of the grid, and one more row on either side."""
        top, height, width = top - 1, height + 2, self.shape[1]
        cortex, profiles = self.cortex, self.cortex.profiles
        triangle = rasterize(self.cut, top, height, width)
        white = inside_white(self.cut, top, height, width) & (triangle < 0)
        flat = np.flatnonzero(triangle >= 0)
        row, column = np.divmod(flat, width)
        depth, ids, weights, angle = evaluate(
            self.cut, self.planes, triangle.ravel()[flat], column, row + top
        )

        def mix(per_vertex):
            first, second, third = (w * per_vertex[i] for w, i in zip(weights, ids, strict=True))
            first += second
            first += third
            return first

        depth += mix(cortex.skew) * depth * (depth - 1)
        rng = np.random.default_rng((*self.seed, 0, top + 1))
        depth += LAYER_BLEND * (rng.random(len(depth), dtype=np.float32) - 0.5)
        layer = np.zeros(len(flat), np.uint8)
        for bound in profiles.bounds.T:
            layer += depth > mix(np.ascontiguousarray(bound))
        coverage = mix(ByLayer(profiles.coverage, layer))
        diameter = mix(ByLayer(profiles.diameter_um, layer))
        columns = sum(np.cos(mix(phase)) for phase in self.column_phase)
        coverage *= np.maximum(1 + mix(profiles.columns) * columns, 0)
        area = weighted_majority(cortex.area[ids], weights)

        def grid(outside, in_white, in_cortex, dtype: type = np.float32):
            out = np.full((height, width), outside, dtype)
            out[white] = in_white
            out.ravel()[flat] = in_cortex
            return out

        class_map = grid(self.background_id, self.white_id, area, np.uint8)
        tissue = grid(0, 1, 1)
        darkness = grid(NEUROPIL, WHITE_MATTER, NEUROPIL)
        cover = grid(0, WHITE_COVERAGE, coverage)
        for stroke in self.look.artifacts:
            window, mask = stroke.mask(top, height, width)
            if stroke.kind == "tear":
                tissue[window][mask] = 0
                cover[window][mask] = 0
            elif stroke.kind == "fold":
                darkness[window][mask] *= 1.6
                cover[window][mask] *= 2
            else:
                darkness[window][mask] = 0.9
                tissue[window][mask] = 1
        return Tissue(
            tissue,
            darkness,
            class_map[1:-1],
            cover[1:-1],
            grid(1, WHITE_DIAMETER_UM, diameter)[1:-1],
            grid(0, 0, angle)[1:-1],
        )

    def _cells(self, tissue: Tissue, top: int, rng: np.random.Generator):
        """Draw the cells of a block.

        Each grid pixel holds its expected number of cells, rounded up or down at random. Cells are
        therefore spaced more evenly than in a Poisson process.

        Returns:
            (row, column, diameter_um, angle) of the cells, each float32 [N]. Rows and columns are
            in image px.
        """
        size = tissue.diameter_um
        mean_area = np.pi / 4 * np.exp(2 * SPREAD**2)  # of log-normal diameters with median 1
        expected = tissue.coverage * np.float32(GRID_UM**2 / mean_area) / size**2
        count = (expected + rng.random(expected.shape, dtype=np.float32)).astype(np.int32)
        flat = np.repeat(np.arange(count.size), count.ravel())
        row, column = np.divmod(flat, count.shape[1])
        jitter = rng.random((2, len(flat)), dtype=np.float32)
        row = (row + top + jitter[0]) * self.factor - 0.5
        column = (column + jitter[1]) * self.factor - 0.5
        normal = rng.standard_normal((2, len(flat)), dtype=np.float32)
        diameter = size.ravel()[flat] * np.exp(SPREAD * normal[0])
        angle = tissue.angle.ravel()[flat] + 0.35 * normal[1]
        return row, column, diameter, angle

    def _image(self, top: int, tissue: Tissue, cells) -> np.ndarray:
        factor, look = self.factor, self.look
        present = enlarge(tissue.tissue, factor)
        if factor > 1:  # interpolation blurs the edge of the tissue, so sharpen it
            present = np.clip((present - 0.5) * (factor / 2) + 0.5, 0, 1)
        dark = enlarge(tissue.darkness, factor) * present
        canvas = self.stamps.draw(dark.shape, top * factor, cells)
        canvas *= CELL
        dark += canvas
        np.minimum(dark, 1, out=dark)
        rng = np.random.default_rng((*self.seed, 2, top))
        table = (look.background + look.noise * GAUSSIAN).astype(np.float32)
        gray = table[np.frombuffer(rng.bytes(dark.size), np.uint8)].reshape(dark.shape)
        dark *= look.background * look.gain
        gray -= dark
        present *= look.offset
        gray += present
        return np.clip(gray, 0, 255, out=gray).astype(np.uint8)


@dataclasses.dataclass(frozen=True, eq=False)
class ByLayer:
    """A view of values [V, 6] that is indexed by vertices [N] and returns those of a layer [N]."""

    values: np.ndarray
    layer: np.ndarray

    def __getitem__(self, ids: np.ndarray) -> np.ndarray:
        return self.values.ravel()[ids * self.values.shape[1] + self.layer]


def enlarge(values: np.ndarray, factor: int) -> np.ndarray:
    """Enlarge [h + 2, w], with a spare row above and below, to [h f, w f] by bilinear weights."""
    if factor == 1:
        return values[1:-1].copy()
    offset = (np.arange(factor, dtype=np.float32) + 0.5) / factor - 0.5
    low, t = np.floor(offset).astype(int), offset - np.floor(offset)
    padded = np.pad(values, ((0, 0), (1, 1)), mode="edge")
    height, width = values.shape[0] - 2, values.shape[1]
    wide = np.empty((height + 2, width, factor), np.float32)
    for k in range(factor):
        left = padded[:, 1 + low[k] : 1 + low[k] + width]
        right = padded[:, 2 + low[k] : 2 + low[k] + width]
        wide[:, :, k] = left + t[k] * (right - left)
    wide = wide.reshape(height + 2, width * factor)
    out = np.empty((height, factor, width * factor), np.float32)
    for k in range(factor):
        upper = wide[1 + low[k] : 1 + low[k] + height]
        lower = wide[2 + low[k] : 2 + low[k] + height]
        np.subtract(lower, upper, out=out[:, k])
        out[:, k] *= t[k]
        out[:, k] += upper
    return out.reshape(height * factor, width * factor)
