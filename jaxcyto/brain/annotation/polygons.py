"""Rasterize annotations that were drawn as polygons (GeoJSON from QuPath) to label images.

Coordinates are pixels of the section image at full resolution, or micrometers. In both units,
(0, 0) is the upper left CORNER of the image, as in QuPath, so pixel k covers k to k + 1. The affine
of the section table counts from pixel centers instead, but nothing here depends on it.

A pixel of the label image belongs to a polygon if its center lies inside by the even-odd rule,
applied to the outline and the holes together. Later features are painted over earlier ones.
"""

import dataclasses
import os
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxcyto.brain.annotation.geojson import Polygon, class_names, read_polygons
from jaxcyto.brain.annotation.image_column import image_column, select_sections
from jaxcyto.brain.annotation.scanline import winding_number
from jaxcyto.brain.manifest import AreaClass, Brain, SectionRow, read_brain
from jaxcyto.brain.sections.label_image import LABEL_UM, UNLABELED, expected_shape
from jaxcyto.brain.sections.section import open_section
from jaxcyto.brain.sections.writer import write_section
from jaxcyto.errors import InputError

SUFFIXES = (".geojson", ".json")
BAND_PX = 1 << 23  # pixels that are filled at a time, to bound memory
CROSSING_PX = 12  # an edge that crosses a row takes about as much memory as 12 pixels
PIXEL_MM2 = (LABEL_UM / 1000) ** 2


@dataclasses.dataclass
class Painted:
    """Counts of annotated pixels, over any number of sections.

    Attributes:
        pixels: pixels of each class, int64 [256].
        over: pixels by (old class, new class) whose old class was painted over by the new one.
        sections: number of label images.
    """

    pixels: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(256, np.int64))
    over: Counter[tuple[int, int]] = dataclasses.field(default_factory=Counter)
    sections: int = 0

    def describe(self, classes: Sequence[AreaClass]) -> str:
        """Describe the area of every class and the painted-over areas, in square millimeters."""
        lines = [f"{self.sections} label image(s) written"]
        lines += [
            f"{item.name}: {count * PIXEL_MM2:.4g} mm2"
            for item, count in zip(classes, self.pixels, strict=False)
        ]
        lines += [
            f"{classes[new].name} painted over {classes[old].name}: {count * PIXEL_MM2:.4g} mm2"
            for (old, new), count in self.over.most_common()
        ]
        return "\n".join(lines)


def annotate_brain(
    root: str | os.PathLike,
    geojson: str | os.PathLike,
    *,
    section: str | None = None,
    unit: str = "px",
    overwrite: bool = False,
) -> str:
    """Rasterize polygons to label images `labels/<section>.tif` and fill the `label` column.

    All files are read and checked before anything is written.

    Args:
        root: the brain's folder.
        geojson: a file, or a folder of files named after their sections or section images.
        section: the section of a single file. It is needed if the file is not named after it.
        unit: unit of the coordinates, "px" of the image at full resolution or "um". The origin is
            the image's upper left corner.
        overwrite: whether existing label images are replaced.

    Returns:
        A text with the area of each class.

    Raises:
        InputError: if a file cannot be used, a class is unknown, a polygon is faulty or lies
            outside of its section, or a section has a label image and `overwrite` is not set.
    """
    brain = read_brain(root)
    if not brain.classes:
        raise InputError(
            f"{brain.root / 'brain.toml'}: classes: none; add a [[classes]] table for each class "
            "of the annotation"
        )
    jobs, empty = [], []
    for path, row in _files(brain, Path(geojson), section):
        polygons = read_polygons(path, brain.classes)
        if polygons:
            jobs.append((path, row, _on_label_grid(path, row, polygons, unit)))
        else:
            empty.append(path)
    if not jobs:
        raise InputError(
            f"{geojson}: no polygon with a class; set each annotation's class to one of "
            f"brain.toml and export again: {class_names(brain.classes)}"
        )
    for path in empty:
        warnings.warn(f"{path}: no polygon with a class; left out", stacklevel=2)
    painted = Painted(sections=len(jobs))
    with image_column(brain, "label", [row for _, row, _ in jobs], overwrite) as path_of:
        for path, row, polygons in jobs:
            label = rasterize(polygons, _label_shape(row), painted.over)
            if (label == UNLABELED).all():
                raise InputError(
                    f"{path}: its polygons cover no pixel of section {row.name} at "
                    f"{LABEL_UM:g} um; are the coordinates in {unit}?"
                )
            painted.pixels += np.bincount(label.ravel(), minlength=256)
            write_section(path_of(row), label, LABEL_UM, compression="deflate")
    return painted.describe(brain.classes)


