"""Draw patches along the cortical ribbon, uniformly per millimeter of its length."""

import dataclasses
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

# The paper does not say how patches without tissue are recognized. These values are assumptions.
TISSUE_MARGIN = 10  # gray values; a pixel is tissue if it differs more from the background
TISSUE_WINDOW_PX = 32  # side of the coarse window in which tissue is counted
MIN_TISSUE = 0.25  # smallest share of tissue; at a gyral crown half the window is outside
ROUNDS = 30  # how often missing patches are drawn again before the sampler gives up
MOST_PATCHES = 10_000_000  # these take 1 GB while they are drawn
ENLARGED = 3.0  # warn if images are upsampled by more than this factor (an assumption)
# The largest share of the ribbon that may lie on background. It was below 0.01 for a real section
# in the right position, and 0.13 ... 0.16 for one that was off by 2.5 mm.
MOST_OFF_TISSUE = 0.1
LEAST_YIELD = 0.05  # share of the first draw; below it, sections and surfaces do not fit


@dataclasses.dataclass(frozen=True)
class PatchSettings:
    """The settings of `sample_patches`. Give either `num_patches` or `spacing_mm`.

    "Paper" is Spitzer et al., MICCAI 2018 (arXiv 1806.05104).
    """

    num_patches: int | None = None  # number of patches; windows without tissue are drawn again
    spacing_mm: float | None = None  # ribbon length per patch; windows without tissue are dropped
    patch_px: int = 1019  # side of the square window (paper, section 2)
    um_per_px: float = 2.0  # resolution of the window (paper, section 2)
    # Relative depth of the patch centers, 0 (pial) ... 1 (white). None samples on the surface that
    # carries the distances (mid).
    depth: float | None = None
    min_tissue: float = MIN_TISSUE  # smallest share of the window that is not background, 0 ... 1
    min_thickness_mm: float = MIN_THICKNESS_MM  # skip thinner cortex (the medial wall); 0 keeps all
    # Axis x, y or z. Splits lie within the sections, ordered by position in mm along this axis
    # (train lowest). Gaps are so wide that windows of different splits cannot overlap. None takes
    # the splits of the section table.
    split_axis: str | None = None
    fractions: tuple[float, float, float] = FRACTIONS  # train, val, test; only with `split_axis`
    seed: int = 0  # the same seed gives the same patches for any number of workers

    @property
    def extent_um(self) -> float:
        """The side of a window in micrometers."""
        return self.patch_px * self.um_per_px


