"""Test losses and gradients that are not finite: named, never saved, skipped if configured."""

import functools
import logging
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from orbax.checkpoint import v1 as ocp
from test_step import PAIRS, fresh_state, make_batch, make_task

from jaxcyto.config import (
    AugmentConfig,
    Config,
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    Term,
)
from jaxcyto.data.pair_batches import PairSource, pair_train_batches
from jaxcyto.data.pair_table import open_pairs
from jaxcyto.losses import distance_loss
from jaxcyto.runs.metrics_file import read_metrics
from jaxcyto.training import loop
from jaxcyto.training.devices import parallel
from jaxcyto.training.state.optim import make_optimizer
from jaxcyto.training.step import train_step

NO_AUGMENT = AugmentConfig(False, False, brightness=0.0, contrast=0.0, blur_px=0.0)
FAR_MM = 1000.0  # a distance that no pair has, which marks a bad example


def infinite_loss(outputs, batch):
    """Return infinity, with a gradient of zero, for a bad example."""
    del outputs
    return jnp.where(batch["distance_mm"] >= FAR_MM, jnp.inf, 0.0)


def infinite_gradient(outputs, batch):
    """Return zero, with a gradient that is not finite (sqrt at zero), for a bad example."""
    far = (batch["distance_mm"] >= FAR_MM).astype(jnp.float32)
    size = jnp.sum(outputs["features"] ** 2, axis=(1, 2))
    return jnp.sqrt(size * (1 - far)) * 0 * far


def both(outputs, batch):
    return infinite_loss(outputs, batch) * outputs["features"][:, 0, 0]


def bad_batch(seed):
    """Return a batch with one bad example, which one device of many sees."""
    batch = make_batch(seed)
    batch["distance_mm"][PAIRS // 2] = FAR_MM
    return batch


def task_that_skips(term, count, **optim):
    config = OptimConfig(learning_rate=1e-3, decay="constant", skip_nonfinite=count, **optim)
    return make_task(
        loss=LossConfig((Term(distance_loss), Term(term))),
        augment=NO_AUGMENT,  # augmentation depends on the step, and skipped steps count
        optimizer=make_optimizer(config, 100),
    )


def run(task, batches, devices):
    """Return state and metrics after each of the batches."""
    if devices == 1:
        step = jax.jit(functools.partial(train_step, task=task))
        state = fresh_state(task)
    else:
        step = parallel.pmap_train(train_step, task=task)
        state = parallel.replicate(fresh_state(task))
        batches = [parallel.split_over_devices(batch) for batch in batches]
    seen = []
    for batch in batches:
        state, measured = step(state, batch)
        seen.append(jax.device_get((state, measured)))
    return seen


@pytest.mark.parametrize(
    ("term", "devices"), [(infinite_loss, 1), (infinite_gradient, 1), (both, 8)]
)
def test_a_skipped_step_leaves_no_trace(term, devices):
    """Parameters, statistics and momentum equal those of a run without the bad batches."""
    task = task_that_skips(term, 2, clip_norm=1.0)
    good = [make_batch(k) for k in range(2)]
    clean = run(task, good, devices)[-1][0]
    seen = run(task, [good[0], bad_batch(7), bad_batch(8), good[1]], devices)
    for state, measured in seen:
        assert measured["checks"]["finite"]
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    assert [int(measured["checks"]["skipped"]) for _, measured in seen] == [0, 1, 2, 0]
    assert [int(measured["scalars"]["skipped_steps"]) for _, measured in seen] == [0, 1, 2, 2]
    last = seen[-1][0]
    assert last.step == 4
    for found, wanted in (
        (last.params, clean.params),
        (last.batch_stats, clean.batch_stats),
        (last.opt_state.inner_state, clean.opt_state.inner_state),
    ):
        jax.tree.map(np.testing.assert_array_equal, found, wanted)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), seen[0][0].params, last.params)
    assert max(jax.tree.leaves(moved)) > 0


def test_more_in_a_row_than_allowed_is_not_finite():
    task = task_that_skips(infinite_loss, 2)
    seen = run(task, [bad_batch(k) for k in range(3)], 1)
    assert [bool(measured["checks"]["finite"]) for _, measured in seen] == [True, True, False]


def test_without_skipping_nothing_is_wrapped():
    config = OptimConfig(learning_rate=0.1, decay="constant")
    task = make_task(optimizer=make_optimizer(config, 100))
    plain = make_task(optimizer=optax.sgd(optax.constant_schedule(0.1), 0.9, nesterov=True))
    (found, measured), (wanted, _) = (run(each, [make_batch()], 1)[0] for each in (task, plain))
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    assert "skipped_steps" not in measured["scalars"]


# ---- in the loop -------------------------------------------------------------------------------

