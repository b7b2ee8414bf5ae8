"""Draw nearest patches, maps on the surface, and feature changes along the ribbon."""

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
from jaxcyto.config import Scales
from jaxcyto.explore.border_contrast import BORDER, Gaps
from jaxcyto.explore.ribbon_walk import Curves
from jaxcyto.plots.common import BLUE, GRAY, ORANGE
from jaxcyto.predict.features import read_patches

NEAREST = 23  # with the query patch, these are four rows of six
COLUMNS = 6
VALLEY = 0.8  # brightness of valleys on the inflated surface
TISSUE_UM = 100.0  # um/px of the section in the background
TICK_MM = 1.3  # half the length of the mark at a border
SECTION_COLUMNS = 4


def nearest_figure(
    brain: Brain,
    patches: Patches,
    features: np.ndarray,
    chosen: int,
    areas: np.ndarray | None,
    scales: Scales,
) -> Figure:
    """Draw a patch and its nearest neighbors by Euclidean distance of the features.

    Args:
        brain: brain whose sections are read.
        patches: N patches of the brain.
        features: features of the patches, float [N, F].
        chosen: index of the query patch.
        areas: area names [N], None where not known. None if no area is known.
        scales: units of the features.

    Raises:
        ReadError: a section cannot be read.
    """
    squared = np.square(features - features[chosen]).sum(axis=1)
    squared[chosen] = -1.0  # sort it before patches with identical features
    order = np.argsort(squared, kind="stable")[: NEAREST + 1]
    sorted_order = np.sort(order)  # patches are stored by section, so each is opened once
    images = dict(
        zip(sorted_order.tolist(), read_patches(brain, patches.select(sorted_order)), strict=True)
    )
    rows = -(-len(order) // COLUMNS)
    figure = Figure(figsize=(2.2 * COLUMNS, 2.75 * rows + 0.5), layout="constrained")
    axes = figure.subplots(rows, COLUMNS, squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[], frame_on=False)
    for axis, index in zip(axes.flat, order.tolist(), strict=False):
        is_query = index == chosen
        axis.set_frame_on(True)
        axis.imshow(images[index], cmap="gray", vmin=0, vmax=255)
        name = None if areas is None else areas[index]
        color = GRAY
        if areas is not None and name is not None and areas[chosen] is not None:
            color = BLUE if name == areas[chosen] else ORANGE
        axis.spines[:].set(color="black" if is_query else color, linewidth=3)
        hemisphere = brain.hemispheres[patches.hemisphere[index]].name
        section = brain.sections[patches.section[index]].name
        lines = [f"{index}: {hemisphere}, section {section}", name or "area not known"]
        if not is_query:
            away = np.linalg.norm(patches.position_mm[index] - patches.position_mm[chosen])
            away = f"{away:.1f} mm away"
            if patches.hemisphere[index] != patches.hemisphere[chosen]:
                away = "other hemisphere"
            lines.append(f"{away}, predicted {scales.distance_to_mm(squared[index]):.1f} mm")
        axis.set_title("\n".join(lines), fontsize=7.5)
    figure.suptitle(
        f"Patch {chosen} and the {len(order) - 1} of {len(patches)} with the nearest features. "
        "Blue frames: same area. Orange frames: another area.",
        fontsize=10,
    )
    return figure


def surface_figure(brain: Brain, maps: Sequence[np.ndarray], label: str) -> Figure:
    """Draw a map on the surface and the inflated surface of each hemisphere, from two sides.

    Valleys are darker on the inflated surface. Colors saturate at the 98th percentile of the
    values.

    Args:
        brain: brain with hemispheres.
        maps: for each hemisphere, a value at each vertex [V]. NaN is drawn gray.
        label: label of the color bar.

    Raises:
        InputError: a surface cannot be read.
    """
    figure = Figure(figsize=(14, 2.5 * len(maps) + 0.3), layout="constrained")
    axes = figure.subplots(len(maps), 4, squeeze=False)
    every = np.concatenate(maps)
    every = every[np.isfinite(every)]
    scale = ScalarMappable(Normalize(0, np.quantile(every, 0.98) if len(every) else 1), "viridis_r")
    no_points = np.zeros((0, 3))
    for row, hemisphere, values in zip(axes, brain.hemispheres, maps, strict=True):
        colors = scale.to_rgba(np.nan_to_num(values))[:, :3]
        colors[np.isnan(values)] = LIGHT
        surface = hemisphere_surface(hemisphere)
        inflated, valley = inflate(surface)
        dark = colors * np.where(valley, VALLEY, 1.0)[:, None]
        shown = ((surface, colors, hemisphere.surface), (inflated, dark, "inflated"))
        for k, (shape, shade, title) in enumerate(shown):
            for axis, view in zip(row[2 * k : 2 * k + 2], VIEWS, strict=True):
                axis.imshow(draw(shape, shade, no_points, no_points, view))
                axis.set_title(f"{hemisphere.name}: {title}, {view.name}", fontsize=8)
                axis.axis("off")
    figure.colorbar(scale, ax=axes, label=label, shrink=0.8, extend="max")
    return figure


def neighbors_figure(
    brain: Brain, curves: Curves, gaps: Gaps, sections: Sequence[int], *, unit: str = ""
) -> Figure:
    """Draw the gaps on each section, colored by distance, with ticks at area borders.

    Colors saturate at the 98th percentile of all panels, so that a single patch does not set the
    scale.

    Args:
        brain: brain whose section images are read at `TISSUE_UM`.
        curves: positions along the ribbon.
        gaps: gaps between the positions.
        sections: rows of the section table, one panel each.
        unit: unit of the distance, for the legend.

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
        with open_section(row.image, row.pixel_um, brain.background, brain.bits) as section:
            um = max(TISSUE_UM, row.pixel_um)
            side = [int(np.ceil(px * row.pixel_um / um)) for px in section.shape]
            tissue = section.read_at(um, 0, 0, *side)
        extent = (0, side[1] * um / 1000, side[0] * um / 1000, 0)
        # lighten the tissue so that the points stand out. White stays white
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
    figure.suptitle("Neighboring patches along the ribbon. Ticks: area borders", fontsize=10)
    return figure
