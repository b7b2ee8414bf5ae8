"""Single-source distance fields on one component of a mesh, over many sources and processes."""

import multiprocessing
import os
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from heapq import heapify, heappop, heappush
from pathlib import Path

import numpy as np

from jaxcyto.brain.geodesics.mesh import non_manifold, without_flat_triangles
from jaxcyto.brain.surfaces.surface import Surface
from jaxcyto.errors import InputError
from jaxcyto.utils.processes import leave_with_parent

METHODS = ("exact", "heat")
# (part, source, targets [n]): the distances from one vertex of a part to some others.
Query = tuple[int, int, np.ndarray]
# The heat method is poor near its source; targets nearer than this are solved exactly, which
# costs little there.
NEAR_EDGES = 10
# Processes start in a second or so, which pays from about five seconds of work on: the exact
# method takes some 10 us per vertex and source, heat a tenth of it.
POOL_FROM = 5e5


def exact_solver(surface: Surface) -> Callable[..., np.ndarray]:
    """A function from source, targets [n] and reach (mm, default 0) to exact distances [n].

    Mitchell, Mount and Papadimitriou 1987, as implemented by Kirsanov (pygeodesic). It stops as
    soon as all targets are reached and all is solved within reach.

    Raises:
        InputError: if the mesh is not manifold, or has no area.
    """
    check_exact(surface.faces)
    surface = without_flat_triangles(surface)
    from pygeodesic import geodesic

    exact = geodesic.PyGeodesicAlgorithmExact(surface.vertices, surface.faces)
    number = len(surface.vertices)

    def solve(source: int, targets: np.ndarray, reach_mm: float = 0.0) -> np.ndarray:
        stop = targets.astype(np.int32) if len(targets) < number else None
        if stop is None:
            return exact.geodesicDistances(np.array([source], np.int32))[0][targets]
        # With stop points it ends once they are reached AND beyond the given distance.
        return exact.geodesicDistances(np.array([source], np.int32), stop, reach_mm)[0]

    return solve


def heat_solver(surface: Surface) -> Callable[[int, np.ndarray], np.ndarray]:
    """A function from source and targets [n] to distances [n] by the heat method.

    Crane, Weischedel and Wardetzky 2013 on the intrinsic Delaunay triangulation of Sharp and
    Crane 2020 (potpourri3d), which takes any triangles. Its bias is still in.

    Raises:
        InputError: if it cannot take the mesh.
    """
    import potpourri3d

    try:
        heat = potpourri3d.MeshHeatMethodDistanceSolver(surface.vertices, surface.faces)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"the heat method cannot take this mesh: {error}") from None
    return lambda source, targets: np.asarray(heat.compute_distance(source))[targets]


class Solver:
    """Distances on a connected mesh without unused vertices.

    Args:
        surface: the mesh.
        method: "exact" or "heat".
        bias: factor by which the heat method is too long.
        near: whether targets near the source are solved exactly in the heat method, too.
    """

    def __init__(self, surface: Surface, method: str, bias: float = 1.0, near: bool = True):
        self.surface = Surface(
            np.ascontiguousarray(surface.vertices, np.float64),
            np.ascontiguousarray(surface.faces, np.int32),
        )
        self.method, self.bias = method, bias
        self._solve = (exact_solver if method == "exact" else heat_solver)(self.surface)
        self._exact = None
        if method == "heat" and near and not any(non_manifold(self.surface.faces)):
            self._exact = exact_solver(self.surface)
        self._near_mm = NEAR_EDGES * mean_edge_mm(self.surface)

    def __call__(self, source: int, targets: np.ndarray) -> np.ndarray:
        """Distances [n] in mm from vertex `source` to vertices `targets` [n].

        Raises:
            InputError: if the method gives no finite distance.
        """
        try:
            distance = self._solve(source, targets) / self.bias
            if self._exact is not None:
                near = np.flatnonzero(distance < self._near_mm)
                if len(near):
                    distance[near] = self._exact(source, targets[near])
        except (RuntimeError, OverflowError) as error:  # the latter where pygeodesic finds no path
            raise InputError(f"method {self.method} failed at vertex {source}: {error}") from None
        if not np.isfinite(distance).all():
            raise InputError(
                f"method {self.method} gives no finite distances from vertex {source} of a "
                f"component of {len(self.surface.vertices)} vertices; mend degenerate triangles, "
                "or use another method"
            )
        # No path is shorter than the straight line.
        vertices = self.surface.vertices
        return np.maximum(distance, np.linalg.norm(vertices[targets] - vertices[source], axis=1))


def mean_edge_mm(surface: Surface) -> float:
    """Mean length of the triangles' sides."""
    corners = surface.vertices[surface.faces]
    return float(np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=2).mean())


