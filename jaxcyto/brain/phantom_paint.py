"""Paints one section row block by row block: cells one by one, stain, optics and artifacts.

All tissue is laid out on the grid of the label images (`GRID_UM`); only cells, edges and noise
are drawn at the resolution of the image. Darkness adds up linearly, so that an image drawn at a
coarse resolution is the area average of one drawn at a fine one.
"""

import dataclasses
import statistics
from collections.abc import Iterator

import numpy as np

from jaxcyto.brain.phantom_cut import Cut, evaluate, inside_white, planes, rasterise
from jaxcyto.brain.phantom_shape import Cortex

GRID_UM = 16.0
BLOCK_PX = 512  # rows of a block at the image's resolution, at least 32 rows of the grid
NEUROPIL, WHITE_MATTER, CELL = 0.28, 0.24, 0.60  # darkness where gain is 1; a cell adds to both
WHITE_COVERAGE, WHITE_DIAMETER_UM = 0.03, 6.0  # glia
COLUMN_UM, COLUMN_CONTRAST = 90.0, 0.1  # cells stand in radial columns about this wide
SIZES_UM = np.geomspace(4, 26, 10)  # diameters that are drawn; a cell takes the nearest
PHASES, ANGLES = 4, 8  # sub-pixel positions per axis and orientations that are drawn
ELONGATION = 1.35  # long over short axis; long axes lie across the layers
LAYER_BLEND = 0.04  # share of the depth over which neighbouring layers mix
SPREAD = 0.2  # standard deviation of the logarithm of the diameters in a layer
# Noise is looked up by random bytes: quantiles of the normal distribution.
GAUSSIAN = np.array([statistics.NormalDist().inv_cdf((k + 0.5) / 256) for k in range(256)])


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A stroke (an arc of a parabola) with centre, reach and half width in grid px.

    kind: "tear" (no tissue), "fold" (tissue lies double) or "blob" (dirt, on and off tissue).
    """

    kind: str
    column: float
    row: float
    angle: float
    reach_px: float
    half_width_px: float
    bend: float

    def mask(self, top: int, height: int, width: int) -> tuple[tuple[slice, slice], np.ndarray]:
        """The window of a row block that the stroke may touch, and where it does."""
        reach = self.reach_px + self.half_width_px + 2
        rows = slice(
            int(np.clip(self.row - reach - top, 0, height)),
            int(np.clip(self.row + reach - top, 0, height)),
        )
        columns = slice(
            int(np.clip(self.column - reach, 0, width)), int(np.clip(self.column + reach, 0, width))
        )
        y = np.arange(rows.start, rows.stop)[:, None] + top - self.row
        x = np.arange(columns.start, columns.stop)[None] - self.column
        along = (x * np.cos(self.angle) + y * np.sin(self.angle)) / self.reach_px
        across = (y * np.cos(self.angle) - x * np.sin(self.angle)) / self.half_width_px
        taper = np.sqrt(np.clip(1 - along**2, 0, 1))
        return (rows, columns), np.abs(across - self.bend * along**2) < taper


@dataclasses.dataclass(frozen=True)
class Look:
    """How one section came out of the laboratory; drawn without regard to its position."""

    gain: float
    offset: float
    blur_um: float
    background: float
    noise: float
    artifacts: tuple[Artifact, ...]


def draw_look(shape: tuple[int, int], artifacts: float, rng: np.random.Generator) -> Look:
    """Stain, optics and about `artifacts` artifacts for a section of a grid of `shape`."""
    strokes = []
    for _ in range(rng.poisson(artifacts)):
        kind = str(rng.choice(["tear", "fold", "blob"], p=[0.4, 0.25, 0.35]))
        reach_mm, width_mm, bend = {
            "tear": (rng.uniform(0.3, 3), rng.uniform(0.03, 0.15), rng.uniform(-4, 4)),
            "fold": (rng.uniform(1, 5), rng.uniform(0.1, 0.3), rng.uniform(-3, 3)),
            "blob": (rng.uniform(0.05, 0.5), rng.uniform(0.05, 0.4), 0.0),
        }[kind]
        strokes.append(
            Artifact(
                kind=kind,
                column=rng.uniform(0, shape[1]),
                row=rng.uniform(0, shape[0]),
                angle=rng.uniform(0, np.pi),
                reach_px=reach_mm * 1000 / GRID_UM,
                half_width_px=width_mm * 1000 / GRID_UM,
                bend=bend,
            )
        )
    return Look(
        gain=rng.uniform(0.75, 1.2),
        offset=rng.uniform(-12, 12),
        blur_um=rng.uniform(0.3, 2.0),
        background=rng.uniform(238, 252),
        noise=rng.uniform(1.5, 4),
        artifacts=tuple(strokes),
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Tissue:
    """One row block of the grid, arrays [height, width]: with one more row above and below.

    tissue, darkness float32; class_map uint8; and for the cells, all float32: coverage,
    diameter_um and the angle across the layers.
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
        cut: where the section's grid plane cuts them.
        shape: (height, width) of the grid.
        look: stain and artifacts.
        um_per_px: of the image; GRID_UM is a whole multiple of it.
        class_ids: (white matter, background) of the class map.
        seed: whole numbers; each row block draws from its own generator.
    """

    def __init__(self, cortex: Cortex, cut: Cut, shape, look: Look, um_per_px, class_ids, seed):
        self.cortex, self.cut, self.shape, self.look = cortex, cut, shape, look
        self.white_id, self.background_id = class_ids
        self.seed = tuple(seed)
        self.factor = round(GRID_UM / um_per_px)
        self.planes = planes(cut)
        self.stamps = Stamps(um_per_px, look.blur_um)
        self.block = max(32, BLOCK_PX // self.factor)
        middle = (cortex.pial + cortex.white) / 2
        waves = np.random.default_rng(7).standard_normal((3, 4))
        waves *= 2 * np.pi * 1000 / COLUMN_UM / np.linalg.norm(waves, axis=0)
        self.column_phase = (middle @ waves).T.astype(np.float32)

    def rows(self, class_map: np.ndarray) -> Iterator[np.ndarray]:
        """Row blocks of the image from the top, uint8; fills `class_map` [grid height, width]."""
        height = self.shape[0]
        tops = range(0, height, self.block)
        before, now = None, self._prepare(0)
        for number, top in enumerate(tops):
            after = self._prepare(tops[number + 1]) if number + 1 < len(tops) else None
            tissue, cells = now
            class_map[top : top + self.block] = tissue.class_map
            reach = [part[1] for part in (before, now, after) if part is not None]
            yield self._image(number, top, tissue, reach)
            before, now = (None, cells), after

    def _prepare(self, top: int):
        tissue = self.tissue(top, min(self.block, self.shape[0] - top))
        rng = np.random.default_rng((*self.seed, 1, top))
        return tissue, self._cells(tissue, top, rng)

    def tissue(self, top: int, height: int) -> Tissue:
        """Lays out the rows [top, top + height) of the grid, and one more on either side."""
        top, height, width = top - 1, height + 2, self.shape[1]
        cortex, profiles = self.cortex, self.cortex.profiles
        triangle = rasterise(self.cut, top, height, width)
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
        coverage *= 1 + COLUMN_CONTRAST * columns
        area = majority(cortex.area[ids], weights)

        def grid(outside, in_white, in_cortex, dtype=np.float32):
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
        """The block's cells: (row, column) in image px, diameter_um, angle; float32 [N].

        A grid pixel holds its expected number of cells rounded up or down at random, so that cells
        keep apart more than Poisson points would.
        """
        size = tissue.diameter_um
        mean_area = np.pi / 4 * np.exp(2 * SPREAD**2)  # of log-normal diameters of median 1
        expected = tissue.coverage * np.float32(GRID_UM**2 / mean_area) / size**2
        number = (expected + rng.random(expected.shape, dtype=np.float32)).astype(np.int32)
        flat = np.repeat(np.arange(number.size), number.ravel())
        row, column = np.divmod(flat, number.shape[1])
        jitter = rng.random((2, len(flat)), dtype=np.float32)
        row = (row + top + jitter[0]) * self.factor - 0.5
        column = (column + jitter[1]) * self.factor - 0.5
        normal = rng.standard_normal((2, len(flat)), dtype=np.float32)
        diameter = size.ravel()[flat] * np.exp(SPREAD * normal[0])
        angle = tissue.angle.ravel()[flat] + 0.35 * normal[1]
        return row, column, diameter, angle

    def _image(self, number: int, top: int, tissue: Tissue, cells) -> np.ndarray:
        factor, look = self.factor, self.look
        present = enlarge(tissue.tissue, factor)
        if factor > 1:  # the edge of the tissue is sharper than the grid
            present = np.clip((present - 0.5) * (factor / 2) + 0.5, 0, 1)
        dark = enlarge(tissue.darkness, factor) * present
        canvas = self.stamps.draw(dark.shape, top * factor, cells)
        canvas *= CELL
        dark += canvas
        np.minimum(dark, 1, out=dark)
        rng = np.random.default_rng((*self.seed, 2, number))
        table = (look.background + look.noise * GAUSSIAN).astype(np.float32)
        grey = table[np.frombuffer(rng.bytes(dark.size), np.uint8)].reshape(dark.shape)
        dark *= look.background * look.gain
        grey -= dark
        present *= look.offset
        grey += present
        return np.clip(grey, 0, 255, out=grey).astype(np.uint8)


@dataclasses.dataclass(frozen=True, eq=False)
class ByLayer:
    """Values [V, 6], looked up at vertex ids [N] for the layer [N] of each."""

    values: np.ndarray
    layer: np.ndarray

    def __getitem__(self, ids: np.ndarray) -> np.ndarray:
        return self.values.ravel()[ids * self.values.shape[1] + self.layer]


def majority(labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The label [N] with the greatest total weight among three labels and weights [3, N].

    Its borders are straight within a face and meet those of the next face.
    """
    out = labels[0].copy()
    mixed = np.flatnonzero((labels[1] != labels[0]) | (labels[2] != labels[0]))
    labels, weights = labels[:, mixed].T, weights[:, mixed].T
    same = labels[:, :, None] == labels[:, None]
    best = (same * weights[:, None]).sum(2).argmax(1)
    out[mixed] = labels[np.arange(len(mixed)), best]
    return out


