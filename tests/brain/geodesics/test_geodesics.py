"""Test distances along surfaces: published references, closed forms, odd meshes, files."""

import re
import warnings

import numpy as np
import pytest

from jaxcyto.brain import geodesics
from jaxcyto.brain.geodesics import build, load, single_source
from jaxcyto.brain.geodesics import solvers as solve
from jaxcyto.brain.geodesics.mesh import CLEARANCE, insert_points, non_manifold
from jaxcyto.brain.geodesics.solvers import Solver, choose_sources, mean_edge_mm
from jaxcyto.brain.surfaces.surface import Surface, read_surface
from jaxcyto.errors import InputError

CORNERS = np.eye(3)


def grid(size=9, spacing=1.0) -> Surface:
    """Return a flat square of 2 (size - 1)^2 triangles."""
    x, y = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
    number = np.arange(size**2).reshape(size, size)
    a, b, c, d = number[:-1, :-1], number[:-1, 1:], number[1:, :-1], number[1:, 1:]
    faces = np.concatenate([np.stack(f, -1).reshape(-1, 3) for f in ((a, b, d), (a, d, c))])
    return Surface(spacing * np.stack([x, y, 0 * x], -1).reshape(-1, 3).astype(float), faces)


def cube() -> Surface:
    """Return the unit cube. The index of a vertex is 4 x + 2 y + z."""
    vertices = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], float)
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    return Surface(vertices, np.array([t for a, b, c, d in quads for t in ((a, b, c), (a, c, d))]))


def sphere(subdivisions=4) -> Surface:
    """Return a unit icosphere."""
    g = (1 + 5**0.5) / 2
    vertices = [np.array(v, float) for v in ((0, s, t * g) for s in (1, -1) for t in (1, -1))]
    vertices += [np.roll(v, 1) for v in vertices[:4]] + [np.roll(v, 2) for v in vertices[:4]]
    points = np.array(vertices)
    near = np.isclose(np.linalg.norm(points[:, None] - points[None], axis=2), 2)
    faces = [
        (a, b, c)
        for a in range(12)
        for b in range(a + 1, 12)
        for c in range(b + 1, 12)
        if near[a, b] and near[b, c] and near[a, c]
    ]
    points = points / np.linalg.norm(points, axis=1, keepdims=True)
    for _ in range(subdivisions):
        middle: dict[tuple[int, int], int] = {}
        grown, finer = list(points), []
        for face in faces:
            mids = []
            for a, b in ((face[0], face[1]), (face[1], face[2]), (face[2], face[0])):
                key = (min(a, b), max(a, b))
                if key not in middle:
                    middle[key] = len(grown)
                    point = points[a] + points[b]
                    grown.append(point / np.linalg.norm(point))
                mids.append(middle[key])
            a, b, c = face
            ab, bc, ca = mids
            finer += [(a, ab, ca), (b, bc, ab), (c, ca, bc), (ab, bc, ca)]
        points, faces = np.array(grown), finer
    return Surface(points, np.array(faces))


