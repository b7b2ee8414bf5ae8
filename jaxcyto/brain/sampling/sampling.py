"""Patches centered in the cortex: drawn evenly per millimeter where sections cut the surface."""

import os
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from jaxcyto.brain.manifest import SPLITS, Brain
from jaxcyto.brain.sampling.patches import DTYPES, Patches, sections_sha256
from jaxcyto.brain.sampling.ribbon import MIN_THICKNESS_MM, TRAP
from jaxcyto.brain.sampling.section_ribbons import Cutter
from jaxcyto.brain.sampling.splits import EXCLUDE, FRACTIONS
from jaxcyto.brain.sections.section import open_section
from jaxcyto.errors import InputError
from jaxcyto.utils.progress import Progress

# Assumptions: the paper does not say how patches without tissue were told apart.
TISSUE_MARGIN = 10  # gray values a pixel differs from the background by
TISSUE_WINDOW_PX = 32  # side of the coarse window in which tissue is looked for
MIN_TISSUE = 0.25  # least share of tissue: at a gyral crown half the window is outside
ROUNDS = 30  # of redrawing
MOST_PATCHES = 10_000_000  # 1 GB while they are drawn
ENLARGED = 3.0  # patches finer than their images by more than this are warned of (an assumption)
# Of the ribbon; below 0.01 for a real section in place, 0.13 ... 0.16 when 2.5 mm off.
MOST_OFF_TISSUE = 0.1
LEAST_YIELD = 0.05  # of the first draw; below, section and surface do not fit


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
    """Draws patches evenly per millimeter of cortical ribbon over all sections that have a split.

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
    cutter = Cutter(brain, depth, min_thickness_mm, progress)
    extent_um = patch_px * um_per_px
    gap_mm = cutter.split_along(split_axis, fractions, extent_um / 1000) if split_axis else 0.0
    used = [i for i, row in enumerate(brain.sections) if row.split != SPLITS[EXCLUDE]]
    lengths = np.array([cutter.ribbon(index).segments.length_mm.sum() for index in used])
    cutter.check_overlap(lengths.sum())
    wanted = num_patches if spacing_mm is None else int(lengths.sum() / spacing_mm)
    if not wanted:
        raise InputError(f"spacing_mm = {spacing_mm:g}: the ribbon is {lengths.sum():.1f} mm")
    if wanted > MOST_PATCHES:
        raise InputError(
            f"{wanted:,} patches asked for; at most {MOST_PATCHES:,} are drawn from one brain "
            f"(its sections cut {lengths.sum():.0f} mm of cortex)"
        )
    coarse = max(brain.sections[index].pixel_um for index in used)
    if um_per_px * ENLARGED < coarse:
        warnings.warn(
            f"patches of {um_per_px:g} um/px from section images of {coarse:g} um/px: enlarged "
            f"{coarse / um_per_px:.3g} times, without detail; set um_per_px to what images hold",
            stacklevel=2,
        )
    rounds = ROUNDS if spacing_mm is None else 1
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        merged, without_tissue = _draw_all(
            cutter, used, lengths, wanted, rounds, extent_um, min_tissue, seed, pool, progress
        )
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
        "without_tissue": without_tissue,
        "sections_sha256": sections_sha256(brain),
    }
    arrays = {name: merged[name][order].astype(dtype) for name, (dtype, _) in DTYPES.items()}
    return Patches(**arrays, settings=settings)


def _draw_all(
    cutter: Cutter,
    used: list[int],
    lengths_mm: np.ndarray,
    wanted: int,
    rounds: int,
    extent_um: float,
    min_tissue: float,
    seed: int,
    pool: ThreadPoolExecutor,
    progress: Progress | None,
) -> tuple[dict[str, np.ndarray], int]:
    """Patches with enough tissue, in the order of the draws, and how many windows had too little.

    Args:
        cutter: of the brain.
        used: sections [S].
        lengths_mm: of their ribbons [S].
        wanted: number of patches.
        rounds: of drawing again what had too little tissue; 1: such windows are dropped for good.
        extent_um: side of a window.
        min_tissue: least share of tissue.
        seed: of the draws.
        pool: threads that read windows.
        progress: called with (patches found, patches).
    """
    bounds = np.concatenate([[0.0], np.cumsum(lengths_mm)])
    parts: list[dict[str, np.ndarray]] = []
    looked = kept = on_tissue = 0
    for number in range(rounds):
        at = _positions(wanted - kept, bounds[-1], seed, number)
        cuts = np.searchsorted(at, bounds)
        jobs = [
            (index, at[begin:end] - start)
            for index, start, begin, end in zip(used, bounds, cuts, cuts[1:], strict=False)
            if end > begin
        ]
        for part in pool.map(lambda job: _draw(cutter, job[0], job[1], extent_um), jobs):
            share, center = part.pop("tissue").T
            enough = share >= min_tissue
            parts.append({name: values[enough] for name, values in part.items()})
            looked, on_tissue = looked + len(share), on_tissue + int(center.sum())
            kept += int(enough.sum())
            if progress:
                progress(kept, wanted)
        if number == 0:
            _check_tissue(cutter.brain, looked, kept, on_tissue, extent_um / 1000, min_tissue)
        if kept >= wanted:
            break
    if kept < wanted and rounds > 1:
        warnings.warn(
            f"{cutter.brain.root}: {kept} of {wanted} patches after {rounds} rounds; the other "
            "windows hold too little tissue",
            stacklevel=3,
        )
    merged = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return merged, looked - kept


def _positions(number: int, length_mm: float, seed: int, round_number: int) -> np.ndarray:
    """Ascending arc lengths [number]: stratified in the first round, then plainly at random."""
    rng = np.random.default_rng([seed, round_number])
    draw = rng.random(number)
    share = (np.arange(number) + draw) / number if round_number == 0 else np.sort(draw)
    return np.minimum(share * length_mm, np.nextafter(length_mm, 0))


def _check_tissue(brain, looked, kept, on_tissue, extent_mm, min_tissue) -> None:
    """Says so where sections and surfaces seem not to fit, from the first round."""
    if kept < LEAST_YIELD * looked:
        raise InputError(
            f"{brain.root}: only {kept} of {looked} windows of {extent_mm:.3g} mm hold "
            f"{100 * min_tissue:g} % tissue (gray values more than {TISSUE_MARGIN} from "
            f"background = {brain.background}); check the registration and `background` in "
            f"brain.toml: {TRAP}"
        )
    if on_tissue < (1 - MOST_OFF_TISSUE) * looked:
        warnings.warn(
            f"{brain.root}: {100 - 100 * on_tissue / looked:.0f} % of the ribbon lies on "
            f"background; {TRAP}",
            stacklevel=4,
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


def _draw(
    cutter: Cutter, index: int, arc_mm: np.ndarray, extent_um: float
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
    """Share of tissue in windows of `extent_um` around these centers [n], read coarsely, and
    whether the center itself is tissue: [n, 2]."""
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