def enlarge(values: np.ndarray, factor: int) -> np.ndarray:
    """Bilinear enlargement of [h + 2, w] (a spare row above and below) to [h f, w f]."""
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


class Stamps:
    """Soft ellipses of each size, sub-pixel position and orientation, exact in their area."""

    def __init__(self, um_per_px: float, blur_um: float):
        self.um_per_px = um_per_px
        angles = ANGLES if um_per_px < 8 else 1  # orientation cannot be seen in coarser images
        self.num_angles = angles
        fine = max(1, round(um_per_px / 0.5)) if um_per_px >= 1 else 1
        soft = 0.4 + blur_um / 2
        turn = np.arange(angles) * np.pi / angles
        phase = (np.arange(PHASES) + 0.5) / PHASES - 0.5
        self.bank = []
        for size in SIZES_UM:
            reach = int(np.ceil((size / 2 * ELONGATION**0.5 + 3 * soft) / um_per_px + 0.5))
            side = 2 * reach + 1
            at = ((np.arange(side * fine) + 0.5) / fine - 0.5 - reach).astype(np.float32)
            y = (at[None] - phase[:, None])[:, None, None, :, None] * um_per_px
            x = (at[None] - phase[:, None])[None, :, None, None, :] * um_per_px
            c, s = np.cos(turn)[:, None, None], np.sin(turn)[:, None, None]
            along = (x * c + y * s) / ELONGATION**0.5
            across = (y * c - x * s) * ELONGATION**0.5
            inside = 1 / (1 + np.exp(np.clip((np.hypot(along, across) - size / 2) / soft, -30, 30)))
            stamp = inside.reshape(PHASES, PHASES, angles, side, fine, side, fine).mean((4, 6))
            area_px = np.pi / 4 * size**2 / um_per_px**2
            stamp *= area_px / stamp.sum((3, 4), keepdims=True)
            self.bank.append(stamp.reshape(-1, side * side).astype(np.float32))
        self.margin = max(int(bank.shape[1] ** 0.5) // 2 for bank in self.bank) + 1

    def draw(self, shape: tuple[int, int], top: int, lists) -> np.ndarray:
        """Cells of several lists drawn on rows [top, top + height) of the image; float32."""
        margin = self.margin
        width = shape[1] + 2 * margin
        canvas = np.zeros((shape[0] + 4 * margin) * width, np.float32)
        edges = np.log(SIZES_UM[:-1] * SIZES_UM[1:]) / 2
        for row, column, diameter, angle in lists:
            near = (row > top - margin) & (row < top + shape[0] + margin)
            row, column = row[near] - top, column[near]
            y, x = np.rint(row), np.rint(column)
            phase_y = np.clip(((row - y + 0.5) * PHASES).astype(np.int64), 0, PHASES - 1)
            phase_x = np.clip(((column - x + 0.5) * PHASES).astype(np.int64), 0, PHASES - 1)
            turn = np.rint(angle[near] * self.num_angles / np.pi).astype(np.int64) % self.num_angles
            stamp = (phase_y * PHASES + phase_x) * self.num_angles + turn
            centre = (y.astype(np.int64) + 2 * margin) * width + x.astype(np.int64) + margin
            size = np.searchsorted(edges, np.log(diameter[near]))
            order = np.argsort(size.astype(np.uint8), kind="stable")
            ends = np.cumsum(np.bincount(size, minlength=len(self.bank)))
            for bank, end, count in zip(self.bank, ends, np.diff(ends, prepend=0), strict=True):
                chosen = order[end - count : end]
                reach = int(bank.shape[1] ** 0.5) // 2
                step = np.arange(-reach, reach + 1)
                offset = (step[:, None] * width + step).ravel()
                for start in range(0, len(chosen), 1 << 14):
                    part = chosen[start : start + (1 << 14)]
                    index = centre[part][:, None] + offset
                    np.add.at(canvas, index.ravel(), bank[stamp[part]].ravel())
        return canvas.reshape(-1, width)[2 * margin : -2 * margin, margin:-margin]
