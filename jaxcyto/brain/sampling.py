"""Patches centred in the cortex: drawn evenly per millimetre where sections cut the surface."""

import dataclasses
import os
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from jaxcyto.brain.manifest import SPLITS, Brain
from jaxcyto.brain.patches import DTYPES, Patches, load_patches, sections_sha256
from jaxcyto.brain.progress import Progress
from jaxcyto.brain.registration import Registration, in_image, registration
from jaxcyto.brain.ribbon import CutSurface, Segments, cut_surface, mean_normal, no_overlap
from jaxcyto.brain.sections import open_section
from jaxcyto.brain.splits import (
    EXCLUDE,
    FRACTIONS,
    GAP_MM,
    TEST,
    TRAIN,
    VAL,
    assign_splits,
    blocks,
    split_distances_mm,
)
from jaxcyto.errors import InputError

__all__ = [
    "Patches",
    "assign_splits",
    "load_patches",
    "sample_patches",
    "split_distances_mm",
]

# Assumptions: the paper does not say how patches without tissue were told apart.
TISSUE_MARGIN = 10  # grey values a pixel differs from the background by
TISSUE_WINDOW_PX = 32  # side of the coarse window in which tissue is looked for
MIN_TISSUE = 0.25  # least share of tissue: at a gyral crown half the window is outside
ROUNDS = 30  # of redrawing
MOST_PATCHES = 10_000_000  # 1 GB while they are drawn
MIN_THICKNESS_MM = 0.75  # between pial and white; the medial wall is thinner, cortex is not
MOST_OFF_TISSUE = (
    0.1  # of the ribbon; < 0.01 for a real section in place, 0.13-0.16 when 2.5 mm off
)
LEAST_YIELD = 0.05  # of the first draw; below, section and surface do not fit
BIN_MM = 0.05  # resolution of the cuts between splits along an axis

TRAP = (
    "do the surfaces and the sections share one space, in mm? In BigBrain's histological space "
    "section s lies at y = -70.01 + 0.02 s mm, but its 100 ... 1000 um volumes have another "
    "origin (-72.5): coordinates taken from them are off by 2.5 mm in y"
)


@dataclasses.dataclass(frozen=True, eq=False)
class _Ribbon:
    """The ribbon of one section over all hemispheres, with what a draw along it needs."""

    hemisphere: np.ndarray  # [M]
    split: np.ndarray  # [M]
    segments: Segments


class _Cutter:
    """Cuts all surfaces by a section; keeps what its image covers."""

    def __init__(
        self,
        brain: Brain,
        depth: float | None,
        min_thickness_mm: float,
        progress: Progress | None,
    ):
        self.brain = brain
        self.shapes = []
        for row in brain.sections:
            with open_section(row.image, row.pixel_um, brain.background) as section:
                self.shapes.append(section.shape)
            if progress:
                progress(len(self.shapes), len(brain.sections))
        self.registrations: list[Registration] = [
            registration(row, shape) for row, shape in zip(brain.sections, self.shapes, strict=True)
        ]
        found = [cut_surface(each, depth, min_thickness_mm) for each in brain.hemispheres]
        self.surfaces = [surface for surface, _ in found]
        axis = mean_normal(self.registrations)
        self._cut = [CutSurface(surface, cortex, axis) for surface, cortex in found]
        self.split_cuts: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None

    def covered(self, index: int) -> tuple[np.ndarray, Segments]:
        """Hemisphere [M] and segments of what one section's image covers."""
        parts = [surface.cut(self.registrations[index]) for surface in self._cut]
        hemisphere = np.repeat(np.arange(len(parts)), [len(part.face) for part in parts])
        segments = Segments.joined(parts)
        column, row, _ = self.registrations[index].to_px(segments.middle_mm)
        keep = in_image(column, row, self.shapes[index])
        return hemisphere[keep], segments.select(keep)

    def ribbon(self, index: int) -> _Ribbon:
        """The part of it that belongs to a split."""
        hemisphere, segments = self.covered(index)
        if self.split_cuts is None:
            split = np.full(len(hemisphere), SPLITS.index(self.brain.sections[index].split))
        else:
            axis, edges, kinds = self.split_cuts
            bins = np.searchsorted(edges, segments.middle_mm @ axis, "right") - 1
            split = kinds[np.clip(bins, 0, len(kinds) - 1)]
        keep = split != EXCLUDE
        return _Ribbon(hemisphere[keep], split[keep], segments.select(keep))


