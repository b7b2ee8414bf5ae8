"""What distances need to know of a triangle mesh: components, faults, points as vertices."""

from itertools import pairwise

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from jaxcyto.brain.surfaces import Surface
from jaxcyto.errors import InputError

# Points are kept this far (in barycentric coordinates) from the sides of their triangle, so that
# inserting them makes no slivers. It moves a point by at most 2e-3 of the triangle's longest side.
CLEARANCE = 1e-3
# A triangle is flat if its smallest height is below this share of its longest side.
FLAT = 1e-7
# Corners of flat triangles are moved by up to this share of the mean side.
NUDGE = 1e-3


def clean_faces(faces: np.ndarray) -> np.ndarray:
    """Faces [F, 3] without those that name a vertex twice and without repetitions."""
    ordered = np.sort(faces, axis=1)
    good = (ordered[:, 0] != ordered[:, 1]) & (ordered[:, 1] != ordered[:, 2])
    _, first = np.unique(ordered[good], axis=0, return_index=True)
    return np.ascontiguousarray(faces[good][np.sort(first)], np.int32)


def component_labels(num_vertices: int, faces: np.ndarray) -> np.ndarray:
    """Component [V] of each vertex; an unreferenced vertex is a component of its own."""
    graph = sparse.coo_matrix(
        (np.ones(2 * len(faces), np.int8), (faces[:, [0, 1]].ravel(), faces[:, [1, 2]].ravel())),
        (num_vertices, num_vertices),
    )
    return connected_components(graph, directed=False)[1]


def non_manifold(faces: np.ndarray) -> tuple[int, int]:
    """Numbers of edges with more than two faces, and of vertices where separate fans meet."""
    corners = np.arange(3 * len(faces)).reshape(-1, 3)
    start, end = faces[:, [0, 1, 2]].ravel(), faces[:, [1, 2, 0]].ravel()
    start_corner, end_corner = corners[:, [0, 1, 2]].ravel(), corners[:, [1, 2, 0]].ravel()
    swap = start > end
    low, high = np.where(swap, end, start), np.where(swap, start, end)
    low_corner = np.where(swap, end_corner, start_corner)
    high_corner = np.where(swap, start_corner, end_corner)
    order = np.lexsort((high, low))
    same = (np.diff(low[order]) == 0) & (np.diff(high[order]) == 0)
    edges = int((same[1:] & same[:-1]).sum())
    # Corners at one vertex in faces that share an edge there belong to one fan.
    before, after = order[:-1][same], order[1:][same]
    rows = np.concatenate([low_corner[before], high_corner[before]])
    columns = np.concatenate([low_corner[after], high_corner[after]])
    graph = sparse.coo_matrix((np.ones(len(rows), np.int8), (rows, columns)), (corners.size,) * 2)
    fans = connected_components(graph, directed=False)[0]
    return edges, int(fans - len(np.unique(faces)))


def without_flat_triangles(surface: Surface) -> Surface:
    """Gives triangles without area a little, by moving their corners at random.

    The exact method is wrong on flat triangles (measured: by whole sides). Each of their corners
    moves by at most `NUDGE` mean sides, and distances change by no more than that at each one
    that the path passes. The same mesh is always moved alike.

    Raises:
        InputError: if all is in vain, as where a whole mesh has no extent.
    """
    vertices, faces = surface.vertices, surface.faces
    sides = np.linalg.norm(np.diff(vertices[faces[:, [0, 1, 2, 0]]], axis=1), axis=2)
    step = NUDGE * sides.mean()
    rng = np.random.default_rng(0)
    for _ in range(20):
        corners = vertices[faces]
        sides = np.linalg.norm(np.diff(corners[:, [0, 1, 2, 0]], axis=1), axis=2).max(1)
        doubled = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        flat = np.linalg.norm(doubled, axis=1) <= FLAT * sides**2
        if not flat.any():
            return Surface(vertices, faces)
        moved = np.unique(faces[flat])
        vertices = vertices.copy()
        vertices[moved] = (
            surface.vertices[moved] + rng.uniform(-step, step, (len(moved), 3)) / 3**0.5
        )
    raise InputError("a surface whose triangles have no area; mend it, or use method heat")


