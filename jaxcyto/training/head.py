"""Fit the score maps to a frozen contracting path, in seconds.

Score maps (`models/scores.py`) are linear in the maps of the network. Their loss without
augmentation is therefore that of a multinomial logistic regression on the interpolated maps, which
is convex. scikit-learn finds its minimum with L-BFGS.
"""

import dataclasses
import functools
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.ndimage import uniform_filter1d
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from jaxcyto.brain.sections.label_image import UNLABELED
from jaxcyto.brain.sections.section import Section
from jaxcyto.data.windows import read_label
from jaxcyto.errors import InputError
from jaxcyto.training.maps import MapReader, Maps

WINDOW_PX = 1000  # approximate side of the windows of images in memory, px
POOLS = (5, 9)  # default sides of the local means, px of the last map
# POOLS and PENALTY were compared on the validation sections of the quickstart, in one run each.
# PIXELS and ITERATIONS keep the fit within seconds.
PIXELS = 2000  # annotated pixels of each class that are fitted on, or all if there are fewer
PENALTY = 1 / 300  # weight of half the squared norm, relative to the mean loss
ITERATIONS = 100  # of L-BFGS
# Features that hardly vary are scaled as if they varied by this share of the median. Otherwise a
# channel that is almost always 0 gets a kernel that is thousands of times as large as the others.
LEAST_SPREAD = 0.1
NEVER = -30.0  # bias of classes without an annotated pixel
TAPS = 3  # px of a map, along one axis, on which an output px depends at most


@dataclasses.dataclass(frozen=True, eq=False)
class AnnotatedImage:
    """A section with its label image, whose pixels are those of the output grid or smaller."""

    name: str
    image: Section
    label: Section


@dataclasses.dataclass(frozen=True, eq=False)
class _Window:
    section: AnnotatedImage
    row: int
    column: int
    labels: np.ndarray  # uint8 [side, side]


def fit_scores(
    sections: Sequence[AnnotatedImage],
    maps: MapReader,
    *,
    factor: int,
    num_classes: int,
    pools: Sequence[int],
    seed: int = 0,
) -> tuple[dict[str, Any], int]:
    """Fit the score maps to annotated sections.

    All classes have the same weight, however many pixels of them are annotated.

    Args:
        sections: the annotated sections.
        maps: reader of the maps of the network.
        factor: label pixels along one side of an output pixel.
        num_classes: number of classes.
        pools: sides of the local means, as in `Scores`.
        seed: seed of the choice of pixels.

    Returns:
        The parameters of `Scores`, and the number of pixels that they were fitted to.

    Raises:
        InputError: a section has no annotated pixel, a label is not a class, or fewer than two
            classes are annotated.
    """
    if not sections:
        raise InputError("no section is annotated; annotate some pixels of two or more classes")
    windows = [
        window for section in sections for window in _windows(section, factor, maps, num_classes)
    ]
    chosen = _choose(windows, num_classes, np.random.default_rng(seed))
    features, labels, widths = [], [], []
    for window, pixels in zip(windows, chosen, strict=True):
        if len(pixels):
            read = maps.read(window.section.image, window.row, window.column)
            rows, columns = np.divmod(pixels, window.labels.shape[1])
            side, doublings = window.labels.shape[0], maps.geometry.num_ups
            features.append(_features(read, pools, side, doublings, rows, columns))
            widths = [each.shape[2] for each in reversed(read)]
            labels.append(window.labels[rows, columns])
    x, y = np.concatenate(features), np.concatenate(labels)
    kernel, bias = _regress(x, y, num_classes)
    return _as_params(kernel, bias, widths, pools), len(y)


