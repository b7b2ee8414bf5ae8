"""Time exact fields on smooth surfaces, and show what bounding the calibration costs on a cortex.

    python benchmarks/scale/calibration.py                    # spheres
    python benchmarks/scale/calibration.py --data DATA --oracle FILE

The first command prints how long an exact field takes on spheres of three sizes, out to several
radii. It runs about two minutes on one core. The second one calibrates the oracle of the real left
white surface on the nearest vertices around its sources, for several bounds, and compares it with
the published exact distances. `FILE` caches the oracle, which takes minutes to build.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from jaxcyto.brain.geodesics import oracle as oracle_module
from jaxcyto.brain.geodesics.mesh import refine
from jaxcyto.brain.geodesics.oracle_build import cached_oracle
from jaxcyto.brain.geodesics.solvers import CALIBRATION_VERTICES, exact_solver
from jaxcyto.brain.surfaces.surface import Surface, read_surface
from jaxcyto.phantom.cortex import icosphere

WHITE = "bigbrain/surf/tpl-bigbrain_hemi-L_desc-white.surf.gii"
REFERENCE = "geodesic/ref_bigbrain_L_white164k.npz"
RADIUS_MM = 50.0
TARGETS = 8000  # per source of the reference


def main() -> None:
    """Print the times on spheres, or the errors on the cortex."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, help="folder with surface and reference")
    parser.add_argument("--oracle", type=Path, default=Path("oracle.npz"), help="cache")
    arguments = parser.parse_args()
    if arguments.data:
        compare_bounds(arguments.data, arguments.oracle)
    else:
        time_spheres()


def time_spheres() -> None:
    """Print how long an exact field takes on spheres, out to several radii."""
    vertices, faces = icosphere(5)
    for _ in range(3):
        sphere = Surface(RADIUS_MM * vertices, faces)
        exact = exact_solver(sphere)
        source = len(vertices) // 3  # no corner of the icosahedron
        angle = np.arccos(np.clip(vertices @ vertices[source], -1, 1))
        for share in (0.05, 0.15, 0.5, 1.0) if len(vertices) < 100_000 else (0.05, 0.15, 0.5):
            reach = np.quantile(angle, share)
            targets = np.flatnonzero((angle > 0) & (angle <= reach))
            begin = time.perf_counter()
            exact(source, targets, RADIUS_MM * reach)
            seconds = time.perf_counter() - begin
            print(f"sphere of {len(vertices)}: {len(targets)} vertices in {seconds:.2f} s")
        faces, vertices = refine(faces, vertices)
        vertices /= np.linalg.norm(vertices, axis=1, keepdims=True)


def compare_bounds(data: Path, cache: Path) -> None:
    """Print excess and errors of the oracle of a cortex, for several bounds of its calibration."""
    surface = read_surface(data / WHITE)
    oracle = cached_oracle(cache, surface)
    with np.load(data / REFERENCE) as file:
        sources, exact = file["sources"], file["exact"]
    rng = np.random.default_rng(0)
    targets = [rng.choice(len(surface.vertices), TARGETS, replace=False) for _ in sources]
    first, second = np.repeat(sources, TARGETS), np.concatenate(targets)
    true = np.concatenate([row[each] for row, each in zip(exact, targets, strict=True)])
    far = true > oracle.near_mm
    for bound in (CALIBRATION_VERTICES // 2, CALIBRATION_VERTICES, len(surface.vertices)):
        oracle_module.CALIBRATION_VERTICES = bound
        oracle.excess = 0.0
        begin = time.perf_counter()
        oracle.calibrate()
        seconds = time.perf_counter() - begin
        error = np.abs(oracle.vertex_distances(first[far], second[far]) - true[far]) / true[far]
        print(
            f"nearest {bound} vertices: {seconds:.0f} s, excess {oracle.excess:.2%}, error by the "
            f"calibration {oracle.mean_error:.3%}, against the reference {error.mean():.3%}"
        )


if __name__ == "__main__":
    main()
