"""Compare our distances along a cortex of 163,842 vertices with other methods.

    python benchmarks/scale/geodesics.py --data DATA --figure docs/figures/geodesics_error.png

The other methods are exact distances, the heat method, edge flips and Dijkstra's algorithm. Exact
fields (pygeodesic) are the truth. They take seconds each. They come from the reference file, if it
is there, and from further random sources (`--sources`). Every method answers the same pairs: each
source with random vertices and with all vertices around it. Without `--data` the script makes a
folded icosphere. It runs about 12 minutes on two cores, 4 of them for the exact fields. `--oracle
FILE` caches the oracle. The last line on stdout is one JSON object. Errors are relative for pairs
at least 5 mm apart, and in mm for nearer ones.
"""

import argparse
import json
import resource
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import potpourri3d
from scipy.sparse.csgraph import dijkstra

from jaxcyto.brain.geodesics.mesh import edge_graph, insert_points, refine
from jaxcyto.brain.geodesics.oracle import ANCHORS, Oracle
from jaxcyto.brain.geodesics.oracle_build import cached_oracle
from jaxcyto.brain.geodesics.solvers import exact_solver, solve_queries
from jaxcyto.brain.surfaces.surface import Surface, read_surface
from jaxcyto.utils.progress import StderrProgress

WHITE = "bigbrain/surf/tpl-bigbrain_hemi-L_desc-white.surf.gii"
REFERENCE = "geodesic/ref_bigbrain_L_white164k.npz"
RANDOM_TARGETS, NEAR_TARGETS, NEAR_MM = 4000, 150, 5.0
PAIRS = 200_000
# tvb-gdist is not a dependency, so another Python executable runs this script.
GDIST = """
import sys, time, numpy, gdist
with numpy.load(sys.argv[1]) as file:
    vertices, faces, sources, targets = (file[key] for key in ("v", "f", "s", "t"))
begin = time.perf_counter()
rows = [gdist.compute_gdist(vertices, faces, source_indices=numpy.array([s], numpy.int32),
        target_indices=t) for s, t in zip(sources, targets)]
numpy.savez(sys.argv[2], rows=rows, seconds=(time.perf_counter() - begin) / len(rows))
"""


def main() -> None:
    """Build the oracle, compare all methods with exact distances, and print the figures."""
    arguments = parse_arguments()
    rng = np.random.default_rng(arguments.seed)
    name = "real left white surface" if arguments.data else "folded icosphere"
    surface = read_surface(arguments.data / WHITE) if arguments.data else folded_sphere()
    vertices = len(surface.vertices)
    print(f"{name}: {vertices} vertices, {len(surface.faces)} triangles", flush=True)

    oracle, costs = time_oracle(surface, arguments, rng)
    sources, exact, seconds = exact_fields(surface, arguments, rng)
    targets = [choose_targets(field, rng) for field in exact]
    truth = [field[target] for field, target in zip(exact, targets, strict=True)]
    rows, answers, bias = compare_methods(surface, oracle, sources, targets, truth)
    rows = {"exact": {"s_per_source": seconds}} | rows
    rows["edge flips"] = edge_flips(surface, sources, targets, truth, rng)
    rows["ours, surface points"] = surface_points(surface, oracle, sources[:4], rng)
    if arguments.peer_python:
        rows["tvb-gdist"] = gdist(arguments.peer_python, surface, sources[:3], exact[:3])

    for method, row in rows.items():
        print(f"{method:>22}: " + ", ".join(f"{key} {value:.4g}" for key, value in row.items()))
    if arguments.figure:
        draw(arguments.figure, answers, bias, np.concatenate(truth), oracle.near_mm)
    print(json.dumps({"mesh": name, "vertices": vertices} | costs | {"methods": rows}))


