"""Check a brain folder and report all faults at once, before hours of work depend on it."""

import dataclasses
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from jaxcyto.brain.manifest import CLASS_KINDS, Brain, Hemisphere, SectionRow, inspect_brain
from jaxcyto.brain.registration import Registration, in_image, registration
from jaxcyto.brain.sampling import pairs as pairs_file
from jaxcyto.brain.sampling import patches as patches_file
from jaxcyto.brain.sampling.consistency import check_pairs, check_points
from jaxcyto.brain.sampling.pairs import PAIRS_FILE, distances_path, load_pairs, open_distances
from jaxcyto.brain.sampling.patches import PATCHES_FILE, Patches, load_patches
from jaxcyto.brain.sampling.ribbon import TRAP, CutSurface, Segments, mean_normal, no_overlap
from jaxcyto.brain.sampling.sampling import MOST_OFF_TISSUE, TISSUE_MARGIN
from jaxcyto.brain.sections.atlas_image import section_atlas
from jaxcyto.brain.sections.label_image import UNLABELED, check_numbers, label_counts, section_label
from jaxcyto.brain.sections.section import Section, open_section
from jaxcyto.brain.surfaces.surface import Surface, hemisphere_surface, read_surface
from jaxcyto.brain.surfaces.vertex_labels import read_labels
from jaxcyto.errors import InputError
from jaxcyto.utils.files import READ_ERRORS, npz_format
from jaxcyto.utils.progress import Progress

PIXEL_SIZE_TOLERANCE = 0.05  # relative, between the table and the image's metadata
AFFINE_TOLERANCE = 0.1  # relative, between pixel_um and the registration, which may stretch a bit
TISSUE_POINTS = 800  # points of all sections together. A share of 10 % is then known to 1 %.
LOOK_PX, LOOK_PARTS = (
    32,
    8,
)  # side of a window whose gray values are looked at, windows along a side
DARK = 64  # gray values below this in all windows look like unused bits: cameras have 10 to 14
TISSUE_UM = 64.0  # side of the spot whose mean gray value is compared, in um


