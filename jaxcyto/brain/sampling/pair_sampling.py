"""Draw candidates for pairs, and choose pairs uniformly over distance.

Random pairs are not uniform over distance. On a cortex one in two hundred is nearer than 10 mm,
and most are 60 to 140 mm apart.
"""

import warnings

import numpy as np
from scipy.spatial import KDTree

from jaxcyto.errors import InputError

ROUNDS = 6  # random candidates per requested pair
# A near candidate is one of the 8 nearest neighbors among all patches, and among random subsets of
# one in 8 and one in 64 of them.
NEIGHBORS, THINNED = 8, (1, 8, 64)
# Near candidates are drawn for this share of the patches at each scale, and for at least this many.
# More would be costly, because near pairs are solved exactly.
NEAR_SHARE, NEAR_LEAST = 0.05, 500
BINS = 50  # of distances, for a uniform choice
MOST_NEAR = 100_000_000  # pairs, each counted twice, which take 1.6 GB


def neighbor_pairs(
    group: np.ndarray, position_mm: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw pairs of patches that are near in space, at several scales, within their group.

    Args:
        group: group of each patch [N].
        position_mm: positions [N, 3].
        seed: seed of the draw.

    Returns:
        first, second: indices of the patches [P].
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
    """Return pairs within a group that are at most so far apart in a straight line.

    Args:
        group: group of each patch [N].
        position_mm: positions [N, 3].
        within_mm: the largest straight distance.
        most: if there are more pairs than this, this many of them are drawn at random.
        seed: seed of the draw.

    Returns:
        first, second: indices of the patches [P].

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
    """Choose pairs whose distances are as uniform as the candidates allow.

    Distances are counted in `BINS` bins up to the 99th percentile and in one bin beyond it. Every
    patch of the candidates stays in a pair.

    Args:
        first, second: patches of the candidates [C].
        distance: distances of the candidates in mm [C], finite.
        num_pairs: number of pairs to choose. If there are fewer candidates, all are chosen.
        seed: seed of the draw.

    Returns:
        Indices of the chosen candidates, in random order.
    """
    rng = np.random.default_rng(seed)
    edges = np.linspace(0, np.percentile(distance, 99), BINS + 1)
    bins = np.clip(np.searchsorted(edges, distance, "right") - 1, 0, BINS)
    have = np.bincount(bins, minlength=BINS + 1)
    # A random order in which rare distances tend to come first (weight 1 / frequency).
    order = np.argsort(rng.exponential(size=len(distance)) * have[bins])
    open_patches = set(np.unique(np.concatenate([first, second])).tolist())
    chosen = np.zeros(len(distance), bool)
    ends = np.stack([first, second], -1)[order].tolist()
    # First take pairs of two patches that have none yet, so that fewer pairs are spent on this.
    for needed in (2, 1):
        for candidate, pair in zip(order.tolist(), ends, strict=True):
            if len(open_patches.intersection(pair)) >= needed:
                chosen[candidate] = True
                open_patches.difference_update(pair)
    # The other pairs fill the emptiest bins to a common level.
    left = np.maximum(num_pairs - int(chosen.sum()), 0)
    taken, spare = np.bincount(bins[chosen], minlength=BINS + 1), have.copy()
    level = _water_level(taken, spare, taken.sum() + left)
    rank = np.empty(len(distance), np.int64)  # position of each candidate within its bin
    free = order[~chosen[order]]
    by_bin = free[np.argsort(bins[free], kind="stable")]
    start = np.searchsorted(bins[by_bin], np.arange(BINS + 1))
    rank[by_bin] = np.arange(len(by_bin)) - start[bins[by_bin]]
    fits = by_bin[rank[by_bin] < (level - taken)[bins[by_bin]]]
    more = fits[np.argsort(rank[fits], kind="stable")][:left]
    chosen[more] = True
    return rng.permutation(np.flatnonzero(chosen))


def _water_level(taken: np.ndarray, spare: np.ndarray, total: int) -> int:
    """Return the smallest level at which the bins hold `total` items.

    Each bin is filled to the level, but holds at least `taken` and at most `spare` items.
    """
    low, high = 0, int(spare.max(initial=0))
    while low < high:
        middle = (low + high) // 2
        if np.clip(middle, taken, spare).sum() >= total:
            high = middle
        else:
            low = middle + 1
    return low


def draw_pairs(group: np.ndarray, num_pairs: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw `num_pairs` pairs within groups, so that each patch is in at least one.

    Each round puts every group in a random order and pairs neighbors in the resulting cycle. So N
    pairs among N patches use each patch twice. In the last round no patch gets a second pair
    before all have one.

    Args:
        group: group of each patch [N].
        num_pairs: number of pairs P.
        seed: seed of the draw.

    Returns:
        first, second: indices of the patches, int64 [P], in random order.

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
                cycle = cycle[:1]  # both edges of this cycle are the same pair
            # The even edges alone hold every patch, so they are used first.
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
