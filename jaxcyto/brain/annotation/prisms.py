"""Cut the cortex by a section plane and rasterize the cut on a pixel grid.

The cortex consists of prisms between the pial and the white surface. Each prism is split into three
tetrahedra. A plane cuts a tetrahedron in one or two triangles, inside which the depth and the
barycentric weights are linear. Neighboring tetrahedra share their cut points bit for bit, so the
rasterized triangles meet without gaps.
"""

import dataclasses

import numpy as np

from jaxcyto.brain.annotation.scanline import edge_rows, expand, winding_number


@dataclasses.dataclass(frozen=True, eq=False)
class Cut:
    """The cut in grid coordinates (column, row), with pixel centers at integers.

    Attributes:
        corner: corners of T planar triangles, float64 [T, 3, 2].
        value: (depth, weight of the face's 2nd vertex, weight of its 3rd vertex) at each corner,
            float64 [T, 3, 3]. Depth is 0 at the pial and 1 at the white surface.
        face: the face of each triangle's prism, int64 [T].
        sorted_faces: vertex indices of each face in ascending order, int64 [F, 3]. The weights
            refer to this order.
        contour: directed segments in which the plane cuts the white surface, float64 [S, 2, 2].
    """

    corner: np.ndarray
    value: np.ndarray
    face: np.ndarray
    sorted_faces: np.ndarray
    contour: np.ndarray


def cut_prisms(pial: np.ndarray, white: np.ndarray, faces: np.ndarray) -> Cut:
    """Cut the prisms between two vertex-matched surfaces where the third coordinate is zero.

    Args:
        pial, white: vertices [V, 3]: (column, row) on the grid and the distance to its plane.
        faces: vertex indices, int64 [F, 3].
    """
    contour = _contour(white, faces)
    faces = np.sort(faces, axis=1)
    above = np.concatenate([pial[:, 2] >= 0, white[:, 2] >= 0])
    num = len(pial)
    points = np.concatenate([pial, white])
    prism = np.concatenate([faces, faces + num], axis=1)  # pial a b c, white a b c; a < b < c
    touched = above[prism].any(1) & ~above[prism].all(1)
    face = np.flatnonzero(touched)
    # The diagonal of each side runs from the pial vertex with the lower index to the white vertex
    # with the higher index. Neighboring prisms thus share the diagonal of their common side.
    slots = np.array([[0, 1, 2, 5], [0, 1, 4, 5], [0, 3, 4, 5]])
    tetra = slots[np.tile(np.arange(3), len(face))]
    owner = np.repeat(face, 3)
    ids = np.take_along_axis(prism[owner], tetra, axis=1)
    order = np.argsort(~above[ids], axis=1, kind="stable")  # corners above the plane first
    ids, tetra = np.take_along_axis(ids, order, 1), np.take_along_axis(tetra, order, 1)
    count = above[ids].sum(1)
    attributes = np.array(  # (depth, weight of b, weight of c) at the six corners of a prism
        [[0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0], [1, 1, 0], [1, 0, 1]], float
    )
    corner, value, face_of = [], [], []
    # By the number of corners above the plane: the cut tetrahedron edges at the triangles' corners.
    cases = {
        1: [((0, 1), (0, 2), (0, 3))],
        2: [((0, 2), (0, 3), (1, 3)), ((0, 2), (1, 3), (1, 2))],
        3: [((0, 3), (1, 3), (2, 3))],
    }
    for num_above, triangles in cases.items():
        chosen = count == num_above
        for triangle in triangles:
            upper, lower = np.array(triangle).T
            first, second = points[ids[chosen][:, upper]], points[ids[chosen][:, lower]]
            t = first[..., 2] / (first[..., 2] - second[..., 2])
            corner.append(first[..., :2] + t[..., None] * (second - first)[..., :2])
            start, end = attributes[tetra[chosen][:, upper]], attributes[tetra[chosen][:, lower]]
            value.append(start + t[..., None] * (end - start))
            face_of.append(owner[chosen])
    return Cut(
        corner=np.concatenate(corner),
        value=np.concatenate(value),
        face=np.concatenate(face_of),
        sorted_faces=faces,
        contour=contour,
    )


