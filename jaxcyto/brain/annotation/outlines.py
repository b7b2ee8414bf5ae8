"""Trace the outlines of the classes of a label image, simplified by less than half a pixel.

The borders between pixels form a graph, whose nodes are the corners at which more than two borders
meet. Each border from node to node is simplified once for both of its sides, so that the polygons
of neighbors share it: there are neither gaps nor overlaps. A border is only replaced by lines
within less than half a pixel of it. No line therefore passes over the center of a pixel, and
filling the polygons on the same grid gives the label image back, bit for bit.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from scipy import ndimage

# Pixels, half a pixel less what rounding of the written coordinates may add.
TOLERANCE_PX = 0.5 - 1e-5
OUTSIDE = -1
# Steps (row, column) to the neighbor on the left of a border that runs right, down, left and up,
# and from the pixel to the corners at which this border starts and ends.
LEFT = ((-1, 0), (0, 1), (1, 0), (0, -1))
START = ((0, 0), (0, 1), (1, 1), (1, 0))
END = ((0, 1), (1, 1), (1, 0), (0, 0))

Point = tuple[float, float]


def trace(
    label: np.ndarray, leave_out: Sequence[int] = (), size: tuple[float, float] | None = None
) -> dict[int, list[list[np.ndarray]]]:
    """Trace every class as polygons with holes.

    The pixels of a polygon are connected by their sides. Polygons that meet at a corner of pixels
    share a point.

    Args:
        label: class numbers, uint8 [height, width].
        leave_out: numbers that get no polygons.
        size: (height, width) px at which the polygons end. By default, the label image's.

    Returns:
        The polygons of each class. A polygon is its outline, followed by its holes. Each of these
        is float64 [N, 2] (x, y) in px, not closed. Pixel k covers k to k + 1.
    """
    height, width = label.shape
    high, wide = size or (height, width)
    padded = np.full((height + 2, width + 2), OUTSIDE, np.int16)
    padded[1:-1, 1:-1] = label
    is_node = _nodes(padded)
    found: dict[int, list[list[np.ndarray]]] = {}
    for number, window in enumerate(ndimage.find_objects(padded[1:-1, 1:-1] + 1)):
        if window is None or number in leave_out:
            continue
        top, left = window[0].start, window[1].start
        parts: dict[int, list[np.ndarray]] = {}
        for part, ring in _rings(padded[1:-1, 1:-1][window] == number):
            corners = [(row + top, column + left) for row, column in ring]
            points = [
                point
                for border in _borders(corners, is_node)
                for point in _both_ways([(min(x, wide), min(y, high)) for y, x in border])[:-1]
            ]
            parts.setdefault(part, []).append(np.array(points, float))
        # The outline encloses more than any of its holes.
        found[number] = [sorted(rings, key=area, reverse=True) for rings in parts.values()]
    return found


def area(ring: np.ndarray) -> float:
    """Return the area that a ring [N, 2] encloses, without its sign."""
    return abs(signed_area(ring))


def signed_area(ring: np.ndarray) -> float:
    """Return the area of a ring [N, 2], above 0 if it turns from the x axis to the y axis."""
    x, y = (ring - ring[0]).T  # relative to a point of the ring, so that rounding stays small
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def simplify(corners: Sequence[Point]) -> list[Point]:
    """Replace a border by fewer lines, each within TOLERANCE_PX of the part that it replaces.

    The lines run between the middles of straight parts, and between corners where cutting them off
    would be too much. They are chosen one by one, each as long as possible.

    Args:
        corners: ends (x, y) of the border's steps along the grid.

    Returns:
        The new points. The first and the last are those of the border.
    """
    corners = _turns(corners)
    last = len(corners) - 1  # run k goes from corner k to corner k + 1
    run, point = 0, corners[0]
    points = [point]
    while run < last - 1:
        run, point = _farthest(corners, run, point)
        points.append(point)
        if run == last:
            return points
    return [*points, corners[last]]


def _farthest(corners: Sequence[Point], run: int, point: Point) -> tuple[int, Point]:
    """Return the run and the point of the longest line from a point on a run.

    The run is the number of runs if the line ends at the last corner. No corner lies beyond the end
    of a line that passes near it, because the parts of a border that share no corner are at least a
    pixel apart: a border cannot turn back within the tolerance.
    """
    best = run + 1, corners[run + 1]
    last = len(corners) - 1
    x0, y0 = point
    # The directions (x, y) in which a line passes all corners so far within the tolerance.
    low: Point | None = None
    high: Point | None = None
    for k in range(run + 1, last):
        x, y = corners[k][0] - x0, corners[k][1] - y0
        square = x * x + y * y
        if square > TOLERANCE_PX**2:
            along = math.sqrt(square - TOLERANCE_PX**2)
            first = x * along + y * TOLERANCE_PX, y * along - x * TOLERANCE_PX
            second = x * along - y * TOLERANCE_PX, y * along + x * TOLERANCE_PX
            low = first if low is None or _cross(low, first) > 0 else low
            high = second if high is None or _cross(second, high) > 0 else high
            if _cross(low, high) < 0:
                break
        end = corners[last]
        targets = [(k, _middle(corners[k], corners[k + 1]))] + [(last, end)] * (k == last - 1)
        for index, target in targets:
            line = target[0] - x0, target[1] - y0
            if low is None or high is None or (_cross(low, line) >= 0 <= _cross(line, high)):
                best = index, target
    return best


def _turns(corners: Sequence[Point]) -> list[Point]:
    """Return the corners at which a border turns, and both of its ends."""
    inner = [
        here
        for before, here, after in zip(corners, corners[1:], corners[2:], strict=False)
        if (before[0] == here[0]) != (here[0] == after[0])
    ]
    return [corners[0], *inner, corners[-1]]


def _both_ways(border: list[Point]) -> list[Point]:
    """Return a simplified border, which does not depend on its direction."""
    if (border[0], border[1]) <= (border[-1], border[-2]):
        return simplify(border)
    return simplify(border[::-1])[::-1]


def _borders(ring: list[tuple[int, int]], is_node: np.ndarray) -> Iterator[list[tuple[int, int]]]:
    """Cut a ring of corners at its nodes, or at its first corner if it has no node."""
    rows, columns = np.array(ring).T
    cuts = np.flatnonzero(is_node[rows, columns]).tolist()
    cuts = cuts or [ring.index(min(ring))]
    ring = ring[cuts[0] :] + ring[: cuts[0] + 1]
    cuts = [cut - cuts[0] for cut in cuts] + [len(ring) - 1]
    for first, last in pairwise(cuts):
        yield ring[first : last + 1]


def _nodes(padded: np.ndarray) -> np.ndarray:
    """Find the corners of pixels at which more than two borders meet."""
    beside = padded[:, :-1] != padded[:, 1:]
    below = padded[:-1] != padded[1:]
    count = beside[:-1].astype(np.uint8)
    count += beside[1:]
    count += below[:, :-1]
    count += below[:, 1:]
    return count > 2


def _rings(mask: np.ndarray) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """Yield the borders of a mask as rings of corners (row, column), each with its part's number.

    A ring has the mask on its right and meets no corner twice.
    """
    part = np.empty(mask.shape, np.int32)
    ndimage.label(mask, output=part)  # connected by sides
    padded = np.pad(mask, 1)
    across = mask.shape[1] + 1
    keys, ends, parts = [], [], []
    steps = zip(LEFT, START, END, strict=True)
    for turn, ((up, side), (row, column), (to_row, to_column)) in enumerate(steps):
        beside = padded[1 + up : 1 + up + mask.shape[0], 1 + side : 1 + side + mask.shape[1]]
        y, x = np.nonzero(mask & ~beside)
        keys.append(4 * ((y + row) * across + x + column) + turn)
        ends.append((y + to_row) * across + x + to_column)
        parts.append(part[y, x])
    key, end, owner = (np.concatenate(each) for each in (keys, ends, parts))
    order = np.argsort(key)
    key, end, owner = key[order], end[order], owner[order].tolist()
    # Where two rings meet, turning right stays at the same pixel, so that each keeps its part.
    following = np.full(len(key), -1)
    for turn in (3, 0, 1):  # left, straight, right. The last one found counts
        wanted = 4 * end + (key % 4 + turn) % 4
        at = np.searchsorted(key, wanted).clip(max=len(key) - 1)
        following = np.where(key[at] == wanted, at, following)
    corner, following = (key // 4).tolist(), following.tolist()
    seen = bytearray(len(key))
    for first in range(len(key)):
        if seen[first]:
            continue
        ring, edge = [], first
        while not seen[edge]:
            seen[edge] = 1
            ring.append(corner[edge])
            edge = following[edge]
        for loop in _loops(ring):
            yield owner[first], [divmod(each, across) for each in loop]


def _loops(ring: list[int]) -> Iterator[list[int]]:
    """Split a ring where it meets itself."""
    path: list[int] = []
    place: dict[int, int] = {}
    for corner in ring:
        if corner in place:
            start = place[corner]
            yield path[start:]
            for each in path[start + 1 :]:
                del place[each]
            del path[start + 1 :]
        else:
            place[corner] = len(path)
            path.append(corner)
    yield path


def _middle(a: Point, b: Point) -> Point:
    return (a[0] + b[0]) / 2, (a[1] + b[1]) / 2


def _cross(a: Point, b: Point) -> float:
    return a[0] * b[1] - a[1] * b[0]