def random_points(surface: Surface, number: int, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(len(surface.faces), size=number), rng.dirichlet([1, 1, 1], number)


def place(surface: Surface, face, bary):
    return np.einsum("nk,nkd->nd", bary, surface.vertices[surface.faces[face]])


@pytest.mark.parametrize(
    ("mesh", "reference"),
    [
        ("meshes/nilearn_fsaverage5/pial_left.gii.gz", "ref_fsaverage5_pial_left"),
        ("bigbrain/surf/rh.midsurface.10k.obj", "ref_bigbrain_rh_mid10k"),
    ],
)
def test_equals_the_reference(shared_data, mesh, reference):
    surface = read_surface(shared_data / mesh)
    with np.load(shared_data / f"geodesic/{reference}.npz") as file:
        sources, expected = file["sources"], file["exact"]
    targets = np.arange(len(surface.vertices))
    first, second = np.repeat(sources, len(targets)), np.tile(targets, len(sources))
    exact = build(surface, "exact").vertex_distances(first, second).reshape(expected.shape)
    np.testing.assert_allclose(exact, expected, rtol=1e-3, atol=1e-6)
    oracle = build(surface, "heat", calibration_sources=3)
    heat = oracle.vertex_distances(first, second).reshape(expected.shape)
    far = expected > 10
    error = np.abs(heat - expected)[far] / expected[far]
    assert error.mean() < 0.03 and np.percentile(error, 95) < 0.07
    assert abs(np.median(heat[far] / expected[far]) - 1) < 0.01  # the bias is gone
    assert oracle.bias > 1.02  # and it was there before
    close = expected < 5
    assert np.abs(heat - expected)[close].max() < 0.01


def test_equals_the_reference_at_full_size(shared_data):
    surface = read_surface(shared_data / "bigbrain/surf/tpl-bigbrain_hemi-L_desc-white.surf.gii")
    with np.load(shared_data / "geodesic/ref_bigbrain_L_white164k.npz") as file:
        source, expected = int(file["sources"][1]), file["exact"][1]
    # Targets within 30 mm. The solver stops there, which takes much less time than the whole field.
    targets = np.flatnonzero(expected < 30)
    assert len(targets) > 5000
    np.testing.assert_allclose(
        Solver(surface, "exact")(source, targets), expected[targets], rtol=1e-3, atol=1e-6
    )


def test_equals_the_published_matrix(shared_data):
    folder = shared_data / "geodesic/tvb-gdist/data"
    lines = (folder / "flat_triangular_mesh.txt").read_text().split("\n")
    vertices, faces = (int(number) for number in lines[0].split())
    surface = Surface(
        np.loadtxt(lines[1 : 1 + vertices]),
        np.loadtxt(lines[1 + vertices : 1 + vertices + faces], dtype=int),
    )
    expected = np.loadtxt(folder / "flat_triangular_mesh_pairwise_matrix.txt")
    first, second = np.nonzero(expected)  # it holds six selected vertices
    assert len(first) == 30
    got = build(surface).vertex_distances(first, second)
    np.testing.assert_allclose(got, expected[first, second], atol=1e-6)


def test_hedgehog(shared_data):
    lines = (shared_data / "geodesic/tvb-gdist/data/hedgehog_mesh.txt").read_text().split("\n")
    surface = Surface(np.loadtxt(lines[1:301]), np.loadtxt(lines[301:897], dtype=int))
    np.testing.assert_allclose(build(surface).vertex_distances([0], [1]), 1.40522, atol=1e-5)


def test_flat_points_are_euclidean():
    surface = grid(7)
    face, bary = random_points(surface, 60)
    where = place(surface, face, bary)
    expected = np.linalg.norm(where[:30] - where[30:], axis=1)
    got = build(surface).distances(face[:30], bary[:30], face[30:], bary[30:])
    slack = 2 * 2 * CLEARANCE * 2**0.5  # both ends may have been moved off a side
    np.testing.assert_allclose(got, expected, atol=slack)
    matrix = build(surface).matrix(face, bary)
    np.testing.assert_allclose(matrix[np.arange(30), np.arange(30, 60)], got, rtol=1e-5)
    assert (matrix == matrix.T).all() and (matrix.diagonal() == 0).all()


def test_cube_closed_forms():
    oracle = build(cube())
    # Along an edge, across one side, and over two unfolded sides.
    got = oracle.vertex_distances([0, 0, 0, 3], [1, 3, 7, 3])
    np.testing.assert_allclose(got, [1, 2**0.5, 5**0.5, 0], rtol=1e-9)
    # Centers of opposite and of neighboring sides, at the middles of their diagonals.
    surface = oracle.surface

    def center(axis, side):
        middle = np.full(3, 0.5)
        middle[axis] = side
        for face, corners in enumerate(surface.faces):
            for pair in ((0, 1), (1, 2), (2, 0)):
                bary = np.isin(np.arange(3), pair) / 2
                if np.allclose(bary @ surface.vertices[corners], middle):
                    return face, bary
        raise AssertionError

    (a, left), (b, right), (c, top) = center(0, 0), center(0, 1), center(1, 0)
    got = oracle.distances([a, a], [left, left], [b, c], [right, top])
    np.testing.assert_allclose(got, [2, 1], atol=2 * 2 * CLEARANCE * 2**0.5)


def test_sphere_great_circles():
    surface = sphere()
    face, bary = random_points(surface, 80)
    unit = place(surface, face, bary)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    angle = np.arccos(np.clip((unit[:40] * unit[40:]).sum(1), -1, 1))
    ends = face[:40], bary[:40], face[40:], bary[40:]
    np.testing.assert_allclose(build(surface).distances(*ends), angle, rtol=5e-3, atol=2e-3)
    heat = build(surface, "heat", calibration_sources=2).distances(*ends)
    assert np.mean(np.abs(heat - angle) / angle) < 0.02


def test_symmetric_whatever_the_order_and_the_workers(monkeypatch):
    monkeypatch.setattr(solve, "POOL_FROM", 0)
    surface = sphere(3)
    face, bary = random_points(surface, 60)
    oracle = build(surface, "heat", calibration_sources=1)
    rng = np.random.default_rng(1)
    i, j = rng.integers(60, size=(2, 200))
    forward = oracle.distances(face[i], bary[i], face[j], bary[j])
    backward = oracle.distances(face[j], bary[j], face[i], bary[i], workers=2)
    assert np.array_equal(forward, backward)
    assert (forward[i == j] == 0).all() and (i == j).any()
    assert (forward[i != j] > 0).all() and np.isfinite(forward).all()


def test_insertion_keeps_distances_and_area():
    surface = grid(4)
    face, bary = random_points(surface, 200)
    bary[:20] = np.repeat(CORNERS, 7, axis=0)[:20]  # corners and repeated points
    face[20:40], bary[20:40] = face[40:60], bary[40:60]
    refined, vertex = insert_points(surface, face, bary)
    corners = refined.vertices[refined.faces]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert normal[:, 2].all() and (np.sign(normal[:, 2]) == np.sign(normal[0, 2])).all()
    np.testing.assert_allclose(np.abs(normal[:, 2]).sum() / 2, 9)
    moved = np.linalg.norm(refined.vertices[vertex] - place(surface, face, bary), axis=1)
    assert moved.max() <= 2 * CLEARANCE * 2**0.5
    assert np.array_equal(vertex[20:40], vertex[40:60])
    assert non_manifold(refined.faces) == (0, 0)
    old = np.arange(16)
    first, second = np.repeat(old, 16), np.tile(old, 16)
    before = build(surface).vertex_distances(first, second)
    np.testing.assert_allclose(build(refined).vertex_distances(first, second), before, atol=1e-9)


@pytest.mark.parametrize("method", ["exact", "heat"])
def test_components_and_unused_vertices(method):
    flat = grid(5)
    number = len(flat.vertices)
    surface = Surface(
        np.concatenate([flat.vertices, [[9, 9, 9]], flat.vertices + 20]),
        np.concatenate([flat.faces, flat.faces + number + 1]),
    )
    oracle = build(surface, method)
    got = oracle.vertex_distances(
        [0, 0, 0, number, number, number + 1], [24, number, number + 1, number, 3, number + 25]
    )
    assert np.isinf(got[[1, 2, 4]]).all() and got[3] == 0
    np.testing.assert_allclose(got[[0, 5]], 32**0.5, rtol=1e-6 if method == "exact" else 0.2)
    matrix = oracle.matrix([0, 1, len(flat.faces)], np.full((3, 3), 1 / 3))
    assert np.isinf(matrix[:2, 2]).all() and np.isfinite(matrix[:2, :2]).all()


def odd_meshes():
    flat = grid(5)
    wing = Surface(
        np.concatenate([flat.vertices, [[2, 2, 3]]]), np.concatenate([flat.faces, [[12, 13, 25]]])
    )
    bow_tie = Surface(
        np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [-1, 0, 0], [0, -1, 0]], float),
        np.array([[0, 1, 2], [0, 3, 4]]),
    )
    return {"three triangles at an edge": wing, "two parts at a vertex": bow_tie}