def _contour(points: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Return the directed segments [S, 2, 2] in which the plane z = 0 cuts a surface."""
    above = points[:, 2] >= 0
    up = above[faces]
    faces, up = faces[up.any(1) & ~up.all(1)], up[up.any(1) & ~up.all(1)]
    alone_up = up.sum(1) == 1
    alone = np.where(alone_up, up.argmax(1), up.argmin(1))
    turned = np.take_along_axis(faces, (alone[:, None] + np.arange(3)) % 3, axis=1)

    def crossing(first, second):
        # Interpolate from above to below for both faces of an edge, so that the points are equal
        # bit for bit.
        swap = above[second] & ~above[first]
        first, second = np.where(swap, second, first), np.where(swap, first, second)
        a, b = points[first], points[second]
        t = a[:, 2] / (a[:, 2] - b[:, 2])
        return a[:, :2] + t[:, None] * (b - a)[:, :2]

    ends = np.stack([crossing(turned[:, 0], turned[:, 1]), crossing(turned[:, 0], turned[:, 2])], 1)
    return np.where(alone_up[:, None, None], ends, ends[:, ::-1])


def rasterize(cut: Cut, top: int, height: int, width: int) -> np.ndarray:
    """Return the triangle that covers each pixel of a block of rows.

    Returns:
        int32 [height, width], the index of the triangle or -1 for none.
    """
    out = np.full(height * width, -1, np.int32)
    rows = cut.corner[:, :, 1]
    near = np.flatnonzero((rows.max(1) >= top) & (rows.min(1) <= top + height))
    corner = cut.corner[near]
    crossings = [edge_rows(corner[:, k], corner[:, (k + 1) % 3], top, height) for k in range(3)]
    owner, row, column = (np.concatenate(parts) for parts in zip(*crossings, strict=True))
    # Exactly two edges of a triangle cross a row. After sorting, their crossings are adjacent.
    order = np.lexsort((column, row, owner))
    owner, row, column = owner[order], row[order], column[order]
    left = np.clip(np.ceil(column[0::2]), 0, width).astype(np.int64)
    right = np.clip(np.ceil(column[1::2]), 0, width).astype(np.int64)
    run, pixel = expand(left, right)
    out[(row[0::2][run] - top) * width + pixel] = near[owner[0::2][run]]
    return out.reshape(height, width)


def inside_white(cut: Cut, top: int, height: int, width: int) -> np.ndarray:
    """Return which pixels of a block of rows lie within the white surface, bool [height, width].

    A pixel is inside if the contour winds around it.
    """
    start, end = cut.contour[:, 0], cut.contour[:, 1]
    return winding_number(start, end, top, height, width) != 0


def planes(cut: Cut) -> np.ndarray:
    """Compute the linear functions that `evaluate` needs for each triangle.

    Returns:
        float32 [12, T]. Rows 0 and 1 are the (column, row) of the triangle's first corner. Rows
        2 ... 10 hold for each of the three values: the value at that corner, its change per column,
        its change per row. Row 11 is the angle in which depth grows fastest.
    """
    a, b, c = cut.corner.swapaxes(0, 1)
    u, v = b - a, c - a
    det = u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0]
    # Triangles without area would divide by zero. They cover no pixel, so any value will do.
    safe = np.where(np.abs(det) < 1e-9, np.inf, det)[:, None]
    du, dv = (cut.value[:, k] - cut.value[:, 0] for k in (1, 2))
    per_column = (du * v[:, 1:] - dv * u[:, 1:]) / safe
    per_row = (dv * u[:, :1] - du * v[:, :1]) / safe
    values = np.stack([cut.value[:, 0], per_column, per_row], axis=2).reshape(-1, 9)
    angle = np.arctan2(per_row[:, 0], per_column[:, 0])
    return np.concatenate([a.T, values.T, angle[None]]).astype(np.float32)


def evaluate(
    cut: Cut, planes: np.ndarray, triangle: np.ndarray, column: np.ndarray, row: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Evaluate depth and barycentric weights at pixels [N] whose triangles are known.

    Args:
        cut: the cut.
        planes: result of the function `planes`.
        triangle: index of the triangle that covers each pixel [N].
        column, row: pixels on the grid [N].

    Returns:
        A tuple of depth [N] (0 pial to 1 white), vertex indices [3, N], their weights [3, N], and
        the angle [N] in the image in which depth grows fastest, in radians.
    """
    dx = column.astype(np.float32) - planes[0][triangle]
    dy = row.astype(np.float32) - planes[1][triangle]
    depth, second, third = (
        np.clip(
            planes[k][triangle] + planes[k + 1][triangle] * dx + planes[k + 2][triangle] * dy, 0, 1
        )
        for k in (2, 5, 8)
    )
    weights = np.stack([np.maximum(1 - second - third, 0), second, third])
    weights /= weights[0] + weights[1] + weights[2]
    ids = np.ascontiguousarray(cut.sorted_faces.T)[:, cut.face[triangle]]
    return depth, ids, weights, planes[11][triangle]


def weighted_majority(labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the label [N] with the largest total weight among three labels [3, N].

    The borders between labels are straight within a face and continuous across faces.
    """
    out = labels[0].copy()
    mixed = np.flatnonzero((labels[1] != labels[0]) | (labels[2] != labels[0]))
    labels, weights = labels[:, mixed].T, weights[:, mixed].T
    same = labels[:, :, None] == labels[:, None]
    best = (same * weights[:, None]).sum(2).argmax(1)
    out[mixed] = labels[np.arange(len(mixed)), best]
    return out
