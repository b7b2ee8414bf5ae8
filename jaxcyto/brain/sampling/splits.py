"""Keep training, validation and test apart in space.

The split column of the section table decides. If it is empty, it is filled once by blocks of
consecutive sections with gaps between them. A brain of one or few sections can instead be split
within its sections, along an axis. That split is stored in patches.npz only.
"""

import dataclasses
from collections.abc import Iterator
from itertools import combinations

import numpy as np
from scipy.spatial import KDTree

from jaxcyto.brain.manifest import SPLITS, Brain, write_splits
from jaxcyto.brain.registration import registration
from jaxcyto.brain.sampling.patches import Patches
from jaxcyto.brain.sampling.ribbon import CutSurface, mean_normal
from jaxcyto.brain.surfaces.surface import hemisphere_surface
from jaxcyto.errors import InputError

FRACTIONS = (0.7, 0.1, 0.2)  # of the ribbon, for train, val and test
GAP_MM = 2.0  # smallest distance between sections of different splits
TRAIN, VAL, TEST, EXCLUDE = range(len(SPLITS))
# Layouts of many blocks are preferred, so that no single location decides the test result. They are
# taken if the gaps leave each block at least 0.7 of its share. A layout of three blocks is taken
# from 0.5 on. Below that the brain is refused.
SCALE_MANY, SCALE_FEW = 0.7, 0.5


def assign_splits(
    brain: Brain,
    fractions: tuple[float, float, float] = FRACTIONS,
    gap_mm: float = GAP_MM,
    seed: int = 0,
) -> Brain:
    """Fill an empty split column by blocks of consecutive sections. Keep a filled one.

    Sections are ordered along their mean normal, at the center of the surfaces. Held-out blocks
    lie between training blocks. There are up to four test and two validation blocks, as many as
    fit. Sections of different splits are at least `gap_mm` apart, and those between are excluded.
    A thinner brain gets three blocks.

    Args:
        brain: a brain whose split column is completely empty or completely filled.
        fractions: shares of train, val and test in the ribbon that is not excluded.
        gap_mm: smallest distance between sections of different splits.
        seed: draws the order of the held-out blocks.

    Returns:
        The brain with its splits, which are also written to the section table.

    Raises:
        InputError: if the column is partly filled, the fractions do not sum to 1, or the brain is
            too thin for the gaps.
    """
    table = brain.root / brain.section_table
    empty = [row.name for row in brain.sections if not row.split]
    if not empty:
        return brain
    if len(empty) < len(brain.sections):
        names = ", ".join(empty[:10]) + (", ..." if len(empty) > 10 else "")
        raise InputError(
            f"{table}: split is filled for some sections but empty for {len(empty)}: {names}; "
            "fill them in as well (train, val, test or exclude), or empty the whole column"
        )
    shares = np.asarray(fractions, float)
    if (
        shares.shape != (3,)
        or (shares < 0).any()
        or shares[0] <= 0
        or not 0.99 < sum(shares) < 1.01
    ):
        raise InputError(f"fractions {fractions}: give train, val and test shares that sum to 1")
    position, weight = _positions_and_ribbons(brain)
    order = np.argsort(position, kind="stable")
    rng = np.random.default_rng(seed)
    for kinds, least in _layouts(shares, rng):
        parts = np.array([shares[kind] / kinds.count(kind) for kind in kinds])
        block = blocks(position[order], weight[order], parts, gap_mm, least)
        if block is not None:
            splits = np.empty(len(order), int)
            splits[order] = np.append(kinds, EXCLUDE)[block]
            names = [SPLITS[split] for split in splits]
            write_splits(brain, names)
            sections = tuple(
                dataclasses.replace(row, split=name)
                for row, name in zip(brain.sections, names, strict=True)
            )
            return dataclasses.replace(brain, sections=sections)
    extent = position.max() - position.min()
    raise InputError(
        f"{table}: {len(order)} sections over {extent:.2f} mm leave no room for train, val and "
        f"test blocks {gap_mm:g} mm apart; fill the split column by hand, or split within the "
        "sections along an axis (--split-axis x, y or z)"
    )


