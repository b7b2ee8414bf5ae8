"""Test the oracle: exact distances and closed forms, odd meshes, files, shards."""

import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
from test_geodesics import (
    cube,
    finned_sphere,
    grid,
    odd_meshes,
    place,
    random_points,
    sphere,
    walled_grid,
)

from jaxcyto.brain.geodesics import build, load
from jaxcyto.brain.geodesics import oracle as oracle_module
from jaxcyto.brain.geodesics import oracle_build as module
from jaxcyto.brain.geodesics.landmarks import Parts, choose_anchors, working_mesh
from jaxcyto.brain.geodesics.mesh import cut_non_manifold, locate_refined, non_manifold, refine
from jaxcyto.brain.geodesics.oracle_build import (
    build_oracle,
    cached_oracle,
    parts_folder,
    solve_shard,
)
from jaxcyto.brain.geodesics.solvers import exact_solver
from jaxcyto.brain.sampling.pair_sampling import choose_even, neighbor_pairs
from jaxcyto.brain.surfaces.surface import Surface, read_surface
from jaxcyto.errors import InputError


def torus(around=40, across=20) -> Surface:
    """Return a torus of radii 3 and 1, with a wave so that nothing is symmetric."""
    u, v = np.meshgrid(np.arange(around), np.arange(across), indexing="ij")
    number = u * across + v
    right, up = np.roll(number, -1, 0), np.roll(number, -1, 1)
    both = np.roll(right, -1, 1)
    faces = np.concatenate(
        [np.stack(f, -1).reshape(-1, 3) for f in ((number, right, both), (number, both, up))]
    )
    a, b = 2 * np.pi * u / around, 2 * np.pi * v / across
    thick = 1 + 0.3 * np.sin(5 * a)
    radius = 3 + thick * np.cos(b)
    vertices = np.stack([radius * np.cos(a), radius * np.sin(a), thick * np.sin(b)], -1)
    return Surface(vertices.reshape(-1, 3), faces)


def far_errors(got, expected, least):
    far = expected >= least
    assert far.sum() > 100
    return np.abs(got - expected)[far] / expected[far]


@pytest.mark.parametrize("make", [cube, torus, lambda: grid(30)])
def test_close_to_exact_for_points_and_vertices(make):
    surface = make()
    oracle = build_oracle(surface, anchors=400)
    face, bary = random_points(surface, 600)
    ends = face[:300], bary[:300], face[300:], bary[300:]
    expected = build(surface).distances(*ends)
    got = oracle.distances(*ends)
    error = far_errors(got, expected, oracle.near_mm)
    assert error.mean() < 0.005 and np.percentile(error, 95) < 0.015 and error.max() < 0.05
    near = got < oracle.near_mm
    assert near.sum() > 3
    # Exact, except that points are moved off the sides (`mesh.CLEARANCE`).
    np.testing.assert_allclose(got[near], expected[near], atol=0.01 * oracle.spacing_mm)
    first, second = np.random.default_rng(1).integers(len(surface.vertices), size=(2, 300))
    expected = build(surface).vertex_distances(first, second)
    got = oracle.vertex_distances(first, second)
    assert np.array_equal(oracle.vertex_distances(second, first), got)
    assert (got[first == second] == 0).all()
    used = expected > 0
    assert (np.abs(got - expected)[used] / expected[used]).mean() < 0.005


def test_great_circles():
    surface = sphere(4)
    oracle = build_oracle(surface, anchors=300)
    face, bary = random_points(surface, 800)
    unit = place(surface, face, bary)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    angle = np.arccos(np.clip((unit[:400] * unit[400:]).sum(1), -1, 1))
    got = oracle.distances(face[:400], bary[:400], face[400:], bary[400:])
    error = far_errors(got, angle, 0.2)
    assert error.mean() < 0.006 and np.percentile(error, 95) < 0.015
    # The oracle measures its own error, against exact distances on the mesh.
    assert 0 < oracle.mean_error < 0.005 and oracle.mean_error < oracle.p95_error < 0.02


def test_better_than_heat_on_a_cortex(shared_data):
    surface = read_surface(shared_data / "bigbrain/surf/rh.midsurface.10k.obj")
    with np.load(shared_data / "geodesic/ref_bigbrain_rh_mid10k.npz") as file:
        sources, expected = file["sources"], file["exact"]
    targets = np.arange(len(surface.vertices))
    first, second = np.repeat(sources, len(targets)), np.tile(targets, len(sources))
    oracle = build_oracle(surface, anchors=1000, reach=4.5)
    got = oracle.vertex_distances(first, second).reshape(expected.shape)
    error = far_errors(got, expected, 5)
    assert error.mean() < 0.01 and np.percentile(error, 95) < 0.03
    heat = build(surface, "heat", calibration_sources=2)
    rough = heat.vertex_distances(first, second).reshape(expected.shape)
    assert error.mean() < far_errors(rough, expected, 5).mean() / 2
    assert np.abs(got - expected)[expected < 5].max() < 0.1


