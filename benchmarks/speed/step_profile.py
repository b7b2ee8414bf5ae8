"""Profile a training step by layer, and compute the least time that the machine would need.

    python benchmarks/speed/step_profile.py --config configs/pretrain.py --batch 8

The script runs steps on random batches under JAX's profiler. It sums the device's time by the layer
and direction of each XLA operation, which the metadata of the executable name. Operations without
metadata are summed by their own name. On a CPU operations run in parallel, so that the sum exceeds
the step. The limit is the larger of two times. One is the step's FLOP at the rate of a large matrix
product, the other the bytes that the compiled operations read and write at the rate of a large
copy. Both rates are measured in the same process. The last line on stdout is one JSON object.
"""

import argparse
import collections
import dataclasses
import functools
import json
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax
import jax.numpy as jnp

from benchmarks import step as bench
from jaxcyto.models.cpu import kernels
from jaxcyto.training.devices import parallel
from jaxcyto.training.step import train_step
from jaxcyto.utils.runtime import keep_freed_memory

STEPS = 3  # number of profiled steps
LAYER = re.compile(r"((?:atlas_)?encoder/)?(block\d+|up\d+\w*|classifier\w*)/(\w+)?")


def copy_bandwidth() -> float:
    """Return the bytes/s read and written by adding 1 to a large array, the best of five runs."""
    x = jnp.ones((256 << 20) // 4, jnp.float32)
    add = jax.jit(lambda x: x + 1)
    add(x).block_until_ready()
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        add(x).block_until_ready()
        times.append(time.perf_counter() - begin)
    return 2 * x.nbytes / min(times)


def origins(program: str) -> dict[str, str]:
    """Map each operation of an executable's text to its `op_name`, its origin in the model."""
    found = {}
    for line in program.splitlines():
        match = re.match(r'\s*(?:ROOT )?%?(\S+) = .*?op_name="([^"]*)"', line)
        if match:
            found[match[1]] = match[2]
    return found


def layer_of(operation: str, origin: str | None) -> str:
    """Name the layer and direction of an operation, such as "block1/conv2 backward".

    Args:
        operation: name of the XLA operation.
        origin: its `op_name`. Without one the kind of the operation is returned in parentheses.
    """
    if origin is None:
        return f"({re.sub(r'[.0-9]+(clone)?|_fusion', '', operation)})"
    way = "backward" if "transpose(" in origin else "forward"
    match = LAYER.search(origin.replace("jit(relu)/", "relu/"))
    if match:
        inner = match[3] if match[3] and re.match(r"conv\d|bn\d|bn", match[3]) else "relu"
        return f"{match[1] or ''}{match[2]}/{inner} {way}"
    if "max_pool" in origin or re.search(r"encoder/\w+$", origin):
        return f"pooling {way}"
    return f"rest {way}"


def measure(trace: Path, names: dict[str, str]) -> dict[str, float]:
    """Sum the milliseconds per step by layer from the profiler's file, the largest first.

    Args:
        trace: the profiler's folder.
        names: the result of `origins`.
    """
    (path,) = trace.rglob("*.xplane.pb")
    total: collections.Counter[str] = collections.Counter()
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
        for line in plane.lines:
            for event in line.events:
                stats: dict[str, Any] = {key: value for key, value in event.stats if key}
                if "hlo_op" in stats and not event.name.startswith("while"):
                    operation = str(stats["hlo_op"])
                    total[layer_of(operation, names.get(operation))] += event.duration_ns
    return {name: value / STEPS / 1e6 for name, value in total.most_common()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--batch", type=int, help="pairs or images, instead of the config's")
    parser.add_argument("--rows", type=int, default=24, help="rows of the table")
    arguments = parser.parse_args()
    if jax.default_backend() == "cpu":
        keep_freed_memory()
    config = bench.read_config(arguments.config)
    if arguments.batch:
        name = "batch_pairs" if hasattr(config.data, "batch_pairs") else "batch_images"
        data = dataclasses.replace(config.data, **{name: arguments.batch})
        config = dataclasses.replace(config, data=data)
    task, state, batch = bench.random_task(config)
    flops = bench.count_flops(functools.partial(train_step, task=task), state, batch)
    batches, state = bench.endless(batch), parallel.replicate(state)
    # XLA does not count library calls, so count the bytes of a step with XLA's own convolutions
    with mock.patch.object(kernels, "available", lambda: False):
        plain = parallel.pmap_train(train_step, task=task).lower(state, next(batches)).compile()
    cost: dict[str, float] = dict(plain.cost_analysis() or {})
    cost["flops"] = flops
    jax.clear_caches()
    step = parallel.pmap_train(train_step, task=task)
    compiled = step.lower(state, next(batches)).compile()
    times, state = bench.windows(step, state, batches, 3.0, 5)
    seconds = statistics.median(times)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(STEPS):
                state, out = step(state, next(batches))
            jax.block_until_ready(out)
        layers = measure(Path(folder), origins(compiled.as_text() or ""))
    peak, bandwidth = bench.matmul_peak(config.model.dtype), copy_bandwidth()
    compute, memory = cost["flops"] / peak, cost["bytes accessed"] / bandwidth
    whole = sum(layers.values())
    print(f"step {1e3 * seconds:.0f} ms; operations {whole:.0f} ms")
    for name, value in list(layers.items())[: arguments.rows]:
        print(f"  {name:<36}{value:>8.1f} ms{value / whole:>7.1%}")
    print(f"  {cost['flops'] / 1e9:.1f} GFLOP at {peak / 1e9:.0f} GFLOP/s: {1e3 * compute:.0f} ms")
    gigabytes = cost["bytes accessed"] / 1e9
    print(f"  {gigabytes:.1f} GB at {bandwidth / 1e9:.1f} GB/s: {1e3 * memory:.0f} ms")
    found = {
        "config": arguments.config.name,
        "batch": len(batch["index"]),
        "dtype": config.model.dtype,
        "device": jax.devices()[0].device_kind,
        "step_s": seconds,
        "layers_ms": {name: round(value, 2) for name, value in layers.items()},
        "flops": cost["flops"],
        "bytes": cost["bytes accessed"],
        "matmul_flops_per_s": peak,
        "copy_bytes_per_s": bandwidth,
        "limit_s": max(compute, memory),
        "jax": jax.__version__,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
