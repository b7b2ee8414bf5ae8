"""The one file that knows devices: pmapped steps, replicated states, sharded batches.

`jax.pmap` is jit(shard_map) in today's JAX. The axis of devices is called AXIS inside the steps.
"""

import functools
from collections.abc import Callable
from typing import Any

import grain
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxcyto.errors import InputError

AXIS = "batch"


def _mesh() -> Mesh:
    return Mesh(np.array(jax.local_devices()), (AXIS,))


def check_batch(field: str, size: int) -> None:
    """Raises InputError unless this process's devices share the global batch evenly."""
    if jax.process_count() > 1:
        raise InputError(
            f"{jax.process_count()} processes: training runs in one process with all its devices; "
            "start it without a cluster's environment variables"
        )
    if size % jax.device_count():
        raise InputError(f"{field} = {size} must be divisible by {jax.device_count()} devices")


def replicate(tree: Any) -> Any:
    """A tree of arrays on every local device."""
    return jax.device_put(tree, NamedSharding(_mesh(), PartitionSpec()))


def split_over_devices(batch: Any) -> Any:
    """[B, ...] -> [devices, B / devices, ...], on the host."""
    count = jax.local_device_count()
    return jax.tree.map(lambda x: x.reshape(count, x.shape[0] // count, *x.shape[1:]), batch)


def join_devices(tree: Any) -> Any:
    """[devices, b, ...] -> [B, ...] as numpy arrays."""
    return jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), tree)


def place(batches: grain.IterDataset) -> grain.IterDataset:
    """Puts each batch on the local devices, two batches ahead of the step."""
    sharding = NamedSharding(_mesh(), PartitionSpec(AXIS))
    return grain.experimental.device_put(
        batches.map(split_over_devices), sharding, cpu_buffer_size=1, device_buffer_size=2
    )


def pmap_train(step: Callable[..., Any], **static: Any) -> Callable[..., Any]:
    """(state, batch) -> (state, metrics) over the local devices; the old state is given up."""
    return jax.pmap(
        functools.partial(step, axis_name=AXIS, **static),
        axis_name=AXIS,
        in_axes=(None, 0),
        out_axes=(None, None),
        donate_argnums=0,
    )


def pmap_eval(step: Callable[..., Any], out_axes: Any, **static: Any) -> Callable[..., Any]:
    """(state, batch) -> outputs; `out_axes` None for replicated outputs, 0 for sharded ones."""
    return jax.pmap(
        functools.partial(step, axis_name=AXIS, **static),
        axis_name=AXIS,
        in_axes=(None, 0),
        out_axes=out_axes,
    )
