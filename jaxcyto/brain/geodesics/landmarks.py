"""Anchors: vertices spread over a mesh, exact distances around each, a network between them.

What `oracle.py` is built from, in parts that can be solved in any order, by several processes and
in several runs.
"""

import contextlib
import dataclasses
from heapq import heappop, heappush
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import dijkstra

from jaxcyto.brain.geodesics.mesh import (
    NO_TRIANGLES,
    check_mesh,
    check_points,
    clean_face_map,
    cut_non_manifold,
    edge_graph,
    locate_refined,
    refine,
)
from jaxcyto.brain.geodesics.solvers import exact_solver
from jaxcyto.brain.surfaces.surface import Surface
from jaxcyto.errors import InputError
from jaxcyto.utils.files import READ_ERRORS, Array, Schema, atomic_write, read_arrays

# Random vertices no two of which are nearer than r stand for this many r^2 each (measured: 1.21 to
# 1.26 on a cortex, for any r above its sides).
AREA_PER_SPACING = 1.24
CHUNK = 64  # anchors solved as one part
# The parts of an oracle, by the first word of their name: distances from anchors to the vertices
# around them, and from C anchors to all others through the network.
SCHEMAS: dict[str, Schema] = {
    "field": {
        "count": Array(np.integer, ("C",), low=0),
        "target": Array(np.integer, ("K",), low=0),
        "distance": Array(np.float32, ("K",), low=0),
    },
    "row": {"row": Array(np.float32, ("C", "A"), low=0, finite=False)},
}
TINY = 1e-9  # mm; a length of 0 would be no link in a sparse graph


@dataclasses.dataclass(frozen=True, eq=False)
class WorkingMesh:
    """A manifold mesh with the distances of a given one.

    Attributes:
        surface: the mesh, W vertices, all in triangles.
        vertex: for each vertex of the given mesh one of its copies [V]; -1: in no triangle.
        links: copies [C, 2] of one vertex, which are no way apart; see `cut_non_manifold`.
        given: the given mesh.
        levels: how often triangles were divided in four.
        number: each given triangle's number [F] before division.
    """

    surface: Surface
    vertex: np.ndarray
    links: np.ndarray
    given: Surface
    levels: int
    number: np.ndarray

    def locate(self, face, bary) -> tuple[np.ndarray, np.ndarray]:
        """Points of the given mesh as points here (face [N], bary [N, 3]).

        Raises:
            InputError: if they are not on it, or in a triangle that names a vertex twice.
        """
        face, bary = check_points(self.given, face, bary)
        bary = np.maximum(bary, 0)
        bary /= bary.sum(1, keepdims=True)
        here = self.number[face]
        if (here < 0).any():
            raise InputError(f"surface points: triangle {face[here < 0][0]} names a vertex twice")
        # The triangle may be a repetition of one whose corners stand in another order.
        first = np.unique(self.number, return_index=True)[1][int(self.number.min() < 0) :]
        own = np.argsort(self.given.faces[face], axis=1)
        place = np.argsort(self.given.faces[first[here]], axis=1)
        ordered = np.empty_like(bary)
        np.put_along_axis(ordered, place, np.take_along_axis(bary, own, 1), 1)
        for _ in range(self.levels):
            here, ordered = locate_refined(here, ordered)
        return here, ordered


