"""Test the steps: equal results on any number of devices, export, batch statistics."""

import dataclasses
import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxcyto.config import AugmentConfig, LossConfig, Scales, Term
from jaxcyto.losses import coordinate_loss, distance_loss, is_batchwise
from jaxcyto.models import SiameseNet
from jaxcyto.models.cpu import kernels as cpu
from jaxcyto.training.devices import parallel
from jaxcyto.training.pretext import PretextTask as Task
from jaxcyto.training.state.state import init_state
from jaxcyto.training.step import eval_step, from_moments, statistics_step, to_moments, train_step

PAIRS = 8
SIDE = 14
NET = SiameseNet(stem_kernel=3, stem_stride=1, widths=(4, 8))


def documented_loss(name: str):
    """Return a loss from the code of docs/losses.md."""
    text = (Path(__file__).resolve().parents[2] / "docs" / "losses.md").read_text()
    namespace: dict = {}
    for block in re.findall(r"```python\n# my_losses\.py\n(.*?)```", text, re.DOTALL):
        exec(block, namespace)
    return namespace[name]


def make_task(**changes) -> Task:
    scales = Scales(
        distance_mm=20.0,
        coordinate_low_mm=(-30.0, -40.0, -20.0),
        coordinate_high_mm=(30.0, 50.0, 25.0),
        input_mean=128.0,
        input_std=60.0,
    )
    terms = (Term(distance_loss, 1.0), Term(coordinate_loss, 10.0))
    task = Task(
        model=NET,
        loss=LossConfig(terms=terms),
        augment=AugmentConfig(flip=False, rotate=False, brightness=0.0, contrast=0.0),
        scales=scales,
        optimizer=optax.sgd(1e-3, momentum=0.9, nesterov=True),
        seed=3,
    )
    return dataclasses.replace(task, **changes)


def make_batch(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    distances = rng.uniform(1, 60, (2 * PAIRS, 2 * PAIRS)).astype(np.float32)
    distances += distances.T
    distances[:4, 8:] = np.inf  # other hemisphere
    distances[8:, :4] = np.inf
    # Each pair has its own brightness, so that the statistics of the shards differ.
    gray = rng.integers(0, 100, (PAIRS, 2, SIDE, SIDE, 1)) + 15 * np.arange(PAIRS).reshape(
        -1, 1, 1, 1, 1
    )
    return {
        "patches": gray.astype(np.uint8),
        "distance_mm": rng.uniform(1, 60, PAIRS).astype(np.float32),
        "coordinates_mm": rng.uniform(-40, 40, (PAIRS, 2, 3)).astype(np.float32),
        "index": np.arange(PAIRS, dtype=np.int32) + 1000,
        "valid": np.ones(PAIRS, bool),
        "all_distances_mm": distances,
    }


def fresh_state(task: Task):
    return init_state(task.model, (jnp.zeros((1, 2, SIDE, SIDE, 1)),), task.optimizer, seed=1)


def run_single(task: Task, steps: int = 3):
    step = jax.jit(functools.partial(train_step, task=task))
    state = fresh_state(task)
    for k in range(steps):
        state, measured = step(state, make_batch(k))
    return jax.device_get((state, measured))


def run_pmapped(task: Task, devices: int, steps: int = 3):
    local = jax.local_devices()[:devices]
    mesh = Mesh(np.array(local), (parallel.AXIS,))
    step = jax.pmap(
        functools.partial(train_step, task=task, axis_name=parallel.AXIS),
        axis_name=parallel.AXIS,
        in_axes=(None, 0),
        out_axes=(None, None),
        devices=local,
    )
    state = jax.device_put(fresh_state(task), NamedSharding(mesh, PartitionSpec()))
    for k in range(steps):
        batch = jax.tree.map(
            lambda x: x.reshape(devices, x.shape[0] // devices, *x.shape[1:]), make_batch(k)
        )
        state, measured = step(state, batch)
    return jax.device_get((state, measured))


def assert_close(a, b, tolerance):
    """Compare leaves relative to their largest value, because rounding errors scale with it."""

    def close(x, y):
        scale = max(float(np.abs(y).max()), 1e-3)
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * scale)

    jax.tree.map(close, a, b)


@pytest.mark.parametrize("devices", [1, 4, 8])
def test_devices_agree(devices):
    """Compare parameters, statistics and metrics, with augmentation and shards that differ."""
    all_pairs = documented_loss("all_pairs_relative_loss")
    assert is_batchwise(all_pairs)
    terms = (Term(distance_loss, 1.0), Term(coordinate_loss, 10.0), Term(all_pairs, 0.5))
    task = make_task(loss=LossConfig(terms), augment=AugmentConfig(noise=0.1, blur_px=0.3))
    single, parallel_run = run_single(task), run_pmapped(task, devices)
    assert set(single[1]["scalars"]) >= {
        "loss",
        "loss/all_pairs_relative_loss",
        "loss/distance_loss",
    }
    assert_close(single, parallel_run, 2e-5)


def test_shards_differ():
    """`test_devices_agree` is not trivial: one shard alone gives other statistics."""
    task = make_task()
    batch = jax.tree.map(lambda x: x[:2], make_batch() | {"all_distances_mm": np.zeros((2, 2))})
    state = fresh_state(task)
    one, _ = jax.jit(functools.partial(train_step, task=task))(state, batch)
    whole, _ = jax.jit(functools.partial(train_step, task=task))(state, make_batch())
    first = jax.tree.leaves(one.batch_stats)[0] - jax.tree.leaves(whole.batch_stats)[0]
    assert np.abs(first).max() > 1e-3


def test_pmap_of_the_project_is_the_step():
    """`parallel.pmap_train` over all local devices takes the same step as a single device."""
    task = make_task()
    step = parallel.pmap_train(train_step, task=task)
    batch = parallel.split_over_devices(make_batch())
    state, _ = step(parallel.replicate(fresh_state(task)), batch)
    assert_close(jax.device_get(state), run_single(task, steps=1)[0], 2e-5)


def test_gradient_is_the_sum_of_its_terms():
    """An SGD step is the sum of the steps of its terms: distance, coordinates and norm."""
    batch = make_batch()
    moves = []
    for terms, decay in (
        ((Term(distance_loss, 1.0),), 0.0),
        ((Term(coordinate_loss, 10.0),), 0.0),
        ((), 0.001),
        ((Term(distance_loss, 1.0), Term(coordinate_loss, 10.0)), 0.001),
    ):
        task = make_task(loss=LossConfig(terms, decay), optimizer=optax.sgd(0.1))
        state = fresh_state(task)
        new, _ = jax.jit(functools.partial(train_step, task=task))(state, batch)
        moves.append(jax.tree.map(jnp.subtract, new.params, state.params))
    total = jax.tree.map(lambda a, b, c: a + b + c, *moves[:3])
    assert_close(total, moves[3], 1e-5)
    kernel = fresh_state(make_task()).params["features"]["kernel"]
    np.testing.assert_allclose(moves[2]["features"]["kernel"], -0.1 * 0.002 * kernel, atol=1e-7)
    assert not moves[2]["features"]["bias"].any()


def test_reestimated_statistics_are_those_of_one_large_batch():
    """Moments of the first layer, averaged over two batches, are the moments of their union.

    In later layers this holds only approximately, because each batch is normalized by itself.
    """
    task = make_task()
    state = fresh_state(task)
    step = jax.jit(functools.partial(statistics_step, task=task))
    first, second = make_batch(0), make_batch(5)
    average = jax.tree.map(lambda a, b: (a + b) / 2, step(state, first), step(state, second))
    union = jax.tree.map(lambda a, b: np.concatenate([a, b]), first, second)
    union.pop("all_distances_mm")
    both = from_moments(step(state, union))
    layer = ("encoder", "block1", "bn1")
    for found, wanted in zip(
        jax.tree.leaves(functools.reduce(dict.get, layer, from_moments(average))),
        jax.tree.leaves(functools.reduce(dict.get, layer, both)),
        strict=True,
    ):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)
    stats = state.batch_stats
    assert_close(from_moments(to_moments(stats)), stats, 1e-6)


