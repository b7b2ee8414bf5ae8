"""Read, check and write surface meshes in millimeters.

The format of a file is inferred from its content (see `formats.py`). Coordinates are used as
stored: a GIFTI coordinate transform and FreeSurfer's `c_ras` are not applied, as in nibabel and in
FreeSurfer itself. The stored coordinates of all surfaces of a brain and the affines of its sections
must therefore share one space. A warning reports a GIFTI transform that would move the vertices.
"""

import dataclasses
import os
import warnings
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from jaxcyto.brain.manifest import Hemisphere
from jaxcyto.brain.surfaces.formats import load_bytes, parse_surface
from jaxcyto.brain.surfaces.gifti import gifti_array, write_gifti
from jaxcyto.errors import InputError


@dataclasses.dataclass(frozen=True, eq=False)
class Surface:
    """A triangle mesh.

    Attributes:
        vertices: float64 [V, 3], mm.
        faces: int32 [F, 3], indices of vertices.
    """

    vertices: np.ndarray
    faces: np.ndarray


MAX_MM = 1e6  # largest coordinate. Squares of larger ones could overflow, and no brain is as large


def read_surface(path: str | os.PathLike) -> Surface:
    """Read a surface of any supported format, with a warning for each of `surface_warnings`.

    Raises:
        InputError: the surface is not readable, has no vertices or no triangles, has a vertex that
            is not finite, or a triangle with the index of a missing vertex.
    """
    path = Path(path)
    vertices, faces, notes = parse_surface(path, load_bytes(path))
    surface = Surface(*check_surface(path, vertices, faces))
    for note in notes + surface_warnings(surface):
        warnings.warn(f"{path}: {note}", stacklevel=2)
    return surface


def write_surface(path: str | os.PathLike, surface: Surface) -> None:
    """Write a surface as GIFTI (vertices float32 in mm, faces int32), atomically.

    The file is gzipped if its name ends in .gz.

    Raises:
        InputError: as `check_surface`.
    """
    path = Path(path)
    vertices, faces = check_surface(path, surface.vertices, surface.faces)
    points = gifti_array(vertices.astype(np.float32), "NIFTI_INTENT_POINTSET")
    write_gifti(path, [points, gifti_array(faces, "NIFTI_INTENT_TRIANGLE")])