def parse_arguments() -> argparse.Namespace:
    """Parse the command line, and exit if `--data` lacks a file."""
    parser = argparse.ArgumentParser(description="Accuracy and cost of geodesic distances")
    parser.add_argument("--data", type=Path, help="folder of the real surface and its reference")
    parser.add_argument("--sources", type=int, default=24, help="number of further exact sources")
    parser.add_argument("--anchors", type=int, default=ANCHORS, help="anchors of the oracle")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--oracle", type=Path, help="file in which to cache the oracle")
    parser.add_argument("--figure", type=Path, help="where to write a plot of error and distance")
    parser.add_argument("--peer-python", help="Python executable with tvb-gdist")
    parser.add_argument("--seed", type=int, default=0, help="of sources, targets and points")
    arguments = parser.parse_args()
    for name in (WHITE, REFERENCE) if arguments.data else ():
        if not (arguments.data / name).is_file():
            parser.error(
                f"--data {arguments.data}: holds no {name}; leave --data out to use a made-up mesh"
            )
    return arguments


def time_oracle(
    surface: Surface, arguments: argparse.Namespace, rng: np.random.Generator
) -> tuple[Oracle, dict]:
    """Build the oracle and query random pairs.

    Returns:
        The oracle, and its costs: seconds and peak memory (GiB) of the build, number of anchors,
        seconds of `PAIRS` pairs of surface points, and pairs per second.
    """
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        oracle = cached_oracle(
            arguments.oracle or Path(folder) / "oracle.npz",
            surface,
            anchors=arguments.anchors,
            workers=arguments.workers,
            progress=StderrProgress("oracle", "anchors"),
        )
    costs: dict = {"build_s": time.perf_counter() - begin}
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    # The workers run at the same time, beside this process. Each counts as the largest of them.
    costs["build_gib"] = (usage[0].ru_maxrss + arguments.workers * usage[1].ru_maxrss) / 2**20
    costs["anchors"] = oracle.anchors
    face = rng.integers(len(surface.faces), size=(2, PAIRS))
    bary = rng.dirichlet([1, 1, 1], (2, PAIRS))
    begin = time.perf_counter()
    drawn = oracle.distances(face[0], bary[0], face[1], bary[1], arguments.workers)
    costs["pairs_s"] = time.perf_counter() - begin
    costs["pairs_per_s"] = PAIRS / costs["pairs_s"]
    print(
        f"oracle: built in {costs['build_s']:.0f} s, at most {costs['build_gib']:.1f} GiB; "
        f"{PAIRS} random pairs of surface points in {costs['pairs_s']:.0f} s "
        f"({(drawn < oracle.near_mm).sum()} near ones exactly)",
        flush=True,
    )
    return oracle, costs


def compare_methods(
    surface: Surface,
    oracle: Oracle,
    sources: np.ndarray,
    targets: list[np.ndarray],
    truth: list[np.ndarray],
) -> tuple[dict[str, dict], dict[str, np.ndarray], float]:
    """Solve the same pairs by the oracle, the heat method and Dijkstra.

    Args:
        surface: the mesh.
        oracle: its oracle.
        sources: vertices [n].
        targets: vertices of each source.
        truth: exact distances to the targets of each source, mm.

    Returns:
        Seconds per source and errors by method, the distances of all pairs by method, and the
        median ratio of heat to exact distances.
    """
    graph = edge_graph(surface.vertices, surface.faces)
    heat = potpourri3d.MeshHeatMethodDistanceSolver(surface.vertices, surface.faces)
    methods = {
        "ours": lambda s, t: oracle.vertex_distances(np.full(len(t), s), t),
        "heat": lambda s, t: np.asarray(heat.compute_distance(s))[t],
        "dijkstra": lambda s, t: dijkstra(graph, indices=s)[t],
    }
    true = np.concatenate(truth)
    rows, answers = {}, {}
    for method, solve in methods.items():
        begin = time.perf_counter()
        answer = [solve(int(s), t) for s, t in zip(sources, targets, strict=True)]
        taken = (time.perf_counter() - begin) / len(sources)
        answers[method] = np.concatenate(answer)
        rows[method] = {"s_per_source": taken} | errors(answers[method], true)
    far = true >= NEAR_MM
    bias = np.median((answers["heat"] / true)[far])
    rows["heat, bias removed"] = errors(answers["heat"] / bias, true)
    return rows, answers, bias


