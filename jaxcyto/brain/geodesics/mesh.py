"""Analyze and modify triangle meshes for distances: components, faults, points as vertices."""

import hashlib
from itertools import pairwise

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components, dijkstra

from jaxcyto.brain.surfaces.surface import Surface
from jaxcyto.errors import InputError

# Points keep this distance (in barycentric coordinates) from the sides of their triangle, so that
# inserting them makes no slivers. It moves a point by at most 2e-3 of the triangle's longest side.
CLEARANCE = 1e-3
FLAT = 1e-7  # a triangle is flat if its smallest height is below this share of its longest side
NUDGE = 1e-3  # corners of flat triangles move by up to this share of the mean side
NO_TRIANGLES = "a surface needs triangles, of three different vertices each"


def mesh_sha256(surface: Surface) -> str:
    """Return the SHA-256 of a mesh's vertices and triangles."""
    digest = hashlib.sha256()
    digest.update(np.ascontiguousarray(surface.vertices, "<f8").tobytes())
    digest.update(np.ascontiguousarray(surface.faces, "<i8").tobytes())
    return digest.hexdigest()


def check_mesh(surface: Surface) -> np.ndarray:
    """Check a mesh that a caller made, and return its triangles [F, 3].

    Raises:
        InputError: if a triangle names a vertex that does not exist, or vertices are not finite or
            do not have three coordinates.
    """
    vertices = np.asarray(surface.vertices)
    faces = np.asarray(surface.faces).reshape(-1, 3)
    if vertices.ndim != 2 or vertices.shape[1] != 3 or not np.isfinite(vertices).all():
        raise InputError("a surface needs vertices [V, 3], all of them finite")
    if faces.size and not (0 <= faces.min() and faces.max() < len(vertices)):
        raise InputError(
            f"a surface of {len(vertices)} vertices whose triangles name vertices "
            f"{faces.min()} ... {faces.max()}"
        )
    return faces


def check_vertices(values, number: int) -> np.ndarray:
    """Check vertex indices that a caller gave, and return them as int64 [N].

    Args:
        values: the indices [N].
        number: number of vertices of the surface.

    Raises:
        InputError: if they are not integers, or not in 0 ... number - 1.
    """
    values = np.asarray(values)
    if values.ndim != 1 or (values.size and values.dtype.kind not in "iu"):
        raise InputError("vertices: expected integers [N]")
    values = values.astype(np.int64)
    if values.size and not (0 <= values.min() and values.max() < number):
        raise InputError(f"vertices: {values.min()} ... {values.max()}; the surface has {number}")
    return values


def clean_faces(faces: np.ndarray) -> np.ndarray:
    """Return the faces without those that name a vertex twice, and without repetitions."""
    return clean_face_map(faces)[0]