@pytest.mark.parametrize("name", odd_meshes())
def test_non_manifold_needs_heat(name, monkeypatch):
    surface = odd_meshes()[name]
    with pytest.raises(InputError, match="heat"):
        build(surface, "exact")
    with monkeypatch.context() as patch:  # an oracle of the usual size takes 10 s
        patch.setattr(geodesics, "build_oracle", lambda *_, **settings: "an oracle")
        assert build(surface) == "an oracle"
    with pytest.warns(UserWarning, match="error could not be measured; method oracle takes"):
        oracle = build(surface, "heat")
    number = len(surface.vertices)
    first, second = np.indices((number, number)).reshape(2, -1)
    got = oracle.vertex_distances(first, second)
    chord = np.linalg.norm(surface.vertices[first] - surface.vertices[second], axis=1)
    assert np.isfinite(got).all() and (got >= chord).all()


def finned_sphere() -> Surface:
    """Return an icosphere with one more triangle at one of its edges."""
    whole = sphere(3)
    a, b, _ = whole.faces[0]
    fin = 0.65 * (whole.vertices[[a]] + whole.vertices[[b]])
    number = len(whole.vertices)
    return Surface(
        np.concatenate([whole.vertices, fin]), np.concatenate([whole.faces, [[a, b, number]]])
    )