def folded_sphere(levels: int = 7) -> Surface:
    """Return a folded icosphere of 10 * 4^levels + 2 vertices, about as large as a hemisphere."""
    golden = (1 + 5**0.5) / 2
    points = [np.roll((0, i, j * golden), k) for k in range(3) for i in (1, -1) for j in (1, -1)]
    vertices = np.array(points, float)
    near = np.isclose(np.linalg.norm(vertices[:, None] - vertices, axis=2), 2)
    faces = np.array(
        [
            (a, b, c)
            for a in range(12)
            for b in range(a + 1, 12)
            for c in range(b + 1, 12)
            if near[a, b] and near[b, c] and near[a, c]
        ]
    )
    inward = np.linalg.det(vertices[faces]) < 0
    faces[inward] = faces[inward, ::-1]
    for _ in range(levels):
        faces, vertices = refine(faces, vertices)
        vertices /= np.linalg.norm(vertices, axis=1, keepdims=True)
    waves = np.random.default_rng(0).normal(size=(12, 3)) * 10
    folds = np.sin(vertices @ waves.T).sum(1) / 12**0.5
    return Surface(55 * vertices * (1 + 0.08 * folds)[:, None], faces)


def exact_fields(surface, arguments, rng) -> tuple[np.ndarray, np.ndarray, float]:
    """Return sources [n], their exact fields [n, V] in mm, and seconds per solved source."""
    sources, fields = np.empty(0, int), np.empty((0, len(surface.vertices)))
    if arguments.data:
        with np.load(arguments.data / REFERENCE) as file:
            sources, fields = file["sources"], file["exact"]
    more = rng.integers(len(surface.vertices), size=arguments.sources)
    everything = np.arange(len(surface.vertices))
    progress = StderrProgress("exact", "sources")
    begin = time.perf_counter()
    solved = []
    queries = [(0, int(source), everything) for source in more]
    for field in solve_queries([surface], queries, "exact", workers=arguments.workers):
        solved.append(field)
        progress(len(solved), len(queries))
    seconds = (time.perf_counter() - begin) * arguments.workers / max(len(more), 1)
    return (
        np.concatenate([sources, more]),
        np.concatenate([fields, *[[f] for f in solved]]),
        seconds,
    )


def choose_targets(field: np.ndarray, rng) -> np.ndarray:
    """Draw target vertices of a source with the distances `field` [V]: near ones, and random ones.

    Returns:
        Vertices [n], ascending, without the source.
    """
    near = np.flatnonzero((field > 0) & (field < 2 * NEAR_MM))
    near = rng.choice(near, min(NEAR_TARGETS, len(near)), replace=False)
    far = rng.choice(np.flatnonzero(field > 0), RANDOM_TARGETS, replace=False)
    return np.unique(np.concatenate([near, far]))


def errors(answer: np.ndarray, truth: np.ndarray) -> dict:
    """Summarize the errors of distances [n]: relative beyond `NEAR_MM`, in mm up to there."""
    far = truth >= NEAR_MM
    relative = np.abs(answer - truth)[far] / truth[far]
    near = np.abs(answer - truth)[~far]
    return {
        "pairs": len(truth),
        "mean_percent": 100 * relative.mean(),
        "p95_percent": 100 * np.percentile(relative, 95),
        "max_percent": 100 * relative.max(),
        "near_pairs": len(near),
        "near_mean_mm": near.mean() if len(near) else 0.0,
        "near_max_mm": near.max(initial=0.0),
    }


