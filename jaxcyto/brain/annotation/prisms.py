"""Where a section plane cuts the cortex: prisms between pial and white, on a pixel grid.

Each prism is three tetrahedra; a plane cuts a tetrahedron in one or two triangles, inside which
depth and barycentric weights are linear. Neighbors share cut points bit for bit, so that the
rasterized triangles meet without gaps.
"""

import dataclasses

import numpy as np

from jaxcyto.brain.annotation.scanline import edge_rows, expand, winding_number


@dataclasses.dataclass(frozen=True, eq=False)
class Cut:
    """The cut in grid coordinates (column, row), pixel centers at whole numbers.

    corner float64 [T, 3, 2]: planar triangles; value float64 [T, 3, 3]: (depth, weight of the
    face's 2nd vertex, of its 3rd) at each corner; face int64 [T]; sorted_faces int64 [F, 3]: vertex
    ids, ascending, which the weights refer to; contour float64 [S, 2, 2]: directed segments of the
    white surface.
    """

    corner: np.ndarray
    value: np.ndarray
    face: np.ndarray
    sorted_faces: np.ndarray
    contour: np.ndarray


def cut_prisms(pial: np.ndarray, white: np.ndarray, faces: np.ndarray) -> Cut:
    """Cuts the prisms between two vertex-matched surfaces where the third coordinate is zero.

    Args:
        pial, white: vertices [V, 3]: (column, row) on the grid and the distance to its plane.
        faces: int64 [F, 3].
    """
    contour = _contour(white, faces)
    faces = np.sort(faces, axis=1)
    above = np.concatenate([pial[:, 2] >= 0, white[:, 2] >= 0])
    num = len(pial)
    points = np.concatenate([pial, white])
    prism = np.concatenate([faces, faces + num], axis=1)  # pial a b c, white a b c; a < b < c
    touched = above[prism].any(1) & ~above[prism].all(1)
    face = np.flatnonzero(touched)
    # The diagonal of each side runs from the pial of the lower vertex to the white of the higher
    # one, whichever prism is asked.
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
    corner, value, found = [], [], []
    cases = {
        1: [((0, 1), (0, 2), (0, 3))],
        2: [((0, 2), (0, 3), (1, 3)), ((0, 2), (1, 3), (1, 2))],
        3: [((0, 3), (1, 3), (2, 3))],
    }
    for number, triangles in cases.items():
        chosen = count == number
        for triangle in triangles:
            upper, lower = np.array(triangle).T
            first, second = points[ids[chosen][:, upper]], points[ids[chosen][:, lower]]
            t = first[..., 2] / (first[..., 2] - second[..., 2])
            corner.append(first[..., :2] + t[..., None] * (second - first)[..., :2])
            start, end = attributes[tetra[chosen][:, upper]], attributes[tetra[chosen][:, lower]]
            value.append(start + t[..., None] * (end - start))
            found.append(owner[chosen])
    return Cut(
        corner=np.concatenate(corner),
        value=np.concatenate(value),
        face=np.concatenate(found),
        sorted_faces=faces,
        contour=contour,
    )


def _contour(points: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Directed segments [S, 2, 2] in which the plane (third coordinate 0) cuts a surface."""
    above = points[:, 2] >= 0
    up = above[faces]
    faces, up = faces[up.any(1) & ~up.all(1)], up[up.any(1) & ~up.all(1)]
    alone_up = up.sum(1) == 1
    alone = np.where(alone_up, up.argmax(1), up.argmin(1))
    turned = np.take_along_axis(faces, (alone[:, None] + np.arange(3)) % 3, axis=1)

    def crossing(first, second):
        swap = above[second] & ~above[first]  # always from above to below: bit-identical
        first, second = np.where(swap, second, first), np.where(swap, first, second)
        a, b = points[first], points[second]
        t = a[:, 2] / (a[:, 2] - b[:, 2])
        return a[:, :2] + t[:, None] * (b - a)[:, :2]

    ends = np.stack([crossing(turned[:, 0], turned[:, 1]), crossing(turned[:, 0], turned[:, 2])], 1)
    return np.where(alone_up[:, None, None], ends, ends[:, ::-1])


def rasterize(cut: Cut, top: int, height: int, width: int) -> np.ndarray:
    """The triangle that covers each pixel of a row block: int32 [height, width], -1 for none."""
    out = np.full(height * width, -1, np.int32)
    rows = cut.corner[:, :, 1]
    near = np.flatnonzero((rows.max(1) >= top) & (rows.min(1) <= top + height))
    corner = cut.corner[near]
    crossings = [edge_rows(corner[:, k], corner[:, (k + 1) % 3], top, height) for k in range(3)]
    owner, row, column = (np.concatenate(parts) for parts in zip(*crossings, strict=True))
    # Each triangle crosses a row in exactly two edges: after sorting they lie side by side.
    order = np.lexsort((column, row, owner))
    owner, row, column = owner[order], row[order], column[order]
    left = np.clip(np.ceil(column[0::2]), 0, width).astype(np.int64)
    right = np.clip(np.ceil(column[1::2]), 0, width).astype(np.int64)
    run, pixel = expand(left, right)
    out[(row[0::2][run] - top) * width + pixel] = near[owner[0::2][run]]
    return out.reshape(height, width)


def inside_white(cut: Cut, top: int, height: int, width: int) -> np.ndarray:
    """Where the pixels of a row block lie within the white surface: bool, by winding number."""
    start, end = cut.contour[:, 0], cut.contour[:, 1]
    return winding_number(start, end, top, height, width) != 0


def planes(cut: Cut) -> np.ndarray:
    """What `evaluate` needs of each triangle, float32 [12, T].

    Its first corner (column, row); for each of the three values: there, change per column, change
    per row; and the angle in which depth grows fastest.
    """
    a, b, c = cut.corner.swapaxes(0, 1)
    u, v = b - a, c - a
    det = u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0]
    safe = np.where(np.abs(det) < 1e-9, np.inf, det)[:, None]  # such slivers cover no pixel
    du, dv = (cut.value[:, k] - cut.value[:, 0] for k in (1, 2))
    per_column = (du * v[:, 1:] - dv * u[:, 1:]) / safe
    per_row = (dv * u[:, :1] - du * v[:, :1]) / safe
    values = np.stack([cut.value[:, 0], per_column, per_row], axis=2).reshape(-1, 9)
    angle = np.arctan2(per_row[:, 0], per_column[:, 0])
    return np.concatenate([a.T, values.T, angle[None]]).astype(np.float32)


def evaluate(
    cut: Cut, planes: np.ndarray, triangle: np.ndarray, column: np.ndarray, row: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The cortex at pixels [N] of known triangles.

    Returns:
        depth [N], 0 pial to 1 white; vertex ids [3, N] and their weights [3, N]; the angle [N] in
        the image in which depth grows fastest.
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
    """The label [N] with the greatest total weight among three labels and weights [3, N].

    Its borders are straight within a face and meet those of the next face.
    """
    out = labels[0].copy()
    mixed = np.flatnonzero((labels[1] != labels[0]) | (labels[2] != labels[0]))
    labels, weights = labels[:, mixed].T, weights[:, mixed].T
    same = labels[:, :, None] == labels[:, None]
    best = (same * weights[:, None]).sum(2).argmax(1)
    out[mixed] = labels[np.arange(len(mixed)), best]
    return out
