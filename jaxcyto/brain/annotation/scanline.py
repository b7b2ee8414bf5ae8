"""Fill polygons on a pixel grid, row by row. Pixel centers lie at integers.

A pixel center on a left or upper edge is inside, and a center on a right or lower edge is outside.
Shapes that share an edge therefore divide the pixels along it: none belongs to both and none to
neither. This holds bit for bit, because the crossing of an edge with a row is computed in the same
way for both directions of the edge.
"""

import numpy as np


def expand(first: np.ndarray, last: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Enumerate the integers in half-open ranges [first, last).

    Returns:
        The index of the range and the value of each integer, both [N].
    """
    length = np.maximum(last - first, 0)
    owner = np.repeat(np.arange(len(length)), length)
    start = np.cumsum(length) - length
    return owner, np.arange(len(owner)) - start[owner] + first[owner]


def edge_rows(start: np.ndarray, end: np.ndarray, top: int, height: int):
    """Find where edges cross the rows [top, top + height).

    Args:
        start, end: ends (column, row) of the edges [N, 2].
        top, height: the block of rows.

    Returns:
        (edge index, row, column) of all crossings.
    """
    low, high = np.minimum(start[:, 1], end[:, 1]), np.maximum(start[:, 1], end[:, 1])
    first = np.clip(np.ceil(low), top, top + height).astype(np.int64)
    last = np.clip(np.ceil(high), top, top + height).astype(np.int64)
    edge, row = expand(first, last)
    # Always interpolate from the upper to the lower end, so that both directions of an edge give
    # the same column bit for bit.
    flip = start[edge, 1] > end[edge, 1]
    a = np.where(flip[:, None], end[edge], start[edge])
    b = np.where(flip[:, None], start[edge], end[edge])
    t = (row - a[:, 1]) / (b[:, 1] - a[:, 1])
    return edge, row, a[:, 0] + t * (b[:, 0] - a[:, 0])


def winding_number(
    start: np.ndarray, end: np.ndarray, top: int, height: int, width: int
) -> np.ndarray:
    """Return how often closed curves wind around each pixel of a block.

    The winding number is odd where a pixel is inside by the even-odd rule.

    Args:
        start, end: directed edges [N, 2] (column, row), which form closed curves.
        top, height, width: the block of rows [top, top + height) and columns [0, width).

    Returns:
        int16 [height, width].
    """
    edge, row, column = edge_rows(start, end, top, height)
    change = np.zeros((height, width + 1), np.int16)
    first = np.clip(np.ceil(column), 0, width).astype(np.int64)
    direction = np.where(end[edge, 1] > start[edge, 1], 1, -1).astype(np.int16)
    np.add.at(change, (row - top, first), direction)
    return np.cumsum(change, axis=1, dtype=np.int16)[:, :width]
