"""Rasterize annotations that were drawn (GeoJSON from QuPath) to label images.

Coordinates are pixels of the section image at full resolution, or micrometers. In both units,
(0, 0) is the upper left CORNER of the image, as in QuPath, so pixel k covers k to k + 1. The affine
of the section table counts from pixel centers instead, but nothing here depends on it.

A pixel of the label image belongs to a polygon if its center lies inside by the even-odd rule,
applied to the outline and the holes together. It belongs to a line or point if its center is at
most half the width of the stroke away.

Smaller annotations are painted over larger ones, because the order of an export says nothing: the
outline of a slice is often the last. An annotation of several parts counts with the sum of their
areas.
"""

import dataclasses
import math
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from jaxcyto.brain.annotation.geojson import Annotation, class_names, read_annotations
from jaxcyto.brain.annotation.image_column import image_column, select_sections
from jaxcyto.brain.annotation.outlines import signed_area
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
HALF_TURN = 16  # sides of a half circle at the ends of a line. They lie within 0.5 % of the radius


@dataclasses.dataclass
class Painted:
    """Counts of annotated pixels, over any number of sections.

    Attributes:
        pixels: pixels of each class, int64 [256].
        drawn: indices of the classes that have annotations.
        over: pixels by (old class, new class) whose old class was painted over by the new one.
        crossing: annotations whose rings cross, by file and feature.
        sections: number of label images.
    """

    pixels: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(256, np.int64))
    drawn: set[int] = dataclasses.field(default_factory=set)
    over: Counter[tuple[int, int]] = dataclasses.field(default_factory=Counter)
    crossing: list[str] = dataclasses.field(default_factory=list)
    sections: int = 0

    def describe(self, classes: Sequence[AreaClass]) -> str:
        """Describe the area of every class and the painted-over areas, in square millimeters."""
        lines = [f"{self.sections} label image(s) written"]
        lines += [
            f"{item.name}: {_mm2(count)}" for item, count in zip(classes, self.pixels, strict=False)
        ]
        lines += [
            f"{classes[new].name} painted over {classes[old].name}: {_mm2(count)}"
            for (old, new), count in self.over.most_common()
        ]
        return "\n".join(lines)

    def warn(self, classes: Sequence[AreaClass]) -> None:
        """Report rings that cross, and classes of which nothing is left, as warnings."""
        for where in self.crossing:
            warnings.warn(
                f"{where}: outlines or holes cross each other or themselves; what lies in two of "
                "them counts as a hole. Correct them in QuPath if that is not meant",
                stacklevel=3,
            )
        for number in sorted(self.drawn):
            if self.pixels[number]:
                continue
            new = [classes[after].name for before, after in self.over if before == number]
            why = (
                f"painted over by {', '.join(new)}; cut their annotations where they cover it"
                if new
                else f"its annotations cover no pixel of {LABEL_UM:g} um; draw them larger"
            )
            warnings.warn(
                f"class {classes[number].name} was drawn but ends with 0 mm2: {why}", stacklevel=3
            )


def annotate_brain(
    root: str | os.PathLike,
    geojson: str | os.PathLike,
    *,
    section: str | None = None,
    unit: str = "px",
    order: str = "area",
    stroke_um: float | None = None,
    overwrite: bool = False,
) -> str:
    """Rasterize annotations to label images `labels/<section>.tif` and fill the `label` column.

    All files are read and checked before anything is written.

    Args:
        root: the brain's folder.
        geojson: a file, or a folder of files named after their sections or section images.
        section: the section of a single file. It is needed if the file is not named after it.
        unit: unit of the coordinates, "px" of the image at full resolution or "um". The origin is
            the image's upper left corner.
        order: "area" paints smaller annotations over larger ones, and those of equal areas in the
            order of the file. "file" paints later ones over earlier ones.
        stroke_um: width of lines and diameter of points in micrometers. By default, lines and
            points are left out.
        overwrite: whether existing label images are replaced.

    Returns:
        A text with the area of each class.

    Raises:
        InputError: if a file cannot be used, a class is unknown, an annotation is faulty or lies
            outside of its section, or a section has a label image and `overwrite` is not set.
    """
    if stroke_um is not None and not 0 < stroke_um < math.inf:
        raise InputError(f"--stroke-um {stroke_um:g}: expected a width above 0 um")
    brain = read_brain(root)
    if not brain.classes:
        raise InputError(
            f"{brain.root / 'brain.toml'}: classes: none; add a [[classes]] table for each class "
            "of the annotation"
        )
    jobs, empty = [], []
    for path, row in _files(brain, Path(geojson), section):
        annotations = read_annotations(path, brain.classes, stroke_um is not None)
        if annotations:
            jobs.append((path, row, _on_label_grid(path, row, annotations, unit)))
        else:
            empty.append(path)
    if not jobs:
        strokes = "" if stroke_um is not None else ", or add --stroke-um for lines and points"
        raise InputError(
            f"{geojson}: no polygon with a class; set each annotation's class to one of "
            f"brain.toml and export again{strokes}: {class_names(brain.classes)}"
        )
    for path in empty:
        warnings.warn(f"{path}: no polygon with a class; left out", stacklevel=2)
    painted = Painted(sections=len(jobs))
    stroke = (stroke_um or 0.0) / LABEL_UM
    with image_column(brain, "label", [row for _, row, _ in jobs], overwrite) as path_of:
        for path, row, annotations in jobs:
            if order == "area":
                # Rounded, so that rounding in the sum does not decide between equal areas.
                annotations.sort(key=lambda each: -float(f"{each.area(stroke):.9g}"))
            label = rasterize(annotations, _label_shape(row), stroke, painted)
            if (label == UNLABELED).all():
                raise InputError(
                    f"{path}: its annotations cover no pixel of section {row.name} at "
                    f"{LABEL_UM:g} um; are the coordinates in {unit}?"
                )
            painted.pixels += np.bincount(label.ravel(), minlength=256)
            write_section(path_of(row), label, LABEL_UM, compression="deflate")
    painted.warn(brain.classes)
    return painted.describe(brain.classes)


