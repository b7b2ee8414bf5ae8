"""Squared distances of neighbouring patches drawn on the sections that they come from."""

from collections.abc import Sequence

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from jaxcyto.brain.curves import Curves
from jaxcyto.brain.manifest import Brain
from jaxcyto.brain.sections import open_section
from jaxcyto.neighbors import BORDER, Gaps

TISSUE_UM = 100.0  # of the section in the background
TICK_MM = 1.3  # half the length of the mark at a border
COLUMNS = 4


def neighbors_figure(
    brain: Brain, curves: Curves, gaps: Gaps, sections: Sequence[int], *, unit: str = ""
) -> Figure:
    """A panel for each section: points in the gaps, coloured by distance, and ticks at borders.

    Colours end at the 98th percentile of all panels, so that one patch does not set the scale.

    Args:
        brain: read for its images, coarsely.
        curves: positions.
        gaps: between them.
        sections: rows of the section table, in the order of the panels.
        unit: of the distance, for the legend.

    Raises:
        InputError: a section cannot be read.
    """
    columns = min(COLUMNS, len(sections))
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
    figure.suptitle("Neighbouring patches along the ribbon; ticks: area borders", fontsize=10)
    return figure