def working_mesh(surface: Surface, min_vertices: float) -> WorkingMesh:
    """A manifold copy of a mesh, with triangles divided until there are enough vertices.

    Raises:
        InputError: if there are no triangles, or their vertices are not there or not finite.
    """
    faces, number = clean_face_map(check_mesh(surface))
    vertices = np.asarray(surface.vertices, np.float64)
    if not len(faces):
        raise InputError(NO_TRIANGLES)
    levels = 0
    while len(np.unique(faces)) < min_vertices:
        faces, vertices = refine(faces, vertices)
        levels += 1
    cut, origin = cut_non_manifold(faces)
    vertex = np.full(len(vertices), -1)
    vertex[origin[::-1]] = np.arange(len(origin))[::-1]
    copy = np.flatnonzero(origin[1:] == origin[:-1])
    return WorkingMesh(
        surface=Surface(vertices[origin], cut),
        vertex=vertex[: len(surface.vertices)],
        links=np.stack([copy, copy + 1], -1),
        given=surface,
        levels=levels,
        number=number,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Anchors:
    """Vertices [A] spread over a mesh.

    Attributes:
        vertex: the anchors, rising.
        spacing_mm: side of the square of surface that each stands for.
        owner: for each vertex [W] the anchor near it, and
        to_owner_mm: the way to it along edges.
    """

    vertex: np.ndarray
    spacing_mm: float
    owner: np.ndarray
    to_owner_mm: np.ndarray


def choose_anchors(mesh: WorkingMesh, number: int, seed: int) -> Anchors:
    """Draws about `number` anchors evenly over the area: random vertices, none too near another.

    Distances are those along edges, so that both banks of a fold get theirs. Every vertex is near
    an anchor; copies of a non-manifold vertex are anchors, as all ways between them lead there.
    """
    vertices, faces = mesh.surface.vertices, mesh.surface.faces
    a, b, c = np.moveaxis(vertices[faces], 1, 0)
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2
    apart = (area / (AREA_PER_SPACING * number)) ** 0.5
    graph = edge_graph(vertices, faces)
    begin: list[int] = graph.indptr.tolist()
    to: list[int] = graph.indices.tolist()
    length: list[float] = graph.data.tolist()
    nearest = [np.inf] * len(vertices)
    owner = [-1] * len(vertices)
    order = np.random.default_rng(seed).permutation(len(vertices))
    forced = np.unique(mesh.links)
    chosen: list[int] = []
    for place, anchor in enumerate(np.concatenate([forced, order]).tolist()):
        if place >= len(forced) and nearest[anchor] <= apart:
            continue
        chosen.append(anchor)
        nearest[anchor], owner[anchor] = 0.0, anchor
        heap = [(0.0, anchor)]
        while heap:
            way, vertex = heappop(heap)
            if way > nearest[vertex]:
                continue
            for edge in range(begin[vertex], begin[vertex + 1]):
                further, other = way + length[edge], to[edge]
                if further < nearest[other] and further <= apart:
                    nearest[other], owner[other] = further, anchor
                    heappush(heap, (further, other))
    vertex = np.sort(chosen)
    return Anchors(
        vertex=vertex,
        spacing_mm=float((area / len(vertex)) ** 0.5),
        owner=np.searchsorted(vertex, owner),
        to_owner_mm=np.array(nearest),
    )


class Fields:
    """Exact distances from anchors to the vertices around them.

    Args:
        vertices, faces: a manifold mesh.
        anchors: vertices [A].
        reach_mm: to vertices that are at most this far away along edges.
    """

    def __init__(self, vertices, faces, anchors, reach_mm):
        self.vertices, self.anchors, self.reach_mm = vertices, anchors, float(reach_mm)
        self.graph = edge_graph(vertices, faces)
        self.exact = exact_solver(Surface(vertices, faces))

    def __call__(self, chunk: int) -> dict[str, np.ndarray]:
        """Part `chunk`: number of targets of each anchor, targets and distances [n]."""
        fields = [self.field(a) for a in self.anchors[chunk * CHUNK : (chunk + 1) * CHUNK].tolist()]
        return {
            "count": np.array([len(targets) for targets, _ in fields]),
            "target": np.concatenate([targets for targets, _ in fields]),
            "distance": np.concatenate([distance for _, distance in fields]),
        }

    def field(self, anchor: int) -> tuple[np.ndarray, np.ndarray]:
        along_edges = dijkstra(self.graph, indices=anchor, limit=self.reach_mm)
        target = np.flatnonzero(np.isfinite(along_edges)).astype(np.int32)
        try:
            distance = self.exact(anchor, target, self.reach_mm)
        except (RuntimeError, OverflowError):  # pygeodesic finds no path: a triangle too thin
            distance = along_edges[target]
        # Whatever becomes of rounding in odd triangles: not longer than along edges, and not
        # shorter than the straight line.
        distance = np.fmin(distance, along_edges[target])
        chord = np.linalg.norm(self.vertices[target] - self.vertices[anchor], axis=1)
        return target, np.maximum(distance, chord).astype(np.float32)


class Rows:
    """Shortest ways through the network, from some anchors to all.

    Args:
        indptr, indices, data: the network, a sparse matrix [A, A] of lengths.
    """

    def __init__(self, indptr, indices, data):
        self.number = len(indptr) - 1
        self.network = sparse.csr_array((data, indices, indptr), (self.number, self.number))

    def __call__(self, chunk: int) -> dict[str, np.ndarray]:
        """Part `chunk`: distances float32 [CHUNK, A]."""
        number = self.number
        sources = np.arange(chunk * CHUNK, min((chunk + 1) * CHUNK, number))
        return {"row": dijkstra(self.network, indices=sources).astype(np.float32)}


def near_matrix(parts: list[dict[str, np.ndarray]], num_vertices: int) -> sparse.csr_array:
    """Distances from vertices to the anchors around them, sparse [W, A], from all fields."""
    count = np.concatenate([part["count"] for part in parts])
    anchor = np.repeat(np.arange(len(count), dtype=np.int32), count)
    distance = np.concatenate([part["distance"] for part in parts])
    target = np.concatenate([part["target"] for part in parts])
    matrix = sparse.coo_array(
        (np.maximum(distance, np.float32(TINY)), (target, anchor)), (num_vertices, len(count))
    )
    return sparse.csr_array(matrix)


def network(mesh: WorkingMesh, anchors: Anchors, near: sparse.csr_array) -> sparse.csr_array:
    """The network of anchors, a symmetric sparse matrix [A, A] of lengths in mm.

    Anchors within reach of each other are linked by their exact distance. So that no part of a
    component falls off, neighboring vertices of two owners link these along edges, too.
    """
    number = len(anchors.vertex)
    own = near[anchors.vertex].tocoo()
    along = edge_graph(mesh.surface.vertices, mesh.surface.faces).tocoo()
    a, b = anchors.owner[along.row], anchors.owner[along.col]
    way = anchors.to_owner_mm[along.row] + along.data + anchors.to_owner_mm[along.col]
    copies = np.searchsorted(anchors.vertex, mesh.links)
    start = np.concatenate([own.row, own.col, a, copies[:, 0], copies[:, 1]])
    end = np.concatenate([own.col, own.row, b, copies[:, 1], copies[:, 0]])
    length = np.concatenate([own.data, own.data, way, np.zeros(2 * len(copies))])
    link = start.astype(np.int64) * number + end
    order = np.lexsort((length, link))[: len(link)]
    order = order[np.r_[True, np.diff(link[order]) != 0]]
    order = order[start[order] != end[order]]
    ends = start[order], end[order]
    matrix = sparse.coo_array((np.maximum(length[order], TINY), ends), (number, number))
    return sparse.csr_array(matrix)


class Parts:
    """Solved parts, kept in a folder under a key so that another run can go on with them.

    Args:
        folder: where they lie; None: nowhere.
        key: of what they belong to; others are not read.
    """

    def __init__(self, folder: Path | None, key: str):
        self.folder, self.key = folder, key

    def read(self, name: str) -> dict[str, np.ndarray] | None:
        """The arrays of a part, or None where it is missing, damaged or another's."""
        if self.folder is None:
            return None
        try:
            schema = SCHEMAS[name.split("_")[0]]
            return read_arrays(self.folder / f"{name}.npz", self.key, schema, field="key")
        except READ_ERRORS:
            return None

    def write(self, name: str, part: dict[str, np.ndarray]) -> None:
        if self.folder is not None:
            arrays: dict[str, Any] = {"key": self.key} | part
            # Another run that is through with the same oracle may remove the folder meanwhile.
            with contextlib.suppress(FileNotFoundError):
                self.folder.mkdir(parents=True, exist_ok=True)
                with atomic_write(self.folder / f"{name}.npz") as file:
                    np.savez(file, **arrays)

    def clear(self) -> None:
        """Removes the folder with what was written there."""
        if self.folder is not None and self.folder.is_dir():
            for kind in ("field", "row"):
                # With what a killed run left half written; another may be removing them, too.
                for path in self.folder.glob(f"*{kind}_*.npz*"):
                    path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # not empty
                self.folder.rmdir()