@dataclasses.dataclass
class CheckReport:
    """The result of a check.

    Attributes:
        facts: statements about the brain.
        warnings: irregularities that do not prevent its use.
        faults: errors that must be corrected.
    """

    facts: list[str] = dataclasses.field(default_factory=list)
    warnings: list[str] = dataclasses.field(default_factory=list)
    faults: list[str] = dataclasses.field(default_factory=list)

    def attempt[T](self, function: Callable[..., T], *args) -> T | None:
        """Call a reader, and record its InputError as a fault and its warnings as warnings."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                return function(*args)
            except InputError as error:
                self.fault(str(error))
                return None
            finally:
                new = (str(warning.message) for warning in caught)
                self.warnings += [line for line in new if line not in self.warnings]

    def fault(self, message: str) -> None:
        """Add a fault, unless the same message is already recorded."""
        if message not in self.faults:
            self.faults.append(message)


@dataclasses.dataclass(frozen=True, eq=False)
class _Placed:
    """A section whose image can be opened and whose registration is valid."""

    row: SectionRow
    shape: tuple[int, int]
    registration: Registration


def check_brain(root: str | os.PathLike, progress: Progress | None = None) -> CheckReport:
    """Check all files that a brain folder names. Faults are reported, not raised.

    Label images are read completely. Of section images, the headers, the last pixel and spots
    on the ribbon are read, and of images of 16 bits also some windows.

    Args:
        root: the brain's folder.
        progress: called with the number of sections read and the number of all sections.
    """
    report = CheckReport()
    brain, faults = inspect_brain(root)
    report.faults += faults
    if brain is None:
        return report
    report.facts.append(
        f"{brain.name}: {len(brain.hemispheres)} hemisphere(s), {len(brain.sections)} section(s), "
        f"{len(brain.classes)} class(es)"
    )
    if not brain.licence:
        report.warnings.append(
            f"{brain.root / 'brain.toml'}: licence: not given; say what others may do with the data"
        )
    surfaces = [_check_hemisphere(report, hemisphere) for hemisphere in brain.hemispheres]
    placed, labels = [], np.zeros(256, np.int64)
    odd: dict[str, list[str]] = {}  # warning -> names of its sections, so that it is given once
    brightest: dict[str, int] = {}  # largest gray value of sections whose used bits are not stated
    for index, row in enumerate(brain.sections):
        placed.append(_check_section(report, brain, row, labels, odd, brightest))
        if progress:
            progress(index + 1, len(brain.sections))
    for message, names in odd.items():
        report.warnings.append(f"{message} ({_some(names)})")
    _check_bits(report, brain, brightest)
    _check_labels(report, brain, labels)
    _check_overlap(report, brain, surfaces, [section for section in placed if section])
    _check_splits(report, brain)
    # Faulty files would make patches and pairs look as if they belonged to another brain.
    if not faults:
        _check_results(report, brain, surfaces)
    return report


def _some(names: Sequence[str]) -> str:
    count = f"{len(names)} section" + "s" * (len(names) > 1)
    return f"{count}: {', '.join(names[:5])}" + ", ..." * (len(names) > 5)


def _check_hemisphere(report: CheckReport, hemisphere: Hemisphere) -> Surface | None:
    named = {
        "mid": (hemisphere.mid,) if hemisphere.mid else (hemisphere.pial, hemisphere.white),
        "pial": (hemisphere.pial,),
        "white": (hemisphere.white,),
    }
    carrying = named.get(hemisphere.surface, (None,))
    for path in (hemisphere.pial, hemisphere.white, hemisphere.mid):
        if path is not None and path not in carrying:
            report.attempt(read_surface, path)
    if None in carrying:  # `inspect_brain` has reported it
        return None
    before = len(report.faults)
    surface = report.attempt(hemisphere_surface, hemisphere)
    if surface is None:
        if len(report.faults) > before and len(carrying) == 2:
            report.attempt(read_surface, carrying[1])  # report the second file's faults, too
        return None
    report.facts.append(
        f"hemisphere {hemisphere.name}: {len(surface.vertices)} vertices, "
        f"{len(surface.faces)} triangles ({hemisphere.surface} surface)"
    )
    if hemisphere.labels is not None:
        report.attempt(read_labels, hemisphere.labels, len(surface.vertices))
    return surface


def _check_section(
    report: CheckReport,
    brain: Brain,
    row: SectionRow,
    labels: np.ndarray,
    odd: dict[str, list[str]],
    brightest: dict[str, int],
) -> _Placed | None:
    section = report.attempt(open_section, row.image, None, brain.background, brain.bits)
    if section is None:
        return None
    height, width = section.shape
    stated = section.pixel_um
    if stated and abs(stated / row.pixel_um - 1) > PIXEL_SIZE_TOLERANCE:
        message = f"pixel_um = {row.pixel_um:g}, but the image states {stated:.4g} um; the table is"
        odd.setdefault(f"{message} used: correct it if it is wrong", []).append(row.name)
    # The last tile is missing if the file was copied only in part.
    report.attempt(section.read, height - 1, width - 1, 1, 1)
    if section.bits_unstated:
        largest = report.attempt(_brightest, section)
        if largest is not None:
            brightest[row.name] = largest
    section.close()
    label = report.attempt(section_label, row, section.shape) if row.label else None
    if label is not None:
        counts = report.attempt(label_counts, label)
        if counts is not None:
            labels += counts
            report.attempt(check_numbers, row, counts, len(brain.classes))
        label.close()
    # The number of atlas channels depends on the kinds. `inspect_brain` reports unknown kinds.
    known = all(each.kind in CLASS_KINDS for each in brain.classes)
    if row.atlas and known:
        report.attempt(section_atlas, row, section.shape, brain.classes)
    if row.affine is None and row.coordinates is None:  # `inspect_brain` has reported it
        return None
    placement = report.attempt(registration, row, section.shape)
    if placement is None:
        return None
    step_um = 1000 * np.linalg.norm(placement.affine[:, :2], axis=0)
    if (np.abs(step_um / row.pixel_um - 1) > AFFINE_TOLERANCE).any():
        message = f"the registration scales pixels of {row.pixel_um:g} um to {step_um[0]:.4g} x"
        odd.setdefault(f"{message} {step_um[1]:.4g} um; is pixel_um right?", []).append(row.name)
    return _Placed(row, (height, width), placement)


def _brightest(section: Section) -> int:
    """Return the largest gray value in windows spread over a section."""
    height, width = section.shape
    down, across = min(LOOK_PX, height), min(LOOK_PX, width)
    steps = [(step + 0.5) / LOOK_PARTS for step in range(LOOK_PARTS)]
    return max(
        int(section.read(int((height - down) * y), int((width - across) * x), down, across).max())
        for y in steps
        for x in steps
    )


def _check_bits(report: CheckReport, brain: Brain, brightest: dict[str, int]) -> None:
    """Warn if images of 16 bits look as if a camera of fewer bits took them.

    The values of such a camera become almost black, because all bits count as used.
    """
    dark = [name for name, largest in brightest.items() if largest < DARK]
    if not dark:
        return
    bits = 8 + max(brightest[name] for name in dark).bit_length()
    remedy = f"write bits = {bits} into {brain.root / 'brain.toml'}"
    if len(dark) < len(brightest):  # one number cannot fit both kinds
        remedy = "export them again over the full range of 16 bits, as the other sections are"
    report.warnings.append(
        f"images of 16 bits whose values stay below {1 << bits} where they were looked at, so that "
        f"they are read as gray values 0 ... {(1 << bits - 8) - 1}, almost black ({_some(dark)}); "
        f"if a camera of {bits} bits took them, {remedy}"
    )


def _check_labels(report: CheckReport, brain: Brain, counts: np.ndarray) -> None:
    if not counts.sum():
        return
    used = counts[: len(brain.classes)]
    never = [each.name for each, n in zip(brain.classes, used, strict=True) if not n]
    share = counts[:UNLABELED].sum() / counts.sum()
    images = sum(row.label is not None for row in brain.sections)
    report.facts.append(
        f"label images: {images}, {100 * share:.3g} % of their pixels annotated"
        + (f"; no pixel of {', '.join(never)}" if never else "")
    )


def _check_overlap(
    report: CheckReport, brain: Brain, surfaces: list[Surface | None], placed: list[_Placed]
) -> None:
    usable = [
        (each, surface)
        for each, surface in zip(brain.hemispheres, surfaces, strict=True)
        if surface is not None
    ]
    if not usable or not placed:
        return
    axis = mean_normal([section.registration for section in placed])
    cuts = [CutSurface(surface, np.ones(len(surface.faces), bool), axis) for _, surface in usable]
    points = -(-TISSUE_POINTS // len(placed))
    rng = np.random.default_rng(0)
    missed, ribbon_mm, looked, on_tissue = [], 0.0, 0, 0
    for section in placed:
        parts = Segments.joined([cut.cut(section.registration) for cut in cuts])
        column, row, _ = section.registration.to_px(parts.middle_mm)
        length_mm = parts.length_mm * in_image(column, row, section.shape)
        if not length_mm.sum() > 0:
            missed.append(section.row.name)
            continue
        ribbon_mm += length_mm.sum()
        chosen = rng.choice(len(length_mm), points, p=length_mm / length_mm.sum())
        count = report.attempt(_tissue, brain, section, column[chosen], row[chosen])
        if count is not None:
            looked, on_tissue = looked + points, on_tissue + count
    if len(missed) == len(placed):
        part = dataclasses.replace(
            brain,
            hemispheres=tuple(each for each, _ in usable),
            sections=tuple(section.row for section in placed),
        )
        reason = no_overlap(
            part, [surface for _, surface in usable], [section.registration for section in placed]
        )
        table = brain.root / brain.section_table
        report.fault(f"{table}: affine: no section meets any surface.\n{reason}\n{TRAP}")
        return
    report.facts.append(
        f"the sections cut {ribbon_mm:.0f} mm of cortex"
        + (f"; no cut in {_some(missed)}" if missed else "")
    )
    if looked and on_tissue < (1 - MOST_OFF_TISSUE) * looked:
        report.warnings.append(
            f"{100 - 100 * on_tissue / looked:.0f} % of the ribbon lies on background (gray values "
            f"within {TISSUE_MARGIN} of {brain.background}); {TRAP}"
        )


def _tissue(brain: Brain, section: _Placed, columns: np.ndarray, rows: np.ndarray) -> int:
    """Count the points (level 0 px) on tissue, by the mean gray value of a small spot at each.

    In two sections of BigBrain, 95 ... 99 % of the points lie on tissue, because the medial wall of
    the surfaces lies outside. If the sections are 2.5 mm off, 79 ... 85 % do.
    """
    pixel_um = section.row.pixel_um
    spot_um = max(TISSUE_UM, pixel_um)
    left = np.floor((columns + 0.5) * pixel_um / spot_um).astype(int)
    top = np.floor((rows + 0.5) * pixel_um / spot_um).astype(int)
    count = 0
    with open_section(section.row.image, pixel_um, brain.background, brain.bits) as image:
        for y, x in zip(top.tolist(), left.tolist(), strict=True):
            spot = int(image.read_at(spot_um, y, x, 1, 1)[0, 0])
            count += abs(spot - brain.background) > TISSUE_MARGIN
    return count


def _check_splits(report: CheckReport, brain: Brain) -> None:
    splits = [row.split for row in brain.sections]
    if not any(splits):
        how = "`jaxcyto sample` fills it" if brain.hemispheres else "fill it in by hand"
        report.facts.append(f"split column: empty; {how}")
    elif not all(splits):
        empty = [row.name for row in brain.sections if not row.split]
        report.fault(
            f"{brain.root / brain.section_table}: split: empty for {len(empty)} of {len(splits)} "
            f"({_some(empty)}); fill in all of them, or none"
        )
    else:
        counts = {split: splits.count(split) for split in sorted(set(splits))}
        report.facts.append(
            "split column: " + ", ".join(f"{count} {split}" for split, count in counts.items())
        )


def _check_results(report: CheckReport, brain: Brain, surfaces: Sequence[Surface | None]) -> None:
    """Check every npz file in the folder that holds patches or pairs, whatever its name."""
    kinds = {path: _kind(path) for path in sorted(brain.root.glob("*.npz"))}
    patches: dict[str, Patches] = {}
    for path, kind in kinds.items():
        if kind == patches_file.PATCHES_FORMAT or path.name == PATCHES_FILE:
            loaded = report.attempt(load_patches, path, brain)
            if loaded is not None:
                report.facts.append(f"{path.name}: {len(loaded)} patches")
                report.attempt(check_points, path, loaded, surfaces)
                patches[path.name] = loaded
    for path, kind in kinds.items():
        if kind == pairs_file.PAIRS_FORMAT or path.name == PAIRS_FILE:
            pairs = report.attempt(load_pairs, path)
            if pairs is not None:
                report.facts.append(f"{path.name}: {len(pairs)} pairs of {pairs.patches_file}")
                if pairs.patches_file in patches:
                    own = patches[pairs.patches_file]
                    before = len(report.faults)
                    report.attempt(check_pairs, path, pairs, own)
                    sound = len(report.faults) == before
                    if sound and distances_path(brain.root, pairs.patches_file).exists():
                        report.attempt(open_distances, brain.root, pairs, len(own))
        elif kind is None and path.name != PATCHES_FILE:
            report.warnings.append(
                f"{path}: cannot be read; if it holds patches or pairs, it is damaged"
            )


def _kind(path: Path) -> str | None:
    """Return the `format` entry of an npz file, "" if it has none, None if it cannot be read."""
    try:
        return npz_format(path)
    except READ_ERRORS:
        return None