def _positions_and_ribbons(brain: Brain) -> tuple[np.ndarray, np.ndarray]:
    """Return the position along the mean normal and the ribbon length of each section [S], in mm.

    Positions are taken at the center of the surfaces. Blocks divide the ribbon and not the
    sections, because a section beyond the cortex holds no patch.
    """
    registrations = [registration(row) for row in brain.sections]
    axis = mean_normal(registrations)
    surfaces = [hemisphere_surface(hemisphere) for hemisphere in brain.hemispheres]
    vertices = [surface.vertices for surface in surfaces]
    center = np.mean([(v.min(0) + v.max(0)) / 2 for v in vertices], axis=0)
    position = [-r.to_px(center[None])[2][0] * np.sign(r.normal @ axis) for r in registrations]
    cuts = [CutSurface(surface, np.ones(len(surface.faces), bool), axis) for surface in surfaces]
    ribbon = [sum(cut.cut(r).length_mm.sum() for cut in cuts) for r in registrations]
    # Without any overlap all sections count alike here, and sampling explains what is wrong.
    return np.array(position), np.array(ribbon) if any(ribbon) else np.ones(len(position))


def _layouts(shares: np.ndarray, rng: np.random.Generator) -> Iterator[tuple[list[int], float]]:
    """Yield layouts, best first: the split of each block, and the smallest scale to accept."""
    for tests in (4, 3, 2, 1):
        held = [TEST] * (tests if shares[TEST] else 0)
        held += [VAL] * (max(1, tests // 2) if shares[VAL] else 0)
        kinds = [TRAIN]
        for kind in rng.permutation(held).tolist():
            kinds += [kind, TRAIN]
        yield kinds, SCALE_MANY
    few = [kind for kind in (TRAIN, VAL, TEST) if shares[kind]]
    yield rng.permutation(few).tolist(), SCALE_FEW


def blocks(
    position: np.ndarray,
    weight: np.ndarray,
    parts: np.ndarray,
    gap: float,
    least: float = 0.0,
) -> np.ndarray | None:
    """Cut sorted items into consecutive blocks with gaps.

    Each block but the last takes items up to scale * its share of the total weight, and at least
    one. Items nearer than `gap` to the block before are left out. The scale is the largest up to 1
    for which the last block gets its share, too. It is searched by bisection.

    Args:
        position: ascending positions [N].
        weight: weights [N].
        parts: shares [B] of the weight, which sum to 1.
        gap: smallest distance between items of different blocks.
        least: the smallest scale that is accepted.

    Returns:
        The block of each item [N], -1 where it is left out, or None if there is no room.
    """
    total = np.concatenate([[0.0], np.cumsum(weight)])
    middle = total[:-1] + weight / 2

    def cut(scale: float) -> np.ndarray | None:
        block = np.full(len(position), -1)
        start = 0
        for index, part in enumerate(parts):
            if start >= len(position):
                return None
            target = total[start] + scale * part * total[-1]
            end = max(start + 1, int(np.searchsorted(middle, target)))
            if index == len(parts) - 1:  # it takes all that is left, which must be enough
                if total[-1] + weight[-1] / 2 < target:
                    return None
                end = len(position)
            block[start:end] = index
            start = int(np.searchsorted(position, position[end - 1] + gap - 1e-9))
        return block

    best, low, high = cut(max(least, 1e-6)), max(least, 1e-6), 1.0
    if best is None:
        return None
    for _ in range(20):
        scale = (low + high) / 2
        block = cut(scale)
        if block is None:
            high = scale
        else:
            best, low = block, scale
    return best


def split_distances_mm(patches: Patches) -> dict[str, float]:
    """Return the smallest straight distance in mm between patch centers of each two splits.

    Keys are such as "train-test". Only splits that have patches are listed.
    """
    present = {
        name: patches.position_mm[patches.split == index]
        for index, name in enumerate(SPLITS[:EXCLUDE])
        if (patches.split == index).any()
    }
    return {
        f"{a}-{b}": float(KDTree(present[a]).query(present[b])[0].min())
        for a, b in combinations(present, 2)
    }