def sample_patches(
    brain: Brain,
    settings: PatchSettings,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Patches:
    """Draw patches uniformly along the ribbon of all sections that have a split.

    The ribbon is where sections cut the surfaces of the hemispheres and where the section images
    cover that cut. The draw is stratified: the ribbon is divided into as many equal lengths as
    there are patches, and one patch is drawn at random in each. Windows with too little tissue are
    replaced by others, drawn anywhere on the ribbon, until there are `num_patches`.

    Args:
        brain: a brain with a filled split column (`assign_splits`), unless `split_axis` is given.
        settings: how many patches, of which size, drawn where.
        workers: number of threads that read windows. The default is one per processor.
        progress: called with (sections opened, sections), then with (patches drawn, patches).

    Returns:
        The patches. They are not saved yet.

    Raises:
        InputError: if sections and surfaces do not overlap, nearly all windows lack tissue, or a
            setting is out of range.
    """
    _check_settings(settings, brain)
    cutter = Cutter(brain, settings.depth, settings.min_thickness_mm, progress)
    gap_mm = 0.0
    if settings.split_axis:
        extent_mm = settings.extent_um / 1000
        gap_mm = cutter.split_along(settings.split_axis, settings.fractions, extent_mm)
    used = [i for i, row in enumerate(brain.sections) if row.split != SPLITS[EXCLUDE]]
    lengths = np.array([cutter.ribbon(index).segments.length_mm.sum() for index in used])
    cutter.check_overlap(lengths.sum())
    wanted = _wanted_patches(settings, float(lengths.sum()))
    coarse = max(brain.sections[index].pixel_um for index in used)
    if settings.um_per_px * ENLARGED < coarse:
        warnings.warn(
            f"patches of {settings.um_per_px:g} um/px from section images of {coarse:g} um/px: "
            f"enlarged {coarse / settings.um_per_px:.3g} times, without detail; set um_per_px to "
            "what images hold",
            stacklevel=2,
        )
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        merged, without_tissue = _draw_all(cutter, used, lengths, wanted, settings, pool, progress)
    order = np.lexsort((merged["arc_mm"], merged["section"]))
    stored = {
        "patch_px": settings.patch_px,
        "um_per_px": settings.um_per_px,
        "depth": settings.depth,
        "min_tissue": settings.min_tissue,
        "min_thickness_mm": settings.min_thickness_mm,
        "split_axis": settings.split_axis,
        "gap_mm": gap_mm,
        "seed": settings.seed,
        "ribbon_mm": float(lengths.sum()),
        "without_tissue": without_tissue,
        "sections_sha256": sections_sha256(brain),
    }
    arrays = {name: merged[name][order].astype(dtype) for name, (dtype, _) in DTYPES.items()}
    return Patches(**arrays, settings=stored)


def _check_settings(settings: PatchSettings, brain: Brain) -> None:
    """Raise InputError if a setting is out of range or does not fit the brain's split column."""
    s = settings
    if (s.num_patches is None) == (s.spacing_mm is None):
        raise InputError("give either num_patches or spacing_mm")
    if s.num_patches is not None and s.num_patches < 1:
        raise InputError(f"num_patches = {s.num_patches}; at least 1")
    if s.spacing_mm is not None and not s.spacing_mm > 0:
        raise InputError(f"spacing_mm = {s.spacing_mm}; a length above 0")
    if s.patch_px < 1 or not s.um_per_px > 0:
        raise InputError(f"patch_px = {s.patch_px}, um_per_px = {s.um_per_px}; both above 0")
    if s.depth is not None and not 0 <= s.depth <= 1:
        raise InputError(f"depth = {s.depth}; 0 (pial) ... 1 (white)")
    table = brain.root / brain.section_table
    if s.split_axis is not None:
        if s.split_axis not in ("x", "y", "z"):
            raise InputError(f"split_axis = {s.split_axis!r}; x, y or z")
        if any(row.split for row in brain.sections):
            raise InputError(
                f"{table}: the split column is filled, and it rules; empty it to split within "
                f"the sections along {s.split_axis}"
            )
    elif not all(row.split for row in brain.sections):
        raise InputError(f"{table}: empty split; fill the column (assign_splits) before sampling")
    elif all(row.split == SPLITS[EXCLUDE] for row in brain.sections):
        raise InputError(f"{table}: every section is excluded; nothing to sample")


def _wanted_patches(settings: PatchSettings, ribbon_mm: float) -> int:
    """Return how many patches to draw from so much ribbon.

    Raises:
        InputError: if there would be none, or more than `MOST_PATCHES`.
    """
    wanted = settings.num_patches
    if settings.spacing_mm is not None:
        wanted = int(ribbon_mm / settings.spacing_mm)
    if not wanted:
        raise InputError(f"spacing_mm = {settings.spacing_mm:g}: the ribbon is {ribbon_mm:.1f} mm")
    if wanted > MOST_PATCHES:
        raise InputError(
            f"{wanted:,} patches requested; at most {MOST_PATCHES:,} are drawn from one brain "
            f"(its sections cut {ribbon_mm:.0f} mm of cortex)"
        )
    return wanted


def _draw_all(
    cutter: Cutter,
    used: list[int],
    lengths_mm: np.ndarray,
    wanted: int,
    settings: PatchSettings,
    pool: ThreadPoolExecutor,
    progress: Progress | None,
) -> tuple[dict[str, np.ndarray], int]:
    """Draw patches with enough tissue.

    Args:
        cutter: cuts the surfaces by the sections.
        used: indices of the sections to sample [S].
        lengths_mm: lengths of their ribbons [S].
        wanted: number of patches.
        settings: size of the windows, tissue, seed.
        pool: threads that read windows.
        progress: called with (patches drawn, patches).

    Returns:
        The patches in the order of the draws, and how many windows had too little tissue.
    """
    # With a spacing, windows without tissue are dropped and not replaced.
    rounds = ROUNDS if settings.spacing_mm is None else 1
    extent_um = settings.extent_um
    bounds = np.concatenate([[0.0], np.cumsum(lengths_mm)])
    parts: list[dict[str, np.ndarray]] = []
    looked = kept = on_tissue = 0
    for round_index in range(rounds):
        at = _positions(wanted - kept, bounds[-1], settings.seed, round_index)
        cuts = np.searchsorted(at, bounds)
        jobs = [
            (index, at[begin:end] - start)
            for index, start, begin, end in zip(used, bounds, cuts, cuts[1:], strict=False)
            if end > begin
        ]
        for part in pool.map(lambda job: _draw(cutter, job[0], job[1], extent_um), jobs):
            share, center = part.pop("tissue").T
            enough = share >= settings.min_tissue
            parts.append({name: values[enough] for name, values in part.items()})
            looked, on_tissue = looked + len(share), on_tissue + int(center.sum())
            kept += int(enough.sum())
            if progress:
                progress(kept, wanted)
        if round_index == 0:
            _check_tissue(cutter.brain, looked, kept, on_tissue, settings)
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


def _positions(count: int, length_mm: float, seed: int, round_index: int) -> np.ndarray:
    """Return ascending arc lengths [count], stratified in the first round and uniform in others."""
    rng = np.random.default_rng([seed, round_index])
    draw = rng.random(count)
    share = (np.arange(count) + draw) / count if round_index == 0 else np.sort(draw)
    # A position at the very end, which rounding may give, would belong to no section.
    return np.minimum(share * length_mm, np.nextafter(length_mm, 0))


def _check_tissue(
    brain: Brain, looked: int, kept: int, on_tissue: int, settings: PatchSettings
) -> None:
    """Check by the first round whether sections and surfaces fit, and warn or raise if not."""
    if kept < LEAST_YIELD * looked:
        raise InputError(
            f"{brain.root}: only {kept} of {looked} windows of {settings.extent_um / 1000:.3g} mm "
            f"hold {100 * settings.min_tissue:g} % tissue (gray values more than {TISSUE_MARGIN} "
            f"from background = {brain.background}); check the registration and `background` in "
            f"brain.toml: {TRAP}"
        )
    if on_tissue < (1 - MOST_OFF_TISSUE) * looked:
        warnings.warn(
            f"{brain.root}: {100 - 100 * on_tissue / looked:.0f} % of the ribbon lies on "
            f"background; {TRAP}",
            stacklevel=4,
        )


def _draw(
    cutter: Cutter, index: int, arc_mm: np.ndarray, extent_um: float
) -> dict[str, np.ndarray]:
    """Return the patches at arc lengths [n] along one section's ribbon, with their tissue."""
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
    """Measure the tissue in windows of `extent_um` around centers [n], read at a coarse resolution.

    Returns:
        The share of tissue in each window and whether its center is tissue [n, 2].
    """
    section = brain.sections[index]
    coarse_um = max(extent_um / TISSUE_WINDOW_PX, section.pixel_um)
    side = max(1, round(extent_um / coarse_um))
    scale = coarse_um / section.pixel_um
    # Level-0 coordinate c is coarse coordinate (c + 0.5) / scale - 0.5.
    left = np.rint((columns + 0.5) / scale - side / 2).astype(int)
    top = np.rint((rows + 0.5) / scale - side / 2).astype(int)
    middle = slice((side - 1) // 2, side // 2 + 1)
    result = np.empty((len(left), 2))
    with open_section(section.image, section.pixel_um, brain.background, brain.bits) as image:
        for window_index, (y, x) in enumerate(zip(top.tolist(), left.tolist(), strict=True)):
            window = image.read_at(coarse_um, y, x, side, side).astype(int)
            tissue = np.abs(window - brain.background) > TISSUE_MARGIN
            result[window_index] = tissue.mean(), tissue[middle, middle].any()
    return result
