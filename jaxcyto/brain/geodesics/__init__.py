"""Compute distances along a surface in mm, between vertices or between surface points.

    oracle = build(read_surface("lh.mid.surf.gii"), workers=8)
    oracle.vertex_distances([0, 1], [10, 11])
    oracle.distances(first_face, first_bary, second_face, second_bary)  # [N] pairs
    oracle.matrix(face, bary)  # [N, N]
    oracle.save("lh.npz"); load("lh.npz")

Methods "exact" and "heat" (`single_source.py`) solve one distance field per source of a query.
Method "oracle" (`oracle.py`) takes minutes to build and then answers any pair within 0.2 ms.

Distances are symmetric, zero from a point to itself and infinite between components. A vertex in
no triangle is a component of its own.
"""

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from jaxcyto.brain.geodesics.mesh import (
    NO_TRIANGLES,
    check_mesh,
    clean_faces,
    mesh_sha256,
    non_manifold,
)
from jaxcyto.brain.geodesics.oracle import ORACLE_FORMAT, Oracle, load_oracle
from jaxcyto.brain.geodesics.oracle_build import build_oracle
from jaxcyto.brain.geodesics.single_source import GEODESICS_FORMAT, Geodesics, heat_bias
from jaxcyto.brain.geodesics.solvers import METHODS, check_exact
from jaxcyto.brain.surfaces.surface import Surface, check_surface
from jaxcyto.errors import InputError
from jaxcyto.utils.files import Array, Schema, naming_damage, npz_format, read_arrays
from jaxcyto.utils.progress import Progress

CALIBRATION_SOURCES = 5
# From this number of vertices on, method "auto" takes the oracle. It is built within half a minute
# there, in which the exact method solves some hundred sources.
ORACLE_FROM = 4000
SCHEMA: Schema = {
    "method": str,
    "bias": Array(np.floating, ()),
    "settings": dict,
    "vertices": Array(np.number, ("V", 3)),
    "faces": Array(np.integer, ("F", 3)),
    "mesh_sha256": str,
}


def build(
    surface: Surface,
    method: str = "auto",
    *,
    calibration_sources: int = CALIBRATION_SOURCES,
    seed: int = 0,
    workers: int = 1,
    progress: Progress | None = None,
    **settings: Any,
) -> Geodesics | Oracle:
    """Build an oracle of distances along a surface.

    Args:
        surface: any triangle mesh. The exact method needs a manifold mesh.
        method: "auto" takes "exact" for manifold meshes of fewer than `ORACLE_FROM` vertices and
            "oracle" for others. "exact" takes seconds per source on 164k vertices. "heat" takes a
            tenth of a second per source, with an error of about 1 %, but is exact near the source.
            "oracle" takes minutes once and then 0.2 ms per pair, with an error of 0.2 % on a
            cortex, and is exact for near pairs.
        calibration_sources: number of random vertices from which the heat method is compared with
            the exact one. Heat distances are divided by the median ratio beyond `NEAR_EDGES` edge
            lengths.
        seed: draws these vertices, or the anchors of the oracle.
        workers: processes for this comparison, or for the oracle.
        progress: called with (done, total) while an oracle is built or the heat method compared.
        **settings: other arguments of `oracle_build.build_oracle`. With them, "auto" takes
            "oracle".

    Returns:
        The oracle, with the methods `vertex_distances`, `distances`, `matrix` and `save`.

    Raises:
        InputError: if the method is unknown or does not accept the mesh.
    """
    if method == "auto":
        small = not settings and len(surface.vertices) < ORACLE_FROM
        method = "exact" if small and not any(non_manifold(_faces(surface))) else "oracle"
    if method == "oracle":
        return build_oracle(surface, seed=seed, workers=workers, progress=progress, **settings)
    if method not in METHODS or settings:
        named = f"method = {method!r}, {', '.join(settings)}".rstrip(", ")
        raise InputError(f"{named}; methods are {', '.join(METHODS)} and oracle, see `build`")
    faces = _faces(surface)
    settings = {"method": method}
    if method == "exact":
        check_exact(faces)
        return Geodesics(surface, method, 1.0, settings)
    settings |= {"calibration_sources": calibration_sources, "seed": seed}
    bias = heat_bias(surface, calibration_sources, seed, workers, progress)
    if not bias.manifold:
        measured = np.isfinite(bias.mean_error)
        warnings.warn(
            "not a manifold mesh, where the heat method is not corrected by exact distances near "
            "its sources. "
            + (
                f"Away from the non-manifold edges, its bias of {bias.factor - 1:+.1%} is removed, "
                f"and an error of {bias.mean_error:.1%} on average remains"
                if measured
                else "Its bias and its error could not be measured"
            )
            + "; method oracle takes such meshes",
            stacklevel=2,
        )
    return Geodesics(surface, method, bias.factor, settings)


def _faces(surface: Surface) -> np.ndarray:
    """Return the clean triangles of a mesh.

    Raises:
        InputError: if there are none, or as `check_mesh`.
    """
    faces = clean_faces(check_mesh(surface))
    if not len(faces):
        raise InputError(NO_TRIANGLES)
    return faces


def load(path: str | os.PathLike) -> Geodesics | Oracle:
    """Read a saved oracle of any method.

    Raises:
        InputError: if the file is missing, damaged or of another kind.
    """
    path = Path(path)
    with naming_damage(path, "oracle of distances", "build it again"):
        if npz_format(path) == ORACLE_FORMAT:
            return load_oracle(path)
        file = read_arrays(path, GEODESICS_FORMAT, SCHEMA)
        surface = Surface(*check_surface(path, file["vertices"], file["faces"]))
        if file["mesh_sha256"] != mesh_sha256(surface):
            raise ValueError("the mesh does not match its hash")
        method, bias = file["method"], float(file["bias"])
        if method not in METHODS or not 0.5 < bias < 2:
            raise ValueError(f"method {method!r}, bias {bias}")
    return Geodesics(surface, method, bias, file["settings"])
