"""Answer any distance on a large surface within 0.2 ms, from some thousand small solved fields.

The shortest path between two points passes close to some anchor (`landmarks.py`) near its begin
and near its end. Let `near` be the exact distances from a point to the anchors around it, and
`far` the distances between anchors. Then

    d(p, q) = min over a, b of near(p, a) + far(a, b) + near(q, b),

where `far` is the length of a chain of exact distances between anchors within reach of each other.
Such a sum is the length of a path on the surface. So it is never too short, except for the
interpolation within triangles. It is only slightly too long, because a detour by x on a stretch of
l costs about x^2 / l. We measure this bias on long paths and remove it. Pairs so near that no
anchor lies well between them are solved exactly. docs/geodesics.md has the measurements.
"""

import hashlib
import json
import os
from functools import cached_property
from pathlib import Path

import numpy as np
from scipy import sparse
from scipy.spatial import KDTree

from jaxcyto.brain.geodesics.landmarks import WorkingMesh, working_mesh
from jaxcyto.brain.geodesics.mesh import (
    check_vertices,
    component_labels,
    cut_non_manifold,
    far_from,
    mesh_sha256,
)
from jaxcyto.brain.geodesics.single_source import Geodesics
from jaxcyto.brain.geodesics.solvers import CALIBRATION_VERTICES, exact_solver
from jaxcyto.brain.surfaces.surface import Surface, check_surface
from jaxcyto.errors import InputError
from jaxcyto.utils.files import Array, Schema, atomic_write, naming_damage, read_arrays
from jaxcyto.utils.progress import Progress

ORACLE_FORMAT = "jaxcyto oracle 1"
SCHEMA: Schema = {
    "key": str,
    "settings": dict,
    "vertices": Array(np.number, ("V", 3)),
    "faces": Array(np.integer, ("F", 3)),
    # spacing_mm, excess, mean_error, p95_error; errors are NaN where none could be measured
    "measured": Array(np.floating, (4,), finite=False),
    # distances from W vertices to the anchors around them, as a sparse matrix
    "indptr": Array(np.integer, ("W + 1",)),
    "indices": Array(np.integer, ("K",)),
    "data": Array(np.floating, ("K",), low=0),
    "far": Array(np.float32, ("A", "A"), low=0, finite=False),  # infinite between components
}
ANCHORS = 7500
# In spacings of the anchors: the radius around an anchor in which distances are solved, and the
# distance up to which pairs are solved exactly. Both were measured, see docs/geodesics.md.
REACH = 6.0
NEAR = 4.0
CALIBRATION_SOURCES, CALIBRATION_TARGETS = 4, 20_000
POINTS = 2**15  # surface points prepared at a time in a query, which takes some 100 MB
FEW = 1000  # sources of near pairs; fewer are solved without processes
GATHER = 2**22  # distances gathered at a time, which takes some 100 MB