BAD_STEP = 3


@pytest.fixture
def config(tiny_brain):
    """Return a config, the index of a pair whose loss is not finite, and the pair's section.

    Of the five batches, only the third (BAD_STEP) contains the pair.
    """
    data = DataConfig((str(tiny_brain),), patch_px=32, um_per_px=64.0, batch_pairs=8, threads=2)
    table = open_pairs(data)
    batch = pair_train_batches(PairSource(table, data), table, data, seed=0)[BAD_STEP - 1]
    bad = int(batch["index"][5])

    def bad_pair(outputs, batch):
        del outputs
        return jnp.where(batch["index"] == bad, jnp.nan, 0.0)

    config = Config(
        data=data,
        model=ModelConfig(stem_kernel=3, stem_stride=1, widths=(4, 4, 8)),
        augment=AugmentConfig(noise=0.1),
        loss=LossConfig((Term(distance_loss), Term(bad_pair))),
        optim=OptimConfig(decay="constant"),
        steps=5,
        log_every=100,
        eval_every=100,
        eval_pairs=8,
        batch_stats_steps=1,
        checkpoint_every=100,
    )
    section = table.brains[0].sections[table.patches[0].section[table.first[bad]]]
    return config, bad, section


def saved_steps(folder):
    """Return the steps of all checkpoints, after checking that each is finite."""
    steps = sorted(int(path.name) for path in (folder / "checkpoints").iterdir())
    for step in steps:
        state = ocp.load_checkpointables(folder / "checkpoints" / str(step))["state"]
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    return steps


def test_first_step_is_named_though_looked_at_later(config, tmp_path):
    """The host looks two steps later, but the message names the first step and its files."""
    config, bad, section = config
    with pytest.raises(FloatingPointError) as stopped:
        loop.train(config, tmp_path)
    message = str(stopped.value)
    assert re.search(rf"the loss is nan, the gradient's norm [\d.]+ at step {BAD_STEP};", message)
    assert str(bad) in message and f"section {section.name} ({section.image})" in message
    assert saved_steps(tmp_path) == []
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1]


def test_nothing_that_is_not_finite_is_saved(config, tmp_path):
    config = config[0]
    config.checkpoint_every = 1
    for _ in range(2):  # the second start fails again, from the last checkpoint
        with pytest.raises(FloatingPointError, match=f"at step {BAD_STEP};"):
            loop.train(config, tmp_path)
        assert saved_steps(tmp_path) == [1, 2]


def test_a_run_that_stopped_goes_on_with_skipping(config, tmp_path):
    """`skip_nonfinite` may be switched on and off, although it adds counters to checkpoints."""
    config = config[0]
    config.checkpoint_every = 1
    with pytest.raises(FloatingPointError, match=r"optim\.skip_nonfinite"):
        loop.train(config, tmp_path)
    config.optim.skip_nonfinite, config.steps = 3, 4
    loop.train(config, tmp_path)
    config.optim.skip_nonfinite, config.steps = 0, 5
    loop.train(config, tmp_path)
    lines = [line for line in read_metrics(tmp_path / "metrics.jsonl") if "train/loss" in line]
    assert [line.get("train/skipped_steps") for line in lines] == [None, 1, None]


def test_skipped_step_is_logged_counted_and_resumed(config, tmp_path, caplog):
    config = config[0]
    config.optim.skip_nonfinite = 1
    config.steps = 4
    with caplog.at_level(logging.INFO, "jaxcyto"):
        loop.train(config, tmp_path)
    assert re.search(rf"skipped: the loss is nan, .* at step {BAD_STEP}; pairs", caplog.text)
    assert "1 steps skipped" in caplog.text
    config.steps = 5
    loop.train(config, tmp_path)
    lines = [line for line in read_metrics(tmp_path / "metrics.jsonl") if "train/loss" in line]
    counts = {line["step"]: line["train/skipped_steps"] for line in lines}
    assert counts == {1: 0, 4: 1, 5: 1}
    assert saved_steps(tmp_path)[-1] == 5


def test_optimizer_that_breaks_the_parameters_is_caught(config, tmp_path):
    """Loss and gradient are finite, but the updated parameters are not."""
    config = config[0]

    def breaking(learning_rate):
        def update(updates, state, params=None):
            del params
            factor = jnp.where(state == 1, jnp.inf, learning_rate(0))
            return jax.tree.map(lambda x: -factor * x, updates), state + 1

        return optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), update)

    config.optim.optimizer = breaking
    config.checkpoint_every = 1
    with pytest.raises(FloatingPointError, match=r"step 2, but what it makes of parameters"):
        loop.train(config, tmp_path)
    assert saved_steps(tmp_path) == [1]
