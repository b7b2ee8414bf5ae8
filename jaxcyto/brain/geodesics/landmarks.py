"""Choose anchors, solve exact distances around each, and link them in a network.

Anchors are vertices spread over a mesh. `oracle.py` is built from these parts, which can be solved
in any order, by several processes and in several runs.
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

# If random vertices are drawn until none is left at a distance of at least r from all others, each
# of them covers this many r^2. Measured on a cortex: 1.21 to 1.26, for any r above the length of
# the triangles' sides.
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
TINY = 1e-9  # mm; a sparse graph takes a length of 0 for no link


@dataclasses.dataclass(frozen=True, eq=False)
class WorkingMesh:
    """A manifold mesh with the same distances as a given mesh.

    Attributes:
        surface: the manifold mesh with W vertices, all of them in triangles.
        vertex: for each vertex of the given mesh the index of one of its copies [V], or -1 if it is
            in no triangle.
        links: copies of the same vertex [C, 2], which are at distance 0, see `cut_non_manifold`.
        given: the given mesh.
        levels: how often triangles were divided in four.
        number: for each given triangle its index among the clean ones, before division [F].
    """

    surface: Surface
    vertex: np.ndarray
    links: np.ndarray
    given: Surface
    levels: int
    number: np.ndarray

    def locate(self, face, bary) -> tuple[np.ndarray, np.ndarray]:
        """Convert points of the given mesh to points of this one.

        Args:
            face: triangles [N] of the given mesh.
            bary: barycentric coordinates [N, 3].

        Returns:
            Triangles [N] and barycentric coordinates [N, 3] on `surface`.

        Raises:
            InputError: if a point is not on the given mesh, or its triangle names a vertex twice.
        """
        face, bary = check_points(self.given, face, bary)
        bary = np.maximum(bary, 0)
        bary /= bary.sum(1, keepdims=True)
        here = self.number[face]
        if (here < 0).any():
            raise InputError(f"surface points: triangle {face[here < 0][0]} names a vertex twice")
        # The triangle may repeat another one with its corners in another order.
        first = np.unique(self.number, return_index=True)[1][int(self.number.min() < 0) :]
        own = np.argsort(self.given.faces[face], axis=1)
        target = np.argsort(self.given.faces[first[here]], axis=1)
        ordered = np.empty_like(bary)
        np.put_along_axis(ordered, target, np.take_along_axis(bary, own, 1), 1)
        for _ in range(self.levels):
            here, ordered = locate_refined(here, ordered)
        return here, ordered


def working_mesh(surface: Surface, min_vertices: float) -> WorkingMesh:
    """Copy a mesh, make it manifold, and divide its triangles until there are enough vertices.

    Raises:
        InputError: if there are no triangles, or their vertices do not exist or are not finite.
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
    """A vertices spread over a mesh.

    Attributes:
        vertex: indices of the anchors [A], ascending.
        spacing_mm: side of a square that is as large as the area per anchor.
        owner: for each vertex the index of the nearest anchor along edges [W].
        to_owner_mm: length of the path to it along edges [W].
    """

    vertex: np.ndarray
    spacing_mm: float
    owner: np.ndarray
    to_owner_mm: np.ndarray