class Oracle:
    """Distances along one surface, made by `oracle_build.build_oracle`.

    Attributes:
        surface: the given mesh.
        settings: the settings of the build, plain values.
        excess: share by which paths through anchors were too long, of their length beyond
            `near_mm`. It has been removed from the distances.
        mean_error, p95_error: mean and 95th percentile of the remaining relative error of distances
            beyond `near_mm`, out to the nearest `CALIBRATION_VERTICES` vertices. NaN if there is no
            such distance, or if cuts lie all over the mesh.
        near_mm: pairs up to this distance are solved exactly.
        reach_mm: radius within which distances from a vertex to anchors are known.
        anchors: number of anchors A.
    """

    method = "oracle"
    refined_bias = 1.0

    def __init__(
        self,
        mesh: WorkingMesh,
        spacing_mm: float,
        near: sparse.csr_array,
        far: np.ndarray,
        settings: dict,
        excess: float = 0.0,
    ):
        self.excess, self.mean_error, self.p95_error = excess, float("nan"), float("nan")
        self.surface, self.settings = mesh.given, settings
        self.spacing_mm, self.anchors = spacing_mm, len(far)
        self.near_mm = settings["near"] * spacing_mm
        self.reach_mm = settings["reach"] * spacing_mm
        self._mesh, self._near, self._far = mesh, near, far

    def vertex_distances(
        self, first, second, workers: int = 1, progress: Progress | None = None
    ) -> np.ndarray:
        """Return distances float64 [N] in mm between vertices `first` [N] and `second` [N].

        Raises:
            InputError: if a vertex does not exist.
        """
        ends = [check_vertices(end, len(self._mesh.vertex)) for end in (first, second)]
        if ends[0].shape != ends[1].shape:
            raise InputError(f"{len(ends[0])} first and {len(ends[1])} second vertices")
        distance = np.where(ends[0] == ends[1], 0.0, np.inf)
        here = [self._mesh.vertex[end] for end in ends]
        used = np.flatnonzero((here[0] >= 0) & (here[1] >= 0) & (ends[0] != ends[1]))
        rows = [self._near[end[used]] for end in here]
        solved = self._far_pairs(*rows)
        close = np.flatnonzero(solved < self.near_mm)
        if len(close):
            points = [self._corner[end[used[close]]] for end in here]
            bary = [np.eye(3)[corner % 3] for corner in points]
            exact = self._exact(points[0] // 3, bary[0], points[1] // 3, bary[1], workers, progress)
            solved[close] = np.minimum(solved[close], exact)
        place = [self._mesh.surface.vertices[end[used]] for end in here]
        distance[used] = np.maximum(solved, np.linalg.norm(place[0] - place[1], axis=1))
        return distance

    def distances(
        self,
        first_face,
        first_bary,
        second_face,
        second_bary,
        workers: int = 1,
        progress: Progress | None = None,
    ) -> np.ndarray:
        """Return distances float64 [N] in mm between surface points.

        Args:
            first_face, second_face: triangles int [N].
            first_bary, second_bary: barycentric coordinates [N, 3] in them.
            workers: processes that solve near pairs. The result does not depend on it.
            progress: called with (pairs done, pairs), then with (sources done, sources) of near
                pairs.

        Raises:
            InputError: if a point is not on this surface.
        """
        first = self._mesh.locate(first_face, first_bary)
        second = self._mesh.locate(second_face, second_bary)
        if len(first[0]) != len(second[0]):
            raise InputError(f"{len(first[0])} first and {len(second[0])} second points")
        solved = np.empty(len(first[0]))
        for begin in range(0, len(solved), POINTS):
            part = slice(begin, begin + POINTS)
            rows = [self._rows(face[part], bary[part]) for face, bary in (first, second)]
            solved[part] = self._far_pairs(*rows)
            if progress:
                progress(min(begin + POINTS, len(solved)), len(solved))
        close = np.flatnonzero(solved < self.near_mm)
        if len(close):
            points = first[0][close], first[1][close], second[0][close], second[1][close]
            exact = self._exact(*points, workers, progress)
            # Exact distances do not cross a cut of the mesh, but paths through anchors do.
            solved[close] = np.minimum(solved[close], exact) if len(self._mesh.links) else exact
        straight = np.linalg.norm(self._place(*first) - self._place(*second), axis=1)
        return np.maximum(solved, straight)

    def block(
        self, first_face, first_bary, second_face, second_bary, workers: int = 1
    ) -> np.ndarray:
        """Return distances float32 [M, N] in mm from each of M surface points to each of N.

        Raises:
            InputError: if a point is not on this surface.
        """
        first = self._mesh.locate(first_face, first_bary)
        second = self._mesh.locate(second_face, second_bary)
        rows, columns = self._rows(*first), self._rows(*second)
        result = np.empty((len(first[0]), len(second[0])), np.float32)
        (face, bary), places = first, self._place(*second)
        for index in range(len(result)):
            own = slice(*rows.indptr[index : index + 2])
            ways = self._far[rows.indices[own]]
            ways += rows.data[own, None]
            to_anchors = ways.min(0, initial=np.inf)
            ways = least(to_anchors[columns.indices] + columns.data, columns)
            straight = np.linalg.norm(places - self._place(face[[index]], bary[[index]]), axis=1)
            result[index] = np.maximum(self._corrected(ways), straight)
        i, j = np.nonzero(result < self.near_mm)
        same = (first[0][i] == second[0][j]) & (first[1][i] == second[1][j]).all(axis=1)
        result[i[same], j[same]] = 0  # equal points, as on the diagonal of a matrix
        i, j = i[~same], j[~same]
        if len(i):
            points = first[0][i], first[1][i], second[0][j], second[1][j]
            exact = self._exact(*points, workers, None)
            result[i, j] = np.minimum(result[i, j], exact) if len(self._mesh.links) else exact
        return result

    def matrix(self, face, bary, workers: int = 1, progress: Progress | None = None) -> np.ndarray:
        """Return distances float32 [N, N] in mm between all of N surface points.

        Raises:
            InputError: if a point is not on this surface.
        """
        result = self.block(face, bary, face, bary, workers)
        for begin in range(0, len(result), 1024):  # in place, without a second matrix
            rows = result[begin : begin + 1024, begin:]
            rows[:] = np.minimum(rows, result[begin:, begin : begin + 1024].T)
            result[begin:, begin : begin + 1024] = rows.T
        np.fill_diagonal(result, 0)
        if progress:
            progress(1, 1)
        return result

    @cached_property
    def _triangles(self) -> tuple[KDTree, float]:
        """The centers of all triangles, and the largest distance from a corner to its center."""
        corners = self._mesh.surface.vertices[self._mesh.surface.faces]
        middle = corners.mean(1)
        return KDTree(middle), float(np.linalg.norm(corners - middle[:, None], axis=2).max())

    @cached_property
    def _corner(self) -> np.ndarray:
        """One corner of each vertex [W], where corner k of triangle f is 3 f + k."""
        corner = np.empty(len(self._mesh.surface.vertices), np.int64)
        faces = self._mesh.surface.faces.ravel()
        corner[faces] = np.arange(len(faces))
        return corner

    def _place(self, face: np.ndarray, bary: np.ndarray) -> np.ndarray:
        """Return the positions [N, 3] in mm of surface points."""
        surface = self._mesh.surface
        return np.einsum("nk,nkd->nd", bary, surface.vertices[surface.faces[face]])

    def _rows(self, face: np.ndarray, bary: np.ndarray) -> sparse.csr_array:
        """Return the distances [N, A] from surface points to the anchors around them."""
        return point_rows(self._mesh.surface, self._near, self.anchors, face, bary)

    def _far_pairs(self, first: sparse.csr_array, second: sparse.csr_array) -> np.ndarray:
        """Return distances float64 [N] through anchors, from rows [N, A] of both ends."""
        return self._corrected(shortest_ways(self._far, first, second))

    def _corrected(self, distance: np.ndarray) -> np.ndarray:
        """Remove `excess` from the part of distances beyond `near_mm`."""
        beyond = np.maximum(distance - self.near_mm, 0)  # infinite between components
        return np.minimum(distance, self.near_mm) + (1 - self.excess) * beyond

    def _exact(
        self, first_face, first_bary, second_face, second_bary, workers, progress
    ) -> np.ndarray:
        """Return exact distances [N] between near points, solved on a part of the mesh.

        A path shorter than `near_mm` stays in the ball of this radius around either end. So the
        part holds all triangles that meet such a ball around a first point.
        """
        vertices, faces = self._mesh.surface.vertices, self._mesh.surface.faces
        tree, radius_mm = self._triangles
        face, index = np.unique(np.concatenate([first_face, second_face]), return_inverse=True)
        center = tree.data[np.unique(first_face)]
        around = np.zeros(len(faces), bool)
        for begin in range(0, len(center), 256):
            balls = tree.query_ball_point(center[begin : begin + 256], self.near_mm + 2 * radius_mm)
            around[np.concatenate(balls).astype(int)] = True
        around[face] = True
        kept = np.flatnonzero(around)
        corners, used = cut_non_manifold(faces[kept])  # two balls may touch at one vertex
        part = Surface(vertices[used], corners)
        local = np.searchsorted(kept, face)[index]
        count = len(first_face)
        solver = Geodesics(part, "exact", 1.0, {})
        few = len(np.unique(index[:count])) < FEW
        return solver.distances(
            local[:count], first_bary, local[count:], second_bary, 1 if few else workers, progress
        )

    def calibrate(
        self, sources: int = CALIBRATION_SOURCES, progress: Progress | None = None
    ) -> None:
        """Measure `excess` and the errors on exact distances.

        On a mesh that was cut (see `cut_non_manifold`), only distances up to the nearest cut are
        taken, because exact distances do not cross it.

        Args:
            sources: number of random source vertices. Each has up to `CALIBRATION_TARGETS` random
                targets, among the nearest `CALIBRATION_VERTICES` vertices.
            progress: called with (sources done, sources).
        """
        surface, links = self._mesh.surface, np.unique(self._mesh.links)
        exact = exact_solver(surface)
        number = len(surface.vertices)
        sheet = component_labels(number, surface.faces)
        rng = np.random.default_rng(self.settings["seed"])
        chosen = far_from(surface, links)
        chosen = rng.choice(chosen, min(sources, len(chosen)), replace=False).tolist()
        true, own = [], []
        for done, source in enumerate(chosen, 1):
            targets = rng.choice(number, min(CALIBRATION_TARGETS, number), replace=False)
            most = -(-len(targets) * CALIBRATION_VERTICES // number)
            targets = np.concatenate([targets, links])
            # A target that cannot be reached would keep the solver from stopping.
            targets = targets[sheet[targets] == sheet[source]]
            ways = self._far_pairs(self._near[np.full(len(targets), source)], self._near[targets])
            kept = np.sort(np.argsort(ways, kind="stable")[:most])
            targets, ways = targets[kept], ways[kept]
            try:
                distance = exact(source, targets)
            except (RuntimeError, OverflowError):  # pygeodesic finds no path across a thin triangle
                continue
            cut_mm = distance[np.isin(targets, links)].min(initial=np.inf)
            far = np.isfinite(distance) & (distance > self.near_mm) & (distance <= cut_mm)
            true.append(distance[far])
            own.append(ways[far])
            if progress:
                progress(done, len(chosen))
        true, own = np.concatenate([np.empty(0), *true]), np.concatenate([np.empty(0), *own])
        if not len(true):
            return
        away = own > 2 * self.near_mm
        if away.any():
            shares = (own - true)[away] / (own - self.near_mm)[away]
            self.excess = float(np.clip(np.median(shares), 0, 0.05))
        error = np.abs(self._corrected(own) - true) / true
        self.mean_error, self.p95_error = float(error.mean()), float(np.percentile(error, 95))

    def save(self, path: str | os.PathLike) -> None:
        """Write one npz of 4 A^2 bytes and some 100 MB, completely or not at all."""
        with atomic_write(path) as file:
            np.savez(
                file,
                format=ORACLE_FORMAT,
                key=oracle_key(self.surface, self.settings),
                settings=json.dumps(self.settings, sort_keys=True),
                vertices=self.surface.vertices,
                faces=self.surface.faces,
                measured=np.array([self.spacing_mm, self.excess, self.mean_error, self.p95_error]),
                indptr=self._near.indptr,
                indices=self._near.indices,
                data=self._near.data,
                far=self._far,
            )


def oracle_settings(anchors: int = ANCHORS, reach: float = REACH, seed: int = 0) -> dict:
    """Check the settings of an oracle, and return them as they are stored.

    Raises:
        InputError: if one is out of range.
    """
    if anchors < 1 or not reach > 0 or seed < 0:
        raise InputError(f"anchors = {anchors}, reach = {reach}, seed = {seed}: out of range")
    return {
        "method": "oracle",
        "anchors": int(anchors),
        "reach": float(reach),
        "near": NEAR,
        "seed": int(seed),
    }


def oracle_key(surface: Surface, settings: dict) -> str:
    """Return the SHA-256 of what an oracle depends on: format, mesh and settings."""
    text = f"{ORACLE_FORMAT} {mesh_sha256(surface)} {json.dumps(settings, sort_keys=True)}"
    return hashlib.sha256(text.encode()).hexdigest()


def load_oracle(path: str | os.PathLike) -> Oracle:
    """Read a saved oracle.

    Raises:
        InputError: if the file is missing, damaged or of another kind.
    """
    path = Path(path)
    with naming_damage(path, "oracle of distances", "build it again"):
        file = read_arrays(path, ORACLE_FORMAT, SCHEMA)
        surface = Surface(*check_surface(path, file["vertices"], file["faces"]))
        settings = file["settings"]
        if file["key"] != oracle_key(surface, settings):
            raise ValueError("mesh or settings do not match their hash")
        if settings != oracle_settings(settings["anchors"], settings["reach"], settings["seed"]):
            raise ValueError(f"settings {settings}")
        if settings["anchors"] / 4 > len(file["indptr"]):  # or refining the mesh would not end
            raise ValueError(f"{settings['anchors']} anchors")
        mesh = working_mesh(surface, settings["anchors"] / 4)
        shape = len(mesh.surface.vertices), len(file["far"])
        near = sparse.csr_array((file["data"], file["indices"], file["indptr"]), shape)
        near.check_format(full_check=True)
        spacing_mm, excess, mean_error, p95_error = file["measured"].tolist()
        if not (0 < spacing_mm < np.inf and 0 <= excess < 1):
            raise ValueError(f"measured: spacing {spacing_mm} mm, excess {excess}")
        oracle = Oracle(mesh, spacing_mm, near, file["far"], settings, excess)
        oracle.mean_error, oracle.p95_error = mean_error, p95_error
        return oracle


def point_rows(
    surface: Surface,
    near: sparse.csr_array,
    anchors: int,
    face: np.ndarray,
    bary: np.ndarray,
) -> sparse.csr_array:
    """Interpolate the distances [N, A] from surface points to the anchors around them.

    In a triangle that is laid flat together with the anchor, the squared distance to the anchor is
    sum_i b_i d_i^2 - sum_{i<j} b_i b_j l_ij^2, where b are the barycentric coordinates, d_i the
    distances from the corners and l_ij the lengths of the sides (Stewart's theorem, generalized).

    Args:
        surface: the mesh with W vertices.
        near: distances [W, A] from its vertices to the anchors around them.
        anchors: number of anchors A.
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
    kept = known.data > 1 - 1e-9  # known at all corners with a weight above 0
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
    # A triangle longer than reach may have no anchor in common, so the path goes through a corner.
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
    """Return the smallest near(p, a) + far(a, b) + near(q, b) of each pair, float64 [N] in mm.

    Args:
        far: distances [A, A] between anchors.
        first, second: distances [N, A] from the ends p and q to the anchors around them.
    """
    result = np.empty(len(first.indptr) - 1)
    widest = np.maximum(np.diff(first.indptr), np.diff(second.indptr))
    # Pairs with similar numbers of anchors are solved together, so that there is little padding.
    order = np.argsort(-widest, kind="stable")
    done = 0
    while done < len(order):
        size = max(1, GATHER // max(int(widest[order[done]]), 1) ** 2)
        chunk = order[done : done + size]
        (a, near_a), (b, near_b) = padded(first, chunk), padded(second, chunk)
        # Both ends are added first, so that the sum does not depend on their order.
        ways = near_a[:, :, None] + near_b[:, None, :]
        ways += far[a[:, :, None], b[:, None, :]]
        result[chunk] = ways.min(axis=(1, 2), initial=np.inf)
        done += size
    return result


def least(values: np.ndarray, rows: sparse.csr_array) -> np.ndarray:
    """Return the smallest of the values of each sparse row, or infinity for an empty row."""
    result = np.full(len(rows.indptr) - 1, np.inf, values.dtype)
    filled = np.flatnonzero(np.diff(rows.indptr))
    if len(filled):
        result[filled] = np.minimum.reduceat(values, rows.indptr[filled])
    return result


def padded(rows: sparse.csr_array, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return columns and values [n, K] of some sparse rows, padded with infinite values."""
    begin, end = rows.indptr[index], rows.indptr[index + 1]
    place = begin[:, None] + np.arange(max(int((end - begin).max()), 1))
    valid = place < end[:, None]
    if not len(rows.data):
        return np.zeros(place.shape, np.int32), np.full(place.shape, np.inf, np.float32)
    place[~valid] = 0
    return rows.indices[place], np.where(valid, rows.data[place], np.float32(np.inf))
