"""Run steps on all devices: pmapped steps, replicated states, and sharded batches.

Training places arrays on devices in this file only. Inside a step, the mapped axis AXIS spans the
devices of all processes, so a psum sums over the whole job. Arguments and results of a pmapped
step, in contrast, are per process: each process passes and receives only the parts on its own
("local") devices.

That is why steps are mapped by `jax.pmap` and not by `jax.shard_map`, which takes global arrays
over the devices of all processes. The programs are the same, because current versions of JAX
implement pmap as jit(shard_map).
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
    """Check that the devices of all processes can share the global batch evenly.

    Args:
        field: name of the batch size in the config, for messages
        size: examples in the global batch

    Raises:
        InputError: they cannot, or `distributed.join` was not called.
    """
    devices, processes = jax.device_count(), jax.process_count()
    if processes > 1 and distributed.is_alone():
        raise InputError(f"{processes} processes: call training.distributed.join() first")
    if jax.local_device_count() * processes != devices:
        raise InputError(
            f"{jax.local_device_count()} devices here, {devices} in all {processes} processes; "
            "all processes must have the same count"
        )
    if size % devices:
        raise InputError(f"{field} = {size} must be divisible by {devices} devices")


def share() -> dict[str, int]:
    """Return which part of each global batch this process reads, as keywords for the loaders."""
    return {"process": jax.process_index(), "processes": jax.process_count()}


def broadcast_state(tree: Any) -> Any:
    """Return the arrays of process 0, bit for bit, in every process.

    Args:
        tree: a tree of arrays. It must have the same structure, shapes and types in all processes,
            but only the values in process 0 matter.

    Returns:
        The tree as numpy arrays. With a single process, `tree` itself.
    """
    if jax.process_count() == 1:
        return tree
    host = jax.tree.map(np.asarray, jax.device_get(tree))
    # broadcast_one_to_all sums the arrays of process 0 with zeros from the other processes, and
    # -0.0 + 0.0 is 0.0. Sums of unsigned integers keep all bits.
    bits = jax.tree.map(lambda x: x.view(f"u{x.itemsize}"), host)
    sent = multihost_utils.broadcast_one_to_all(bits)
    return jax.tree.map(lambda x, like: np.asarray(x).view(like.dtype), sent, host)


def replicate(tree: Any) -> Any:
    """Copy a tree of arrays to every local device."""
    return jax.device_put(tree, NamedSharding(_mesh(), PartitionSpec()))


def free_bytes() -> float:
    """Return the free memory of the local device that has least of it, in bytes."""
    devices = jax.local_devices()
    stats = [device.memory_stats() for device in devices]
    if all(stats):
        free: float = min(each["bytes_limit"] - each["bytes_in_use"] for each in stats)
    else:
        free = host_bytes() / len(devices)  # CPU devices report no memory and share the host's
    return free


def host_bytes() -> float:
    """Return the memory that this process can still allocate on the host, in bytes.

    It is the minimum of what Linux reports as available and what the control group (of a container
    or a batch job) allows. On other systems it is 1 GiB.
    """
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
    """Put a full copy of an array on every local device.

    Args:
        x: [...]

    Returns:
        [local devices, ...], sharded over the first axis. A pmapped step that maps this axis sees
        all of `x` on each device, so the array can be a field of a batch.
    """
    devices = jax.local_devices()
    sharding = NamedSharding(_mesh(), PartitionSpec(AXIS))
    copies = [jax.device_put(x[None], device) for device in devices]
    shape = (len(devices), *x.shape)
    return jax.make_array_from_single_device_arrays(shape, sharding, copies)


def split_over_devices(batch: Any) -> Any:
    """Reshape a process's share of a batch for pmap, on the host.

    Args:
        batch: a tree of arrays [b, ...]

    Returns:
        The tree with arrays [local devices, b / local devices, ...].
    """
    count = jax.local_device_count()
    return jax.tree.map(lambda x: x.reshape(count, x.shape[0] // count, *x.shape[1:]), batch)


def join_devices(tree: Any) -> Any:
    """Reshape a tree of arrays [devices, b, ...] to numpy arrays [devices * b, ...]."""
    return jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), tree)


def place(batches: grain.IterDataset) -> grain.IterDataset:
    """Put each batch on the local devices, two batches ahead of the step."""
    sharding = NamedSharding(_mesh(), PartitionSpec(AXIS))
    # The only use of grain.experimental. If a version of grain moves it, training ends at its start
    # with an AttributeError. Then `jax.device_put` in a `map`, with a prefetch, can replace it.
    return grain.experimental.device_put(
        batches.map(split_over_devices), sharding, cpu_buffer_size=1, device_buffer_size=2
    )


def _axis() -> str | None:
    """Return AXIS, or None for a single device.

    Collectives over a single device are not free. They took 6 % of a step
    (benchmarks/speed/scaling.py).
    """
    return AXIS if jax.device_count() > 1 else None


def pmap_train(step: Callable[..., Any], **static: Any) -> Callable[..., Any]:
    """Map a training step over all devices.

    The state is donated: XLA reuses its buffers for the new state, which saves a copy of parameters
    and optimizer state. The caller must not touch the old state after the call.

    With several processes, the first state must come from `replicate`. pmap moves any other array
    to the devices first and then deletes the original. The moved array may share a buffer with the
    original, and that buffer would then be released twice, once by this and once by the donation.

    Args:
        step: a step such as `step.train_step`
        static: its keyword arguments, constants of the compiled step

    Returns:
        A function (state, batch) -> (state, metrics). State and metrics are the same on all
        devices. Batches come from `place` or `split_over_devices`.
    """
    return jax.pmap(
        functools.partial(step, axis_name=_axis(), **static),
        axis_name=AXIS,
        in_axes=(None, 0),
        out_axes=(None, None),
        donate_argnums=0,
    )


def pmap_eval(step: Callable[..., Any], out_axes: Any, **static: Any) -> Callable[..., Any]:
    """Map an evaluation step over all devices. The state is not donated.

    Args:
        step: a step such as `step.eval_step`
        out_axes: for each output, None if it is the same on all devices, or 0 to stack the outputs
            of the local devices
        static: keyword arguments of the step, constants of the compiled step

    Returns:
        A function (state, batch) -> outputs.
    """
    return jax.pmap(
        functools.partial(step, axis_name=_axis(), **static),
        axis_name=AXIS,
        in_axes=(None, 0),
        out_axes=out_axes,
    )
