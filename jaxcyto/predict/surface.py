"""Project the class maps of sections to the surfaces, one class for each vertex."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxcyto.brain.manifest import AreaClass, Hemisphere, SectionRow
from jaxcyto.brain.registration import Registration, registration
from jaxcyto.brain.surfaces.gifti import gifti_array, write_gifti
from jaxcyto.brain.surfaces.surface import Surface, hemisphere_surface
from jaxcyto.predict.maps import ClassMap, colors

BAND_ROWS = 1024  # rows of a map that are read at once


def surface_classes(
    surface: Surface, maps: Sequence[tuple[SectionRow, ClassMap]], num_classes: int
) -> np.ndarray:
    """Compute the class of each vertex by a vote of the sections near it.

    Each section within reach votes for the class of the map pixel to which the vertex projects. The
    most frequent class wins, or the lowest index among equally frequent ones. The reach is half the
    median spacing of the sections or half the median edge length of the triangles, whichever is
    larger, because a vertex represents the surface up to this distance.

    Args:
        surface: surface with V vertices in mm.
        maps: sections with their class maps.
        num_classes: count of classes.

    Returns:
        Class indices, int32 [V], with -1 where no section is within reach.

    Raises:
        InputError: a registration or a map cannot be read.
    """
    votes = np.zeros((len(surface.vertices), num_classes), np.uint16)
    planes = [registration(row) for row, _ in maps]
    reach = 0.5 * max(_spacing(planes, surface.vertices.mean(axis=0)), _side(surface))
    for (row, class_map), plane in zip(maps, planes, strict=True):
        column, line, offset = plane.to_px(surface.vertices)
        near = np.flatnonzero(np.abs(offset) <= reach)
        classes = classes_at(class_map, row.pixel_um, column[near], line[near])
        known = classes < num_classes
        votes[near[known], classes[known]] += 1
    return np.where(votes.any(axis=1), votes.argmax(axis=1), -1).astype(np.int32)


def write_surface_labels(
    folder: Path,
    hemispheres: Sequence[Hemisphere],
    maps: Sequence[tuple[SectionRow, ClassMap]],
    classes: Sequence[AreaClass],
) -> list[tuple[Path, float]]:
    """Write HEMISPHERE.label.gii for each hemisphere.

    Key 0 means that no section is near, and key k + 1 is class k.

    Args:
        folder: output folder.
        hemispheres: hemispheres of the brain.
        maps: sections with their class maps.
        classes: names and colors.

    Returns:
        The path of each file with the fraction of vertices that have a class.

    Raises:
        InputError: a surface, a registration or a map cannot be read.
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


def _spacing(planes: Sequence[Registration], center: np.ndarray) -> float:
    """Compute the median spacing of sections in mm near a point [3], or 0 for a single section."""
    if len(planes) < 2:
        return 0.0
    # the projections of the point to the planes, which need not be parallel
    feet = [center - plane.to_px(center[None])[2] * plane.normal for plane in planes]
    return float(np.median(np.diff(np.sort(np.array(feet) @ planes[0].normal))))


def _side(surface: Surface) -> float:
    corners = surface.vertices[surface.faces]
    return float(np.median(np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=2)))


def classes_at(
    numbers: ClassMap, pixel_um: float, column: np.ndarray, row: np.ndarray
) -> np.ndarray:
    """Look up the classes at positions in a section.

    Args:
        numbers: class map, which is read in bands.
        pixel_um: pixel size of the section in micrometers.
        column: columns [N] in px of the section at full resolution.
        row: rows [N] in px of the section at full resolution.

    Returns:
        Class indices, uint8 [N], with 255 outside of the map.

    Raises:
        InputError: the map is damaged.
    """
    # pixel m of the map covers px [m / scale, (m + 1) / scale) of the section
    scale = pixel_um / numbers.pixel_um
    x, y = (np.floor((px + 0.5) * scale).astype(np.int64) for px in (column, row))
    out = np.full(len(y), 255, np.uint8)
    height, width = numbers.shape
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    for band in np.unique(y[inside] // BAND_ROWS):
        chosen = np.flatnonzero(inside & (y // BAND_ROWS == band))
        left, right = int(x[chosen].min()), int(x[chosen].max()) + 1
        part = numbers.read(band * BAND_ROWS, left, BAND_ROWS, right - left)
        out[chosen] = part[y[chosen] - band * BAND_ROWS, x[chosen] - left]
    return out
