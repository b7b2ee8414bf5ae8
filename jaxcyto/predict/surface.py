"""Class maps of the sections carried to the surfaces: one class for each vertex."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxcyto.brain.manifest import AreaClass, Hemisphere, SectionRow
from jaxcyto.brain.registration import Registration, registration
from jaxcyto.brain.surfaces.gifti import gifti_array, write_gifti
from jaxcyto.brain.surfaces.surface import Surface, hemisphere_surface
from jaxcyto.predict.maps import ClassMap, colors

BAND_ROWS = 1024  # of a map, read at once


def surface_classes(
    surface: Surface, maps: Sequence[tuple[SectionRow, ClassMap]], num_classes: int
) -> np.ndarray:
    """The class of each vertex, int32 [V]; -1 where no section is near.

    A vertex takes, of each section within reach, the map's pixel where it projects to; the class
    most frequent among them, the lowest number of equally frequent ones. Within reach is half the
    median spacing of the sections or half the median side of the triangles, whichever is more: so
    far a vertex stands for the surface around it.

    Raises:
        InputError: a registration or a map cannot be read.
    """
    votes = np.zeros((len(surface.vertices), num_classes), np.uint16)
    places = [registration(row) for row, _ in maps]
    reach = 0.5 * max(_spacing(places, surface.vertices.mean(axis=0)), _side(surface))
    for (row, numbers), place in zip(maps, places, strict=True):
        column, line, offset = place.to_px(surface.vertices)
        near = np.flatnonzero(np.abs(offset) <= reach)
        found = classes_at(numbers, row.pixel_um, column[near], line[near])
        known = found < num_classes
        votes[near[known], found[known]] += 1
    return np.where(votes.any(axis=1), votes.argmax(axis=1), -1).astype(np.int32)


def write_surface_labels(
    folder: Path,
    hemispheres: Sequence[Hemisphere],
    maps: Sequence[tuple[SectionRow, ClassMap]],
    classes: Sequence[AreaClass],
) -> list[tuple[Path, float]]:
    """Writes HEMISPHERE.label.gii for each hemisphere: key 0 = no section near, k + 1 = class k.

    Returns:
        Each file, and the share of vertices that have a class.
    """
    written = []
    for hemisphere in hemispheres:
        labels = surface_classes(hemisphere_surface(hemisphere), maps, len(classes)) + 1
        entries = [("unlabeled", (0.0, 0.0, 0.0, 0.0))]
        for entry, color in zip(classes, colors(classes) / 255, strict=True):
            entries.append((entry.name, (*color.tolist(), 1.0)))
        path = folder / f"{hemisphere.name}.label.gii"
        write_gifti(path, [gifti_array(labels, "NIFTI_INTENT_LABEL")], hemisphere.name, entries)
        written.append((path, float((labels > 0).mean())))
    return written


def _spacing(places: Sequence[Registration], center: np.ndarray) -> float:
    """Median distance of neighboring sections, mm, near a point [3]; 0 of one section."""
    if len(places) < 2:
        return 0.0
    feet = [center - place.to_px(center[None])[2] * place.normal for place in places]
    return float(np.median(np.diff(np.sort(np.array(feet) @ places[0].normal))))


def _side(surface: Surface) -> float:
    corners = surface.vertices[surface.faces]
    return float(np.median(np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=2)))


def classes_at(
    numbers: ClassMap, pixel_um: float, column: np.ndarray, row: np.ndarray
) -> np.ndarray:
    """The map's pixels, uint8 [N], at places in a section; outside of the map 255.

    Args:
        numbers: the map, read in bands.
        pixel_um: of the section.
        column: [N] in px of the section at full resolution.
        row: [N], alike.
    """
    # pixel m of the map covers px [m / scale, (m + 1) / scale) of the section
    scale = pixel_um / numbers.pixel_um
    x, y = (np.floor((place + 0.5) * scale).astype(np.int64) for place in (column, row))
    out = np.full(len(y), 255, np.uint8)
    height, width = numbers.shape
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    for band in np.unique(y[inside] // BAND_ROWS):
        chosen = np.flatnonzero(inside & (y // BAND_ROWS == band))
        left, right = int(x[chosen].min()), int(x[chosen].max()) + 1
        part = numbers.read(band * BAND_ROWS, left, BAND_ROWS, right - left)
        out[chosen] = part[y[chosen] - band * BAND_ROWS, x[chosen] - left]
    return out
