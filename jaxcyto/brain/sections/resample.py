"""Windows of a resampled image grid that equal the same crop of the whole, bit for bit.

Weights are whole multiples of 2^-16 and add up to 1 exactly, so every sum is a whole number that
float64 holds exactly: no order of summation, and so no choice of window, changes a result.
"""

import numpy as np
import scipy.sparse as sp

ONE = 1 << 16


def source_range(start: int, size: int, ratio: float) -> tuple[int, int]:
    """First and one past the last source pixel that output pixels [start, start + size) need."""
    if ratio < 1:  # linear interpolation between pixel centers
        first = np.floor(ratio * (start + 0.5) - 0.5)
        return int(first), int(np.floor(ratio * (start + size - 0.5) - 0.5)) + 2
    return int(np.floor(start * ratio)), int(np.ceil((start + size) * ratio))


def resample(source: np.ndarray, top: int, left: int, height: int, width: int, ratio: float):
    """Resamples uint8 `source`, which covers `source_range` of both axes.

    Output pixel m covers source pixels [m ratio, (m + 1) ratio): their mean by covered area if
    ratio >= 1, else linear interpolation at its center ratio (m + 0.5) - 0.5. Halves round up.

    Returns:
        uint8 [height, width].
    """
    if ratio == 1:
        return source
    if ratio == int(ratio):
        return _block_means(source, int(ratio))
    down = _weights(top, height, ratio)
    across = _weights(left, width, ratio)
    # 24 bits after the first pass, 40 after the second.
    half = np.ascontiguousarray((down @ source.astype(np.float64)).T)
    total = (across @ half).T
    return ((total + ONE * ONE / 2) * (1 / (ONE * ONE))).astype(np.uint8)


def _block_means(source: np.ndarray, ratio: int) -> np.ndarray:
    rows = source[::ratio].astype(np.uint32)
    for shift in range(1, ratio):
        rows += source[shift::ratio]
    total = rows[:, ::ratio].astype(np.uint64 if ratio > 4000 else np.uint32)
    for shift in range(1, ratio):
        total += rows[:, shift::ratio]
    return ((total + ratio * ratio // 2) // (ratio * ratio)).astype(np.uint8)


def _weights(start: int, size: int, ratio: float) -> sp.csr_array:
    """Rows: output pixels; columns: source pixels from `source_range`; each row adds up to ONE."""
    first, last = source_range(start, size, ratio)
    output = np.arange(start, start + size)
    if ratio < 1:
        position = ratio * (output + 0.5) - 0.5
        low = np.floor(position).astype(np.int64)
        upper = np.round((position - low) * ONE)
        indices = low[:, None] + [0, 1]
        weights = np.stack([ONE - upper, upper], axis=1)
    else:
        begin, end = output * ratio, (output + 1) * ratio
        indices = np.floor(begin).astype(np.int64)[:, None] + np.arange(int(ratio) + 2)
        # Differences of the rounded covered share up to each border: they add up to ONE.
        borders = np.concatenate([indices, indices[:, -1:] + 1], axis=1)
        covered = np.clip((borders - begin[:, None]) / (end - begin)[:, None], 0, 1)
        weights = np.diff(np.round(covered * ONE), axis=1)
        indices = np.minimum(indices, last - 1)  # beyond the end the weight is 0
    rows = np.arange(0, indices.size + 1, indices.shape[1])
    return sp.csr_array((weights.ravel(), (indices - first).ravel(), rows), (size, last - first))
