"""Solve distances source by source: methods "exact" and "heat" of `geodesics.build`.

Surface points are inserted into the mesh as vertices, which does not change any distance. So the
exact method is exact between them, too, except that points near a side of their triangle are moved
by at most 2e-3 of its longest side, see `mesh.insert_points`.
"""

import json
import os
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from jaxcyto.brain.geodesics.mesh import (
    check_vertices,
    clean_faces,
    component_labels,
    cut_non_manifold,
    far_from,
    insert_points,
    mesh_sha256,
)
from jaxcyto.brain.geodesics.solvers import (
    CALIBRATION_VERTICES,
    NEAR_EDGES,
    choose_sources,
    mean_edge_mm,
    solve_queries,
)
from jaxcyto.brain.surfaces.surface import Surface
from jaxcyto.errors import InputError
from jaxcyto.utils.files import atomic_write
from jaxcyto.utils.progress import Progress

GEODESICS_FORMAT = "jaxcyto geodesics 1"


class Geodesics:
    """An oracle of distances along one surface, made by `geodesics.build` or `geodesics.load`.

    Attributes:
        surface: the mesh.
        method: "exact" or "heat".
        bias: factor by which the raw distances are too long. They are divided by it.
        refined_bias: the same factor on the mesh of the last query of surface points.
        settings: the settings of `build`, plain values.
    """

    def __init__(self, surface: Surface, method: str, bias: float, settings: dict):
        self.surface, self.method, self.bias, self.settings = surface, method, bias, settings
        self.refined_bias = bias

    def vertex_distances(
        self, first, second, workers: int = 1, progress: Progress | None = None
    ) -> np.ndarray:
        """Return distances float64 [N] in mm between vertices `first` [N] and `second` [N].

        Raises:
            InputError: if a vertex does not exist, or the method fails.
        """
        number = len(self.surface.vertices)
        ends = [check_vertices(end, number) for end in (first, second)]
        if ends[0].shape != ends[1].shape:
            raise InputError(f"{len(ends[0])} first and {len(ends[1])} second vertices")
        return self._pairs(self.surface, ends[0], ends[1], workers, progress)

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
            workers: number of processes. The result does not depend on it.
            progress: called with (sources done, sources), for the heat method first while its bias
                is measured.

        Raises:
            InputError: if a point is not on this surface, or the method fails.
        """
        first_face, second_face = np.asarray(first_face), np.asarray(second_face)
        if first_face.shape != second_face.shape:
            raise InputError(f"{first_face.size} first and {second_face.size} second points")
        face = np.concatenate([first_face, second_face])
        refined, vertex = insert_points(
            self.surface, face, np.concatenate([first_bary, second_bary])
        )
        first, second = vertex[: len(first_face)], vertex[len(first_face) :]
        return self._on(refined, workers, progress)._pairs(
            refined, first, second, workers, progress
        )

    def matrix(self, face, bary, workers: int = 1, progress: Progress | None = None) -> np.ndarray:
        """Return distances float32 [N, N] in mm between all of N surface points."""
        refined, vertex = insert_points(self.surface, face, bary)
        self = self._on(refined, workers, progress)
        unique, index = np.unique(vertex, return_inverse=True)
        labels, parts, local = _components(refined, unique)
        order = np.argsort(labels[unique], kind="stable")
        result = np.full((len(unique), len(unique)), np.inf, np.float32)
        queries, members = [], []
        for row in order.tolist():
            label = labels[unique[row]]
            same = np.flatnonzero(labels[unique] == label)
            members.append((row, same))
            queries.append((int(label), int(local[unique[row]]), local[unique[same]]))
        answers = solve_queries(parts, queries, self.method, self.bias, workers=workers)
        for done, ((row, same), answer) in enumerate(zip(members, answers, strict=True), 1):
            result[row, same] = answer
            if progress:
                progress(done, len(queries))
        result = (result + result.T) / 2
        np.fill_diagonal(result, 0)
        return result[np.ix_(index, index)]

    def _on(self, refined: Surface, workers: int, progress: Progress | None) -> "Geodesics":
        """Return this oracle with its bias measured on a mesh with inserted points.

        The bias of the heat method depends on the size of the triangles. It was 2.3 % on a mesh of
        2,562 vertices, and 0.4 % on the same mesh with three points in each triangle.
        """
        if self.method != "heat":
            return self
        sources, seed = self.settings["calibration_sources"], self.settings["seed"]
        bias = heat_bias(refined, sources, seed, workers, progress).factor
        self.refined_bias = bias
        return Geodesics(refined, self.method, bias, self.settings)

    def _pairs(self, surface, first, second, workers, progress) -> np.ndarray:
        """Solve the distances [N] of pairs of vertices of a mesh, from few sources."""
        distance = np.where(first == second, 0.0, np.inf)
        labels, parts, local = _components(surface, np.concatenate([first, second]))
        open_pairs = np.flatnonzero((labels[first] == labels[second]) & (first != second))
        # Each undirected pair is solved once, so that its distance does not depend on the order.
        ends = np.sort(np.column_stack([first, second])[open_pairs], axis=1)
        pairs, inverse = np.unique(ends, axis=0, return_inverse=True)
        if not len(pairs):
            return distance
        from_first = choose_sources(pairs[:, 0], pairs[:, 1])
        source = np.where(from_first, pairs[:, 0], pairs[:, 1])
        target = np.where(from_first, pairs[:, 1], pairs[:, 0])
        order = np.lexsort((source, labels[source]))
        bounds = np.flatnonzero(np.r_[True, np.diff(source[order]) != 0, True])
        groups = [order[a:b] for a, b in pairwise(bounds)]
        queries = [
            (int(labels[source[group[0]]]), int(local[source[group[0]]]), local[target[group]])
            for group in groups
        ]
        solved = np.empty(len(pairs))
        answers = solve_queries(parts, queries, self.method, self.bias, workers=workers)
        for done, (group, answer) in enumerate(zip(groups, answers, strict=True), 1):
            solved[group] = answer
            if progress:
                progress(done, len(groups))
        distance[open_pairs] = solved[inverse.reshape(-1)]
        return distance

    def save(self, path: str | os.PathLike) -> None:
        """Write one npz with the mesh, its hash, settings and bias, completely or not at all."""
        with atomic_write(path) as file:
            np.savez(
                file,
                format=GEODESICS_FORMAT,
                method=self.method,
                bias=np.float64(self.bias),
                settings=json.dumps(self.settings, sort_keys=True),
                vertices=self.surface.vertices,
                faces=self.surface.faces,
                mesh_sha256=mesh_sha256(self.surface),
            )


def _components(
    surface: Surface, wanted: np.ndarray
) -> tuple[np.ndarray, list[Surface], np.ndarray]:
    """Divide a mesh into its components.

    Args:
        surface: the mesh.
        wanted: vertices whose components are returned.

    Returns:
        The component of each vertex [V], the components as meshes by this index (empty for those
        without wanted vertices), and the index of each vertex in its component [V].
    """
    faces = clean_faces(surface.faces)
    labels = component_labels(len(surface.vertices), faces)
    parts = [Surface(np.zeros((0, 3)), np.zeros((0, 3), np.int32))] * (labels.max(initial=-1) + 1)
    local = np.zeros(len(labels), np.int64)
    owner = labels[faces[:, 0]]
    for label in np.unique(labels[wanted]).tolist():
        members = np.flatnonzero(labels == label)
        local[members] = np.arange(len(members))
        own = local[faces[owner == label]].astype(np.int32)
        parts[label] = Surface(surface.vertices[members], own)
    return labels, parts, local


class HeatBias(NamedTuple):
    """How far heat distances are from exact ones.

    Attributes:
        factor: by which heat distances are too long, 1 if that could not be measured.
        mean_error: mean relative error after division by it, NaN if it could not be measured.
        manifold: whether the mesh is manifold.
    """

    factor: float
    mean_error: float
    manifold: bool


def heat_bias(surface: Surface, sources: int, seed: int, workers: int, progress) -> HeatBias:
    """Measure the median ratio of heat to exact distances on the largest component.

    Args:
        surface: the mesh.
        sources: number of random source vertices. Targets are the nearest `CALIBRATION_VERTICES`
            vertices beyond `NEAR_EDGES` mean edge lengths. If the component is not manifold, they
            end at the nearest cut (see `cut_non_manifold`), which exact distances do not cross.
        seed: draws the sources.
        workers: number of processes.
        progress: called with (sources done, sources).
    """
    faces = clean_faces(surface.faces)
    labels = component_labels(len(surface.vertices), faces)
    largest = np.bincount(labels[faces[:, 0]]).argmax()
    member = int(np.flatnonzero(labels == largest)[0])
    _, parts, _ = _components(surface, np.array([member]))
    part = parts[largest]
    cut, vertex = cut_non_manifold(part.faces)
    sheets = Surface(part.vertices[vertex], cut)
    sheet = component_labels(len(vertex), cut)
    repeated = vertex[1:] == vertex[:-1]
    crossing = np.isin(vertex, vertex[1:][repeated])  # [W], copies along the cuts
    number = len(part.vertices)
    drawn = far_from(part, np.unique(vertex[crossing]))
    drawn = np.random.default_rng(seed).choice(drawn, min(sources, len(drawn)), replace=False)
    everything = np.arange(number)
    queries = [(0, int(source), everything) for source in drawn]
    heat = list(solve_queries([part], queries, "heat", near=False, workers=workers))
    exact_queries = []
    for source, distance in zip(drawn, heat, strict=True):
        start = int(np.searchsorted(vertex, source))
        own = np.flatnonzero(sheet == sheet[start])
        nearest = np.argsort(distance[vertex[own]], kind="stable")[:CALIBRATION_VERTICES]
        exact_queries.append((0, start, np.sort(own[nearest])))
    exact = solve_queries([sheets], exact_queries, "exact", workers=workers)
    edge = mean_edge_mm(part)
    ratios = []
    for done, (approximate, true) in enumerate(zip(heat, exact, strict=True), 1):
        target = exact_queries[done - 1][2]
        far = (true > NEAR_EDGES * edge) & (true <= true[crossing[target]].min(initial=np.inf))
        ratios.append(approximate[vertex[target[far]]] / true[far])
        if progress:
            progress(done, len(queries))
    ratio = np.concatenate(ratios) if ratios else np.empty(0)
    if not len(ratio):
        return HeatBias(1.0, float("nan"), not crossing.any())
    factor = float(np.median(ratio))
    return HeatBias(factor, float(np.abs(ratio / factor - 1).mean()), not crossing.any())