def rasterize(
    annotations: Sequence[Annotation],
    shape: tuple[int, int],
    stroke: float = 0.0,
    painted: Painted | None = None,
) -> np.ndarray:
    """Paint annotations into a label image, in the given order.

    Args:
        annotations: annotations on the label grid, with pixel centers at integers.
        shape: (height, width) of the label image, px.
        stroke: width of lines and diameter of points, px.
        painted: its `drawn`, `over` and `crossing` are added to.

    Returns:
        uint8 [height, width], UNLABELED outside of all annotations.
    """
    label = np.full(shape, UNLABELED, np.uint8)
    painted = Painted() if painted is None else painted
    for annotation in annotations:
        painted.drawn.add(annotation.number)
        simple = [
            _paint(label, annotation.number, rings, painted.over) for rings in annotation.polygons
        ]
        if not all(simple):
            painted.crossing.append(annotation.where)
        for line in annotation.lines:
            for ring in _capsules(line, stroke / 2):
                _paint(label, annotation.number, [ring], painted.over)
    return label


def _paint(
    label: np.ndarray, number: int, rings: Sequence[np.ndarray], over: Counter[tuple[int, int]]
) -> bool:
    """Paint a polygon. Return whether its rings are simple: no pixel lies in two of them.

    All outlines turn one way and all holes the other way. So they wind around pixels of the polygon
    once, and around no other pixel.
    """
    outline, *holes = rings
    turned = [outline if signed_area(outline) < 0 else outline[::-1]]
    turned += [hole if signed_area(hole) > 0 else hole[::-1] for hole in holes]
    start = np.concatenate(turned)
    end = np.concatenate([np.roll(ring, -1, axis=0) for ring in turned])
    limit = np.array(label.shape)[::-1]
    left, top = np.clip(np.ceil(start.min(0)), 0, limit).astype(int)
    right, bottom = np.clip(np.ceil(start.max(0)), 0, limit).astype(int)
    height, width = bottom - top, right - left
    # Split the polygon into bands of rows, so that memory does not grow with its edges.
    crossings = np.abs(end - start)[:, 1].clip(max=height).sum()
    cost = height * width + CROSSING_PX * crossings
    rows = max(1, int(height * BAND_PX / max(cost, 1)))
    simple = True
    for first in range(top, bottom, rows):
        last = min(first + rows, bottom)
        shift = np.array([left, 0.0])
        winding = winding_number(start - shift, end - shift, first, last - first, width)
        simple = simple and bool((winding >> 1 == 0).all())
        inside = (winding & 1).astype(bool)  # even-odd rule
        window = label[first:last, left:right]
        counts = np.bincount(window[inside], minlength=256)
        for old in np.flatnonzero(counts[:UNLABELED]).tolist():
            if old != number:
                over[old, number] += int(counts[old])
        window[inside] = number
    return simple


def _capsules(line: np.ndarray, radius: float) -> Iterator[np.ndarray]:
    """Yield the outline of each piece of a line: all points at most `radius` away from it."""
    angle = np.linspace(-np.pi / 2, np.pi / 2, HALF_TURN + 1)
    for start, end in zip(line, line[1:] if len(line) > 1 else line, strict=False):
        toward = math.atan2(end[1] - start[1], end[0] - start[0])
        half = radius * np.stack([np.cos(toward + angle), np.sin(toward + angle)], 1)
        yield np.concatenate([end + half, start - half])


def _mm2(pixels: int) -> str:
    """Write an area with four digits, without an exponent."""
    text = np.format_float_positional(
        pixels * PIXEL_MM2, precision=4, unique=False, fractional=False, trim="-"
    )
    return f"{text} mm2"


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
    path: Path, row: SectionRow, annotations: list[Annotation], unit: str
) -> list[Annotation]:
    """Scale annotations to the label grid, with pixel centers at integers.

    Raises:
        InputError: if a polygon, line or point lies outside of the section.
    """
    scale = (row.pixel_um if unit == "px" else 1) / LABEL_UM
    height, width = _label_shape(row)
    moved, clipped = [], 0
    for each in annotations:
        # The corner of pixel 0 is at 0 in the file and at -0.5 on the grid.
        polygons = [[scale * ring - 0.5 for ring in rings] for rings in each.polygons]
        lines = [scale * line - 0.5 for line in each.lines]
        beyond = False
        for points in (*(rings[0] for rings in polygons), *lines):
            low, high = points.min(0) + 0.5, points.max(0) + 0.5
            if (high <= 0).any() or low[0] >= width or low[1] >= height:
                x, y = low / scale
                raise InputError(
                    f"{each.where}: lies outside of section {row.name} (from x {x:.6g}, y {y:.6g} "
                    f"{unit}; the image has {width / scale:.6g} x {height / scale:.6g} {unit}); "
                    "is it another section's, or are the coordinates in another unit?"
                )
            beyond |= bool((low < -1).any() or high[0] > width + 1 or high[1] > height + 1)
        clipped += beyond
        moved.append(dataclasses.replace(each, polygons=polygons, lines=lines))
    if clipped:
        warnings.warn(
            f"{path}: {clipped} feature(s) extend beyond the image of section {row.name}; "
            "clipped at its border",
            stacklevel=3,
        )
    return moved
