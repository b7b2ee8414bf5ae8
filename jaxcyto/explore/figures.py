"""Pictures of features: nearest patches, maps on the surface, jumps at borders on the sections."""

from collections.abc import Sequence

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from jaxcyto.brain.figures import LIGHT, VIEWS, draw
from jaxcyto.brain.manifest import Brain
from jaxcyto.brain.sampling.patches import Patches
from jaxcyto.brain.sections.section import open_section
from jaxcyto.brain.surfaces.smoothing import inflate
from jaxcyto.brain.surfaces.surface import hemisphere_surface
from jaxcyto.explore.border_contrast import BORDER, Gaps
from jaxcyto.explore.ribbon_walk import Curves
from jaxcyto.plots.common import BLUE, GRAY, ORANGE
from jaxcyto.predict.features import read_patches

NEAREST = 23  # with the chosen one four rows of six
COLUMNS = 6
VALLEY = 0.8  # brightness of valleys on the inflated surface
TISSUE_UM = 100.0  # of the section in the background
TICK_MM = 1.3  # half the length of the mark at a border
SECTION_COLUMNS = 4


def nearest_figure(
    brain: Brain,
    patches: Patches,
    features: np.ndarray,
    chosen: int,
    areas: np.ndarray | None,
    distance_mm: float,
) -> Figure:
    """A patch and those with the nearest features, by Euclidean distance, in this order.

    Args:
        brain: whose sections are read.
        patches: of it [N].
        features: float [N, F].
        chosen: number of the patch.
        areas: names [N], None where not known; None: of no patch.
        distance_mm: the mean training distance, unit of squared distances.

    Raises:
        ReadError: a section cannot be read.
    """
    squared = np.square(features - features[chosen]).sum(axis=1)
    squared[chosen] = -1.0  # before its doubles
    order = np.argsort(squared, kind="stable")[: NEAREST + 1]
    sorted_order = np.sort(order)  # sections are opened once each
    images = dict(
        zip(sorted_order.tolist(), read_patches(brain, patches.select(sorted_order)), strict=True)
    )
    rows = -(-len(order) // COLUMNS)
    figure = Figure(figsize=(2.2 * COLUMNS, 2.75 * rows + 0.5), layout="constrained")
    axes = figure.subplots(rows, COLUMNS, squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[], frame_on=False)
    for axis, number in zip(axes.flat, order.tolist(), strict=False):
        own = number == chosen
        axis.set_frame_on(True)
        axis.imshow(images[number], cmap="gray", vmin=0, vmax=255)
        name = None if areas is None else areas[number]
        color = GRAY
        if areas is not None and name is not None and areas[chosen] is not None:
            color = BLUE if name == areas[chosen] else ORANGE
        axis.spines[:].set(color="black" if own else color, linewidth=3)
        hemisphere = brain.hemispheres[patches.hemisphere[number]].name
        section = brain.sections[patches.section[number]].name
        lines = [f"{number}: {hemisphere}, section {section}", name or "area not known"]
        if not own:
            away = np.linalg.norm(patches.position_mm[number] - patches.position_mm[chosen])
            away = f"{away:.1f} mm away"
            if patches.hemisphere[number] != patches.hemisphere[chosen]:
                away = "other hemisphere"
            lines.append(f"{away}; predicted {squared[number] * distance_mm:.1f} mm")
        axis.set_title("\n".join(lines), fontsize=7.5)
    figure.suptitle(
        f"Patch {chosen} and the {len(order) - 1} of {len(patches)} with the nearest features; "
        "frames: blue same area, orange another",
        fontsize=10,
    )
    return figure


def surface_figure(brain: Brain, maps: Sequence[np.ndarray], label: str) -> Figure:
    """A map on each hemisphere, as it is and inflated, from both sides; valleys are darker.

    Args:
        brain: with hemispheres.
        maps: a value for each vertex [V] of each; NaN is gray.
        label: of the colors; they end at the 98th percentile.

    Raises:
        InputError: a surface cannot be read.
    """
    figure = Figure(figsize=(14, 2.5 * len(maps) + 0.3), layout="constrained")
    axes = figure.subplots(len(maps), 4, squeeze=False)
    every = np.concatenate(maps)
    every = every[np.isfinite(every)]
    scale = ScalarMappable(Normalize(0, np.quantile(every, 0.98) if len(every) else 1), "viridis_r")
    none = np.zeros((0, 3))
    for row, hemisphere, values in zip(axes, brain.hemispheres, maps, strict=True):
        colors = scale.to_rgba(np.nan_to_num(values))[:, :3]
        colors[np.isnan(values)] = LIGHT
        surface = hemisphere_surface(hemisphere)
        inflated, valley = inflate(surface)
        dark = colors * np.where(valley, VALLEY, 1.0)[:, None]
        shown = ((surface, colors, hemisphere.surface), (inflated, dark, "inflated"))
        for k, (shape, shade, title) in enumerate(shown):
            for axis, view in zip(row[2 * k : 2 * k + 2], VIEWS, strict=True):
                axis.imshow(draw(shape, shade, none, none, view))
                axis.set_title(f"{hemisphere.name}: {title}, {view.name}", fontsize=8)
                axis.axis("off")
    figure.colorbar(scale, ax=axes, label=label, shrink=0.8, extend="max")
    return figure


def neighbors_figure(
    brain: Brain, curves: Curves, gaps: Gaps, sections: Sequence[int], *, unit: str = ""
) -> Figure:
    """A panel for each section: points in the gaps, colored by distance, and ticks at borders.

    Colors end at the 98th percentile of all panels, so that one patch does not set the scale.

    Args:
        brain: read for its images, coarsely.
        curves: positions.
        gaps: between them.
        sections: rows of the section table, in the order of the panels.
        unit: of the distance, for the legend.

    Raises:
        InputError: a section cannot be read.
    """
    columns = min(SECTION_COLUMNS, len(sections))
    rows = -(-len(sections) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.2 * rows + 0.5), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    of_gap = curves.patches.section[gaps.before]
    shown = gaps.squared_distance[np.isin(of_gap, sections)]
    top = float(np.quantile(shown, 0.98)) if len(shown) else 1.0
    points = None
    for axis, index in zip(axes.flat, sections, strict=False):
        row = brain.sections[index]
        with open_section(row.image, row.pixel_um, brain.background) as section:
            um = max(TISSUE_UM, row.pixel_um)
            side = [int(np.ceil(px * row.pixel_um / um)) for px in section.shape]
            tissue = section.read_at(um, 0, 0, *side)
        extent = (0, side[1] * um / 1000, side[0] * um / 1000, 0)
        # lightened: the points stand out, and white stays white
        axis.imshow(255 - (255 - tissue.astype(float)) / 3, cmap="gray", vmin=0, vmax=255,
                    extent=extent)  # fmt: skip
        own = np.flatnonzero(of_gap == index)
        before = gaps.before[own]
        center = (curves.patches.center_px + 0.5) * row.pixel_um / 1000
        middle = (center[before] + center[before + 1]) / 2
        points = axis.scatter(
            *middle.T, c=gaps.squared_distance[own], s=9, cmap="viridis_r", vmin=0, vmax=top
        )
        border = gaps.kind[own] == BORDER
        along = (center[before + 1] - center[before])[border]
        along /= np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-9)
        across = np.stack([-along[:, 1], along[:, 0]], -1) * TICK_MM
        lines = np.stack([middle[border] - across, middle[border] + across], axis=1)
        axis.add_collection(LineCollection(list(lines), colors="black", linewidths=1.4))
        axis.set_title(f"section {row.name}" + (f" ({row.split})" if row.split else ""), fontsize=9)
        left, low = 0.04 * extent[1], 0.97 * extent[2]
        axis.plot([left, left + 5], [low, low], color="black", linewidth=2)
        axis.text(left, 0.99 * low, "5 mm", fontsize=8, va="bottom")
    if points is not None:
        label = "squared distance of averaged features" + (f", {unit}" if unit else "")
        figure.colorbar(points, ax=axes, label=label, shrink=0.7, extend="max")
    figure.suptitle("Neighboring patches along the ribbon; ticks: area borders", fontsize=10)
    return figure