def check_exact(faces: np.ndarray) -> None:
    """Raises InputError on meshes on which the exact solver would crash or be wrong."""
    edges, fans = non_manifold(faces)
    if edges or fans:
        raise InputError(
            f"the exact method needs a manifold mesh; here {edges} edges have more than two "
            f"triangles and at {fans} vertices separate parts touch. Use method heat, or mend it"
        )


def solve_queries(
    parts: list[Surface],
    queries: list[Query],
    method: str,
    bias: float = 1.0,
    near: bool = True,
    workers: int = 1,
) -> Iterator[np.ndarray]:
    """Distances in mm for each query, in order; see `Solver` for the arguments.

    The result does not depend on the number of workers. Queries of one part should follow each
    other: a worker keeps the solver of its last part only.

    Raises:
        InputError: if the method cannot take the mesh, or crashes on it.
    """
    work = sum(len(parts[part].vertices) for part, _, _ in queries)
    if workers <= 1 or len(queries) < 2 or work < POOL_FROM * (1 if method == "exact" else 10):
        yield from map(_Answers(parts, method, bias, near), queries)
        return
    # Meshes travel by file: a child that dies while it starts (as under `python - < script`)
    # leaves a parent that writes much into its pipe waiting forever.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "parts.npz"
        np.savez(path, *(array for part in parts for array in (part.vertices, part.faces)))
        yield from _pooled((path, method, bias, near), queries, workers)


def _pooled(arguments: tuple, queries: list[Query], workers: int) -> Iterator[np.ndarray]:
    chunk = max(1, min(16, len(queries) // (4 * workers)))
    yield from pooled_map(_start, arguments, _run, queries, workers, chunk)


def pooled_map[Task, Result](
    start: Callable[..., None],
    arguments: tuple,
    run: Callable[[Task], Result],
    tasks: list[Task],
    workers: int,
    chunk: int = 1,
) -> Iterator[Result]:
    """Results of tasks, in order, from processes that each called `start(*arguments)`.

    Raises:
        InputError: if a process dies.
    """
    pool = ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=start,
        initargs=arguments,
    )
    try:
        yield from pool.map(run, tasks, chunksize=chunk)
    except BrokenProcessPool:
        raise InputError(
            "a process that solved distances died (memory, or a mesh it cannot take); use fewer "
            "workers or another method"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


class _Answers:
    """Answers queries, building a part's solver when it is first needed."""

    def __init__(self, parts: list[Surface], method: str, bias: float, near: bool):
        self.parts, self.settings = parts, (method, bias, near)
        self._part: int = -1
        self._solver: Solver | None = None

    def __call__(self, query: Query) -> np.ndarray:
        part, source, targets = query
        if self._solver is None or part != self._part:
            self._solver = None  # frees the old one first
            self._solver = Solver(self.parts[part], *self.settings)
            self._part = part
        return self._solver(source, targets)


_worker: _Answers


def _start(path: Path, method: str, bias: float, near: bool) -> None:
    global _worker
    leave_with_parent()
    os.environ["OMP_NUM_THREADS"] = "1"  # the processes share the processors
    with np.load(path, allow_pickle=False) as file:
        arrays = [file[f"arr_{number}"] for number in range(len(file.files))]
    parts = [Surface(*pair) for pair in zip(arrays[::2], arrays[1::2], strict=True)]
    _worker = _Answers(parts, method, bias, near)


def _run(query: Query) -> np.ndarray:
    return _worker(query)


def choose_sources(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Picks for each pair the end from which it is solved, so that few sources are needed.

    A small vertex cover of the graph of pairs: a vertex with one open pair leaves it to its
    partner (optimal on trees and cycles), else the vertex with most open pairs is taken.

    Args:
        first, second: vertices [P] of the pairs, each pair once, no pair of equal vertices.

    Returns:
        bool [P], true where `first` is the source.
    """
    partners: dict[int, set[int]] = defaultdict(set)
    for a, b in zip(first.tolist(), second.tolist(), strict=True):
        partners[a].add(b)
        partners[b].add(a)
    heap = [(-len(others), vertex) for vertex, others in partners.items()]
    heapify(heap)
    leaves = sorted((v for v, others in partners.items() if len(others) == 1), reverse=True)
    sources: set[int] = set()

    def take(vertex: int) -> None:
        sources.add(vertex)
        for other in sorted(partners.pop(vertex, ())):
            partners[other].discard(vertex)
            degree = len(partners[other])
            if degree == 1:
                leaves.append(other)
            if degree:
                heappush(heap, (-degree, other))

    while heap:
        while leaves:
            leaf = leaves.pop()
            if len(partners.get(leaf, ())) == 1:
                take(next(iter(partners[leaf])))
        degree, vertex = heappop(heap)
        if -degree == len(partners.get(vertex, ())) and degree:
            take(vertex)
    return np.isin(first, np.fromiter(sources, np.int64, len(sources)))
