"""Measure the overhead of `parallel.pmap_train` over the plain, jitted step.

    python benchmarks/speed/scaling.py
    python benchmarks/speed/scaling.py --config configs/pretrain.py --batch 8 --windows 9

On one device, one process runs both on the same random batch, in alternating windows of steps. The
overhead is the median over pairs of windows of the ratio of their times, minus 1. Then the same
global batch is divided over 2, 4 and 8 virtual CPU devices, in one process and in two. Each row
runs in its own processes. The virtual devices share the processor's cores. These rows measure the
cost of splitting the batch, of the collectives and of the second process. They do not show how
training scales over real devices. oneDNN and malloc are set as in `train.py`. The last line on
stdout is one JSON object.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.step import endless, random_task, read_config

ROOT = Path(__file__).resolve().parents[2]
ROWS = ((1, 1), (1, 2), (1, 4), (1, 8), (2, 2), (2, 4), (2, 8))  # processes, devices in total
WARM_UP = 3  # steps that are not timed
LIMIT_S = 1800


class Stepper:
    """A step function with its current state and batches."""

    def __init__(self, step: Callable, state: Any, batches: Iterator[Any]):
        self._step, self._state, self._batches = step, state, batches

    def seconds(self, steps: int) -> float:
        """Return the seconds per step, waiting for the device only after the last one."""
        import jax

        begin = time.perf_counter()
        out = None
        for _ in range(steps):
            self._state, out = self._step(self._state, next(self._batches))
        jax.block_until_ready((self._state, out))
        return (time.perf_counter() - begin) / steps


def measure(config: Any, process: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure one row in one of its processes.

    Args:
        config: the config, whose batch is the global batch.
        process: index of this process.
        arguments: the command line.
    """
    import jax
    import numpy as np

    from jaxcyto.training.devices import distributed, parallel
    from jaxcyto.training.step import train_step
    from jaxcyto.utils.runtime import keep_freed_memory

    jax.devices()  # initialize before malloc is set, as train.py does
    keep_freed_memory()
    task, state, batch = random_task(config)
    examples = len(batch["index"])
    parallel.check_batch("the batch", examples)
    own = slice(process, None, jax.process_count())
    share = jax.tree.map(lambda x: x[own], batch)
    steppers = {}
    if jax.device_count() == 1:  # needs a copy of the state, because both donate theirs
        plain = jax.jit(functools.partial(train_step, task=task), donate_argnums=0)
        copy = jax.tree.map(lambda x: jax.device_put(np.array(x)), state)
        placed = jax.device_put(batch)
        steppers["plain"] = Stepper(plain, copy, itertools.repeat(placed))
    wrapped = parallel.pmap_train(train_step, task=task)
    steppers["wrapped"] = Stepper(wrapped, parallel.replicate(state), endless(share))
    for stepper in steppers.values():
        stepper.seconds(WARM_UP)
    once = max(stepper.seconds(2) for stepper in steppers.values())
    # the count must be the same in all processes, because they wait for each other in every step
    steps = distributed.from_first(lambda: max(2, round(arguments.seconds / once)))
    times: dict[str, list[float]] = {name: [] for name in steppers}
    for window in range(arguments.windows):
        order = list(steppers)[:: 1 if window % 2 else -1]
        for name in order:
            times[name].append(steppers[name].seconds(steps))
    row: dict[str, Any] = {"processes": jax.process_count(), "devices": jax.device_count()}
    row |= {"device": jax.devices()[0].device_kind, "batch": examples, "steps_per_window": steps}
    row |= {f"{name}_step_s": statistics.median(found) for name, found in times.items()}
    row |= {f"{name}_windows_s": found for name, found in times.items()}
    if "plain" in times:
        ratios = [b / a for a, b in zip(times["plain"], times["wrapped"], strict=True)]
        row["overhead"] = statistics.median(ratios) - 1
    return row


def one(config: Any, numbers: list[str], arguments: argparse.Namespace) -> None:
    """Run a child process: join the others of its row and measure. The first one prints.

    Args:
        config: the config.
        numbers: number of processes, index of this process, port of the coordinator.
        arguments: the command line.
    """
    from absl import flags

    from jaxcyto.training.devices import distributed

    flags.FLAGS.mark_as_parsed()  # grain reads absl's flags
    processes, process, port = map(int, numbers)
    if processes > 1:
        distributed.join(f"127.0.0.1:{port}", processes, process)
    row = measure(config, process, arguments)
    if process == 0:
        print(json.dumps(row), flush=True)


def children(processes: int, devices: int) -> dict[str, Any]:
    """Run the child processes of one row and return its record."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices // processes),
    }
    started = [
        subprocess.Popen(
            [sys.executable, __file__, *sys.argv[1:], "--one", str(processes), str(k), str(port)],
            env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True,
        )
        for k in range(processes)
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=LIMIT_S)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    if any(process.returncode for process in started):
        raise SystemExit(f"the row of {processes} process(es) and {devices} device(s) failed")
    return json.loads(outputs[0].splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    default = ROOT / "configs" / "quickstart.py"
    parser.add_argument("--config", type=Path, default=default)
    parser.add_argument("--batch", type=int, help="pairs or images, instead of the config's")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of a window")
    parser.add_argument("--windows", type=int, default=7, help="number of windows")
    parser.add_argument("--devices", default="1,2,4,8", help="device counts of the rows to run")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)  # processes, process, port
    arguments = parser.parse_args()
    config = read_config(arguments.config)
    if arguments.batch:
        name = "batch_pairs" if hasattr(config.data, "batch_pairs") else "batch_images"
        data = dataclasses.replace(config.data, **{name: arguments.batch})
        config = dataclasses.replace(config, data=data)
    if arguments.one:
        one(config, arguments.one, arguments)
        return
    wanted = [int(number) for number in arguments.devices.split(",")]
    print(f"{'processes':<10}{'devices':>8}{'plain ms':>10}{'wrapped ms':>12}{'overhead':>10}")
    rows = []
    for processes, devices in ROWS:
        if devices not in wanted:
            continue
        row = children(processes, devices)
        rows.append(row)
        plain, overhead = row.get("plain_step_s"), row.get("overhead")
        print(
            f"{processes:<10}{devices:>8}{'' if plain is None else f'{1000 * plain:.1f}':>10}"
            f"{1000 * row['wrapped_step_s']:>12.1f}"
            f"{'' if overhead is None else f'{overhead:+.2%}':>10}",
            flush=True,
        )
    versions = {name: metadata.version(name) for name in ("jax", "jaxlib", "flax")}
    found = {"config": arguments.config.name, "dtype": config.model.dtype, "rows": rows}
    print(json.dumps(versions | {"cpu_count": os.cpu_count()} | found))


if __name__ == "__main__":
    main()