def walled_grid(size: int) -> Surface:
    """Return a grid with a wall on most of its middle line, along which the grid is cut."""
    flat = grid(size)
    foot = (size // 2) * size + np.arange(3 * size // 4)
    top = len(flat.vertices) + np.arange(len(foot))
    wall = [
        np.stack(f, -1) for f in ((foot[:-1], foot[1:], top[1:]), (foot[:-1], top[1:], top[:-1]))
    ]
    return Surface(
        np.concatenate([flat.vertices, flat.vertices[foot] + [0, 0, 1]]),
        np.concatenate([flat.faces, *wall]),
    )


def test_heat_is_not_compared_across_a_cut():
    """Exact distances go around the wall, once the grid is cut along it. Heat passes below it."""
    surface, flat = walled_grid(40), grid(40)
    measured = single_source.heat_bias(surface, 5, 0, 1, None)
    whole = single_source.heat_bias(flat, 5, 0, 1, None)
    assert whole.manifold and not measured.manifold
    assert abs(measured.factor - whole.factor) < 0.02 and measured.mean_error < 0.03


def test_heat_on_a_non_manifold_edge_is_measured_and_said_once():
    surface, whole = finned_sphere(), sphere(3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        oracle = build(surface, "heat")
        face, bary = random_points(whole, 100)
        oracle.distances(face[:50], bary[:50], face[50:], bary[50:])
    [warning] = [str(each.message) for each in caught]
    bias, error = (float(n) / 100 for n in re.findall(r"([-+.\d]+)%", warning))
    # The same sphere without the fin is the truth. Far pairs are those that the bias is for.
    assert abs(build(whole, "heat").bias - oracle.bias) < 0.003
    assert bias == pytest.approx(oracle.bias - 1, abs=1e-3) and abs(bias) > 1e-3
    first, second = np.random.default_rng(0).integers(len(whole.vertices), size=(2, 400))
    exact = build(whole).vertex_distances(first, second)
    far = exact > 10 * mean_edge_mm(whole)
    got = oracle.vertex_distances(first, second)
    true = (np.abs(got - exact)[far] / exact[far]).mean()
    assert far.sum() > 100 and error == pytest.approx(true, rel=0.5)


def test_the_default_suits_the_mesh(monkeypatch):
    assert build(grid(9), anchors=100).method == "oracle"
    monkeypatch.setattr(geodesics, "build_oracle", lambda *_, **settings: "an oracle")
    assert build(grid(63)).method == "exact" and build(grid(64)) == "an oracle"  # 4,096 vertices


def test_the_bias_of_heat_is_measured_in_bounds(monkeypatch):
    whole, seen = sphere(3), []
    bias = build(whole, "heat").bias
    solve_queries = single_source.solve_queries

    def solved(parts, queries, *arguments, **options):
        seen.append(max(len(targets) for _, _, targets in queries))
        return solve_queries(parts, queries, *arguments, **options)

    monkeypatch.setattr(single_source, "solve_queries", solved)
    monkeypatch.setattr(single_source, "CALIBRATION_VERTICES", 500)
    counts = []
    bounded = build(whole, "heat", progress=lambda *count: counts.append(count))
    assert seen == [642, 500] and counts == [(n, 5) for n in range(1, 6)]
    assert abs(bounded.bias - bias) < 0.01


def test_repeated_and_degenerate_triangles_change_nothing():
    flat = grid(5)
    faces = np.concatenate([flat.faces, flat.faces[:2], flat.faces[:1, [1, 0, 2]], [[0, 0, 1]]])
    pairs = np.indices((25, 25)).reshape(2, -1)
    expected = build(flat).vertex_distances(*pairs)
    got = build(Surface(flat.vertices, faces)).vertex_distances(*pairs)
    np.testing.assert_allclose(got, expected, atol=1e-12)
    # Vertex 12 coincides with its neighbor 11: a side of length 0, and triangles of area 0.
    vertices = flat.vertices.copy()
    vertices[12] = vertices[11]
    squeezed = build(Surface(vertices, flat.faces)).vertex_distances(*pairs).reshape(25, 25)
    np.testing.assert_allclose(squeezed[12], squeezed[11], atol=5e-3)
    chord = np.linalg.norm(vertices[:, None] - vertices[None], axis=2)
    np.testing.assert_allclose(squeezed, chord, atol=5e-3)  # still a flat convex square


def test_sources_cover_pairs_with_few():
    ring = np.arange(100)
    from_first = choose_sources(ring, np.roll(ring, -1))
    sources = np.where(from_first, ring, np.roll(ring, -1))
    assert len(np.unique(sources)) == 50  # the optimum on a cycle
    star = choose_sources(np.zeros(9, int), np.arange(1, 10))
    assert star.all()  # one source is enough


def test_saved_and_loaded(tmp_path):
    surface = sphere(2)
    oracle = build(surface, "heat", calibration_sources=1)
    path = tmp_path / "oracle.npz"
    oracle.save(path)
    again = load(path)
    assert again.settings == oracle.settings and again.bias == oracle.bias
    first, second = [0, 1, 2], [30, 20, 2]
    assert np.array_equal(
        again.vertex_distances(first, second), oracle.vertex_distances(first, second)
    )
    whole = path.read_bytes()
    for content in (b"", b"something else", whole[: len(whole) // 2], whole[:-30]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"oracle\.npz"):
            load(path)
    with np.load(oracle_file(oracle, tmp_path)) as file:
        arrays = dict(file)
    arrays["vertices"] = arrays["vertices"] + 1e-6
    np.savez(path, **arrays)
    with pytest.raises(InputError, match="hash"):
        load(path)
    np.savez(path, vertices=np.zeros((3, 3)))
    with pytest.raises(InputError, match="build it again"):
        load(path)


def oracle_file(oracle, folder):
    oracle.save(folder / "whole.npz")
    return folder / "whole.npz"


@pytest.mark.parametrize(
    "query",
    [
        lambda oracle: oracle.vertex_distances([0], [99]),
        lambda oracle: oracle.vertex_distances([-1], [0]),
        lambda oracle: oracle.vertex_distances([0.5], [0]),
        lambda oracle: oracle.vertex_distances([0, 1], [0]),
        lambda oracle: oracle.distances([99], [[1, 0, 0]], [0], [[1, 0, 0]]),
        lambda oracle: oracle.distances([0], [[1, 1, 0]], [0], [[1, 0, 0]]),
        lambda oracle: oracle.distances([0], [[np.nan, 1, 0]], [0], [[1, 0, 0]]),
        lambda oracle: build(oracle.surface, "dijkstra"),
        lambda oracle: build(Surface(oracle.surface.vertices, np.zeros((0, 3), int))),
    ],
)
def test_bad_queries_are_refused(query):
    with pytest.raises(InputError):
        query(build(cube()))