def test_targets_are_scaled_as_documented():
    """Distances are in units of `distance_mm`, coordinates in -1 ... 1 over their range."""
    task, batch = make_task(), make_batch()
    found = task.inputs(batch, None)
    np.testing.assert_allclose(found["distance_scaled"], batch["distance_mm"] / 20, rtol=1e-6)
    finite = np.isfinite(batch["all_distances_mm"])
    wanted = batch["all_distances_mm"][finite] / 20
    np.testing.assert_allclose(found["all_distances_scaled"][finite], wanted, rtol=1e-6)
    scales = task.scales
    for k, (low, high) in enumerate(
        zip(scales.coordinate_low_mm, scales.coordinate_high_mm, strict=True)
    ):
        wanted = np.interp(batch["coordinates_mm"][..., k], [low, high], [-1, 1])
        inside = np.abs(wanted) < 1
        assert inside.any()
        np.testing.assert_allclose(
            found["coordinates_scaled"][..., k][inside], wanted[inside], atol=1e-5
        )


@pytest.mark.parametrize("change", ["seed", "step", "index"])
def test_augmentation_depends_on_seed_step_and_example(change):
    """The same batch is augmented in another way if one of the three differs."""
    task = make_task(augment=AugmentConfig(noise=0.5))
    batch, state = make_batch(), fresh_state(task)

    def loss(task, state, batch):
        _, measured = jax.jit(functools.partial(train_step, task=task))(state, batch)
        return float(measured["scalars"]["loss"])

    same, other = loss(task, state, batch), (task, state, batch)
    if change == "seed":
        other = dataclasses.replace(task, seed=task.seed + 1), state, batch
    if change == "step":
        other = task, dataclasses.replace(state, step=state.step + 1), batch
    if change == "index":
        other = task, state, batch | {"index": batch["index"] + PAIRS}
    assert loss(task, state, batch) == same != loss(*other)


def test_evaluation_ignores_padding():
    task = make_task()
    state = fresh_state(task)
    step = jax.jit(functools.partial(eval_step, task=task))
    batch = make_batch()
    batch["valid"][5:] = False
    errors, predictions = step(state, batch)
    expected = np.abs(predictions["distance_mm"] - batch["distance_mm"])[:5].mean()
    total, count = errors["eval"]["distance_mae_mm"]
    assert count == 5
    np.testing.assert_allclose(total / count, expected, rtol=1e-5)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_step_exports(platform, monkeypatch):
    """The step of one device can be lowered for each backend."""
    # oneDNN kernels are custom calls of this machine, which cannot be exported.
    monkeypatch.setattr(cpu, "available", lambda: False)
    jax.clear_caches()
    task = make_task()
    state = fresh_state(task)
    flat, tree = jax.tree.flatten(state)

    def step(leaves, batch):
        return jax.tree.leaves(train_step(jax.tree.unflatten(tree, leaves), batch, task=task))

    exported = jax.export.export(jax.jit(step), platforms=[platform])(flat, make_batch())
    assert exported.platforms == (platform,)
    assert len(exported.mlir_module_serialized) > 1000
