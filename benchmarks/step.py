"""Measure the throughput of a config's training step on CPU, GPU or TPU, on one or all devices.

    python benchmarks/step.py --config configs/pretrain.py
    python benchmarks/step.py --config configs/segment.py --dtypes bfloat16 --devices 1
    python benchmarks/step.py --config configs/quickstart.py --loader

Each combination of dtype and device count runs in its own process. After compilation and warm-up,
the process times windows of steps on one random batch of the config's size that stays on the
device. It waits for the device only at the end of a window, and the table shows medians over
windows. With `--loader` it also times steps on batches of the config's own brains, read as in
`train.py`. The FLOP count is XLA's count of the step before optimization, without recomputation.
The peak is the rate of a large matrix product in the same dtype, measured in the same process. The
last line on stdout is one JSON object.
"""

import argparse
import dataclasses
import functools
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

VISIBLE = {"gpu": "CUDA_VISIBLE_DEVICES", "tpu": "TPU_VISIBLE_DEVICES"}
PEAK_SIDE = {"cpu": 2048, "gpu": 8192, "tpu": 8192}  # side of the matrices of the peak


def read_config(path: Path) -> Any:
    """Import a config file and return its `get_config()`.

    The file can import other files of its folder.

    Raises:
        SystemExit: the file does not exist or is no Python file.
    """
    sys.path.append(str(path.resolve().parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise SystemExit(f"--config {path}: no such Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


def random_task(config: Any) -> tuple[Any, Any, dict[str, Any]]:
    """Make the task of a config, a new state, and a global batch of random values.

    No brain is read. Segmentation gets 16 classes, and an atlas if the config asks for one.

    Returns:
        The task, the state and the batch (numpy arrays).
    """
    import jax.numpy as jnp
    import numpy as np

    from jaxcyto.config import Config, InputScales, Scales
    from jaxcyto.models import Geometry, build_siamese, build_unet
    from jaxcyto.training.pretext import PretextTask
    from jaxcyto.training.segment import SegmentTask
    from jaxcyto.training.state.optim import make_optimizer
    from jaxcyto.training.state.state import init_state

    rng, data, model = np.random.default_rng(0), config.data, config.model
    optimizer = make_optimizer(config.optim, config.steps or 1000)
    if isinstance(config, Config):
        size, side = data.batch_pairs, data.patch_px
        net: Any = build_siamese(model)
        scales = Scales(input_mean=128.0, input_std=50.0)
        task: Any = PretextTask(net, config.loss, config.augment, scales, optimizer)
        batch = {
            "patches": rng.integers(0, 256, (size, 2, side, side, 1), np.uint8),
            "distance_mm": rng.random(size, np.float32),
            "coordinates_mm": rng.random((size, 2, 3), np.float32),
        }
        if data.all_distances:
            batch["all_distances_mm"] = rng.random((2 * size, 2 * size), np.float32)
        example = (jnp.zeros((1, 2, side, side, 1)),)
    else:
        size, side, classes = data.batch_images, data.image_px, 16
        geometry = Geometry.of(model)
        out = geometry.output_size(side)
        net = build_unet(model, classes)
        scales = InputScales(128.0, 50.0)
        task = SegmentTask(net, config.loss, config.augment, scales, optimizer)
        batch = {
            "image": rng.integers(0, 256, (size, side, side, 1), np.uint8),
            "label": rng.integers(0, classes, (size, out, out), np.uint8),
        }
        example = (jnp.zeros((1, side, side, 1)),)
        if data.atlas:
            wide = geometry.atlas_size(side)
            batch["atlas"] = rng.integers(0, 256, (size, wide, wide, classes - 3), np.uint8)
            example += (jnp.zeros((1, wide, wide, classes - 3)),)
    batch |= {"index": np.arange(size, dtype=np.int32), "valid": np.ones(size, bool)}
    return task, init_state(net, example, optimizer, 0), batch


def endless(batch: dict[str, Any]) -> Iterator[Any]:
    """Place a batch on the devices and yield it forever."""
    import grain

    from jaxcyto.training.devices import parallel

    placed = next(iter(parallel.place(grain.MapDataset.source([batch]).to_iter_dataset())))
    while True:
        yield placed


def count_flops(function: Callable, *arguments: Any) -> float:
    """Return XLA's FLOP count of a function before optimization.

    The function is lowered for a GPU, because on the CPU convolutions are library calls, which XLA
    does not count.
    """
    import jax

    lowered = jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",))
    return float((lowered.cost_analysis() or {})["flops"])


def windows(step: Callable, state: Any, batches: Iterator[Any], seconds: float, count: int):
    """Time `count` windows of about `seconds` each.

    Returns:
        The seconds per step of each window, and the state after them.
    """
    import jax

    for _ in range(3):  # compilation and autotuning
        state, out = step(state, next(batches))
        jax.block_until_ready(out)
    begin = time.perf_counter()
    state, out = step(state, next(batches))
    jax.block_until_ready(out)
    steps = max(2, round(seconds / (time.perf_counter() - begin)))
    times = []
    for _ in range(count):
        begin = time.perf_counter()
        for _ in range(steps):
            state, out = step(state, next(batches))
        jax.block_until_ready(out)
        times.append((time.perf_counter() - begin) / steps)
    return times, state


def matmul_peak(dtype: str) -> float:
    """Return the FLOP/s of a large matrix product on one device, the best of five runs."""
    import jax
    import jax.numpy as jnp

    side = PEAK_SIDE[jax.default_backend()]
    x = jnp.ones((side, side), dtype)
    product = jax.jit(lambda x: x @ x)
    product(x).block_until_ready()
    best = min(_timed(lambda: product(x).block_until_ready()) for _ in range(5))
    return 2 * side**3 / best


def _timed(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def peak_memory_bytes() -> int | None:
    """Return the peak memory of the first device, or of this process on the CPU, in bytes.

    Returns None where the platform does not report it.
    """
    import jax

    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"])
    if jax.default_backend() == "cpu":
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return None


def measure(config: Any, devices: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure one combination of dtype and device count in this process."""
    import jax

    from jaxcyto.utils.runtime import keep_freed_memory

    if jax.config.jax_platforms == "cpu" or jax.default_backend() == "cpu":
        keep_freed_memory()  # as train.py does
    from jaxcyto.training.devices import parallel
    from jaxcyto.training.step import train_step

    task, state, batch = random_task(config)
    examples = len(batch["index"])
    parallel.check_batch("the batch", examples)
    flops = count_flops(functools.partial(train_step, task=task), state, batch)
    step = parallel.pmap_train(train_step, task=task)
    times, state = windows(
        step, parallel.replicate(state), endless(batch), arguments.seconds, arguments.windows
    )
    patches = examples * (2 if "patches" in batch else 1)
    device = jax.local_devices()[0]
    seconds = statistics.median(times)
    peak = matmul_peak(config.model.dtype)
    found = {
        "device": device.device_kind,
        "platform": jax.default_backend(),
        "devices": devices,
        "dtype": config.model.dtype,
        "batch": examples,
        "step_s": seconds,
        "step_s_windows": times,
        "images_per_second_per_device": patches / seconds / devices,
        "tflops_per_device": flops / seconds / devices / 1e12,
        "share_of_matmul_peak": flops / seconds / devices / peak,
        "matmul_peak_tflops": peak / 1e12,
        "peak_memory_gib": (peak_memory_bytes() or 0) / 2**30 or None,
    }
    if arguments.loader:
        from jaxcyto.data.loading import iterate
        from jaxcyto.training.pretext import open_pretraining
        from jaxcyto.training.segment import open_segmentation

        if config.prepare is not None:
            config.prepare(config)
        opened = open_pretraining if "patches" in batch else open_segmentation
        experiment = opened(config, None)
        batches = iterate(experiment.train_batches(0), config.data.threads, parallel.place)
        task = experiment.task
        step = parallel.pmap_train(train_step, task=task)
        state = parallel.replicate(experiment.init_state(fresh=False))
        times, _ = windows(step, state, batches, arguments.seconds, arguments.windows)
        batches.close()
        found["with_loader_per_device"] = patches / statistics.median(times) / devices
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--batch", type=int, help="pairs or images, instead of the config's")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--devices", help="device counts, such as 1,2 (default: 1 and all)")
    parser.add_argument("--loader", action="store_true", help="also use the config's data")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of a window")
    parser.add_argument("--windows", type=int, default=5, help="number of windows")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)  # dtype and devices of a child
    arguments = parser.parse_args()
    config = read_config(arguments.config)
    if arguments.one:
        from absl import flags

        flags.FLAGS.mark_as_parsed()  # grain reads absl's flags
        dtype, devices = arguments.one[0], int(arguments.one[1])
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, dtype=dtype))
        if arguments.batch:
            name = "batch_pairs" if hasattr(config.data, "batch_pairs") else "batch_images"
            data = dataclasses.replace(config.data, **{name: arguments.batch})
            config = dataclasses.replace(config, data=data)
        print(json.dumps(measure(config, devices, arguments)))
        return
    platform, count = local_devices()
    counts = sorted({1, count})
    if arguments.devices:
        counts = [int(n) for n in arguments.devices.split(",")]
    rows = []
    print(
        f"{'dtype':<10}{'devices':>8}{'images/s/device':>17}{'ms/step':>10}{'TFLOP/s':>9}"
        f"{'of peak':>9}{'GiB':>7}{'with loader':>13}"
    )
    for dtype in arguments.dtypes.split(","):
        for devices in counts:
            row = child(dtype, devices, platform)
            rows.append(row)
            loader, memory = row.get("with_loader_per_device"), row["peak_memory_gib"]
            print(
                f"{dtype:<10}{devices:>8}{row['images_per_second_per_device']:>17.1f}"
                f"{1000 * row['step_s']:>10.1f}{row['tflops_per_device']:>9.2f}"
                f"{row['share_of_matmul_peak']:>9.1%}"
                f"{'' if memory is None else format(memory, '.1f'):>7}"
                f"{'' if loader is None else format(loader, '.1f'):>13}",
                flush=True,
            )
    print(json.dumps({"config": arguments.config.name, "rows": rows}))


def local_devices() -> tuple[str, int]:
    """Return the platform and the number of the local devices.

    Another process asks, because a process that has used a GPU or TPU keeps it.
    """
    code = "import jax; print(jax.default_backend(), jax.local_device_count())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    platform, count = done.stdout.split()[-2:]
    return platform, int(count)


def child(dtype: str, devices: int, platform: str) -> dict[str, Any]:
    """Measure one combination in a child process that sees only `devices` devices."""
    environment = dict(os.environ)
    if platform in VISIBLE:
        named = environment.get(VISIBLE[platform])
        visible = named.split(",") if named else [str(k) for k in range(devices)]
        environment[VISIBLE[platform]] = ",".join(visible[:devices])
    else:
        environment["JAX_NUM_CPU_DEVICES"] = str(devices)
    command = [sys.executable, __file__, *sys.argv[1:], "--one", dtype, str(devices)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    if done.returncode:
        raise SystemExit(f"{dtype} on {devices} device(s) ended with status {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