def rasterize(
    polygons: Sequence[Polygon],
    shape: tuple[int, int],
    over: Counter[tuple[int, int]] | None = None,
) -> np.ndarray:
    """Paint polygons into a label image, in the given order.

    Args:
        polygons: polygons on the label grid, with pixel centers at integers.
        shape: (height, width) of the label image, px.
        over: is incremented by the number of painted-over pixels, by (old class, new class).

    Returns:
        uint8 [height, width], UNLABELED outside of all polygons.
    """
    label = np.full(shape, UNLABELED, np.uint8)
    for polygon in polygons:
        start = np.concatenate(polygon.rings)
        end = np.concatenate([np.roll(ring, -1, axis=0) for ring in polygon.rings])
        limit = np.array(shape)[::-1]
        left, top = np.clip(np.ceil(start.min(0)), 0, limit).astype(int)
        right, bottom = np.clip(np.ceil(start.max(0)), 0, limit).astype(int)
        height, width = bottom - top, right - left
        # Split the polygon into bands of rows, so that memory does not grow with its edges.
        crossings = np.abs(end - start)[:, 1].clip(max=height).sum()
        cost = height * width + CROSSING_PX * crossings
        rows = max(1, int(height * BAND_PX / max(cost, 1)))
        for first in range(top, bottom, rows):
            last = min(first + rows, bottom)
            shift = np.array([left, 0.0])
            winding = winding_number(start - shift, end - shift, first, last - first, width)
            inside = (winding & 1).astype(bool)  # even-odd rule
            window = label[first:last, left:right]
            if over is not None:
                counts = np.bincount(window[inside], minlength=256)
                for old in np.flatnonzero(counts[:UNLABELED]).tolist():
                    if old != polygon.number:
                        over[old, polygon.number] += int(counts[old])
            window[inside] = polygon.number
    return label


def _files(brain: Brain, geojson: Path, section: str | None) -> list[tuple[Path, SectionRow]]:
    """List the GeoJSON files with their sections."""
    if not geojson.exists():
        raise InputError(f"{geojson}: no such file or folder; name the exported GeoJSON")
    if not geojson.is_dir():
        if section is not None:
            return [(geojson, select_sections(brain, [section])[0])]
        return [(geojson, _section_of(brain, geojson, "; or name its section: --section"))]
    if section is not None:
        raise InputError(f"{geojson}: a folder; name one file for --section {section}")
    paths = sorted(path for path in geojson.iterdir() if path.name.endswith(SUFFIXES))
    if not paths:
        raise InputError(f"{geojson}: no file ending in {' or '.join(SUFFIXES)} in this folder")
    files: dict[str, tuple[Path, SectionRow]] = {}
    for path in paths:
        row = _section_of(brain, path)
        if row.name in files:
            raise InputError(
                f"{files[row.name][0]} and {path}: both of section {row.name}; keep one of them"
            )
        files[row.name] = path, row
    return list(files.values())


def _section_of(brain: Brain, path: Path, hint: str = "") -> SectionRow:
    stem = path.name
    for suffix in SUFFIXES:
        stem = stem.removesuffix(suffix)
    own = [row for row in brain.sections if row.name == stem]
    rows = own or [row for row in brain.sections if stem in (row.image.name, row.image.stem)]
    if len(rows) != 1:
        known = f"section or section image of {brain.root / brain.section_table}"
        fault = (
            f"no {known} is named {stem!r}" if not rows else f"{stem!r} names more than one {known}"
        )
        raise InputError(f"{path}: {fault}; name the file after its section{hint}")
    return rows[0]


def _label_shape(row: SectionRow) -> tuple[int, int]:
    with open_section(row.image, row.pixel_um) as section:
        return expected_shape(section.shape, row.pixel_um)


def _on_label_grid(
    path: Path, row: SectionRow, polygons: list[Polygon], unit: str
) -> list[Polygon]:
    """Scale polygons to the label grid, with pixel centers at integers.

    Raises:
        InputError: if a polygon lies outside of the section.
    """
    scale = (row.pixel_um if unit == "px" else 1) / LABEL_UM
    height, width = _label_shape(row)
    moved = []
    for polygon in polygons:
        # The corner of pixel 0 is at 0 in the file and at -0.5 on the grid.
        rings = [scale * ring - 0.5 for ring in polygon.rings]
        low, high = rings[0].min(0) + 0.5, rings[0].max(0) + 0.5
        if (high <= 0).any() or low[0] >= width or low[1] >= height:
            x, y = low / scale
            raise InputError(
                f"{polygon.where}: lies outside of section {row.name} (from x {x:.6g}, y {y:.6g} "
                f"{unit}; the image has {width / scale:.6g} x {height / scale:.6g} {unit}); is "
                "it another section's, or are the coordinates in another unit?"
            )
        moved.append(dataclasses.replace(polygon, rings=rings))
    return moved
