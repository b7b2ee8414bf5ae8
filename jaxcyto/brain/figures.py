"""Sampled points on the pial and on the inflated surface, drawn without a graphics library."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from jaxcyto.brain.manifest import SPLITS, Brain, Hemisphere
from jaxcyto.brain.sampling.patches import Patches
from jaxcyto.brain.surfaces.smoothing import inflate, vertex_normals
from jaxcyto.brain.surfaces.surface import Surface, hemisphere_surface, read_surface

# Okabe and Ito's colors, told apart with any color vision
SPLIT_COLORS = {"train": "#0072B2", "val": "#E69F00", "test": "#D55E00", "exclude": "#999999"}
HEIGHT_PX = 560  # of a panel
MOST_SAMPLES = 12_000_000  # points that a surface is drawn with: seconds a panel
AT_ONCE = 1_000_000  # of them: 100 MB
BEHIND_MM = 2.0  # a point this far behind the front of the surface is hidden
LIGHT, DARK = 0.86, 0.62  # ridges and valleys


class View(NamedTuple):
    """Looking along an axis: signed axes (0 x, 1 y, 2 z) of right, up and toward the viewer."""

    name: str
    right: tuple[int, int]  # axis, sign
    up: tuple[int, int]
    near: tuple[int, int]


VIEWS = (
    View("from the left", (1, -1), (2, 1), (0, -1)),
    View("from the right", (1, 1), (2, 1), (0, 1)),
)


def points_figure(brains: Sequence[tuple[Brain, Patches]]) -> Figure:
    """Patches of brains on their surfaces: a row for each hemisphere, two views of each surface.

    Colors are the splits. Points behind the surface are hidden.

    Raises:
        InputError: a surface cannot be read.
    """
    rows = [(brain, patches, k) for brain, patches in brains for k in range(len(brain.hemispheres))]
    figure = Figure(figsize=(14, 3.1 * len(rows) + 0.4), layout="constrained")
    axes = figure.subplots(len(rows), 4, squeeze=False)
    for row, (brain, patches, k) in zip(axes, rows, strict=True):
        hemisphere = brain.hemispheres[k]
        own = patches.hemisphere == k
        carrying = hemisphere_surface(hemisphere)
        outside, name = _outside(hemisphere, carrying, patches.face[own])
        inflated, valley = inflate(carrying)
        face, bary = patches.face[own], patches.bary[own]
        colors = np.array([to_rgb(SPLIT_COLORS[name]) for name in SPLITS])[patches.split[own]]
        for number, (surface, title) in enumerate(((outside, name), (inflated, "inflated"))):
            points = (surface.vertices[surface.faces[face]] * bary[:, :, None]).sum(axis=1)
            shade = np.where(valley, DARK, LIGHT) if number else LIGHT * np.ones(len(valley))
            for axis, view in zip(row[2 * number : 2 * number + 2], VIEWS, strict=True):
                axis.imshow(draw(surface, shade, points, colors, view))
                axis.set_title(f"{brain.name}, {hemisphere.name}: {title}, {view.name}", fontsize=8)
                axis.axis("off")
    counts = np.bincount(np.concatenate([p.split for _, p in brains]), minlength=len(SPLITS))
    handles = [
        Line2D([], [], marker="o", ls="", color=SPLIT_COLORS[split], label=f"{count} {split}")
        for split, count in zip(SPLITS, counts, strict=True)
        if count
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    return figure


def _outside(hemisphere: Hemisphere, surface: Surface, face: np.ndarray) -> tuple[Surface, str]:
    """The pial surface where the patches' triangles are its own too, else the carrying one."""
    if hemisphere.pial is not None:
        pial = read_surface(hemisphere.pial)
        if (
            pial.faces.shape == surface.faces.shape
            and (pial.faces[face] == surface.faces[face]).all()
        ):
            return pial, "pial"
    return surface, hemisphere.surface


def draw(
    surface: Surface, shade: np.ndarray, points: np.ndarray, colors: np.ndarray, view: View
) -> np.ndarray:
    """One surface with its points.

    Args:
        surface: what is drawn, lit from the viewer.
        shade: its brightness [V] or colors [V, 3], 0 ... 1.
        points: on it, [N, 3] mm.
        colors: of the points, RGB [N, 3], 0 ... 1.
        view: where from.

    Returns:
        RGB float [height, width, 3].
    """
    low, high = surface.vertices.min(axis=0), surface.vertices.max(axis=0)
    scale = (HEIGHT_PX - 9) / max(high[view.up[0]] - low[view.up[0]], 1e-9)
    width = int((high[view.right[0]] - low[view.right[0]]) * scale) + 9
    width = min(width, 4 * HEIGHT_PX)

    def project(where: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Row, column and distance toward the viewer."""
        shift = where - (low + high) / 2
        right, up, near = (sign * shift[:, axis] for axis, sign in view[1:])
        row = np.rint(HEIGHT_PX / 2 - up * scale).astype(int)
        column = np.rint(width / 2 + right * scale).astype(int)
        return row.clip(0, HEIGHT_PX - 1), column.clip(0, width - 1), near

    lit = np.abs(vertex_normals(surface)[:, view.near[0]])
    bright = shade.reshape(len(lit), -1) * (0.35 + 0.65 * lit)[:, None]
    image = np.ones((HEIGHT_PX, width, 3))
    front = np.full((HEIGHT_PX, width), -np.inf)
    for where, values in _fill(surface, bright, scale):
        row, column, near = project(where)
        order = np.flatnonzero(near > front[row, column])
        order = order[np.argsort(near[order])]  # of those on one pixel, the last stays
        image[row[order], column[order]] = values[order]
        front[row[order], column[order]] = near[order]
    row, column, near = project(points)
    seen = near > front[row, column] - BEHIND_MM
    radius = 2 if len(points) < 5000 else 1 if len(points) < 30_000 else 0
    for i in range(-radius, radius + 1):
        for j in range(-radius, radius + 1):
            at = (row[seen] + i).clip(0, HEIGHT_PX - 1), (column[seen] + j).clip(0, width - 1)
            image[at] = colors[seen]
    return image


def _fill(
    surface: Surface, values: np.ndarray, scale: float
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Points [M, 3] so dense that triangles leave no holes at `scale` px/mm; values [M, C] there.

    Some triangles at a time.
    """
    corners = surface.vertices[surface.faces]
    longest = np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=2).max(axis=1)
    side = np.ceil(longest * scale).clip(1, 4 * HEIGHT_PX)
    share = min(1.0, 2 * MOST_SAMPLES / np.square(side).sum())
    side = np.ceil(side * share**0.5).astype(int)
    for number in np.unique(side):
        own = surface.faces[side == number]
        i, j = np.indices((number + 1, number + 1)).reshape(2, -1)
        inside = i + j <= number
        bary = np.stack([i, j, number - i - j], axis=1)[inside] / number
        for some in np.array_split(own, -(-len(own) * len(bary) // AT_ONCE)):
            where = np.einsum("pk,fkd->fpd", bary, surface.vertices[some])
            there = np.einsum("pk,fkc->fpc", bary, values[some])
            yield where.reshape(-1, 3), there.reshape(-1, values.shape[1])
