"""Ways from points to the anchors around them, and from anchor to anchor: arithmetic on arrays."""

import numpy as np
from scipy import sparse

from jaxcyto.brain.surfaces import Surface

GATHER = 2**22  # numbers gathered at a time: some 100 MB


def point_rows(
    surface: Surface,
    near: sparse.csr_array,
    anchors: int,
    face: np.ndarray,
    bary: np.ndarray,
) -> sparse.csr_array:
    """Distances [N, A] from surface points to the anchors around them.

    In a triangle laid flat together with the anchor, the squared distance to the anchor is
    sum_i b_i d_i^2 - sum_{i<j} b_i b_j l_ij^2, with d_i from the corners and l the sides.

    Args:
        surface: the mesh, W vertices.
        near: distances [W, A] from its vertices.
        anchors: their number A.
        face: triangles [N].
        bary: barycentric coordinates [N, 3].
    """
    vertices, faces = surface.vertices, surface.faces
    corners = faces[face]
    number = len(face)
    begin = np.arange(0, 3 * number + 1, 3)
    shape = number, len(vertices)
    weights = sparse.csr_array((bary.ravel(), corners.ravel(), begin), shape)
    squared = near.copy()
    squared.data = squared.data.astype(np.float64) ** 2
    known = near.copy()
    known.data = np.ones(len(known.data))
    squared, known = weights @ squared, weights @ known
    place = vertices[corners]
    sides = np.square(place - np.roll(place, -1, axis=1)).sum(2)
    spread = (bary * np.roll(bary, -1, axis=1) * sides).sum(1)
    row = np.repeat(np.arange(number), np.diff(squared.indptr))
    kept = known.data > 1 - 1e-9  # known at all corners with a share
    squared.data = np.sqrt(np.maximum(squared.data - spread[row], 0))
    counts = np.bincount(row[kept], minlength=number)
    common = sparse.csr_array(
        (
            squared.data[kept].astype(np.float32),
            squared.indices[kept],
            np.r_[0, np.cumsum(counts)],
        ),
        (number, anchors),
    )
    if counts.all():
        return common
    # Triangles longer than reach: by way of a corner.
    alone = np.flatnonzero(counts == 0)
    entries = common.tocoo()
    rows, columns, data = [entries.row], [entries.col], [entries.data]
    for point in alone.tolist():
        at = bary[point] @ place[point]
        ways = [
            (near[[corner]], np.linalg.norm(at - vertices[corner]))
            for corner in corners[point].tolist()
        ]
        least = np.full(anchors, np.inf, np.float32)
        for way, begin_mm in ways:
            least[way.indices] = np.minimum(least[way.indices], way.data + begin_mm)
        reached = np.flatnonzero(np.isfinite(least))
        rows.append(np.full(len(reached), point))
        columns.append(reached)
        data.append(least[reached])
    ends = np.concatenate(rows), np.concatenate(columns)
    return sparse.csr_array(sparse.coo_array((np.concatenate(data), ends), common.shape))


def shortest_ways(far: np.ndarray, first: sparse.csr_array, second: sparse.csr_array) -> np.ndarray:
    """The least near(p, a) + far(a, b) + near(q, b) of each pair, float64 [N].

    Args:
        far: distances [A, A] between anchors.
        first, second: distances [N, A] from the ends p and q to the anchors around them.
    """
    result = np.empty(len(first.indptr) - 1)
    widest = np.maximum(np.diff(first.indptr), np.diff(second.indptr))
    # Alike widths together, so that little of what is gathered is padding.
    order = np.argsort(-widest, kind="stable")
    done = 0
    while done < len(order):
        size = max(1, GATHER // max(int(widest[order[done]]), 1) ** 2)
        chunk = order[done : done + size]
        (a, near_a), (b, near_b) = padded(first, chunk), padded(second, chunk)
        # The two ends are added first: the sum does not depend on their order.
        ways = near_a[:, :, None] + near_b[:, None, :]
        ways += far[a[:, :, None], b[:, None, :]]
        result[chunk] = ways.min(axis=(1, 2), initial=np.inf)
        done += size
    return result


def least(values: np.ndarray, rows: sparse.csr_array) -> np.ndarray:
    """Least of the values of each sparse row; inf of none."""
    result = np.full(len(rows.indptr) - 1, np.inf, values.dtype)
    filled = np.flatnonzero(np.diff(rows.indptr))
    if len(filled):
        result[filled] = np.minimum.reduceat(values, rows.indptr[filled])
    return result


def padded(rows: sparse.csr_array, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Columns and values [n, K] of some sparse rows, filled up with values of inf."""
    begin, end = rows.indptr[index], rows.indptr[index + 1]
    place = begin[:, None] + np.arange(max(int((end - begin).max()), 1))
    valid = place < end[:, None]
    if not len(rows.data):
        return np.zeros(place.shape, np.int32), np.full(place.shape, np.inf, np.float32)
    place[~valid] = 0
    return rows.indices[place], np.where(valid, rows.data[place], np.float32(np.inf))