def _windows(
    section: AnnotatedImage, factor: int, maps: MapReader, num_classes: int
) -> list[_Window]:
    """Return the windows of a section that hold annotated pixels."""
    height, width = (-(-side // factor) for side in section.label.shape)
    found = []
    for row in range(0, height, maps.side):
        for column in range(0, width, maps.side):
            labels = read_label(section.label, factor, row, column, maps.side)
            if (labels != UNLABELED).any():
                found.append(_Window(section, row, column, labels))
    if not found:
        raise InputError(
            f"section {section.name}: no annotated pixel (all are {UNLABELED}); annotate it, or "
            "leave it out"
        )
    present = np.unique(np.concatenate([np.unique(window.labels) for window in found]))
    if len(wrong := present[(present >= num_classes) & (present != UNLABELED)]):
        raise InputError(
            f"section {section.name}: label {wrong[0]}, but there are {num_classes} classes; use 0 "
            f"... {num_classes - 1}, and {UNLABELED} where nothing is annotated"
        )
    return found


def _choose(
    windows: Sequence[_Window], num_classes: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """Return the pixels of each window that are fitted on, as indices of its raveled labels."""
    counts = np.array([np.bincount(w.labels.ravel(), minlength=256)[:num_classes] for w in windows])
    chosen: list[list[np.ndarray]] = [[] for _ in windows]
    for label in range(num_classes):
        ends = np.cumsum(counts[:, label])
        total = int(ends[-1])
        numbers = np.sort(rng.choice(total, min(total, PIXELS), replace=False))
        owner = np.searchsorted(ends, numbers, side="right")
        for index in np.unique(owner):
            first = ends[index] - counts[index, label]
            own = np.flatnonzero(windows[index].labels.ravel() == label)
            chosen[index].append(own[numbers[owner == index] - first])
    return [np.concatenate(parts) if parts else np.zeros(0, int) for parts in chosen]


def _features(
    maps: Maps,
    pools: Sequence[int],
    side: int,
    doublings: int,
    rows: np.ndarray,
    columns: np.ndarray,
) -> np.ndarray:
    """Interpolate the maps of a window at output pixels, as `Scores` interpolates its scores.

    Args:
        maps: maps of the last blocks, float16 [h, w, C].
        pools: sides of the local means.
        side: side of the output, px.
        doublings: number of times that the last map is enlarged.
        rows: rows of the pixels [N].
        columns: columns of the pixels [N].

    Returns:
        float32 [N, F]: the last map, its local means, and then the maps before it, back to front.
    """
    *skips, last = maps
    last = last.astype(np.float32)
    parts = []
    for pool in (1, *pools):
        mean = uniform_filter1d(uniform_filter1d(last, pool, axis=0), pool, axis=1)
        parts.append(_interpolate(mean, side, doublings, rows, columns))
    for back, skip in enumerate(reversed(skips), start=1):
        parts.append(_interpolate(skip, side, doublings - back, rows, columns))
    return np.concatenate(parts, axis=1)


def _interpolate(
    x: np.ndarray, side: int, doublings: int, rows: np.ndarray, columns: np.ndarray
) -> np.ndarray:
    """Enlarge a map to the output grid by `scores.enlarge`, and return some pixels of it [N, C].

    The map [h, w, C] and the output have the same center. The other arguments are as in
    `_features`.
    """
    starts, weights = _taps(side, doublings)
    starts = starts + (len(x) - _needed(side, doublings)) // 2
    total = np.zeros((len(rows), x.shape[2]), np.float32)
    for i in range(TAPS):
        for j in range(TAPS):
            weight = weights[rows, i] * weights[columns, j]
            total += weight[:, None] * x[starts[rows] + i, starts[columns] + j]
    return total


def _needed(side: int, doublings: int) -> int:
    """Return the length of a map that `scores.enlarge` doubles to `side` px."""
    for _ in range(doublings):
        side = (side + 4) // 2
    return side


@functools.cache
def _taps(side: int, doublings: int) -> tuple[np.ndarray, np.ndarray]:
    """Return how the output depends on a map along one axis.

    Returns:
        The first px of the map that each output px depends on [side], and the weights of this px
        and those after it, float32 [side, TAPS]. Both are found by enlarging unit vectors.
    """
    matrix = np.eye(_needed(side, doublings), dtype=np.float32)
    for _ in range(doublings):
        before, own, after = matrix[:-2], matrix[1:-1], matrix[2:]
        pair = np.stack([0.25 * before + 0.75 * own, 0.75 * own + 0.25 * after], axis=1)
        matrix = pair.reshape(-1, matrix.shape[1])
    starts = np.minimum(np.argmax(matrix > 0, axis=1), max(0, matrix.shape[1] - TAPS))
    taps = starts[:, None] + np.arange(TAPS)
    inside = taps < matrix.shape[1]
    weights = np.take_along_axis(matrix, np.where(inside, taps, 0), axis=1) * inside
    return starts, weights


def _regress(x: np.ndarray, y: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Fit a multinomial logistic regression with equal weight for each class.

    Args:
        x: features [N, F].
        y: classes [N].
        num_classes: number of classes.

    Returns:
        Kernel [F, num_classes] and bias [num_classes], float32.
    """
    present, inverse, counts = np.unique(y, return_inverse=True, return_counts=True)
    if len(present) < 2:
        raise InputError("only one class is annotated; annotate some pixels of two or more classes")
    mean, spread = x.mean(axis=0, dtype=np.float64), x.std(axis=0, dtype=np.float64)
    spread = np.maximum(spread, max(LEAST_SPREAD * float(np.median(spread)), 1e-9))
    weight = (len(y) / len(present) / counts)[inverse]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the loss hardly falls any more
        model = LogisticRegression(C=1 / (PENALTY * len(y)), max_iter=ITERATIONS)
        model.fit(((x - mean) / spread).astype(np.float32), y, sample_weight=weight)
    coefficients: Any = model.coef_
    intercepts: Any = model.intercept_
    if len(present) == 2:  # scikit-learn gives the logit of the second class alone
        coefficients = np.concatenate([-coefficients, coefficients]) / 2
        intercepts = np.concatenate([-intercepts, intercepts]) / 2
    slopes = coefficients / spread
    kernel = np.zeros((x.shape[1], num_classes), np.float32)
    bias = np.full(num_classes, NEVER, np.float32)
    kernel[:, present] = slopes.T
    bias[present] = intercepts - slopes @ mean
    return kernel, bias


def _as_params(
    kernel: np.ndarray, bias: np.ndarray, widths: Sequence[int], pools: Sequence[int]
) -> dict[str, Any]:
    """Split a kernel [F, K] into the kernels of `Scores`.

    Args:
        kernel: the kernel, whose features are in the order of `_features`.
        bias: [K].
        widths: channels of the maps, of the last block first.
        pools: sides of the local means.
    """
    names = [f"pool{side}" for side in (1, *pools)]
    names += [f"skip{back}" for back in range(1, len(widths))]
    sizes = [widths[0]] * (1 + len(pools)) + list(widths[1:])
    parts = np.split(kernel, np.cumsum(sizes)[:-1])
    params: dict[str, Any] = {
        name: {"kernel": part[None, None]} for name, part in zip(names, parts, strict=True)
    }
    return params | {"bias": bias}
