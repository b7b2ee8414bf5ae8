"""Measure how much features change at area borders along the cortical ribbon.

In each gap between two successive positions of a curve, we compute the squared distance between the
mean feature of the last `window` patches before the gap and that of the first `window` patches
after it. Spitzer et al. 2018, section 3.2, show these distances on consecutive sections. The paper
gives neither step nor window, so our values are assumptions.

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

WINDOW = 3  # patches averaged on either side, 1.5 mm at steps of 0.5 mm (assumption)
UNKNOWN, WITHIN, BORDER, BESIDE = range(4)
KINDS = ("unknown", "within", "border", "beside")


@dataclasses.dataclass(frozen=True, eq=False)
class Gaps:
    """G gaps between successive positions of curves.

    Attributes:
        before: index of the position before the gap, int64 [G]. The position after it is
            `before + 1`.
        squared_distance: squared distance between the averaged features, float64 [G], in squared
            units of the features. `explore` converts it to predicted millimeters.
        kind: kind of the gap, uint8 [G]. WITHIN if all averaged patches lie in one area, BORDER if
            the two positions at the gap lie in different areas, BESIDE if there is a border
            elsewhere in the windows, UNKNOWN if the area of a patch is not known.
    """

    before: np.ndarray
    squared_distance: np.ndarray
    kind: np.ndarray

    def __len__(self) -> int:
        return len(self.before)

    def select(self, keep: np.ndarray) -> "Gaps":
        """Select the gaps for which `keep` [G] is true."""
        return Gaps(self.before[keep], self.squared_distance[keep], self.kind[keep])


def embed_curves(
    run: PretextRun, brain: Brain, curves: Curves, *, progress: Progress | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the features at all positions and detect which positions have enough tissue.

    As for sampled patches, at least the fraction `MIN_TISSUE` of the pixels of a patch must differ
    from the background.

    Args:
        run: the network.
        brain: brain whose sections are read.
        curves: N positions.
        progress: called with (patches done, total).

    Returns:
        Features, float32 [N, F], and which patches hold enough tissue, bool [N].

    Raises:
        ReadError: a section cannot be read.
    """
    usable: list[bool] = []

    def images() -> Iterator[np.ndarray]:
        for image in read_patches(brain, curves.patches):
            tissue = np.abs(image.astype(np.int16) - brain.background) > TISSUE_MARGIN
            usable.append(bool(tissue.mean() >= MIN_TISSUE))
            yield image

    embedding = embed(run, images(), total=len(curves), progress=progress)
    return embedding.features, np.array(usable, bool)


def neighbor_gaps(
    features: np.ndarray,
    curve: np.ndarray,
    areas: np.ndarray | None = None,
    *,
    window: int = WINDOW,
    usable: np.ndarray | None = None,
) -> Gaps:
    """Compute all gaps with `window` usable patches of the same curve on either side.

    Args:
        features: features in the order of the positions, float [N, F].
        curve: index of the curve of each position [N], in ascending order.
        areas: class index of each position [N], UNLABELED where not known. None if no area is
            known.
        window: count of patches averaged on either side.
        usable: which positions are usable, bool [N]. Other positions, such as those without
            tissue, end the curve. None if all are usable.
    """
    count = len(features)
    areas = np.full(count, UNLABELED) if areas is None else areas
    usable = np.ones(count, bool) if usable is None else usable
    # `breaks` has equal values at two positions if they are usable, of the same curve, and no
    # unusable position lies between them
    breaks = np.cumsum(np.r_[False, (np.diff(curve) != 0) | ~usable[1:] | ~usable[:-1]])
    before = np.arange(window - 1, count - window)
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
    """Test whether distances are larger at borders than within areas, and what else raises them.

    Args:
        gaps: gaps between N positions.
        curvature: signed mean curvature at the positions, 1/mm [N].
        obliqueness: obliqueness of the cut at the positions, degrees [N].

    Returns:
        A dict with these keys. A value is None if there are too few gaps to compute it.

        * `border` and `within`: Counts of gaps of these kinds.
        * `auc`: Probability that a gap at a border has a larger distance than a gap within an area.
          It is 0.5 if there is no difference.
        * `median_border` and `median_within`: Median distances, in squared units of the features.
        * `spearman_curvature` and `spearman_obliqueness`: Rank correlations of the distance within
          areas with the absolute curvature and the obliqueness. There are no p-values, because
          neighboring gaps share patches and are not independent.
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
        distances = gaps.squared_distance[chosen]
        results[f"median_{name}"] = float(np.median(distances)) if len(distances) else None
    causes = {"curvature": np.abs(curvature), "obliqueness": obliqueness}
    distance = gaps.squared_distance[within]
    for name, values in causes.items():
        at_gap = (values[gaps.before] + values[gaps.before + 1])[within] / 2
        # a rank correlation with a constant is not defined
        varied = len(distance) > 2 and np.ptp(at_gap) > 0 and np.ptp(distance) > 0
        correlation: Any = spearmanr(at_gap, distance) if varied else None
        results[f"spearman_{name}"] = float(correlation.statistic) if varied else None
    return results
