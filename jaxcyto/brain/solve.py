"""Single-source distance fields on one component of a mesh, over many sources and processes."""

import multiprocessing
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from heapq import heapify, heappop, heappush

import numpy as np

from jaxcyto.brain.mesh import non_manifold
from jaxcyto.brain.surfaces import Surface
from jaxcyto.errors import InputError

METHODS = ("exact", "heat")
Field = Callable[[int], np.ndarray]
# (source, targets [n]): the distances from one vertex to some others.
Query = tuple[int, np.ndarray]


def field_solver(surface: Surface, method: str) -> Field:
    """A function from source vertex to distances [V] on a connected mesh without unused vertices.

    exact: Mitchell, Mount and Papadimitriou 1987, as implemented by Kirsanov (pygeodesic).
    heat: Crane, Weischedel and Wardetzky 2013 on the intrinsic Delaunay triangulation of Sharp
    and Crane 2020 (potpourri3d), which takes any triangles. Raw: its bias is still in.

    Raises:
        InputError: if the method cannot take this mesh.
    """
    vertices = np.ascontiguousarray(surface.vertices, np.float64)
    faces = np.ascontiguousarray(surface.faces, np.int32)
    if method == "exact":
        check_exact(faces)
        from pygeodesic import geodesic

        exact = geodesic.PyGeodesicAlgorithmExact(vertices, faces)

        def solve(source: int) -> np.ndarray:
            return exact.geodesicDistances(np.array([source], np.int32), None)[0]
    else:
        import potpourri3d

        try:
            heat = potpourri3d.MeshHeatMethodDistanceSolver(vertices, faces, use_robust=True)
        except (RuntimeError, ValueError) as error:
            raise InputError(f"the heat method cannot take this mesh: {error}") from None
        solve = heat.compute_distance

    def checked(source: int) -> np.ndarray:
        try:
            field = np.asarray(solve(int(source)), float)
        except RuntimeError as error:
            raise InputError(f"method {method} failed at vertex {source}: {error}") from None
        if not np.isfinite(field).all():
            raise InputError(
                f"method {method} gives no finite distances from vertex {source} of a component "
                f"of {len(vertices)} vertices; mend degenerate triangles, or use another method"
            )
        return np.maximum(field, 0)

    return checked


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
    queries: list[tuple[int, Query]],
    method: str,
    workers: int = 1,
) -> Iterator[np.ndarray]:
    """Distances for each query (part, (source, targets)), in order; raw, in mm.

    The result does not depend on the number of workers. Queries of one part should follow each
    other: a worker keeps the solver of its last part only.

    Raises:
        InputError: if the method cannot take the mesh, or crashes on it.
    """
    if workers <= 1 or len(queries) < 2 * workers:
        solvers = _Solvers(parts, method)
        yield from map(solvers, queries)
        return
    pool = ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start,
        initargs=(parts, method),
    )
    try:
        chunk = max(1, min(16, len(queries) // (4 * workers)))
        yield from pool.map(_run, queries, chunksize=chunk)
    except BrokenProcessPool:
        raise InputError(
            f"a process that solved by method {method} died (memory, or a mesh it cannot take); "
            "use fewer workers or another method"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


class _Solvers:
    """Answers queries, building a part's solver when it is first needed."""

    def __init__(self, parts: list[Surface], method: str):
        self.parts, self.method = parts, method
        self._part, self._solve = -1, None

    def __call__(self, query: tuple[int, Query]) -> np.ndarray:
        part, (source, targets) = query
        if part != self._part or self._solve is None:
            self._solve = None  # frees the old one first
            self._solve = field_solver(self.parts[part], self.method)
            self._part = part
        return self._solve(source)[targets]


_worker: _Solvers


def _start(parts: list[Surface], method: str) -> None:
    global _worker
    os.environ["OMP_NUM_THREADS"] = "1"  # the processes share the processors
    _worker = _Solvers(parts, method)


def _run(query: tuple[int, Query]) -> np.ndarray:
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
