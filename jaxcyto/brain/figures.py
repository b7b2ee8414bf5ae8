"""Draw sampled points on the pial and the inflated surface, without a 3D graphics library."""

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

# Colors of Okabe and Ito, which can be told apart with any color vision.
SPLIT_COLORS = {"train": "#0072B2", "val": "#E69F00", "test": "#D55E00", "exclude": "#999999"}
HEIGHT_PX = 560  # height of a panel
MOST_SAMPLES = 12_000_000  # most points that a surface is drawn with, which takes seconds a panel
AT_ONCE = 1_000_000  # points computed at a time, which takes about 100 MB
BEHIND_MM = 2.0  # a point this far behind the front of the surface is hidden
LIGHT, DARK = 0.86, 0.62  # brightness of ridges and valleys


class View(NamedTuple):
    """A view along an axis.

    `right`, `up` and `near` (toward the viewer) are axes (0 x, 1 y, 2 z) with their sign.
    """

    name: str
    right: tuple[int, int]  # (axis, sign)
    up: tuple[int, int]
    near: tuple[int, int]


VIEWS = (
    View("from the left", (1, -1), (2, 1), (0, -1)),
    View("from the right", (1, 1), (2, 1), (0, 1)),
)


def points_figure(brains: Sequence[tuple[Brain, Patches]]) -> Figure:
    """Draw the patches of brains on their surfaces.

    Each hemisphere has a row with two views of the outer surface and two of the inflated one. The
    color of a point is its split. Points behind the surface are hidden.

    Raises:
        InputError: if a surface cannot be read.
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
        for pair, (surface, title) in enumerate(((outside, name), (inflated, "inflated"))):
            points = (surface.vertices[surface.faces[face]] * bary[:, :, None]).sum(axis=1)
            shade = np.where(valley, DARK, LIGHT) if pair else LIGHT * np.ones(len(valley))
            for axis, view in zip(row[2 * pair : 2 * pair + 2], VIEWS, strict=True):
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
    """Return the pial surface if it has the patches' faces, else the surface with the patches."""
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
    """Draw one surface, lit from the viewer, with its points.

    Args:
        surface: the surface.
        shade: brightness [V] or colors [V, 3] of its vertices, 0 ... 1.
        points: points on the surface [N, 3], mm.
        colors: RGB colors of the points [N, 3], 0 ... 1.
        view: direction of view.

    Returns:
        RGB image, float [height, width, 3], 0 ... 1.
    """
    low, high = surface.vertices.min(axis=0), surface.vertices.max(axis=0)
    scale = (HEIGHT_PX - 9) / max(high[view.up[0]] - low[view.up[0]], 1e-9)
    width = int((high[view.right[0]] - low[view.right[0]]) * scale) + 9
    width = min(width, 4 * HEIGHT_PX)

    def project(where: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return row, column and distance toward the viewer of each point."""
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
        # NumPy keeps the last value assigned to a pixel, so the nearest point must come last.
        order = order[np.argsort(near[order])]
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
    """Yield points [M, 3] of a surface and interpolated values [M, C], for some faces at a time.

    The points are so dense that faces have no holes at `scale` px/mm, unless that would take more
    than `MOST_SAMPLES` points.
    """
    corners = surface.vertices[surface.faces]
    longest = np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=2).max(axis=1)
    side = np.ceil(longest * scale).clip(1, 4 * HEIGHT_PX)
    share = min(1.0, 2 * MOST_SAMPLES / np.square(side).sum())
    side = np.ceil(side * share**0.5).astype(int)
    # Faces with the same number of steps along an edge share their barycentric weights.
    for steps in np.unique(side):
        own = surface.faces[side == steps]
        i, j = np.indices((steps + 1, steps + 1)).reshape(2, -1)
        inside = i + j <= steps
        bary = np.stack([i, j, steps - i - j], axis=1)[inside] / steps
        for some in np.array_split(own, -(-len(own) * len(bary) // AT_ONCE)):
            where = np.einsum("pk,fkd->fpd", bary, surface.vertices[some])
            there = np.einsum("pk,fkc->fpc", bary, values[some])
            yield where.reshape(-1, 3), there.reshape(-1, values.shape[1])