def check_surface(
    path: Path, vertices: np.ndarray, faces: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Check vertices and faces and convert their types.

    Args:
        path: the file, for messages.
        vertices: [V, 3], mm.
        faces: [F, 3], indices of vertices.

    Returns:
        Vertices float64 [V, 3] and faces int32 [F, 3].

    Raises:
        InputError: an array has another shape or type or is empty, a vertex is not finite or beyond
            MAX_MM, or a triangle has the index of a missing vertex.
    """
    vertices, faces = np.asarray(vertices), np.asarray(faces)
    if vertices.ndim != 2 or vertices.shape[1] != 3 or not len(vertices):
        raise InputError(f"{path}: no vertices with three coordinates; not a surface")
    if faces.ndim != 2 or faces.shape[1] != 3 or not len(faces):
        raise InputError(f"{path}: no triangles; a surface of triangles is needed")
    if vertices.dtype.kind not in "biuf":
        raise InputError(f"{path}: coordinates are {vertices.dtype} numbers; export it again")
    with np.errstate(all="ignore"):  # NaN and huge values may warn when converted
        vertices = np.ascontiguousarray(vertices, np.float64)
    finite = np.isfinite(vertices).all(axis=1)
    if not finite.all():
        raise InputError(
            f"{path}: {(~finite).sum()} of {len(vertices)} vertices are not finite "
            f"(the first is vertex {np.argmin(finite)}); export the surface again"
        )
    if np.abs(vertices).max() > MAX_MM:
        raise InputError(f"{path}: coordinates over {MAX_MM:g}; mm are expected, export it again")
    if not np.issubdtype(faces.dtype, np.integer):
        raise InputError(f"{path}: triangles hold {faces.dtype} numbers instead of integers")
    if faces.min() < 0 or faces.max() >= len(vertices):
        wrong = int(faces.min()) if faces.min() < 0 else int(faces.max())
        raise InputError(
            f"{path}: a triangle names vertex {wrong}, but there are {len(vertices)} "
            f"(0 ... {len(vertices) - 1}); the file is damaged or mixes two surfaces"
        )
    return vertices, np.ascontiguousarray(faces, np.int32)


def vertex_matched(first: Surface, second: Surface) -> bool:
    """Return whether two surfaces have the same number of vertices and the same triangles."""
    same_count = len(first.vertices) == len(second.vertices)
    return same_count and np.array_equal(first.faces, second.faces)


def hemisphere_surface(hemisphere: Hemisphere) -> Surface:
    """Read the surface used for sampling and distances, see `Hemisphere.surface`.

    The mid surface is its own file if there is one, else the mean of the pial and white vertices.

    Raises:
        InputError: a file cannot be read or is missing, or pial and white are not vertex-matched.
    """
    if hemisphere.surface != "mid" or hemisphere.mid is not None:
        path = getattr(hemisphere, hemisphere.surface)
        if path is None:
            raise InputError(f"hemisphere {hemisphere.name}: no {hemisphere.surface!r} file given")
        return read_surface(path)
    if hemisphere.pial is None or hemisphere.white is None:
        raise InputError(f"hemisphere {hemisphere.name}: the mid surface needs pial and white")
    pial, white = read_surface(hemisphere.pial), read_surface(hemisphere.white)
    if not vertex_matched(pial, white):
        raise InputError(
            f"{hemisphere.pial} ({_size(pial)}) and {hemisphere.white} ({_size(white)}) are not "
            f"vertex-matched, so hemisphere {hemisphere.name!r} has no mid surface; give `mid`, "
            'or name one of them: surface = "pial" or "white"'
        )
    return Surface((pial.vertices + white.vertices) / 2, pial.faces)


def surface_warnings(surface: Surface) -> list[str]:
    """Describe what is unusual about a usable mesh, one text each."""
    faces = surface.faces.astype(np.int64)
    num_vertices = len(surface.vertices)
    notes = []
    used = np.zeros(num_vertices, bool)
    used[faces] = True
    if not used.all():
        notes.append(
            f"{num_vertices - used.sum()} of {num_vertices} vertices belong to no triangle"
        )
    # Each edge as one integer, so that equal edges are neighbors after sorting.
    start, end = faces.ravel(), np.roll(faces, -1, axis=1).ravel()
    edges = np.sort(np.minimum(start, end) * num_vertices + np.maximum(start, end))
    first = np.flatnonzero(np.r_[True, edges[1:] != edges[:-1]])
    count = np.diff(np.r_[first, len(edges)])
    low, high = np.divmod(edges[first], num_vertices)
    graph = sp.coo_array((np.ones(len(low), np.int8), (low, high)), (num_vertices, num_vertices))
    component = sp.csgraph.connected_components(graph, directed=False)[1]
    sizes = np.sort(np.bincount(component[used]))[::-1]
    sizes = sizes[sizes > 0]
    if len(sizes) > 1:
        notes.append(
            f"{len(sizes)} components (the largest has {sizes[0]} of {used.sum()} vertices); "
            "distances between components are infinite"
        )
    degenerate = int((np.diff(np.sort(faces, axis=1), axis=1) == 0).any(axis=1).sum())
    if degenerate:
        notes.append(f"{degenerate} triangles name a vertex twice")
    non_manifold = int(((count > 2) & (low != high)).sum())
    if non_manifold:
        notes.append(f"{non_manifold} non-manifold edges (shared by more than two triangles)")
    return notes


def _size(surface: Surface) -> str:
    return f"{len(surface.vertices)} vertices, {len(surface.faces)} triangles"
