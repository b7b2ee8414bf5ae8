"""Resample images such that a window equals the same crop of the whole image, bit for bit.

Weights are integer multiples of 2^-16 that add up to exactly 1, so float64 holds every partial sum
exactly. Therefore neither the order of summation nor the choice of window changes a result.
"""

import numpy as np
import scipy.sparse as sp

ONE = 1 << 16


def source_range(start: int, size: int, ratio: float) -> tuple[int, int]:
    """Return the half-open range of source pixels that output pixels [start, start + size) need.

    `ratio` is the number of source pixels along one side of an output pixel.
    """
    if ratio < 1:  # linear interpolation between pixel centers
        first = np.floor(ratio * (start + 0.5) - 0.5)
        return int(first), int(np.floor(ratio * (start + size - 0.5) - 0.5)) + 2
    return int(np.floor(start * ratio)), int(np.ceil((start + size) * ratio))


def resample(source: np.ndarray, top: int, left: int, height: int, width: int, ratio: float):
    """Resample an image to the window of `height` x `width` pixels from (left, top).

    Output pixel m covers source pixels [m ratio, (m + 1) ratio). For ratio >= 1 its value is their
    mean by covered area. For ratio < 1 it is interpolated linearly at the center of the output
    pixel, ratio (m + 0.5) - 0.5. Halves round up.

    Args:
        source: uint8, the `source_range` of both axes.
        top: first row of the window, in output pixels.
        left: first column of the window, in output pixels.
        height: rows of the window.
        width: columns of the window.
        ratio: source pixels along one side of an output pixel.

    Returns:
        uint8 [height, width].
    """
    if ratio == 1:
        return source
    if ratio == int(ratio):
        return _block_means(source, int(ratio))
    down = _weights(top, height, ratio)
    across = _weights(left, width, ratio)
    # Values need 24 bits after the first pass and 40 after the second. float64 has 53.
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
    """Return the weight of each source pixel in each output pixel, in units of 1 / ONE.

    The matrix is [output pixels, source pixels of `source_range`]. Each row adds up to ONE.
    """
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
        # Round the cumulative share and take differences, so that a row adds up to ONE.
        borders = np.concatenate([indices, indices[:, -1:] + 1], axis=1)
        covered = np.clip((borders - begin[:, None]) / (end - begin)[:, None], 0, 1)
        weights = np.diff(np.round(covered * ONE), axis=1)
        indices = np.minimum(indices, last - 1)  # the weight beyond the end is 0
    rows = np.arange(0, indices.size + 1, indices.shape[1])
    return sp.csr_array((weights.ravel(), (indices - first).ravel(), rows), (size, last - first))
