"""All faults of a brain folder at once, in words, before hours of work depend on it."""

import dataclasses
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from jaxcyto.brain.manifest import Brain, Hemisphere, SectionRow, read_brain
from jaxcyto.brain.pairs import PAIRS_FILE, load_pairs
from jaxcyto.brain.patches import PATCHES_FILE, load_patches
from jaxcyto.brain.registration import registration
from jaxcyto.brain.ribbon import no_overlap
from jaxcyto.brain.sections import open_section
from jaxcyto.brain.surfaces import Surface, hemisphere_surface, read_labels, read_surface
from jaxcyto.errors import InputError

LABEL_UM = 16.0  # of label and atlas images (method: the network's output resolution)
IGNORE = 255  # in label images: not annotated
PIXEL_SIZE_TOLERANCE = 0.05  # between the table and what the file states


@dataclasses.dataclass
class Report:
    """What was found. `facts` describe the brain, `warnings` can be lived with."""

    facts: list[str] = dataclasses.field(default_factory=list)
    warnings: list[str] = dataclasses.field(default_factory=list)
    faults: list[str] = dataclasses.field(default_factory=list)

    def attempt[T](self, function: Callable[..., T], *args) -> T | None:
        """Calls a reader; its InputError becomes a fault, its warnings are kept."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                return function(*args)
            except InputError as error:
                self.faults += [line for line in str(error).splitlines() if line not in self.faults]
                return None
            finally:
                new = (str(warning.message) for warning in caught)
                self.warnings += [line for line in new if line not in self.warnings]


def check_brain(root: str | os.PathLike) -> Report:
    """Reads everything a brain folder names; no exception for any fault in it."""
    report = Report()
    brain = report.attempt(read_brain, root)
    if brain is None:
        return report
    report.facts.append(
        f"{brain.name}: {len(brain.hemispheres)} hemisphere(s), {len(brain.sections)} section(s), "
        f"{len(brain.classes)} class(es)"
    )
    if not brain.licence:
        report.warnings.append(f"{brain.root / 'brain.toml'}: no licence of the data is given")
    surfaces = [_check_hemisphere(report, hemisphere) for hemisphere in brain.hemispheres]
    for row in brain.sections:
        _check_section(report, brain, row)
    if not report.faults:
        _check_overlap(report, brain, [surface for surface in surfaces if surface is not None])
    _check_splits(report, brain)
    if (brain.root / PATCHES_FILE).exists():
        patches = report.attempt(load_patches, brain.root / PATCHES_FILE, brain)
        if patches is not None:
            report.facts.append(f"{PATCHES_FILE}: {len(patches)} patches")
    if (brain.root / PAIRS_FILE).exists():
        pairs = report.attempt(load_pairs, brain.root / PAIRS_FILE)
        if pairs is not None:
            report.facts.append(f"{PAIRS_FILE}: {len(pairs)} pairs")
    return report


def _check_hemisphere(report: Report, hemisphere: Hemisphere) -> Surface | None:
    for path in (hemisphere.pial, hemisphere.white, hemisphere.mid):
        if path is not None:
            report.attempt(read_surface, path)
    surface = report.attempt(hemisphere_surface, hemisphere)
    if surface is None:
        return None
    report.facts.append(
        f"hemisphere {hemisphere.name}: {len(surface.vertices)} vertices, "
        f"{len(surface.faces)} triangles ({hemisphere.surface} surface)"
    )
    if hemisphere.labels is not None:
        report.attempt(read_labels, hemisphere.labels, len(surface.vertices))
    return surface


def _check_section(report: Report, brain: Brain, row: SectionRow) -> None:
    section = report.attempt(open_section, row.image, row.pixel_um, brain.background)
    report.attempt(registration, row)
    if section is None:
        return
    height, width = section.shape
    stated = report.attempt(_stated_pixel_um, row.image)
    if stated and abs(stated / row.pixel_um - 1) > PIXEL_SIZE_TOLERANCE:
        report.warnings.append(
            f"section {row.name}: pixel_um = {row.pixel_um:g}, but {row.image} states "
            f"{stated:.4g} um; the table is used"
        )
    # the last tile is what a copy that broke off lacks
    report.attempt(section.read, height - 1, width - 1, 1, 1)
    section.close()
    expected = tuple(max(1, round(side * row.pixel_um / LABEL_UM)) for side in (height, width))
    if row.label is not None:
        _check_label(report, brain, row, expected)
    if row.atlas is not None:
        _check_atlas(report, brain, row, expected)


def _stated_pixel_um(path: Path) -> float | None:
    with open_section(path) as section:
        return section.pixel_um


def _check_label(report: Report, brain: Brain, row: SectionRow, expected: tuple[int, ...]) -> None:
    label = report.attempt(open_section, row.label, LABEL_UM, IGNORE)
    if label is None:
        return
    with label:
        if not _same_size(label.shape, expected):
            report.faults.append(
                f"section {row.name}: {row.label} has {label.shape[0]} x {label.shape[1]} px, but "
                f"the image calls for {expected[0]} x {expected[1]} px at {LABEL_UM:g} um; "
                "rasterise the annotation again at that size"
            )
            return
        values = report.attempt(label.read, 0, 0, *label.shape)
    if values is None:
        return
    unknown = np.setdiff1d(np.unique(values), [*range(len(brain.classes)), IGNORE])
    if unknown.size:
        report.faults.append(
            f"section {row.name}: {row.label} holds {unknown.tolist()[:8]}, but brain.toml lists "
            f"{len(brain.classes)} classes (0 ... {len(brain.classes) - 1}; {IGNORE} = not "
            "annotated); add the classes or correct the image"
        )


def _check_atlas(report: Report, brain: Brain, row: SectionRow, expected: tuple[int, ...]) -> None:
    import tifffile

    areas = sum(c.kind == "area" for c in brain.classes)
    remedy = f"one 8-bit channel for each of the {areas} areas, at {LABEL_UM:g} um"
    assert row.atlas is not None
    try:
        with tifffile.TiffFile(row.atlas) as tiff:
            shape, axes, dtype = tiff.series[0].shape, tiff.series[0].axes, tiff.series[0].dtype
    except Exception as error:  # tifffile raises many kinds for a file that is none
        report.faults.append(f"section {row.name}: {row.atlas}: not a readable TIFF ({error})")
        return
    sides = tuple(shape[axes.index(axis)] for axis in "YX" if axis in axes)
    channels = int(np.prod(shape)) // max(1, int(np.prod(sides)))
    if dtype != np.uint8 or channels != areas or not _same_size(sides, expected):
        report.faults.append(
            f"section {row.name}: {row.atlas} is {dtype} {list(shape)} ({axes}); expected "
            f"{remedy}, {expected[0]} x {expected[1]} px"
        )


def _same_size(found: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """To one pixel: images need not be whole multiples of a label pixel."""
    return len(found) == 2 and all(abs(a - b) <= 1 for a, b in zip(found, expected, strict=True))


def _check_overlap(report: Report, brain: Brain, surfaces: list[Surface]) -> None:
    for row in brain.sections:
        with open_section(row.image, row.pixel_um, brain.background) as section:
            placed = registration(row, section.shape)
            height, width = section.shape
        hits = 0
        for surface in surfaces:
            column, line, offset = placed.to_px(surface.vertices)
            inside = (column > 0) & (column < width - 1) & (line > 0) & (line < height - 1)
            if inside.any():
                hits += offset[inside].min() <= 0 <= offset[inside].max()
        if not hits:
            reason = no_overlap(dataclasses.replace(brain, sections=(row,)), surfaces, [placed])
            report.warnings.append(f"section {row.name} meets no surface: {reason}")
    missed = sum("meets no surface" in line for line in report.warnings)
    if missed == len(brain.sections):
        report.faults.append(
            "no section meets any surface; do they share one space, in mm? In BigBrain's "
            "histological space section s lies at y = -70.01 + 0.02 s mm, but its 100 ... 1000 um "
            "volumes have another origin (-72.5)"
        )


def _check_splits(report: Report, brain: Brain) -> None:
    splits = [row.split for row in brain.sections]
    if not any(splits):
        report.facts.append("split column: empty; `jaxcyto sample` fills it")
    elif not all(splits):
        empty = [row.name for row in brain.sections if not row.split]
        report.faults.append(
            f"{brain.root / brain.section_table}: split is empty for {len(empty)} of "
            f"{len(splits)} sections ({', '.join(empty[:5])}); fill in all of them, or none"
        )
    else:
        counts = {split: splits.count(split) for split in sorted(set(splits))}
        report.facts.append(f"split column: {counts}")
