"""Pictures of features: patches like one, and distances of neighbours on the surface."""

from collections.abc import Sequence

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from jaxcyto.brain.inflate import inflate
from jaxcyto.brain.manifest import Brain
from jaxcyto.brain.patches import Patches
from jaxcyto.brain.surface_figure import LIGHT, VIEWS, draw
from jaxcyto.brain.surfaces import hemisphere_surface
from jaxcyto.features import read_patches
from jaxcyto.plots import BLUE, GREY, ORANGE

NEAREST = 23  # with the chosen one four rows of six
COLUMNS = 6
VALLEY = 0.8  # brightness of valleys on the inflated surface


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
        color = GREY
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
        maps: a value for each vertex [V] of each; NaN is grey.
        label: of the colours; they end at the 98th percentile.

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