def test_symmetric_with_zero_diagonal_however_it_is_asked():
    surface = torus()
    oracle = build_oracle(surface, anchors=200)
    face, bary = random_points(surface, 60)
    bary[:6] = np.repeat(np.eye(3), 2, axis=0)  # on corners
    i, j = np.indices((60, 60)).reshape(2, -1)
    pairs = oracle.distances(face[i], bary[i], face[j], bary[j]).reshape(60, 60)
    assert (pairs == pairs.T).all() and (pairs.diagonal() == 0).all()
    assert (pairs[~np.eye(60, dtype=bool)] > 0).all()
    matrix = oracle.matrix(face, bary)
    assert (matrix == matrix.T).all() and (matrix.diagonal() == 0).all()
    np.testing.assert_allclose(matrix, pairs, rtol=1e-5, atol=1e-5)
    block = oracle.block(face[:7], bary[:7], face, bary)
    np.testing.assert_allclose(block, pairs[:7], rtol=1e-5, atol=1e-5)


def test_anchors_are_spread_by_area():
    flat = grid(60)
    # The same square with nine tenths of the vertices crowded on one half of it.
    crowded = Surface(flat.vertices * [1, 1, 1], flat.faces)
    crowded.vertices[:, 0] = 59 * (crowded.vertices[:, 0] / 59) ** 3
    anchors = choose_anchors(working_mesh(crowded, 0), 150, seed=0)
    assert 100 < len(anchors.vertex) < 220
    left = crowded.vertices[anchors.vertex, 0] < 59 / 2
    assert 0.35 < left.mean() < 0.65
    assert (np.diff(anchors.vertex) > 0).all() and (anchors.owner >= 0).all()


