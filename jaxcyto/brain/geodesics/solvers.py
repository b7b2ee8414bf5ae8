"""Solve distances from single sources on components of a mesh, by several processes."""

import multiprocessing
import os
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from heapq import heapify, heappop, heappush
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np

from jaxcyto.brain.geodesics.mesh import non_manifold, without_flat_triangles
from jaxcyto.brain.surfaces.surface import Surface
from jaxcyto.errors import InputError
from jaxcyto.utils.processes import UNGUARDED, check_main, leave_with_parent

METHODS = ("exact", "heat")
# (part, source, targets [n]) requests the distances from one vertex of a part to others of it.
Query = tuple[int, int, np.ndarray]
# In mean edge lengths. The heat method is inaccurate near its source, so nearer targets are solved
# exactly, which costs little at such distances.
NEAR_EDGES = 10
# Vertices around a random source whose exact distances measure the error of another method. A field
# of exact distances takes seconds on a cortex of 164k vertices, but minutes on a sphere as large:
# on smooth surfaces the front from the source stays in one piece, and an edge at distance r is
# crossed by rays from as many directions as there are edges on the way. Time then grows with the
# power 1.5 of the number of vertices, and this number takes 5 s.
CALIBRATION_VERTICES = 41_000
# Vertices times sources. Starting processes takes about a second, which pays from five seconds of
# work on. The exact method takes some 10 us per vertex and source, and heat a tenth of that.
POOL_FROM = 5e5


def exact_solver(surface: Surface) -> Callable[..., np.ndarray]:
    """Return a function that solves exact distances from one source.

    The algorithm is that of Mitchell, Mount and Papadimitriou (1987), as implemented by Kirsanov
    (pygeodesic). It stops as soon as all targets are reached and everything within reach is solved.

    Returns:
        A function from source, targets [n] and reach (mm, default 0) to distances [n] in mm.

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
        # With stop points it ends once these are reached and the given distance is exceeded.
        return exact.geodesicDistances(np.array([source], np.int32), stop, reach_mm)[0]

    return solve


def heat_solver(surface: Surface) -> Callable[[int, np.ndarray], np.ndarray]:
    """Return a function that solves distances from one source by the heat method.

    This is the method of Crane, Weischedel and Wardetzky (2013) on the intrinsic Delaunay
    triangulation of Sharp and Crane (2020), which accepts any triangles (potpourri3d). Its bias is
    not removed here.

    Returns:
        A function from source and targets [n] to distances [n] in mm.

    Raises:
        InputError: if potpourri3d rejects the mesh.
    """
    import potpourri3d

    try:
        heat = potpourri3d.MeshHeatMethodDistanceSolver(surface.vertices, surface.faces)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"the heat method cannot take this mesh: {error}") from None
    return lambda source, targets: np.asarray(heat.compute_distance(source))[targets]


class Solver:
    """Solves distances on a connected mesh without unused vertices.

    Args:
        surface: the mesh.
        method: "exact" or "heat".
        bias: factor by which heat distances are too long. They are divided by it.
        near: whether the heat method solves targets near the source exactly.
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
        """Solve the distances [n] in mm from vertex `source` to vertices `targets` [n].

        Raises:
            InputError: if the method fails or gives distances that are not finite.
        """
        try:
            distance = self._solve(source, targets) / self.bias
            if self._exact is not None:
                near = np.flatnonzero(distance < self._near_mm)
                if len(near):
                    distance[near] = self._exact(source, targets[near])
        except (RuntimeError, OverflowError) as error:  # pygeodesic overflows without a path
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
    """Return the mean length of the triangles' sides in mm."""
    corners = surface.vertices[surface.faces]
    return float(np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=2).mean())


def check_exact(faces: np.ndarray) -> None:
    """Raise InputError for meshes that are not manifold, where pygeodesic crashes or is wrong."""
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
    """Yield the distances in mm for each query, in order.

    The result does not depend on the number of workers. Queries of the same part should follow
    each other, because a worker keeps the solver of its last part only.

    Args:
        parts: components of a mesh.
        queries: sources and targets on them.
        method, bias, near: as for `Solver`.
        workers: number of processes.

    Raises:
        InputError: if the method rejects the mesh, or crashes on it.
    """
    work = sum(len(parts[part].vertices) for part, _, _ in queries)
    if workers <= 1 or len(queries) < 2 or work < POOL_FROM * (1 if method == "exact" else 10):
        yield from map(_Answers(parts, method, bias, near), queries)
        return
    # Meshes are passed by file and not through the pipe. If a child dies while it starts (as in a
    # program without a main guard), a parent that writes much into its pipe waits forever.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "parts.npz"
        np.savez(path, *(array for part in parts for array in (part.vertices, part.faces)))
        yield from _pooled((path, method, bias, near), queries, workers)


def _pooled(arguments: tuple, queries: list[Query], workers: int) -> Iterator[np.ndarray]:
    """Yield answers from processes, in chunks of queries that keep all of them busy."""
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
    """Yield the results of tasks, in order, from processes that each called `start(*arguments)`.

    Args:
        start: initializes a process.
        arguments: its arguments.
        run: solves a task.
        tasks: the tasks.
        workers: number of processes.
        chunk: number of tasks that a process takes at a time.

    Raises:
        InputError: if processes cannot start, or one dies.
    """
    check_main()
    context = multiprocessing.get_context("spawn")
    started = context.Event()
    pool = ProcessPoolExecutor(
        workers, context, initializer=_start_worker, initargs=(started, start, arguments)
    )
    try:
        yield from pool.map(run, tasks, chunksize=chunk)
    except BrokenProcessPool:
        if not started.is_set():
            raise InputError(UNGUARDED) from None
        raise InputError(
            "a process that solved distances died (memory, or a mesh it cannot take); use fewer "
            "workers or another method"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(started: Event, start: Callable[..., None], arguments: tuple) -> None:
    started.set()
    start(*arguments)


class _Answers:
    """Answers queries. It builds the solver of a part on first use and keeps the last one."""

    def __init__(self, parts: list[Surface], method: str, bias: float, near: bool):
        self.parts, self.settings = parts, (method, bias, near)
        self._part: int = -1
        self._solver: Solver | None = None

    def __call__(self, query: Query) -> np.ndarray:
        part, source, targets = query
        if self._solver is None or part != self._part:
            self._solver = None  # free the old solver first, so that memory holds only one
            self._solver = Solver(self.parts[part], *self.settings)
            self._part = part
        return self._solver(source, targets)


_worker: _Answers


def _start(path: Path, method: str, bias: float, near: bool) -> None:
    """Prepare a worker process."""
    global _worker
    leave_with_parent()
    os.environ["OMP_NUM_THREADS"] = "1"  # each worker has one processor
    with np.load(path, allow_pickle=False) as file:
        arrays = [file[f"arr_{number}"] for number in range(len(file.files))]
    parts = [Surface(*pair) for pair in zip(arrays[::2], arrays[1::2], strict=True)]
    _worker = _Answers(parts, method, bias, near)


def _run(query: Query) -> np.ndarray:
    return _worker(query)


def choose_sources(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Pick the end from which each pair is solved, so that few sources are needed.

    This is a greedy vertex cover of the graph of pairs. If a vertex has one open pair, its partner
    becomes a source, which is optimal on trees and cycles. Otherwise the vertex with most open
    pairs becomes one.

    Args:
        first, second: vertices of the pairs [P], each pair once, and no pair of equal vertices.

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