def insert_points(
    surface: Surface, face: np.ndarray, bary: np.ndarray
) -> tuple[Surface, np.ndarray]:
    """Makes surface points vertices, by splitting their triangle in three, one point at a time.

    Distances along the surface stay as they are. Points nearer than `CLEARANCE` to a side are
    moved to it; equal points become one vertex.

    Args:
        surface: the mesh.
        face: triangle of each point [N].
        bary: barycentric coordinates [N, 3].

    Returns:
        The refined mesh (old vertices first) and the points' vertices [N].
    """
    face, bary = check_points(surface, face, bary)
    bary = np.maximum(bary, CLEARANCE)
    bary /= bary.sum(1, keepdims=True)
    points, index = np.unique(np.column_stack([face, bary]), axis=0, return_inverse=True)
    index = index.reshape(-1)
    owner = points[:, 0].astype(np.int64)
    number = len(surface.vertices)
    new_faces: list[tuple[int, int, int]] = []
    vertex = np.empty(len(points), np.int64)
    added: list[np.ndarray] = []
    bounds = np.flatnonzero(np.r_[True, np.diff(owner) != 0, True]) if len(points) else [0]
    for begin, end in pairwise(bounds):
        corners = surface.faces[owner[begin]]
        leaves = [tuple(zip(corners.tolist(), np.eye(3).tolist(), strict=True))]
        for point in range(begin, end):
            at = points[point, 1:].tolist()
            inside = [_within([corner[1] for corner in leaf], at) for leaf in leaves]
            best = max(range(len(leaves)), key=lambda leaf: min(inside[leaf]))
            leaf, local = leaves.pop(best), inside[best]
            if max(local) > 1 - CLEARANCE:  # on a point that is there already
                vertex[point] = leaf[local.index(max(local))][0]
                leaves.append(leaf)
                continue
            clear = [max(value, CLEARANCE) for value in local]
            total = sum(clear)
            at = [
                sum(w / total * corner[1][axis] for w, corner in zip(clear, leaf, strict=True))
                for axis in range(3)
            ]
            middle = (number + len(added), at)
            vertex[point] = middle[0]
            added.append(np.array(at) @ surface.vertices[corners])
            leaves += [(leaf[k], leaf[(k + 1) % 3], middle) for k in range(3)]
        new_faces += [(leaf[0][0], leaf[1][0], leaf[2][0]) for leaf in leaves]
    if not added:
        return surface, vertex[index]
    kept = np.ones(len(surface.faces), bool)
    kept[owner] = False
    faces = np.concatenate([surface.faces[kept], np.array(new_faces, surface.faces.dtype)])
    return Surface(np.concatenate([surface.vertices, added]), faces), vertex[index]


def _within(corners, at) -> list[float]:
    """Barycentric coordinates of `at` in a triangle, all given in their parent's coordinates."""
    (ax, ay, _), (bx, by, _), (cx, cy, _) = corners
    area = (bx - ax) * (cy - ay) - (cx - ax) * (by - ay)
    second = ((at[0] - ax) * (cy - ay) - (cx - ax) * (at[1] - ay)) / area
    third = ((bx - ax) * (at[1] - ay) - (at[0] - ax) * (by - ay)) / area
    return [1 - second - third, second, third]


def check_points(surface: Surface, face, bary) -> tuple[np.ndarray, np.ndarray]:
    """Surface points as int64 [N] and float64 [N, 3], checked.

    Raises:
        InputError: if a triangle is not there, or coordinates are not barycentric.
    """
    face = np.asarray(face)
    bary = np.array(bary, float).reshape(-1, 3)
    if face.ndim != 1 or len(face) != len(bary) or (face.size and face.dtype.kind not in "iu"):
        raise InputError("surface points: expected face int [N] and bary float [N, 3]")
    face = face.astype(np.int64)
    if face.size and not (0 <= face.min() and face.max() < len(surface.faces)):
        raise InputError(
            f"surface points: triangle {face.min() if face.min() < 0 else face.max()} is not "
            f"among the surface's {len(surface.faces)}; were they drawn on another surface?"
        )
    if not (np.abs(bary.sum(1) - 1) < 1e-3).all() or (bary < -1e-3).any():
        raise InputError("surface points: barycentric coordinates must be >= 0 and sum to 1")
    return face, bary
