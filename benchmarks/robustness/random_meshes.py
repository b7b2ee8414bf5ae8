"""Check that distances on thousands of small broken meshes are right or refused.

    python benchmarks/robustness/random_meshes.py --meshes 10000

The meshes are random triangles, pieces of a plane with holes, and tetrahedra that share edges and
vertices. Their coordinates are rounded, which makes repeated vertices and triangles without area.
Their sizes go from micrometers to kilometers. Every method solves each mesh. It may raise an
InputError. Otherwise the distances between all vertices must not be NaN, negative, asymmetric or
below the straight line, must be zero on the diagonal, and must be finite exactly between vertices
that are connected. A finding prints the index of its mesh. `--first N --meshes 1` repeats it. The
last line on stdout is one JSON object.
"""

import argparse
import json
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from scipy.sparse.csgraph import connected_components

from jaxcyto.brain.geodesics import build
from jaxcyto.brain.geodesics.mesh import edge_graph
from jaxcyto.brain.surfaces.surface import Surface
from jaxcyto.errors import InputError
from jaxcyto.utils.progress import StderrProgress

METHODS: dict[str, dict] = {"exact": {}, "heat": {}, "oracle": {"anchors": 40}}
# A finite distance may be shorter than the straight line by this share, because of rounding where a
# triangle is laid flat.
ROUNDING = 1e-9


def main() -> None:
    """Check the meshes, and print how many were solved and refused by each method."""
    parser = argparse.ArgumentParser(description="Small random meshes, degenerate ones included")
    parser.add_argument("--meshes", type=int, default=10_000, help="number of meshes")
    parser.add_argument("--first", type=int, default=0, help="index of the first mesh")
    arguments = parser.parse_args()
    begin = time.monotonic()
    counts = {method: Counter() for method in METHODS}
    progress = StderrProgress("meshes", "meshes")
    for number in range(arguments.first, arguments.first + arguments.meshes):
        surface = random_mesh(number)
        for method in METHODS:
            outcome = check_mesh(surface, method)
            counts[method][outcome] += 1
            if outcome not in ("solved", "refused"):
                print(f"mesh {number}, {method}: {outcome}", flush=True)
        progress(number - arguments.first + 1, arguments.meshes)
    for method, count in counts.items():
        print(f"{method:>7}: " + ", ".join(f"{n} {outcome}" for outcome, n in count.items()))
    result = {"meshes": arguments.meshes, "seconds": round(time.monotonic() - begin, 1)}
    print(json.dumps(result | {method: dict(count) for method, count in counts.items()}))


def random_mesh(number: int) -> Surface:
    """Return the mesh with this index."""
    rng = np.random.default_rng(number)
    kind = number % 3
    if kind == 0:  # random triangles
        vertices = rng.normal(size=(rng.integers(3, 12), 3))
        faces = rng.integers(len(vertices), size=(rng.integers(1, 14), 3))
    elif kind == 1:  # a plane, crumpled, with holes
        side = int(rng.integers(2, 6))
        vertices = np.indices((side, side)).reshape(2, -1).T.astype(float)
        vertices = np.c_[vertices, rng.normal(size=len(vertices)) * rng.choice([0, 0.1, 1])]
        at = np.arange(side * side).reshape(side, side)
        corners = [at[:-1, :-1], at[1:, :-1], at[:-1, 1:], at[1:, 1:]]
        a, b, c, d = (corner.ravel() for corner in corners)
        faces = np.concatenate([np.c_[a, b, c], np.c_[b, d, c]])
        faces = faces[rng.random(len(faces)) < rng.choice([1, 0.7])]
    else:  # tetrahedra that share vertices and edges
        vertices = rng.normal(size=(rng.integers(5, 12), 3))
        solids = [rng.choice(len(vertices), 4, replace=False) for _ in range(rng.integers(1, 4))]
        faces = np.concatenate([solid[[[0, 1, 2], [0, 1, 3], [0, 2, 3], [1, 2, 3]]]
                                for solid in solids])  # fmt: skip
    vertices = vertices.round(int(rng.integers(0, 4))) * 10.0 ** rng.integers(-3, 7)
    return Surface(vertices, faces.reshape(-1, 3).astype(np.int32))


def check_mesh(surface: Surface, method: str) -> str:
    """Solve a mesh by a method, and return "solved", "refused" or what is wrong."""
    number = len(surface.vertices)
    first, second = np.indices((number, number)).reshape(2, -1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            solver = build(surface, method, **METHODS[method])
            got = solver.vertex_distances(first, second).reshape(number, number)
    except InputError:
        return "refused"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if np.isnan(got).any():
        return "NaN"
    if (got < 0).any():
        return "negative"
    if (got != got.T).any():
        return "asymmetric"
    if got.diagonal().any():
        return "a point away from itself"
    straight = np.linalg.norm(surface.vertices[:, None] - surface.vertices, axis=2)
    if (got < straight * (1 - ROUNDING)).any():
        return "below the straight line"
    used = np.sort(surface.faces, axis=1)
    used = used[(np.diff(used, axis=1) > 0).all(axis=1)]
    part = connected_components(edge_graph(surface.vertices, used), directed=False)[1]
    if (np.isfinite(got) != (part[:, None] == part)).any():
        return "reaches other vertices than its triangles do"
    return "solved"


if __name__ == "__main__":
    main()