def sample_patches(
    brain: Brain,
    *,
    num_patches: int | None = None,
    spacing_mm: float | None = None,
    patch_px: int = 1019,
    um_per_px: float = 2.0,
    depth: float | None = None,
    min_tissue: float = MIN_TISSUE,
    min_thickness_mm: float = MIN_THICKNESS_MM,
    split_axis: str | None = None,
    fractions: tuple[float, float, float] = FRACTIONS,
    seed: int = 0,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Patches:
    """Draws patches evenly per millimetre of cortical ribbon over all sections that have a split.

    The ribbon is where the sections cut the hemispheres' surfaces, and their images cover the cut.
    The draw is stratified: one patch at random in each of `num_patches` equal lengths. Windows
    with too little tissue are drawn again, anywhere, until the number is met.

    Args:
        brain: with its split column filled (`assign_splits`), unless `split_axis` is given.
        num_patches: number of patches; either this or `spacing_mm`.
        spacing_mm: ribbon length per patch; windows without tissue are then dropped for good.
        patch_px: side of the square window.
        um_per_px: its resolution; together they give the window's extent.
        depth: None for the surface that carries the distances (mid), else 0 (pial) ... 1 (white).
        min_tissue: smallest share of the window that must differ from the background.
        min_thickness_mm: thinner cortex (the medial wall) is left out; 0 keeps all.
        split_axis: x, y or z: splits within the sections, by position along this axis in mm
            (train lowest), with gaps so wide that windows of different splits cannot overlap.
        fractions: shares of the ribbon for train, val and test, for `split_axis` only.
        seed: the same seed gives the same patches, whatever the number of workers.
        workers: threads that read windows; default: the processors.
        progress: called with (sections opened, sections), then with (patches found, patches).

    Raises:
        InputError: if sections and surfaces do not overlap, nearly all windows lack tissue, or a
            setting is out of range.
    """
    _check_settings(brain, num_patches, spacing_mm, patch_px, um_per_px, depth, split_axis)
    cutter = _Cutter(brain, depth, min_thickness_mm, progress)
    extent_mm = patch_px * um_per_px / 1000
    gap_mm = _split_along(cutter, split_axis, fractions, extent_mm) if split_axis else 0.0
    used = [i for i, row in enumerate(brain.sections) if row.split != SPLITS[EXCLUDE]]
    lengths = np.array([cutter.ribbon(index).segments.length_mm.sum() for index in used])
    _check_overlap(cutter, lengths.sum())
    wanted = num_patches if spacing_mm is None else int(lengths.sum() / spacing_mm)
    if not wanted:
        raise InputError(f"spacing_mm = {spacing_mm:g}: the ribbon is {lengths.sum():.1f} mm")
    if wanted > MOST_PATCHES:
        raise InputError(f"{wanted} patches of {lengths.sum():.1f} mm; at most {MOST_PATCHES}")

    bounds = np.concatenate([[0.0], np.cumsum(lengths)])
    extent_um = patch_px * um_per_px
    parts: list[dict[str, np.ndarray]] = []
    looked = kept = on_tissue = 0
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        for number in range(ROUNDS):
            at = _positions(wanted - kept, bounds[-1], seed, number)
            cuts = np.searchsorted(at, bounds)
            jobs = [
                (index, at[begin:end] - start)
                for index, start, begin, end in zip(used, bounds, cuts, cuts[1:], strict=False)
                if end > begin
            ]
            for part in pool.map(lambda job: _draw(cutter, job[0], job[1], extent_um), jobs):
                share, centre = part.pop("tissue").T
                parts.append({name: values[share >= min_tissue] for name, values in part.items()})
                looked, on_tissue = looked + len(share), on_tissue + int(centre.sum())
                kept += int((share >= min_tissue).sum())
                if progress:
                    progress(kept, wanted)
            if number == 0:
                _check_tissue(brain, looked, kept, on_tissue, extent_mm, min_tissue)
            if kept >= wanted or spacing_mm is not None:
                break
        else:
            warnings.warn(
                f"{brain.root}: {kept} of {wanted} patches after {ROUNDS} rounds; the other "
                "windows hold too little tissue",
                stacklevel=2,
            )
    merged = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.lexsort((merged["arc_mm"], merged["section"]))
    settings = {
        "patch_px": patch_px,
        "um_per_px": um_per_px,
        "depth": depth,
        "min_tissue": min_tissue,
        "min_thickness_mm": min_thickness_mm,
        "split_axis": split_axis,
        "gap_mm": gap_mm,
        "seed": seed,
        "ribbon_mm": float(lengths.sum()),
        "without_tissue": looked - kept,
        "sections_sha256": sections_sha256(brain),
    }
    arrays = {name: merged[name][order].astype(dtype) for name, (dtype, _) in DTYPES.items()}
    return Patches(**arrays, settings=settings)


def _positions(number: int, length_mm: float, seed: int, round_number: int) -> np.ndarray:
    """Ascending arc lengths [number]: stratified in the first round, then plainly at random."""
    rng = np.random.default_rng([seed, round_number])
    draw = rng.random(number)
    share = (np.arange(number) + draw) / number if round_number == 0 else np.sort(draw)
    return np.minimum(share * length_mm, np.nextafter(length_mm, 0))


def _check_overlap(cutter: _Cutter, ribbon_mm: float) -> None:
    if not ribbon_mm > 0:
        raise InputError(
            f"{cutter.brain.root}: no section cuts the cortex.\n"
            f"{no_overlap(cutter.brain, cutter.surfaces, cutter.registrations)}\n{TRAP}"
        )


def _check_tissue(brain, looked, kept, on_tissue, extent_mm, min_tissue) -> None:
    """Says so where sections and surfaces seem not to fit, from the first round."""
    if kept < LEAST_YIELD * looked:
        raise InputError(
            f"{brain.root}: only {kept} of {looked} windows of {extent_mm:.3g} mm hold "
            f"{100 * min_tissue:g} % tissue (grey values more than {TISSUE_MARGIN} from "
            f"background = {brain.background}); check the registration and `background` in "
            f"brain.toml: {TRAP}"
        )
    if on_tissue < (1 - MOST_OFF_TISSUE) * looked:
        warnings.warn(
            f"{brain.root}: {100 - 100 * on_tissue / looked:.0f} % of the ribbon lies on "
            f"background; {TRAP}",
            stacklevel=3,
        )


def _check_settings(brain, num_patches, spacing_mm, patch_px, um_per_px, depth, split_axis) -> None:
    if (num_patches is None) == (spacing_mm is None):
        raise InputError("give either num_patches or spacing_mm")
    if num_patches is not None and num_patches < 1:
        raise InputError(f"num_patches = {num_patches}; at least 1")
    if spacing_mm is not None and not spacing_mm > 0:
        raise InputError(f"spacing_mm = {spacing_mm}; a length above 0")
    if patch_px < 1 or not um_per_px > 0:
        raise InputError(f"patch_px = {patch_px}, um_per_px = {um_per_px}; both above 0")
    if depth is not None and not 0 <= depth <= 1:
        raise InputError(f"depth = {depth}; 0 (pial) ... 1 (white)")
    table = brain.root / brain.section_table
    if split_axis is not None:
        if split_axis not in ("x", "y", "z"):
            raise InputError(f"split_axis = {split_axis!r}; x, y or z")
        if any(row.split for row in brain.sections):
            raise InputError(
                f"{table}: the split column is filled, and it rules; empty it to split within "
                f"the sections along {split_axis}"
            )
    elif not all(row.split for row in brain.sections):
        raise InputError(f"{table}: empty split; fill the column (assign_splits) before sampling")
    elif all(row.split == SPLITS[EXCLUDE] for row in brain.sections):
        raise InputError(f"{table}: every section is excluded; nothing to sample")


def _split_along(cutter: _Cutter, axis: str, fractions, extent_mm: float) -> float:
    """Sets cuts across `axis` so that train, val and test get their shares; returns the gap."""
    direction = np.eye(3)["xyz".index(axis)]
    # Two square windows whose centres are this far apart along the axis cannot overlap.
    gap, longest = GAP_MM, 0.0
    for each in cutter.registrations:
        frame = each.affine[:, :2] / np.linalg.norm(each.affine[:, :2], axis=0)
        gap = max(gap, extent_mm * float(np.abs(direction @ frame).sum()))
    along, length = [], []
    for index in range(len(cutter.registrations)):
        _, segments = cutter.covered(index)
        along.append(segments.middle_mm @ direction)
        length.append(segments.length_mm)
        longest = max(longest, segments.length_mm.max(initial=0))
    along, length = np.concatenate(along), np.concatenate(length)
    _check_overlap(cutter, length.sum())
    bins = np.floor((along - along.min()) / BIN_MM).astype(int)
    weight = np.bincount(bins, length)
    position = along.min() + BIN_MM * np.arange(len(weight))
    kinds = [kind for kind in (TRAIN, VAL, TEST) if fractions[kind] > 0]
    parts = np.array([fractions[kind] for kind in kinds]) / sum(fractions)
    # Segments are assigned by their middle, so their halves and the bins widen the gap.
    found = blocks(position, weight, parts, gap + longest + BIN_MM, least=0.2)
    if found is None:
        raise InputError(
            f"{cutter.brain.root}: {np.ptp(along):.1f} mm of ribbon along {axis} leave no room "
            f"for splits {gap:.2f} mm apart; take another axis or smaller windows"
        )
    cutter.split_cuts = (direction, position, np.append(kinds, EXCLUDE)[found])
    return gap


def _draw(
    cutter: _Cutter, index: int, arc_mm: np.ndarray, extent_um: float
) -> dict[str, np.ndarray]:
    """The patches at these arc lengths [n] along one section's ribbon, with their tissue."""
    ribbon = cutter.ribbon(index)
    segment, points, bary = ribbon.segments.at(arc_mm)
    column, row, _ = cutter.registrations[index].to_px(points)
    return {
        "section": np.full(len(arc_mm), index),
        "center_px": np.stack([column, row], -1),
        "position_mm": points,
        "hemisphere": ribbon.hemisphere[segment],
        "face": ribbon.segments.face[segment],
        "bary": bary,
        "split": ribbon.split[segment],
        "arc_mm": arc_mm,
        "tissue": _tissue(cutter.brain, index, column, row, extent_um),
    }


def _tissue(
    brain: Brain, index: int, columns: np.ndarray, rows: np.ndarray, extent_um: float
) -> np.ndarray:
    """Share of tissue in windows of `extent_um` around these centres [n], read coarsely, and
    whether the centre itself is tissue: [n, 2]."""
    section = brain.sections[index]
    coarse_um = max(extent_um / TISSUE_WINDOW_PX, section.pixel_um)
    side = max(1, round(extent_um / coarse_um))
    scale = coarse_um / section.pixel_um
    # Level-0 coordinate c is coarse coordinate (c + 0.5) / scale - 0.5.
    left = np.rint((columns + 0.5) / scale - side / 2).astype(int)
    top = np.rint((rows + 0.5) / scale - side / 2).astype(int)
    middle = slice((side - 1) // 2, side // 2 + 1)
    result = np.empty((len(left), 2))
    with open_section(section.image, section.pixel_um, brain.background) as image:
        for number, (y, x) in enumerate(zip(top.tolist(), left.tolist(), strict=True)):
            window = image.read_at(coarse_um, y, x, side, side).astype(int)
            tissue = np.abs(window - brain.background) > TISSUE_MARGIN
            result[number] = tissue.mean(), tissue[middle, middle].any()
    return result