def test_division_keeps_points_in_place():
    surface = cube()
    faces, vertices = refine(surface.faces, surface.vertices)
    assert len(faces) == 48 and len(vertices) == 26
    face, bary = random_points(surface, 300)
    bary[:3], bary[3:6] = np.eye(3), (1 - np.eye(3)) / 2
    here, at = locate_refined(face, bary)
    assert (at >= -1e-12).all() and (here // 4 == face).all()
    np.testing.assert_allclose(
        place(Surface(vertices, faces), here, at), place(surface, face, bary), atol=1e-12
    )


def book(pages: int) -> Surface:
    """Return squares that share one edge, which has as many faces as there are pages."""
    angle = 2 * np.pi * np.arange(pages) / pages
    outer = np.stack([np.cos(angle), np.sin(angle), 0 * angle], -1)
    upper = outer + np.array([0, 0, 1])
    vertices = np.concatenate([[[0, 0, 0], [0, 0, 1]], outer, upper])
    page = np.arange(pages) + 2
    faces = np.concatenate(
        [
            np.stack([0 * page, page, page + pages], -1),
            np.stack([0 * page, page + pages, 0 * page + 1], -1),
        ]
    )
    return Surface(vertices, faces)


@pytest.mark.parametrize("pages", [2, 3, 4])
def test_non_manifold_edges_are_crossed(pages):
    surface = book(pages)
    assert non_manifold(surface.faces)[0] == (pages > 2)
    oracle = build_oracle(surface, anchors=400)
    top = np.arange(2, 2 + pages)
    first, second = np.array(list(itertools.permutations(top, 2))).T
    # The path crosses the spine: 2 from the bottom of a page to the bottom of another, and sqrt(5)
    # to the top of another.
    np.testing.assert_allclose(oracle.vertex_distances(first, second), 2, rtol=5e-3)
    np.testing.assert_allclose(oracle.vertex_distances(first, second + pages), 5**0.5, rtol=0.01)


@pytest.mark.parametrize("name", odd_meshes())
def test_odd_meshes(name):
    surface = odd_meshes()[name]
    cut, vertex = cut_non_manifold(surface.faces.astype(np.int32))
    assert non_manifold(cut) == (0, 0)
    assert np.array_equal(vertex[cut], surface.faces)
    oracle = build_oracle(surface, anchors=300)
    number = len(surface.vertices)
    first, second = np.indices((number, number)).reshape(2, -1)
    got = oracle.vertex_distances(first, second).reshape(number, number)
    assert (got == got.T).all() and (got.diagonal() == 0).all() and np.isfinite(got).all()
    chord = np.linalg.norm(surface.vertices[:, None] - surface.vertices, axis=2)
    assert (got >= chord * (1 - 1e-12)).all()
    if name == "two parts at a vertex":  # (1, 0) to (-1, 0) by the origin
        np.testing.assert_allclose(got[1, 3], 2, rtol=0.005)
    else:  # the square under the wing stays flat
        np.testing.assert_allclose(got[:25, :25], chord[:25, :25], rtol=0.02, atol=1e-6)


@pytest.mark.parametrize(
    "make",
    [lambda: walled_grid(24), lambda: book(3), lambda: odd_meshes()["two parts at a vertex"]],
)
def test_errors_are_not_measured_across_a_cut(make):
    """Exact distances go around a cut, or find no way to the sheets behind it."""
    oracle = build_oracle(make(), anchors=300)
    assert len(oracle._mesh.links)
    assert 0 <= oracle.mean_error <= oracle.p95_error < 0.01


def test_the_error_is_measured_beside_a_cut():
    oracle = build_oracle(finned_sphere(), anchors=300)
    whole = sphere(3)
    plain = build_oracle(whole, anchors=300)
    assert abs(oracle.excess - plain.excess) < 0.003
    first, second = np.random.default_rng(0).integers(len(whole.vertices), size=(2, 600))
    exact = build(whole).vertex_distances(first, second)
    error = far_errors(oracle.vertex_distances(first, second), exact, oracle.near_mm)
    assert oracle.mean_error == pytest.approx(error.mean(), rel=0.5)


def test_calibration_is_bounded_and_shows_progress(monkeypatch):
    """Measure on the nearest vertices only. A sphere of 164k takes minutes per whole field."""
    whole, seen, counts = sphere(3), [], []
    monkeypatch.setattr(oracle_module, "CALIBRATION_VERTICES", 400)

    def bounded_solver(surface):
        exact = exact_solver(surface)
        return lambda source, targets: seen.append(len(targets)) or exact(source, targets)

    monkeypatch.setattr(oracle_module, "exact_solver", bounded_solver)
    bounded = build_oracle(whole, anchors=300, progress=lambda *count: counts.append(count))
    assert seen == [400] * 4 and counts[-4:] == [(n, 4) for n in range(1, 5)]
    monkeypatch.setattr(oracle_module, "CALIBRATION_VERTICES", 41_000)
    whole = build_oracle(whole, anchors=300)
    assert abs(bounded.excess - whole.excess) < 0.003
    assert 0 < bounded.mean_error < 2 * whole.mean_error  # nearer pairs have larger errors


def test_sheets_around_a_crowded_edge_are_cut_apart():
    """Three sheets share an edge and are connected around both of its ends."""
    # Pages with the outer vertices 2, 3, 4 share the edge (0, 1). Caps join them around 0 and 1.
    faces = [[0, 1, 2], [0, 1, 3], [0, 1, 4]]
    faces += [[0, 2, 3], [0, 3, 4], [1, 2, 3], [1, 3, 4]]
    cut, vertex = cut_non_manifold(np.array(faces, np.int32))
    assert non_manifold(cut) == (0, 0) and np.array_equal(vertex[cut], faces)


def test_components_unused_vertices_and_repeated_triangles():
    flat = grid(6)
    number = len(flat.vertices)
    other = flat.faces + number + 1
    surface = Surface(
        np.concatenate([flat.vertices, [[9, 9, 9]], flat.vertices + 20]),
        np.concatenate([flat.faces, other, flat.faces[:3, [1, 2, 0]], [[0, 0, 1]]]),
    )
    oracle = build_oracle(surface, anchors=500)
    got = oracle.vertex_distances(
        [0, 0, 0, number, number, number + 1], [35, number, number + 1, number, 3, number + 36]
    )
    assert np.isinf(got[[1, 2, 4]]).all() and got[3] == 0
    np.testing.assert_allclose(got[[0, 5]], 50**0.5, rtol=0.01)
    repeated = len(flat.faces) + len(other)
    bary = np.tile([[0.5, 0.3, 0.2]], (3, 1))
    same = oracle.distances(np.arange(3) + repeated, bary, np.arange(3), np.roll(bary, 1, axis=1))
    np.testing.assert_allclose(same, 0, atol=1e-9)
    with pytest.raises(InputError, match="twice"):
        oracle.distances([repeated + 3], bary[:1], [0], bary[:1])


def test_workers_shards_and_a_killed_build_change_nothing(tmp_path, monkeypatch):
    surface = torus()
    settings = {"anchors": 300, "seed": 3}
    whole = build_oracle(surface, **settings)
    monkeypatch.setattr(module, "POOL_FROM", 0)
    two = build_oracle(surface, workers=2, **settings)
    assert np.array_equal(whole._far, two._far) and whole.excess == two.excess

    path = tmp_path / "oracle.npz"
    folder = parts_folder(path)
    counts = [solve_shard(surface, folder, (index, 3), **settings) for index in (3, 1)]
    left = sorted(folder.iterdir())
    assert len(left) == sum(counts) > 0
    left[0].write_bytes(left[0].read_bytes()[:-20])  # truncated
    solve_shard(
        Surface(surface.vertices * 2, surface.faces), tmp_path / "other", (1, 1), **settings
    )
    left[1].write_bytes((tmp_path / "other" / left[1].name).read_bytes())  # another mesh's

    class Killed(Exception):
        pass

    def kill(done, total):
        if done > total / 2:
            raise Killed

    with pytest.raises(Killed):
        cached_oracle(path, surface, progress=kill, **settings)
    assert not path.exists() and any(file.name.startswith("row") for file in folder.iterdir())
    seen = []
    oracle = cached_oracle(path, surface, progress=lambda *count: seen.append(count), **settings)
    assert seen[-1][0] == seen[-1][1] and not folder.exists()
    assert np.array_equal(oracle._far, whole._far)
    assert np.array_equal(oracle._near.data, whole._near.data)
    for shard in ((0, 2), (3, 2)):
        with pytest.raises(InputError, match="shard"):
            solve_shard(surface, folder, shard, **settings)


def test_saved_loaded_and_never_taken_for_another(tmp_path, monkeypatch):
    surface = torus()
    path = tmp_path / "oracle.npz"
    oracle = cached_oracle(path, surface, anchors=150)
    face, bary = random_points(surface, 80)
    query = face[:40], bary[:40], face[40:], bary[40:]
    again = load(path)
    assert np.array_equal(again.distances(*query), oracle.distances(*query))
    assert again.settings == oracle.settings and again.mean_error == oracle.mean_error

    with monkeypatch.context() as context:
        context.setattr(module, "build_oracle", None)  # nothing is built
        cached_oracle(path, surface, anchors=150)
    larger = Surface(surface.vertices * 2, surface.faces)
    twice = cached_oracle(path, larger, anchors=150)
    np.testing.assert_allclose(twice.distances(*query), 2 * oracle.distances(*query), rtol=1e-5)
    whole = path.read_bytes()
    middle = bytearray(whole)
    middle[len(whole) // 2] ^= 1  # one bit
    for content in (b"", b"something else", whole[: len(whole) // 2], whole[:-30], bytes(middle)):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"oracle\.npz.*build it again"):
            load(path)
    healed = cached_oracle(path, larger, anchors=150)
    assert np.array_equal(healed.distances(*query), twice.distances(*query))
    fewer = cached_oracle(path, larger, anchors=100)
    assert fewer.anchors < healed.anchors


def test_a_build_that_cannot_be_saved_is_not_lost(tmp_path, monkeypatch):
    surface, path = torus(), tmp_path / "oracle.npz"
    with monkeypatch.context() as context:
        context.setattr(module.Oracle, "save", lambda oracle, path: path.read_bytes())
        with pytest.raises(FileNotFoundError):
            cached_oracle(path, surface, anchors=150)
    left = sorted(file.name for file in parts_folder(path).iterdir())
    assert [name[:4] for name in left] == ["fiel"] * 3 + ["row_"] * 3
    (parts_folder(path) / ".field_00000.npz.123.tmp").write_bytes(b"of a killed run")
    monkeypatch.setattr(module, "_parallel", lambda solver, arrays, chunks, workers: chunks)
    assert cached_oracle(path, surface, anchors=150).anchors > 100  # nothing is solved again
    assert path.is_file() and not parts_folder(path).exists()


def test_another_run_may_remove_the_parts_first(tmp_path, monkeypatch):
    parts, part = Parts(tmp_path / "parts", "key"), {"row": np.ones((1, 3), np.float32)}
    parts.write("row_00000", part)
    with monkeypatch.context() as context:  # between a look at the folder and a write into it
        context.setattr(Path, "mkdir", lambda folder, **_: shutil.rmtree(folder))
        parts.write("row_00001", part)
    assert parts.read("row_00001") is None
    parts.write("row_00001", part)
    with monkeypatch.context() as context:
        context.setattr(Path, "glob", lambda folder, _: [folder / "row_00000.npz"])
        parts.clear()
        parts.clear()
    assert parts.read("row_00000") is None and parts.read("row_00001")
    parts.clear()
    assert not parts.folder.exists()


def test_triangles_that_are_not_joined_are_refused(monkeypatch):
    flat = grid(12)
    loose = Surface(flat.vertices[flat.faces].reshape(-1, 3), np.arange(flat.faces.size))
    loose = Surface(loose.vertices, loose.faces.reshape(-1, 3))
    monkeypatch.setattr(module, "MOST_ANCHORS", 100)
    assert build_oracle(flat, anchors=50).anchors < 100
    with pytest.raises(InputError, match="must be one vertex"):
        build_oracle(loose, anchors=50)


@pytest.mark.parametrize(
    "query",
    [
        lambda oracle: oracle.vertex_distances([0], [9999]),
        lambda oracle: oracle.vertex_distances([0, 1], [0]),
        lambda oracle: oracle.distances([99], [[1, 0, 0]], [0], [[1, 0, 0]]),
        lambda oracle: oracle.distances([0], [[1, 0, 0]], [0, 1], [[1, 0, 0]] * 2),
        lambda oracle: oracle.block([0], [[np.nan, 1, 0]], [0], [[1, 0, 0]]),
        lambda oracle: build(oracle.surface, "oracle", anchors=0),
        lambda oracle: build(oracle.surface, "oracle", reach=-1.0),
        lambda oracle: build(oracle.surface, "exact", anchors=10),
        lambda oracle: build_oracle(Surface(np.zeros((3, 3)), np.array([[0, 1, 2]]))),
        lambda oracle: build_oracle(Surface(np.zeros((3, 3)), np.zeros((0, 3), int))),
        lambda oracle: build_oracle(Surface(np.full((3, 3), np.nan), np.array([[0, 1, 2]]))),
        lambda oracle: build(Surface(np.eye(3), np.array([[0, 1, 3]])), "oracle"),
        lambda oracle: build(Surface(np.eye(3), np.array([[0, 1, -1]])), "oracle"),
        lambda oracle: build(Surface(np.eye(4), np.array([[0, 1, 2]])), "oracle"),
        lambda oracle: build(Surface(np.eye(3), np.array([[0, 1, 3]])), "exact"),
        lambda oracle: build(Surface(np.eye(3), np.array([[0, 1, -1]])), "heat"),
        lambda oracle: build(oracle.surface, "oracle", seed=-1),
    ],
)
def test_bad_queries_are_refused(query):
    with pytest.raises(InputError):
        query(build(cube(), "oracle", anchors=50))


def test_no_queries_are_no_distances():
    oracle = build_oracle(cube(), anchors=50)
    none = np.empty(0, int), np.empty((0, 3))
    assert len(oracle.distances(*none, *none)) == 0
    assert len(oracle.vertex_distances(none[0], none[0])) == 0
    assert oracle.block(*none, [0], [[1, 0, 0]]).shape == (0, 1)
    assert oracle.matrix(*none).shape == (0, 0)


def test_even_draw_is_even_and_leaves_no_patch_out():
    rng = np.random.default_rng(0)
    group = rng.integers(2, size=400)
    position = rng.normal(size=(400, 3))
    near = neighbor_pairs(group, position, seed=0)
    assert (group[near[0]] == group[near[1]]).all() and (near[0] != near[1]).all()
    first = np.concatenate([rng.integers(400, size=40_000), near[0]])
    second = np.concatenate([(first[:40_000] + rng.integers(1, 400, 40_000)) % 400, near[1]])
    distance = np.linalg.norm(position[first] - position[second], axis=1)
    chosen = choose_even(first, second, distance, 2000, seed=0)
    assert len(chosen) == len(np.unique(chosen)) == 2000
    assert len(np.unique([first[chosen], second[chosen]])) == 400
    bins = np.linspace(0.3, np.percentile(distance, 95), 11)
    count = np.histogram(distance[chosen], bins)[0]
    random = np.histogram(distance[:2000], bins)[0]
    assert count.max() < 1.4 * count.min() and random.max() > 4 * random.min()
    again = choose_even(first, second, distance, 2000, seed=0)
    assert np.array_equal(chosen, again)
    with_all = choose_even(first[:500], second[:500], distance[:500], 10_000, seed=0)
    assert len(with_all) == 500
