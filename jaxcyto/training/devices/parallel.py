"""The one file that knows devices: pmapped steps, replicated states, sharded batches.

`jax.pmap` is jit(shard_map) in today's JAX. The axis of devices is called AXIS inside the steps; it
spans the devices of all processes, while what goes in and comes out is on those of this one.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxcyto.errors import InputError
from jaxcyto.training.devices import distributed

AXIS = "batch"


def _mesh() -> Mesh:
    return Mesh(np.array(jax.local_devices()), (AXIS,))


def check_batch(field: str, size: int) -> None:
    """Raises InputError unless the devices of all processes share the global batch evenly."""
    devices, processes = jax.device_count(), jax.process_count()
    if processes > 1 and distributed.is_alone():
        raise InputError(f"{processes} processes: call training.distributed.join() first")
    if jax.local_device_count() * processes != devices:
        raise InputError(
            f"{jax.local_device_count()} devices here, {devices} in all {processes} processes; "
            "give each process as many"
        )
    if size % devices:
        raise InputError(f"{field} = {size} must be divisible by {devices} devices")


def share() -> dict[str, int]:
    """Which part of each global batch this process reads, as arguments of the pipelines."""
    return {"process": jax.process_index(), "processes": jax.process_count()}


def broadcast_state(tree: Any) -> Any:
    """The arrays of process 0, bit for bit, in every process; `tree` has the shapes in all."""
    if jax.process_count() == 1:
        return tree
    host = jax.tree.map(np.asarray, jax.device_get(tree))
    # as whole numbers: the sum by which JAX sends them would lose the sign of a zero
    bits = jax.tree.map(lambda x: x.view(f"u{x.itemsize}"), host)
    sent = multihost_utils.broadcast_one_to_all(bits)
    return jax.tree.map(lambda x, like: np.asarray(x).view(like.dtype), sent, host)


def replicate(tree: Any) -> Any:
    """A tree of arrays on every local device."""
    return jax.device_put(tree, NamedSharding(_mesh(), PartitionSpec()))


def free_bytes() -> float:
    """Memory that is free on each local device, the least of them."""
    devices = jax.local_devices()
    stats = [device.memory_stats() for device in devices]
    if all(stats):
        free: float = min(each["bytes_limit"] - each["bytes_in_use"] for each in stats)
    else:
        free = host_bytes() / len(devices)  # they share the host's memory
    return free


def host_bytes() -> float:
    """Memory that processes can still have; one GiB where the system does not say."""
    free = [float(1 << 30)]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = [1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")]
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit != "max":
            free.append(int(limit) - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    except (OSError, ValueError):
        pass
    return max(0.0, min(free))


def copy_to_devices(x: np.ndarray) -> jax.Array:
    """[local devices, ...], all of `x` on each of them: a field that every batch can hold."""
    devices = jax.local_devices()
    sharding = NamedSharding(_mesh(), PartitionSpec(AXIS))
    copies = [jax.device_put(x[None], device) for device in devices]
    shape = (len(devices), *x.shape)
    return jax.make_array_from_single_device_arrays(shape, sharding, copies)


def split_over_devices(batch: Any) -> Any:
    """This process's share [b, ...] -> [local devices, b / local devices, ...], on the host."""
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


def _axis() -> str | None:
    """AXIS if there are several devices: sums over one took 6 % of a step (speed/scaling.py)."""
    return AXIS if jax.device_count() > 1 else None


def pmap_train(step: Callable[..., Any], **static: Any) -> Callable[..., Any]:
    """(state, batch) -> (state, metrics) over all devices; the old state is given up.

    With several processes the state must be one of `replicate`: pmap would give up another twice.
    """
    return jax.pmap(
        functools.partial(step, axis_name=_axis(), **static),
        axis_name=AXIS,
        in_axes=(None, 0),
        out_axes=(None, None),
        donate_argnums=0,
    )


def pmap_eval(step: Callable[..., Any], out_axes: Any, **static: Any) -> Callable[..., Any]:
    """(state, batch) -> outputs; `out_axes` None for replicated outputs, 0 for sharded ones."""
    return jax.pmap(
        functools.partial(step, axis_name=_axis(), **static),
        axis_name=AXIS,
        in_axes=(None, 0),
        out_axes=out_axes,
    )