def choose_anchors(mesh: WorkingMesh, number: int, seed: int) -> Anchors:
    """Draw about `number` anchors uniformly over the area, none of them too near to another.

    Vertices are taken in random order, unless an anchor is near along edges. A straight distance
    would leave one bank of a fold without anchors. Copies of a non-manifold vertex are always
    anchors, because all paths from one copy to the other lead there.
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
    for rank, anchor in enumerate(np.concatenate([forced, order]).tolist()):
        if rank >= len(forced) and nearest[anchor] <= apart:
            continue
        chosen.append(anchor)
        # Dijkstra's algorithm from this anchor, as far as it is the nearest one.
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
    """Solves exact distances from anchors to the vertices around them.

    Args:
        vertices, faces: a manifold mesh.
        anchors: indices of the vertices that are anchors [A].
        reach_mm: distances are solved to vertices at most this far away along edges.
    """

    def __init__(self, vertices, faces, anchors, reach_mm):
        self.vertices, self.anchors, self.reach_mm = vertices, anchors, float(reach_mm)
        self.graph = edge_graph(vertices, faces)
        self.exact = exact_solver(Surface(vertices, faces))

    def __call__(self, chunk: int) -> dict[str, np.ndarray]:
        """Solve part `chunk`: how many targets each anchor has, the targets and their distances."""
        fields = [self.field(a) for a in self.anchors[chunk * CHUNK : (chunk + 1) * CHUNK].tolist()]
        return {
            "count": np.array([len(targets) for targets, _ in fields]),
            "target": np.concatenate([targets for targets, _ in fields]),
            "distance": np.concatenate([distance for _, distance in fields]),
        }

    def field(self, anchor: int) -> tuple[np.ndarray, np.ndarray]:
        """Solve the distances from one anchor.

        Returns:
            Target vertices int32 [n], and distances float32 [n] in mm.
        """
        along_edges = dijkstra(self.graph, indices=anchor, limit=self.reach_mm)
        target = np.flatnonzero(np.isfinite(along_edges)).astype(np.int32)
        try:
            distance = self.exact(anchor, target, self.reach_mm)
        except (RuntimeError, OverflowError):  # pygeodesic finds no path across a thin triangle
            distance = along_edges[target]
        # Rounding in degenerate triangles must not make a distance longer than the path along
        # edges or shorter than the straight line.
        distance = np.fmin(distance, along_edges[target])
        chord = np.linalg.norm(self.vertices[target] - self.vertices[anchor], axis=1)
        return target, np.maximum(distance, chord).astype(np.float32)


class Rows:
    """Solves shortest paths through the network from some anchors to all.

    Args:
        indptr, indices, data: the network, a sparse matrix [A, A] of lengths in mm.
    """

    def __init__(self, indptr, indices, data):
        self.number = len(indptr) - 1
        self.network = sparse.csr_array((data, indices, indptr), (self.number, self.number))

    def __call__(self, chunk: int) -> dict[str, np.ndarray]:
        """Solve part `chunk`: distances in mm, float32 [CHUNK, A] (the last part has fewer)."""
        number = self.number
        sources = np.arange(chunk * CHUNK, min((chunk + 1) * CHUNK, number))
        return {"row": dijkstra(self.network, indices=sources).astype(np.float32)}


def near_matrix(parts: list[dict[str, np.ndarray]], num_vertices: int) -> sparse.csr_array:
    """Collect all fields into distances from vertices to anchors, sparse [W, A] in mm."""
    count = np.concatenate([part["count"] for part in parts])
    anchor = np.repeat(np.arange(len(count), dtype=np.int32), count)
    distance = np.concatenate([part["distance"] for part in parts])
    target = np.concatenate([part["target"] for part in parts])
    matrix = sparse.coo_array(
        (np.maximum(distance, np.float32(TINY)), (target, anchor)), (num_vertices, len(count))
    )
    return sparse.csr_array(matrix)


def network(mesh: WorkingMesh, anchors: Anchors, near: sparse.csr_array) -> sparse.csr_array:
    """Link the anchors in a network, a symmetric sparse matrix [A, A] of lengths in mm.

    Anchors within reach of each other are linked by their exact distance. Owners of neighboring
    vertices are also linked along edges, so that the network connects each whole component.
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
    """Solved parts, kept in a folder so that another run can continue with them.

    Args:
        folder: where they lie. None keeps no parts.
        key: identifies the oracle. Parts with another key are ignored.
    """

    def __init__(self, folder: Path | None, key: str):
        self.folder, self.key = folder, key

    def read(self, name: str) -> dict[str, np.ndarray] | None:
        """Read the arrays of a part. Return None if it is missing, damaged or of another oracle."""
        if self.folder is None:
            return None
        try:
            schema = SCHEMAS[name.split("_")[0]]
            return read_arrays(self.folder / f"{name}.npz", self.key, schema, field="key")
        except READ_ERRORS:
            return None

    def write(self, name: str, part: dict[str, np.ndarray]) -> None:
        """Write a part, completely or not at all."""
        if self.folder is not None:
            arrays: dict[str, Any] = {"key": self.key} | part
            # Another run that has finished the same oracle may remove the folder meanwhile.
            with contextlib.suppress(FileNotFoundError):
                self.folder.mkdir(parents=True, exist_ok=True)
                with atomic_write(self.folder / f"{name}.npz") as file:
                    np.savez(file, **arrays)

    def clear(self) -> None:
        """Remove the folder with the parts in it."""
        if self.folder is not None and self.folder.is_dir():
            for kind in ("field", "row"):
                # The pattern includes temporary files of killed runs. Another run may be removing
                # the same files.
                for path in self.folder.glob(f"*{kind}_*.npz*"):
                    path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # the folder is not empty
                self.folder.rmdir()
