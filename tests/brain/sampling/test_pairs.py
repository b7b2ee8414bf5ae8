"""Test pairs: which patches are paired, distances against great circles, files."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from minimal_brain import make_ball
from PIL import Image

from jaxcyto.brain import prepare
from jaxcyto.brain.geodesics import oracle_build
from jaxcyto.brain.geodesics import solvers as solve
from jaxcyto.brain.manifest import Brain, Hemisphere
from jaxcyto.brain.prepare import draw_histogram, histogram_path, pair_shard
from jaxcyto.brain.sampling import pairing
from jaxcyto.brain.sampling.pair_sampling import draw_pairs
from jaxcyto.brain.sampling.pairing import PairSettings, make_pairs, oracle_path
from jaxcyto.brain.sampling.pairs import Pairs, load_pairs
from jaxcyto.brain.sampling.patches import Patches
from jaxcyto.brain.surfaces.surface import Surface, write_surface
from jaxcyto.cli import main
from jaxcyto.errors import InputError

CENTERS = np.array([[-20.0, 0, 0], [20.0, 0, 0]])


def ball(steps: int = 24) -> Surface:
    """Return a unit sphere of latitudes and longitudes."""
    theta = np.linspace(0, np.pi, steps + 1)[1:-1]
    phi = np.linspace(0, 2 * np.pi, 2 * steps, endpoint=False)
    t, p = np.meshgrid(theta, phi, indexing="ij")
    ring = np.stack([np.sin(t) * np.cos(p), np.sin(t) * np.sin(p), np.cos(t)], -1).reshape(-1, 3)
    number = np.arange(len(ring)).reshape(t.shape)
    a, b, c, d = number[:-1], np.roll(number, -1, 1)[:-1], number[1:], np.roll(number, -1, 1)[1:]
    top, low, pole = number[0], number[-1], np.full_like(number[0], len(ring))
    faces = [(a, c, d), (a, d, b), (pole, top, np.roll(top, -1)), (pole + 1, np.roll(low, -1), low)]
    vertices = np.concatenate([ring, [[0, 0, 1], [0, 0, -1]]])
    return Surface(vertices, np.concatenate([np.stack(f, -1).reshape(-1, 3) for f in faces]))


def make(root: Path, number=120, seed=0) -> tuple[Brain, Patches]:
    """Write two unit spheres as hemispheres, with random patches in all splits."""
    surface, rng = ball(), np.random.default_rng(seed)
    hemispheres = []
    for name, center in zip("LR", CENTERS, strict=True):
        path = root / f"{name}.gii"
        write_surface(path, Surface(surface.vertices + center, surface.faces))
        hemispheres.append(Hemisphere(name, mid=path))
    hemisphere = rng.integers(2, size=number).astype(np.int8)
    face = rng.integers(len(surface.faces), size=number).astype(np.int32)
    bary = rng.dirichlet([1, 1, 1], number).astype(np.float32)
    position = np.einsum("nk,nkd->nd", bary, surface.vertices[surface.faces[face]])
    patches = Patches(
        section=np.zeros(number, np.int32),
        center_px=np.zeros((number, 2)),
        position_mm=np.float32(position + CENTERS[hemisphere]),
        hemisphere=hemisphere,
        face=face,
        bary=bary,
        split=rng.integers(3, size=number).astype(np.uint8),
        settings={},
    )
    patches.save(root / "patches.npz")
    return Brain(root, "two", tuple(hemispheres), (), ()), patches


def pair(brain: Brain, patches: Patches, *, workers=None, progress=None, **settings) -> Pairs:
    return make_pairs(brain, patches, PairSettings(**settings), workers=workers, progress=progress)


def great_circle(patches: Patches, first, second) -> np.ndarray:
    unit = patches.position_mm - CENTERS[patches.hemisphere]
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    return np.arccos(np.clip((unit[first] * unit[second]).sum(1), -1, 1))


@pytest.mark.parametrize("times", [0.6, 1, 1.5, 4])
def test_every_patch_is_paired_within_its_group(times):
    rng = np.random.default_rng(0)
    group = rng.integers(4, size=101)
    number = int(times * 101)
    first, second = draw_pairs(group, number, seed=1)
    assert len(first) == len(second) == number
    assert (group[first] == group[second]).all() and (first != second).all()
    count = np.bincount(np.concatenate([first, second]), minlength=101)
    assert count.min() >= 1
    if times == 1:
        assert (count == 2).all()
    again = draw_pairs(group, number, seed=1)
    assert np.array_equal(again, (first, second))
    assert not np.array_equal(draw_pairs(group, number, seed=2), (first, second))


def test_pairs_are_random_within_the_group():
    group = np.zeros(10, int)
    first, second = draw_pairs(group, 45_000, seed=0)
    count = np.zeros((10, 10))
    np.add.at(count, (first, second), 1)
    every = count[~np.eye(10, dtype=bool)]  # all 90 ordered pairs, 500 times each
    assert every.min() > 400 and every.max() < 600
    assert (count.diagonal() == 0).all()


def test_groups_of_two_and_of_one():
    first, second = draw_pairs(np.array([0, 0]), 3, seed=0)
    assert (np.sort([first, second], axis=0) == [[0], [1]]).all()
    with pytest.warns(UserWarning, match="1 patches"):
        first, second = draw_pairs(np.array([0, 1, 0]), 2, seed=0)
    assert 1 not in np.concatenate([first, second])
    with pytest.raises(InputError, match="no two patches"), pytest.warns(UserWarning):
        draw_pairs(np.arange(3), 2, seed=0)
    with pytest.raises(InputError, match="3 are needed"):
        draw_pairs(np.array([0, 0, 0, 1, 1]), 2, seed=0)


def test_distances_are_great_circles(tmp_path):
    brain, patches = make(tmp_path)
    pairs = pair(brain, patches, num_pairs=150, workers=1)
    expected = great_circle(patches, pairs.first, pairs.second)
    np.testing.assert_allclose(pairs.distance_mm, expected, rtol=0.01, atol=0.01)
    for name in ("hemisphere", "split"):
        column = getattr(patches, name)
        assert (column[pairs.first] == column[pairs.second]).all()
    assert len(np.unique(np.concatenate([pairs.first, pairs.second]))) == len(patches)
    assert pairs.distance_mm.dtype == np.float32 and pairs.first.dtype == np.int32
    train = np.flatnonzero(patches.split[pairs.first] == 0)
    assert (patches.split[pairs.second[train]] == 0).all() and 0 < len(train) < 150


def test_workers_and_methods(tmp_path, monkeypatch):
    brain, patches = make(tmp_path)
    one = pair(brain, patches, workers=1, seed=5)
    monkeypatch.setattr(solve, "POOL_FROM", 0)
    two = pair(brain, patches, workers=2, seed=5)
    assert np.array_equal(one.first, two.first) and np.array_equal(one.distance_mm, two.distance_mm)
    heat = pair(brain, patches, method="heat", workers=1, seed=5)
    assert np.array_equal(one.first, heat.first)
    error = np.abs(one.distance_mm - heat.distance_mm) / one.distance_mm
    assert 0 < error.mean() < 0.03
    assert heat.settings["bias"].keys() == {"L", "R"}


def test_all_distances(tmp_path):
    brain, patches = make(tmp_path, 60)
    seen = []
    pairs = pair(
        brain, patches, all_distances=True, workers=1, progress=lambda *count: seen.append(count)
    )
    matrix = np.load(tmp_path / "patches_distances.npy")
    assert matrix.dtype == np.float32 and matrix.shape == (60, 60)
    assert (matrix == matrix.T).all() and (matrix.diagonal() == 0).all()
    same = patches.hemisphere[:, None] == patches.hemisphere
    assert np.array_equal(np.isfinite(matrix), same)
    assert np.array_equal(matrix[pairs.first, pairs.second], pairs.distance_mm)
    first, second = np.nonzero(same)
    np.testing.assert_allclose(
        matrix[first, second], great_circle(patches, first, second), rtol=0.01, atol=0.01
    )
    assert seen[-1][0] == seen[-1][1] and sum(done == total for done, total in seen) == 2


def test_saved_and_loaded(tmp_path):
    brain, patches = make(tmp_path, 40)
    pairs = pair(brain, patches, workers=1)
    path = tmp_path / "pairs.npz"
    pairs.save(path)
    again = load_pairs(path)
    for field in dataclasses.fields(pairs):
        saved, loaded = getattr(pairs, field.name), getattr(again, field.name)
        assert np.array_equal(saved, loaded) if isinstance(saved, np.ndarray) else saved == loaded
    whole = path.read_bytes()
    for content in (b"", whole[:200], whole[:-9]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"pairs\.npz"):
            load_pairs(path)
    path.write_bytes(whole)
    dataclasses.replace(patches, settings={"seed": 1}).save(tmp_path / "patches.npz")
    with pytest.raises(InputError, match="another patches"):
        load_pairs(path)
    dataclasses.replace(pairs, patches_file="../patches.npz").save(path)
    with pytest.raises(InputError, match="leaves the folder"):
        load_pairs(path)


def test_bad_settings_are_refused(tmp_path):
    brain, patches = make(tmp_path, 40)
    for settings in ({"num_pairs": 0}, {"num_pairs": 3}, {"method": "dijkstra"}):
        with pytest.raises(InputError):
            pair(brain, patches, workers=1, **settings)
    foreign = dataclasses.replace(patches, face=patches.face + 5000)
    with pytest.raises(InputError, match="sample"):
        pair(brain, foreign, workers=1)
    (tmp_path / "patches.npz").unlink()
    with pytest.raises(InputError, match="no such file"):
        pair(brain, patches)


def test_the_oracle_is_kept_and_close_to_great_circles(tmp_path, monkeypatch):
    brain, patches = make(tmp_path)
    settings = {"method": "oracle", "anchors": 300, "workers": 1}
    pairs = pair(brain, patches, num_pairs=200, **settings)
    expected = great_circle(patches, pairs.first, pairs.second)
    error = np.abs(pairs.distance_mm - expected) / np.maximum(expected, 0.2)
    assert error.mean() < 0.01 and np.percentile(error, 95) < 0.03
    assert pairs.settings["mean_error"].keys() == {"L", "R"}
    pairs.save(tmp_path / "pairs.npz")
    assert load_pairs(tmp_path / "pairs.npz").settings == pairs.settings
    kept = [oracle_path(brain, index) for index in range(2)]
    assert all(path.is_file() for path in kept)
    monkeypatch.setattr(oracle_build, "build_oracle", None)  # nothing is built again
    other = pair(brain, patches, seed=1, **settings)
    assert not np.array_equal(other.first, pairs.first[: len(other)])
    full = pair(brain, patches, num_pairs=200, all_distances=True, **settings)
    np.testing.assert_allclose(full.distance_mm, pairs.distance_mm, rtol=1e-5, atol=1e-5)


def test_even_distances(tmp_path):
    brain, patches = make(tmp_path, 300)
    settings = {"num_pairs": 600, "anchors": 200, "workers": 1}
    pairs = pair(brain, patches, method="auto", even_distances=True, **settings)
    random = pair(brain, patches, method="heat", num_pairs=600, workers=1)
    bins = np.linspace(0.1, 3, 9)
    even, uneven = (np.histogram(p.distance_mm, bins)[0] for p in (pairs, random))
    assert pairs.settings["method"] == "oracle" and len(pairs) == 600
    assert even.std() / even.mean() < 0.5 * uneven.std() / uneven.mean()
    assert len(np.unique([pairs.first, pairs.second])) == len(patches)
    for name in ("hemisphere", "split"):
        column = getattr(patches, name)
        assert (column[pairs.first] == column[pairs.second]).all()
    expected = great_circle(patches, pairs.first, pairs.second)
    np.testing.assert_allclose(pairs.distance_mm, expected, rtol=0.05, atol=0.01)
    for wrong in ({"method": "heat"}, {"method": "auto", "num_pairs": 299}):
        with pytest.raises(InputError, match="even_distances"):
            pair(brain, patches, even_distances=True, **settings | wrong)


def test_near_pairs(tmp_path):
    brain, patches = make(tmp_path, 300)
    settings = {"method": "heat", "workers": 1}
    with pytest.warns(UserWarning, match=r"of 300 patches have none"):
        pairs = pair(brain, patches, num_pairs=300, within_mm=0.2, **settings)
    expected = great_circle(patches, pairs.first, pairs.second)
    np.testing.assert_allclose(pairs.distance_mm, expected, atol=0.02)
    assert pairs.distance_mm.max() <= 0.2 and pairs.settings["within_mm"] == 0.2
    keys = {tuple(sorted(pair)) for pair in zip(pairs.first, pairs.second, strict=True)}
    assert len(keys) == len(pairs) <= 300
    for name in ("hemisphere", "split"):
        column = getattr(patches, name)
        assert (column[pairs.first] == column[pairs.second]).all()
    # Every patch with a partner is in a pair. The margin of 0.02 covers the error of the method.
    first, second = np.triu_indices(len(patches), 1)
    same = patches.hemisphere[first] == patches.hemisphere[second]
    near = same & (patches.split[first] == patches.split[second])
    near[near] = great_circle(patches, first[near], second[near]) <= 0.18
    assert set(np.union1d(first[near], second[near])) <= set(np.union1d(pairs.first, pairs.second))
    for wrong in ({"within_mm": 0.0}, {"within_mm": 1e-6}, {"within_mm": np.nan}):
        with pytest.raises(InputError, match="within_mm"):
            pair(brain, patches, **settings | wrong)
    with pytest.raises(InputError, match="either"):
        pair(brain, patches, within_mm=1.0, even_distances=True)


def test_auto_takes_the_oracle_where_it_pays(tmp_path, monkeypatch):
    brain, patches = make(tmp_path)
    assert pair(brain, patches, method="auto", workers=1).settings["method"] == "heat"
    monkeypatch.setattr(pairing, "ORACLE_VERTICES", 1000)
    monkeypatch.setattr(pairing, "ORACLE_PAIRS", 120)
    for number, method in ((119, "heat"), (120, "oracle")):
        made = pair(brain, patches, method="auto", num_pairs=number, workers=1, anchors=100)
        assert made.settings["method"] == method


def test_shards_are_taken_by_the_run_that_follows(tmp_path, monkeypatch):
    brain, patches = make(tmp_path)
    settings = {"anchors": 200, "workers": 1}
    monkeypatch.setattr(prepare, "read_brain", lambda root: brain)
    for index in (1, 2):
        pair_shard(tmp_path, (index, 2), **settings)
    pairs = pair(brain, patches, method="oracle", **settings)
    pair_shard(tmp_path, (2, 2), **settings)  # a late job
    assert not list(tmp_path.glob("*.parts"))
    again = tmp_path / "again"
    again.mkdir()
    brain, patches = make(again)
    alone = pair(brain, patches, method="oracle", **settings)
    assert np.array_equal(alone.distance_mm, pairs.distance_mm)


def test_histogram_beside_the_pairs(tmp_path):
    brain, patches = make(tmp_path, 40)
    pairs = pair(brain, patches, workers=1)
    path = histogram_path(tmp_path / "pairs.npz")
    draw_histogram(path, pairs)
    assert path.name == "pairs_distances.png"
    with Image.open(path) as image:
        assert min(image.size) > 100
        assert len(np.unique(np.asarray(image.convert("L")))) > 2


def test_the_command_solves_shards(tmp_path):
    root = make_ball(tmp_path / "ball")
    run = CliRunner().invoke
    done = run(main, ["pair", str(root), "--shard", "2/1000", "--workers", "1"])
    assert done.exit_code == 0 and "part 2/1000 solved" in done.stdout
    assert [path.name for path in root.glob("oracle_0_left.npz.parts/*")] == ["field_00001.npz"]
    assert not (root / "pairs.npz").exists()
    for wrong in (["--shard", "3/2"], ["--shard", "x"], ["--shard", "1/2", "--method", "heat"]):
        refused = run(main, ["pair", str(root), *wrong])
        assert refused.exit_code == 2 and "--shard" in refused.stderr
