"""Draw a predicted section with the tissue, tinted classes with borders, and a legend."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from jaxcyto.brain.manifest import AreaClass
from jaxcyto.brain.sections.section import Section
from jaxcyto.plots.segmentation import outline
from jaxcyto.predict.maps import ClassMap
from jaxcyto.utils.files import atomic_write

LONGEST = 2000  # px, maximum length of the longest side of the section
DPI = 100


def write_overlay(
    path: Path, section: Section, predicted: ClassMap, classes: tuple[AreaClass, ...]
) -> None:
    """Write a PNG of a section with its classes, without resampling by matplotlib.

    Args:
        path: the file.
        section: section image.
        predicted: class map of the section.
        classes: names and colors.

    Raises:
        InputError: the section or the map is damaged.
    """
    tissue, numbers = _images(section, predicted)
    seen = [entry for k, entry in enumerate(classes) if entry.kind != "background" and k in numbers]
    height, width = tissue.shape
    columns = max(1, width // 150)
    legend = 14 + 22 * -(-len(seen) // columns)  # px
    figure = Figure(figsize=(width / DPI, (height + legend) / DPI), dpi=DPI)
    axis = figure.add_axes((0, legend / (height + legend), 1, height / (height + legend)))
    axis.imshow(outline(tissue, numbers, classes), interpolation="none")
    axis.axis("off")
    handles = [Patch(color=entry.color, label=entry.name) for entry in seen]
    if handles:
        figure.legend(handles=handles, loc="lower center", ncols=columns, frameon=False)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=DPI)


def _images(section: Section, predicted: ClassMap) -> tuple[np.ndarray, np.ndarray]:
    """Read the section and the map, uint8 [h, w], on the same grid.

    It is the grid of the map, coarser or finer by a power of two. The sides are at most `LONGEST`
    px, and the pixels are not finer than those of the section.
    """
    longest, level, repeat = max(predicted.shape), 0, 1
    while longest > LONGEST:
        level, longest = level + 1, -(-longest // 2)
    pixel_um = predicted.pixel_um * 2**level
    while 2 * longest <= LONGEST and pixel_um / 2 >= (section.pixel_um or pixel_um) * 0.999:
        repeat, longest, pixel_um = 2 * repeat, 2 * longest, pixel_um / 2
    numbers = predicted.read(0, 0, *predicted.levels[level].shape, level=level)
    numbers = numbers.repeat(repeat, axis=0).repeat(repeat, axis=1)
    return section.read_at(pixel_um, 0, 0, *numbers.shape), numbers