def clean_face_map(faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Clean faces [F, 3] like `clean_faces`, and map old to clean ones.

    Returns:
        The clean faces, and for each given face its index among them [F], or -1 if it names a
        vertex twice.
    """
    ordered = np.sort(faces, axis=1)
    good = (ordered[:, 0] != ordered[:, 1]) & (ordered[:, 1] != ordered[:, 2])
    _, first, same = np.unique(ordered[good], axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    number = np.full(len(faces), -1)
    number[good] = rank[same.reshape(-1)]
    return np.ascontiguousarray(faces[good][first[order]], np.int32), number


def component_labels(num_vertices: int, faces: np.ndarray) -> np.ndarray:
    """Label the component of each vertex [V]. An unused vertex is a component of its own."""
    graph = sparse.coo_matrix(
        (np.ones(2 * len(faces), np.int8), (faces[:, [0, 1]].ravel(), faces[:, [1, 2]].ravel())),
        (num_vertices, num_vertices),
    )
    return connected_components(graph, directed=False)[1]


def edge_graph(vertices: np.ndarray, faces: np.ndarray) -> sparse.csr_array:
    """Return the symmetric graph [V, V] of the triangles' sides with their lengths in mm."""
    number = len(vertices)
    start, end = faces.ravel().astype(np.int64), np.roll(faces, -1, axis=1).ravel()
    sides = np.unique(np.minimum(start, end) * number + np.maximum(start, end))
    low, high = np.divmod(sides, number)
    length = np.linalg.norm(vertices[low] - vertices[high], axis=1)
    ends = np.concatenate([low, high]), np.concatenate([high, low])
    return sparse.csr_array(sparse.coo_array((np.tile(length, 2), ends), (number, number)))


def non_manifold(faces: np.ndarray) -> tuple[int, int]:
    """Count the edges with more than two faces, and the extra fans at vertices where fans meet.

    A mesh is manifold if both counts are 0.
    """
    before, after, edge, crowd = _joints(faces)
    fans = _fans(faces, before, after)
    return len(np.unique(edge[crowd > 2])), int(fans.max(initial=-1) + 1 - len(np.unique(faces)))


def cut_non_manifold(faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cut a mesh so that it becomes manifold, and leave unused vertices out.

    Each fan of triangles around a vertex gets its own copy of the vertex. Triangles are separated
    across an edge that more than two share. If the mesh is still not manifold, because sheets are
    connected around the ends of such an edge, they are separated across all edges at these ends.

    Args:
        faces: clean faces [F, 3].

    Returns:
        The faces [F, 3] as indices of copies, and the vertex of each copy [W], ascending.
    """
    corner = faces.ravel()
    before, after, _, crowd = _joints(faces)
    joined = crowd == 2
    while True:
        fans = _fans(faces, before[joined], after[joined])
        vertex = np.empty(fans.max(initial=-1) + 1, np.int64)
        vertex[fans] = corner
        order = np.argsort(vertex, kind="stable")
        rank = np.empty(len(order), np.int32)
        rank[order] = np.arange(len(order))
        cut = rank[fans].reshape(-1, 3)
        again, _, _, still = _joints(cut)
        if not (still > 2).any():
            return cut, vertex[order]
        loose = np.unique(corner[again[still > 2]])
        joined &= ~np.isin(corner[before], loose).any(1)


def _joints(faces: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Find the J joints, each of which is two successive triangles at one edge.

    Returns:
        before, after: corners of the two triangles at the ends of the edge [J, 2], where corner k
            of face f is 3 f + k.
        edge: index of the edge [J].
        crowd: number of triangles that share this edge [J].
    """
    corners = np.arange(3 * len(faces)).reshape(-1, 3)
    ends = np.stack([corners.ravel(), np.roll(corners, -1, axis=1).ravel()], -1)
    vertex = faces.ravel()[ends]
    ends = np.where(vertex[:, :1] > vertex[:, 1:], ends[:, ::-1], ends)
    vertex = np.sort(vertex, axis=1)
    order = np.lexsort((vertex[:, 1], vertex[:, 0]))
    ends, vertex = ends[order], vertex[order]
    edge = np.cumsum(np.r_[False, (vertex[1:] != vertex[:-1]).any(1)][: len(vertex)])
    same = edge[1:] == edge[:-1]
    after = edge[1:][same]
    return ends[:-1][same], ends[1:][same], after, np.bincount(edge)[after]


def _fans(faces: np.ndarray, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Label the fan of each corner [3 F]: the corners that are joined around one vertex."""
    graph = sparse.coo_array(
        (np.ones(before.size, np.int8), (before.ravel(), after.ravel())), (faces.size,) * 2
    )
    return connected_components(graph, directed=False)[1]


def far_from(surface: Surface, vertices: np.ndarray) -> np.ndarray:
    """Return the half of a mesh's vertices that is farthest along edges from the given ones.

    Returns:
        Indices, ascending. All vertices if none are given.
    """
    everything = np.arange(len(surface.vertices))
    if not len(vertices):
        return everything
    graph = edge_graph(surface.vertices, surface.faces)
    away = dijkstra(graph, indices=vertices, min_only=True)
    return np.sort(np.argsort(away, kind="stable")[len(away) // 2 :])


def refine(faces: np.ndarray, vertices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Divide each triangle in four at the middles of its sides.

    Returns:
        The faces [4 F, 3] and the vertices, old ones first. Triangle 4 f + k lies at corner k of
        triangle f, and 4 f + 3 in its middle, see `locate_refined`.
    """
    sides = np.sort(np.stack([faces, np.roll(faces, -1, axis=1)], -1).reshape(-1, 2), axis=1)
    sides, middle = np.unique(sides, axis=0, return_inverse=True)
    ab, bc, ca = (middle.reshape(-1, 3) + len(vertices)).T
    a, b, c = faces.T
    finer = np.stack([a, ab, ca, ab, b, bc, ca, bc, c, bc, ca, ab], -1).reshape(-1, 3)
    return finer.astype(np.int32), np.concatenate([vertices, vertices[sides].mean(1)])


def locate_refined(face: np.ndarray, bary: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Convert surface points (face [N], bary [N, 3]) to those on the mesh that `refine` makes."""
    largest = bary.argmax(1)
    corner = bary[np.arange(len(bary)), largest] >= 0.5
    # In the child at a corner, the coordinate of this corner is 2 b - 1, and the others are 2 b. In
    # the middle child, whose corners lie opposite those of the triangle, they are 1 - 2 b.
    at_corner = 2 * bary - (np.arange(3) == largest[:, None])
    child = np.where(corner, largest, 3)
    return 4 * face + child, np.where(corner[:, None], at_corner, 1 - 2 * bary)


def without_flat_triangles(surface: Surface) -> Surface:
    """Move the corners of triangles without area at random, so that they have some.

    The exact method is wrong on flat triangles (measured: by whole sides). Each of their corners
    moves by at most `NUDGE` mean sides, and a distance changes by at most that at each such corner
    on its path. The same mesh is always changed in the same way.

    Raises:
        InputError: if triangles stay flat, for example because all vertices coincide.
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
    """Insert surface points as vertices, by splitting their triangle in three for each point.

    Distances along the surface do not change. Points nearer than `CLEARANCE` to a side of their
    triangle are moved to this distance, and equal points become one vertex.

    Args:
        surface: the mesh.
        face: triangle of each point [N].
        bary: barycentric coordinates [N, 3].

    Returns:
        The refined mesh (old vertices first) and the vertex of each point [N].

    Raises:
        InputError: as `check_points`.
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
            if max(local) > 1 - CLEARANCE:  # it coincides with a vertex
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
    """Return the barycentric coordinates of `at` in a triangle inside a parent triangle.

    The point and the corners are given in barycentric coordinates of the parent.
    """
    (ax, ay, _), (bx, by, _), (cx, cy, _) = corners
    area = (bx - ax) * (cy - ay) - (cx - ax) * (by - ay)
    second = ((at[0] - ax) * (cy - ay) - (cx - ax) * (at[1] - ay)) / area
    third = ((bx - ax) * (at[1] - ay) - (at[0] - ax) * (by - ay)) / area
    return [1 - second - third, second, third]


def check_points(surface: Surface, face, bary) -> tuple[np.ndarray, np.ndarray]:
    """Check surface points, and return them as int64 [N] and float64 [N, 3].

    Raises:
        InputError: if a triangle does not exist, or coordinates are not barycentric.
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