def edge_flips(surface, sources, targets, truth, rng, number: int = 40) -> dict:
    """Measure seconds per pair and errors of edge-flip geodesics on `number` of the pairs."""
    solver = potpourri3d.EdgeFlipGeodesicSolver(surface.vertices, surface.faces)
    answer, true = [], []
    begin = time.perf_counter()
    for _ in range(number):
        source = rng.integers(len(sources))
        target = rng.integers(len(targets[source]))
        path = solver.find_geodesic_path(int(sources[source]), int(targets[source][target]))
        answer.append(np.linalg.norm(np.diff(path, axis=0), axis=1).sum())
        true.append(truth[source][target])
    seconds = (time.perf_counter() - begin) / number
    return {"s_per_pair": seconds} | errors(np.array(answer), np.array(true))


def surface_points(surface, oracle, sources, rng, number: int = 3000) -> dict:
    """Measure the oracle's errors between points within triangles.

    The truth is the exact method on the mesh with these points inserted as vertices.
    """
    near = [np.linalg.norm(surface.vertices - surface.vertices[s], axis=1) < 6 for s in sources]
    close = [np.flatnonzero(n[surface.faces[:, 0]]) for n in near]
    own = np.array([rng.choice(faces) for faces in close])
    face = np.concatenate([own, *(rng.choice(f, 200) for f in close)])
    face = np.concatenate([face, rng.integers(len(surface.faces), size=number)])
    bary = rng.dirichlet([1, 1, 1], len(face))
    refined, vertex = insert_points(surface, face, bary)
    exact = exact_solver(refined)
    everything = np.arange(len(refined.vertices))
    answer, truth = [], []
    for index in range(len(sources)):
        truth.append(exact(int(vertex[index]), everything)[vertex])
        ends = np.full(len(face), face[index]), np.tile(bary[index], (len(face), 1))
        answer.append(oracle.distances(*ends, face, bary))
    true = np.concatenate(truth)
    return errors(np.concatenate(answer)[true > 0], true[true > 0])


def gdist(python: str, surface: Surface, sources, exact) -> dict:
    """Measure seconds per source and errors of tvb-gdist, which runs in another interpreter."""
    with tempfile.TemporaryDirectory() as folder:
        given, got = Path(folder) / "in.npz", Path(folder) / "out.npz"
        targets = np.tile(np.arange(len(surface.vertices), dtype=np.int32), (len(sources), 1))
        np.savez(given, v=surface.vertices, f=surface.faces, s=sources, t=targets)
        subprocess.run([python, "-c", GDIST, str(given), str(got)], check=True)
        with np.load(got) as file:
            rows, seconds = file["rows"], float(file["seconds"])
    used = exact > 0
    return {"s_per_source": seconds} | errors(rows[used], exact[used])


def draw(path: Path, answers: dict, bias: float, truth: np.ndarray, near_mm: float) -> None:
    """Plot the errors against the exact distance, and their histogram."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    shown = {"ours": answers["ours"], "heat, bias removed": answers["heat"] / bias}
    edges = np.r_[0, 2.5, 5, 7.5, 10, np.arange(15, truth.max() + 5, 5)]
    middle = (edges[1:] + edges[:-1]) / 2
    bins = np.digitize(truth, edges) - 1
    for name, answer in shown.items():
        relative = 100 * (answer - truth) / truth
        parts = [relative[bins == index] for index in range(len(middle))]
        low, median, high = (
            [np.percentile(part, q) if len(part) > 9 else np.nan for part in parts]
            for q in (5, 50, 95)
        )
        line = axes[0].plot(middle, median, label=name)[0]
        axes[0].fill_between(middle, low, high, alpha=0.25, color=line.get_color(), lw=0)
        values = relative[truth >= NEAR_MM]
        axes[1].hist(values, np.arange(-4, 4.01, 0.1), density=True, alpha=0.6, label=name)
    axes[0].axvline(near_mm, color="gray", lw=0.8, ls=":")
    axes[0].set(xlabel="exact distance, mm", ylabel="error, %: median and 5 ... 95 %", ylim=(-6, 6))
    axes[1].set(xlabel=f"error, % (pairs from {NEAR_MM:g} mm on)", ylabel="density", xlim=(-4, 4))
    for axis in axes:
        axis.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
