"""Polygons on a pixel grid, row by row; pixel centers lie at whole numbers.

A center counts as inside from the left edge on (included) to the right edge (excluded), and from
the upper to the lower alike: shapes that share an edge divide the pixels along it, none twice and
none left over. Where an edge crosses a row is computed alike for both of its directions, so that
this holds bit for bit.
"""

import numpy as np


def expand(first: np.ndarray, last: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Owner and value of every whole number in the half-open ranges [first, last)."""
    length = np.maximum(last - first, 0)
    owner = np.repeat(np.arange(len(length)), length)
    start = np.cumsum(length) - length
    return owner, np.arange(len(owner)) - start[owner] + first[owner]


def edge_rows(start: np.ndarray, end: np.ndarray, top: int, height: int):
    """For edges [N, 2] to [N, 2]: (edge, row, column) of every row of the window they cross."""
    low, high = np.minimum(start[:, 1], end[:, 1]), np.maximum(start[:, 1], end[:, 1])
    first = np.clip(np.ceil(low), top, top + height).astype(np.int64)
    last = np.clip(np.ceil(high), top, top + height).astype(np.int64)
    edge, row = expand(first, last)
    flip = start[edge, 1] > end[edge, 1]
    a = np.where(flip[:, None], end[edge], start[edge])
    b = np.where(flip[:, None], start[edge], end[edge])
    t = (row - a[:, 1]) / (b[:, 1] - a[:, 1])
    return edge, row, a[:, 0] + t * (b[:, 0] - a[:, 0])


def winding_number(
    start: np.ndarray, end: np.ndarray, top: int, height: int, width: int
) -> np.ndarray:
    """How often closed curves wind around each pixel of a row block, int16 [height, width].

    Odd where the even-odd rule calls a pixel inside.

    Args:
        start, end: directed edges [N, 2] (column, row), which form closed curves.
        top, height, width: the block: rows [top, top + height), columns [0, width).
    """
    edge, row, column = edge_rows(start, end, top, height)
    change = np.zeros((height, width + 1), np.int16)
    first = np.clip(np.ceil(column), 0, width).astype(np.int64)
    direction = np.where(end[edge, 1] > start[edge, 1], 1, -1).astype(np.int16)
    np.add.at(change, (row - top, first), direction)
    return np.cumsum(change, axis=1, dtype=np.int16)[:, :width]
