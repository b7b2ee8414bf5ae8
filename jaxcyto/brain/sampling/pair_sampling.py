"""Pairs drawn evenly over distance, instead of as distances happen to be between random patches.

Of random pairs on a cortex one in two hundred is nearer than 10 mm, most are 60 to 140 mm apart.
"""

import warnings

import numpy as np
from scipy.spatial import KDTree

from jaxcyto.errors import InputError

ROUNDS = 6  # random candidates: pairs per pair that is wanted
# Candidates that are near: one of this many neighbors among all patches, among one in 8, in 64.
NEIGHBORS, THINNED = 8, (1, 8, 64)
# Of so many patches at each scale: near pairs are the costly ones, being solved exactly.
NEAR_SHARE, NEAR_LEAST = 0.05, 500
BINS = 50
MOST_NEAR = 100_000_000  # pairs, each counted twice: 1.6 GB


def neighbor_pairs(
    group: np.ndarray, position_mm: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of patches that are near in space, at several scales, within their group.

    Args:
        group: group [N] of each patch.
        position_mm: positions [N, 3].
        seed: of the draw.
    """
    rng = np.random.default_rng(seed)
    firsts, seconds = [], []
    for number in np.unique(group):
        members = np.flatnonzero(group == number)
        for thin in THINNED:
            share = max(NEAR_LEAST, int(NEAR_SHARE * len(members)))
            centers = rng.permutation(members)[:share]
            others = rng.permutation(members)[: max(2, len(members) // thin)]
            count = min(NEIGHBORS, len(others))
            tree = KDTree(position_mm[others])
            near = tree.query(position_mm[centers], count)[1].reshape(-1, count)
            drawn = rng.integers(count, size=(len(centers), 1))
            firsts.append(centers)
            seconds.append(others[np.take_along_axis(near, drawn, 1)[:, 0]])
    first, second = np.concatenate(firsts), np.concatenate(seconds)
    return first[first != second], second[first != second]


def pairs_within(
    group: np.ndarray, position_mm: np.ndarray, within_mm: float, most: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of a group at most so far apart in a straight line; of more than `most`, a random part.

    Args:
        group: group [N] of each patch.
        position_mm: positions [N, 3].
        within_mm: the straight distance.
        most: number of pairs.
        seed: of the draw.

    Raises:
        InputError: `within_mm` is so large that the pairs do not fit into memory.
    """
    rng = np.random.default_rng(seed)
    parts = [np.empty((0, 2), np.int64)]
    for number in np.unique(group):
        members = np.flatnonzero(group == number)
        tree = KDTree(position_mm[members])
        if tree.count_neighbors(tree, within_mm) > MOST_NEAR:
            raise InputError(
                f"within_mm = {within_mm:g}: more than {MOST_NEAR // 2} pairs are so near; give "
                "fewer mm"
            )
        parts.append(members[tree.query_pairs(within_mm, output_type="ndarray")])
    pairs = np.concatenate(parts)
    if len(pairs) > most:
        pairs = pairs[np.sort(rng.permutation(len(pairs))[:most])]
    return pairs[:, 0], pairs[:, 1]


def choose_even(
    first: np.ndarray, second: np.ndarray, distance: np.ndarray, num_pairs: int, seed: int
) -> np.ndarray:
    """Chooses pairs whose distances are as evenly spread as the candidates allow.

    Distances are cut into `BINS` bins up to the 99th percentile, and one beyond it. Every patch
    of the candidates stays in a pair.

    Args:
        first, second: patches [C] of the candidates.
        distance: mm [C], finite.
        num_pairs: number of pairs wanted; all candidates if there are fewer.
        seed: of the draw.

    Returns:
        The chosen candidates, in random order.
    """
    rng = np.random.default_rng(seed)
    edges = np.linspace(0, np.percentile(distance, 99), BINS + 1)
    bins = np.clip(np.searchsorted(edges, distance, "right") - 1, 0, BINS)
    have = np.bincount(bins, minlength=BINS + 1)
    # Rare distances first, at random among equals: a random order with weight 1 / frequency.
    order = np.argsort(rng.exponential(size=len(distance)) * have[bins])
    open_patches = set(np.unique(np.concatenate([first, second])).tolist())
    chosen = np.zeros(len(distance), bool)
    ends = np.stack([first, second], -1)[order].tolist()
    # Pairs of two patches without one first: half as many are needed.
    for needed in (2, 1):
        for candidate, pair in zip(order.tolist(), ends, strict=True):
            if len(open_patches.intersection(pair)) >= needed:
                chosen[candidate] = True
                open_patches.difference_update(pair)
    # The rest fills up the emptiest bins.
    left = np.maximum(num_pairs - int(chosen.sum()), 0)
    taken, spare = np.bincount(bins[chosen], minlength=BINS + 1), have.copy()
    level = _water_level(taken, spare, taken.sum() + left)
    rank = np.empty(len(distance), np.int64)  # place of each candidate within its bin
    free = order[~chosen[order]]
    by_bin = free[np.argsort(bins[free], kind="stable")]
    start = np.searchsorted(bins[by_bin], np.arange(BINS + 1))
    rank[by_bin] = np.arange(len(by_bin)) - start[bins[by_bin]]
    fits = by_bin[rank[by_bin] < (level - taken)[bins[by_bin]]]
    more = fits[np.argsort(rank[fits], kind="stable")][:left]
    chosen[more] = True
    return rng.permutation(np.flatnonzero(chosen))


def _water_level(taken: np.ndarray, spare: np.ndarray, total: int) -> int:
    """The least height at which bins filled from `taken` up to it, or `spare`, hold `total`."""
    low, high = 0, int(spare.max(initial=0))
    while low < high:
        middle = (low + high) // 2
        if np.clip(middle, taken, spare).sum() >= total:
            high = middle
        else:
            low = middle + 1
    return low


def draw_pairs(group: np.ndarray, num_pairs: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws `num_pairs` pairs within groups, each patch in at least one.

    Each round puts every group in a random order and pairs neighbors in the resulting cycle, so
    that N pairs among N patches use each patch twice. Within the last round pairs are chosen
    so that no patch is left out before others have two.

    Args:
        group: group [N] of each patch.
        num_pairs: number of pairs P.
        seed: of the draw.

    Returns:
        first, second: int64 [P], sorted by nothing; the order is random.

    Raises:
        InputError: if P pairs cannot hold every patch, or no group has two patches.
    """
    sizes = np.bincount(group)
    alone = int((sizes == 1).sum())
    if alone:
        warnings.warn(
            f"{alone} patches are the only ones of their hemisphere, component and split; "
            "they stay without a pair",
            stacklevel=3,
        )
    usable = np.flatnonzero(sizes >= 2)
    if not len(usable):
        raise InputError("no two patches share a hemisphere and a split; sample more patches")
    least = int(((sizes[usable] + 1) // 2).sum())
    if num_pairs < least:
        raise InputError(
            f"num_pairs = {num_pairs}; {least} are needed for every patch to be in a pair "
            f"({len(group)} patches)"
        )
    members = [np.flatnonzero(group == number) for number in usable]
    rng = np.random.default_rng(seed)
    firsts, seconds, have = [], [], 0
    while have < num_pairs:
        even, odd = [], []
        for member in members:
            order = rng.permutation(member)
            cycle = np.stack([order, np.roll(order, -1)], -1)
            if len(order) == 2:
                cycle = cycle[:1]  # the cycle of two is one pair
            # The even edges alone hold every patch; they are used first.
            even.append(cycle[0::2])
            odd.append(cycle[1::2])
        round_pairs = np.concatenate(
            [rng.permutation(np.concatenate(even)), rng.permutation(np.concatenate(odd))]
        )[: num_pairs - have]
        have += len(round_pairs)
        round_pairs = rng.permuted(rng.permutation(round_pairs), axis=1)
        firsts.append(round_pairs[:, 0])
        seconds.append(round_pairs[:, 1])
    return np.concatenate(firsts), np.concatenate(seconds)
