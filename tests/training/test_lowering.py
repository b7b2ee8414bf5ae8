"""The steps lower for TPU and CUDA, and `shard_map` computes what `pmap` computes."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, PartitionSpec

from jaxcyto.batch_losses import all_pairs_distance_loss
from jaxcyto.config import AugmentConfig, InputScales, LossConfig, Scales, Term
from jaxcyto.losses import coordinate_loss, cross_entropy, distance_loss
from jaxcyto.models import Geometry, SiameseNet, UNet
from jaxcyto.training.devices import parallel
from jaxcyto.training.pretext import PretextTask
from jaxcyto.training.segment import SegmentTask
from jaxcyto.training.state.state import State, init_state
from jaxcyto.training.step import eval_step, train_step

SMALL: dict = {"stem_kernel": 3, "stem_stride": 1, "widths": (4, 4, 8)}
SIZE = 16


def pretext(dtype: str) -> tuple:
    """Return the task of pre-training, its initial state and a batch."""
    terms = (Term(distance_loss), Term(coordinate_loss, 10.0), Term(all_pairs_distance_loss, 3.0))
    model = SiameseNet(features=5, dtype=jnp.dtype(dtype), **SMALL)
    optimizer = optax.sgd(0.01, momentum=0.9)
    scales = Scales(distance_mm=20.0, input_mean=128.0, input_std=50.0)
    task = PretextTask(model, LossConfig(terms=terms), AugmentConfig(noise=0.1), scales, optimizer)
    rng = np.random.default_rng(0)
    batch = {
        "patches": rng.integers(0, 256, (SIZE, 2, 32, 32, 1), np.uint8),
        "distance_mm": rng.uniform(1, 60, SIZE).astype(np.float32),
        "coordinates_mm": rng.uniform(-1, 1, (SIZE, 2, 3)).astype(np.float32),
        "all_distances_mm": rng.uniform(1, 60, (2 * SIZE, 2 * SIZE)).astype(np.float32),
        "index": np.arange(SIZE, dtype=np.int32),
        "valid": np.ones(SIZE, bool),
    }
    return task, init_state(model, (batch["patches"][:1] / 1.0,), optimizer, 0), batch


def segmentation(dtype: str) -> tuple:
    """Return the task of segmentation with an atlas, its initial state and a batch."""
    model = UNet(num_classes=3, dtype=jnp.dtype(dtype), **SMALL)
    optimizer = optax.adam(0.01)
    loss = LossConfig(terms=(Term(cross_entropy),))
    task = SegmentTask(model, loss, AugmentConfig(), InputScales(128.0, 50.0), optimizer)
    rng, geometry = np.random.default_rng(0), Geometry.of(model)
    side = geometry.smallest_valid_size
    out, atlas = geometry.output_size(side), geometry.atlas_size(side)
    batch = {
        "image": rng.integers(0, 256, (SIZE, side, side, 1), np.uint8),
        "atlas": rng.integers(0, 256, (SIZE, atlas, atlas, 2), np.uint8),
        "label": rng.integers(0, 3, (SIZE, out, out), np.uint8),
        "index": np.arange(SIZE, dtype=np.int32),
        "valid": np.ones(SIZE, bool),
    }
    example = batch["image"][:1] / 1.0, batch["atlas"][:1] / 1.0
    return task, init_state(model, example, optimizer, 0), batch


TASKS = {"pretext": pretext, "segmentation": segmentation}


def sharded(step, task, devices: int, outputs):
    """Return the step as jit(shard_map), which is what `jax.pmap` is made of."""
    if devices == 1:
        return jax.jit(functools.partial(step, task=task))
    mesh = Mesh(np.array(jax.devices()[:devices]), (parallel.AXIS,))
    body = functools.partial(step, task=task, axis_name=parallel.AXIS)
    replicated, split = PartitionSpec(), PartitionSpec(parallel.AXIS)
    # check_vma=False: with it, `pmean` of the gradients would sum them once more
    return jax.jit(
        jax.shard_map(
            body, mesh=mesh, in_specs=(replicated, split), out_specs=outputs, check_vma=False
        )
    )


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize("kind", TASKS)
def test_steps_lower_for_accelerators(kind, platform, dtype, devices):
    """Without a call back into the host, and without oneDNN."""
    task, state, batch = TASKS[kind](dtype)
    for step in (train_step, eval_step):
        program = sharded(step, task, devices, PartitionSpec())
        exported = jax.export.export(program, platforms=[platform])(state, batch)
        text = exported.mlir_module()
        assert exported.platforms == (platform,) and exported.nr_devices == devices
        assert "stablehlo.convolution" in text
        calls = set(re.findall(r"custom_call @([\w.]+)", text))
        assert not [name for name in calls if "jaxcyto" in name or "callback" in name]
        assert "outfeed" not in text and "infeed" not in text
        assert ("bf16" in text) == (dtype == "bfloat16")


@pytest.mark.parametrize("kind", TASKS)
def test_shard_map_equals_pmap(kind):
    """Three steps on eight devices give equal parameters in both forms."""
    task, first, batch = TASKS[kind]("float32")
    first = jax.device_get(first)  # the pmapped step gives its state away
    devices = jax.device_count()
    assert devices == 8
    pmapped = parallel.pmap_train(train_step, task=task)
    mapped = sharded(train_step, task, devices, PartitionSpec())
    state, other = parallel.replicate(first), first
    for _ in range(3):
        state, measured = pmapped(state, parallel.split_over_devices(batch))
        other, also = mapped(other, batch)
    ours, theirs = (jax.tree.leaves((s.params, s.batch_stats)) for s in (state, other))
    for one, two in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)
    losses = [float(each["checks"]["loss"]) for each in (measured, also)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert isinstance(state, State) and int(state.step) == int(other.step) == 3
