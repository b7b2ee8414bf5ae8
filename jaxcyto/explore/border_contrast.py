"""Do features jump at area borders? Squared distances between averages of neighboring patches.

Along each curve of the ribbon, in every gap between two positions: the mean feature of the last few
patches before the gap against that of the first few after it (Spitzer et al. 2018, section 3.2, who
show these distances on consecutive sections; step and window are not in the paper).

    curves = walk_ribbons(brain, sections, patch_px=run.patch_px, um_per_px=run.um_per_px)
    features, usable = embed_curves(run, brain, curves)
    areas = patch_areas(brain, curves.patches)
    gaps = neighbor_gaps(features, curves.curve, areas, usable=usable)
    print(gap_statistics(gaps, curves.curvature, curves.obliqueness))
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxcyto.brain.manifest import Brain
from jaxcyto.brain.sampling.sampling import MIN_TISSUE, TISSUE_MARGIN
from jaxcyto.brain.sections.label_image import UNLABELED
from jaxcyto.explore.ribbon_walk import Curves
from jaxcyto.predict.features import embed, read_patches
from jaxcyto.runs.load import PretextRun
from jaxcyto.utils.progress import Progress

WINDOW = 3  # patches averaged on either side: 1.5 mm at steps of 0.5 mm
UNKNOWN, WITHIN, BORDER, BESIDE = range(4)
KINDS = ("unknown", "within", "border", "beside")


@dataclasses.dataclass(frozen=True, eq=False)
class Gaps:
    """Gaps between successive positions of curves, G of them.

    Attributes:
        before: position before the gap, int64 [G]; `before + 1` is the one behind it.
        squared_distance: between the averaged features, float64 [G], in their units squared.
        kind: WITHIN if all patches averaged lie in one area, BORDER if the two positions at the gap
            lie in different ones, BESIDE if a border is elsewhere in the windows; UNKNOWN if an
            area is, uint8 [G].
    """

    before: np.ndarray
    squared_distance: np.ndarray
    kind: np.ndarray

    def __len__(self) -> int:
        return len(self.before)

    def select(self, keep: np.ndarray) -> "Gaps":
        """Those for which `keep` [G] is true."""
        return Gaps(self.before[keep], self.squared_distance[keep], self.kind[keep])


def embed_curves(
    run: PretextRun, brain: Brain, curves: Curves, *, progress: Progress | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Features float32 [N, F] of all positions, and which of them hold tissue, bool [N].

    As for sampled patches, a quarter of a patch must differ from the background.

    Raises:
        ReadError: a section cannot be read.
    """
    usable: list[bool] = []

    def images() -> Iterator[np.ndarray]:
        for image in read_patches(brain, curves.patches):
            tissue = np.abs(image.astype(np.int16) - brain.background) > TISSUE_MARGIN
            usable.append(bool(tissue.mean() >= MIN_TISSUE))
            yield image

    found = embed(run, images(), total=len(curves), progress=progress)
    return found.features, np.array(usable, bool)


def neighbor_gaps(
    features: np.ndarray,
    curve: np.ndarray,
    areas: np.ndarray | None = None,
    *,
    window: int = WINDOW,
    usable: np.ndarray | None = None,
) -> Gaps:
    """All gaps that have `window` usable patches of the same curve on either side.

    Args:
        features: float [N, F], in the order of the positions.
        curve: rising numbers [N].
        areas: class [N], UNLABELED where it is not known; None: of no patch.
        window: patches averaged on either side.
        usable: bool [N]; a position that is not, such as one without tissue, ends the curve.
    """
    number = len(features)
    areas = np.full(number, UNLABELED) if areas is None else areas
    usable = np.ones(number, bool) if usable is None else usable
    # from here to `last` all positions are of the same curve and usable
    breaks = np.cumsum(np.r_[False, (np.diff(curve) != 0) | ~usable[1:] | ~usable[:-1]])
    before = np.arange(window - 1, number - window)
    first, last = before - window + 1, before + window
    keep = (breaks[first] == breaks[last]) & usable[first]
    before, first, last = before[keep], first[keep], last[keep]
    sums = np.cumsum(np.vstack([np.zeros((1, features.shape[1])), features]), axis=0)
    left = sums[before + 1] - sums[first]
    right = sums[last + 1] - sums[before + 1]
    distance = np.square((right - left) / window).sum(axis=1)
    changes = np.cumsum(np.r_[False, np.diff(areas) != 0])
    unknown = np.cumsum(np.r_[0, areas == UNLABELED])
    kind = np.full(len(before), BESIDE, np.uint8)
    kind[changes[first] == changes[last]] = WITHIN
    kind[areas[before] != areas[before + 1]] = BORDER
    kind[unknown[last + 1] > unknown[first]] = UNKNOWN
    return Gaps(before, distance, kind)


def gap_statistics(gaps: Gaps, curvature: np.ndarray, obliqueness: np.ndarray) -> dict[str, Any]:
    """Are distances larger at borders than within areas, and what else makes them large?

    Args:
        gaps: of N positions.
        curvature: signed, at the positions [N].
        obliqueness: at the positions [N].

    Returns:
        `border` and `within`: their numbers; `auc`: the probability that a gap at a border has a
        larger distance than one within an area (0.5: no difference); `median_border` and
        `median_within`, in units of the squared features; `spearman_curvature` (of its absolute
        value) and `spearman_obliqueness`: rank correlations with the distance within areas. Without
        p-values: neighboring gaps share patches. None where there are too few gaps.
    """
    from scipy.stats import spearmanr
    from sklearn.metrics import roc_auc_score

    within, border = gaps.kind == WITHIN, gaps.kind == BORDER
    results: dict[str, Any] = {"border": int(border.sum()), "within": int(within.sum())}
    either = within | border
    results["auc"] = None
    if within.any() and border.any():
        results["auc"] = float(roc_auc_score(border[either], gaps.squared_distance[either]))
    for name, chosen in (("border", border), ("within", within)):
        some = gaps.squared_distance[chosen]
        results[f"median_{name}"] = float(np.median(some)) if len(some) else None
    causes = {"curvature": np.abs(curvature), "obliqueness": obliqueness}
    distance = gaps.squared_distance[within]
    for name, values in causes.items():
        at_gap = (values[gaps.before] + values[gaps.before + 1])[within] / 2
        varied = len(distance) > 2 and np.ptp(at_gap) > 0 and np.ptp(distance) > 0
        found: Any = spearmanr(at_gap, distance) if varied else None
        results[f"spearman_{name}"] = float(found.statistic) if varied else None
    return results
