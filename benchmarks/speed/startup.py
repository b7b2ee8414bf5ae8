"""Measure the time from the start of `train.py` to the end of its first step.

    python benchmarks/speed/startup.py
    python benchmarks/speed/startup.py --configs configs/pretrain.py --batch 32 --repeats 5

The script runs `train.py` for each pre-training config on a phantom brain made for it. The patches
have the config's side, at the phantom's own resolution, which does not change the executables. Each
run is killed after its second step. A run with an empty compilation cache (cold) and a run with the
cache that it leaves (warm) alternate, and the table shows medians. The part `imports` ends when the
run folder appears, `data` with the message that names the devices, and `init` with the number of
parameters. `compile` is the time of the first step minus that of the second. The last line on
stdout is one JSON object.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from importlib import metadata
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.step import read_config

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("imports", "data", "init", "compile", "step")
LINES = (r"process\(es\)", r"\d+ parameters", r"step 1/", r"step 2/")  # printed in this order
LIMIT_S = 300


def make_brain(root: Path, patch_px: int, pairs: int) -> float:
    """Make a small phantom with patches and pairs, and return its micrometers per pixel."""
    from jaxcyto.brain.prepare import pair_brain, sample_brain
    from jaxcyto.phantom.make import make_phantom
    from jaxcyto.phantom.settings import PRESETS

    settings = PRESETS["tiny"]
    make_phantom(root, settings, workers=1)
    sample_brain(root, num_patches=240, patch_px=patch_px, um_per_px=settings.um_per_px)
    pair_brain(root, num_pairs=pairs, method="heat", all_distances=True, workers=1)
    return settings.um_per_px


def one_run(command: list[str], workdir: Path, cache: Path) -> dict[str, float]:
    """Run `train.py` up to its second step, and time its parts.

    Args:
        command: the command.
        workdir: its run folder, which must not exist.
        cache: the folder that is used as the user's cache.

    Returns:
        Seconds of each of `PARTS`, and `first_step`, the time to the end of the first step.

    Raises:
        SystemExit: the run ended or took more than `LIMIT_S` before its second step.
    """
    environment = {key: value for key, value in os.environ.items() if "CACHE" not in key}
    environment |= {"XDG_CACHE_HOME": str(cache), "PYTHONUNBUFFERED": "1"}
    begin = time.monotonic()
    made: list[float] = []

    def watch() -> None:
        while not workdir.exists() and time.monotonic() < begin + LIMIT_S:
            time.sleep(0.01)
        made.append(time.monotonic())

    threading.Thread(target=watch, daemon=True).start()
    with subprocess.Popen(
        command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    ) as process:  # fmt: skip
        timer = threading.Timer(LIMIT_S, process.kill)
        timer.start()
        seen, output = [], []
        assert process.stdout is not None
        for line in process.stdout:
            output.append(line)
            if re.search(LINES[len(seen)], line):
                seen.append(time.monotonic())
            if len(seen) == len(LINES):
                break
        timer.cancel()
        process.kill()
    if len(seen) < len(LINES):
        raise SystemExit(f"train.py did not reach its second step:\n{''.join(output)}")
    devices, parameters, first, second = seen
    step = second - first
    return {
        "imports": made[0] - begin,
        "data": devices - made[0],
        "init": parameters - devices,
        "compile": first - parameters - step,
        "step": step,
        "first_step": first - begin,
    }


def measure(path: Path, arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Measure one config, cold and warm in turn, and return its two rows."""
    config = read_config(path)
    batch = arguments.batch or config.data.batch_pairs
    root = folder / "brain"
    um_per_px = make_brain(root, config.data.patch_px, pairs=20 * batch)
    command = [
        sys.executable, "train.py", "--config", str(path), f"--config.data.brains=('{root}',)",
        f"--config.data.um_per_px={um_per_px}", f"--config.data.batch_pairs={batch}",
        "--config.log_every=1",
    ]  # fmt: skip
    runs: dict[str, list[dict[str, float]]] = {"cold": [], "warm": []}
    for repeat in range(arguments.repeats):
        for cache, found in runs.items():
            workdir = folder / f"{cache}{repeat}"
            found.append(
                one_run([*command, f"--workdir={workdir}"], workdir, folder / f"cache{repeat}")
            )
    return [
        {"config": path.name, "batch": batch, "cache": cache, "repeats": len(found)}
        | {key: statistics.median(each[key] for each in found) for key in found[0]}
        for cache, found in runs.items()
    ]


def device() -> dict[str, Any]:
    """Return the device, the number of devices and package versions.

    Another process asks, because a process that has used a GPU or TPU keeps it.
    """
    code = "import jax; print(jax.local_device_count(), jax.devices()[0].device_kind)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, _, kind = done.stdout.splitlines()[-1].partition(" ")
    versions = {name: metadata.version(name) for name in ("jax", "jaxlib", "flax")}
    return {"device": kind, "devices": int(count), "cpu_count": os.cpu_count()} | versions


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    both = [ROOT / "configs" / "quickstart.py", ROOT / "configs" / "pretrain.py"]
    parser.add_argument(
        "--configs", type=Path, nargs="+", default=both, help="pre-training configs"
    )
    parser.add_argument("--batch", type=int, help="pairs, instead of the config's")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    rows = []
    for path in arguments.configs:
        with tempfile.TemporaryDirectory() as folder:
            rows += measure(path.resolve(), arguments, Path(folder))
    print(f"{'config':<16}{'cache':>6}{'first step':>12}" + "".join(f"{p:>9}" for p in PARTS))
    for row in rows:
        parts = "".join(f"{row[part]:>9.2f}" for part in PARTS)
        print(f"{row['config']:<16}{row['cache']:>6}{row['first_step']:>12.2f}{parts}")
    print(json.dumps(device() | {"rows": rows}))


if __name__ == "__main__":
    main()
