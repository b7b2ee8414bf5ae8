"""Kill a training run at random moments, continue it each time, and compare the result.

    python benchmarks/robustness/kill.py --kills 30 --task pretext
    python benchmarks/robustness/kill.py --kills 30 --task segment
    python benchmarks/robustness/kill.py --kills 30 --signal TERM

A tiny network trains on a tiny brain on the CPU, once without interruption. Then it trains again
and is killed with SIGKILL during the start (imports, data, compilation), during steps, while it
writes a checkpoint, during validations and during the final evaluation. After each kill the same
command continues the run. If a run finishes before all kills are done, another one begins.
Parameters, optimizer state, weights, results.json and metrics.jsonl (without the fields that depend
on the clock) must equal those of the uninterrupted run bit by bit. Restarts share a compilation
cache, except for one in five, which compiles again. With TERM or INT the run must also exit within
30 s and lose no step. The last line on stdout is one JSON object.
"""

import argparse
import collections
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from orbax.checkpoint import v1 as ocp

from jaxcyto.runs.metrics_file import read_metrics

ROOT = Path(__file__).resolve().parents[2]
PHASES = "start", "step", "checkpoint", "validation", "final evaluation"
STEPS, EVAL_EVERY = 24, 8
CONFIGS = {
    "pretext": """
from jaxcyto.config import AugmentConfig, Config, DataConfig, ModelConfig

def get_config():
    return Config(
        data=DataConfig(({brain!r},), patch_px=32, um_per_px=64.0, batch_pairs=8, threads=2),
        model=ModelConfig(stem_kernel=3, stem_stride=1, widths=(4, 4, 8)),
        augment=AugmentConfig(noise=0.1),
        steps={steps}, log_every=1, eval_every={eval_every}, checkpoint_every=3, eval_pairs=16,
        batch_stats_steps=2,
    )
""",
    "segment": """
import optax
from jaxcyto.config import ModelConfig, OptimConfig, SegmentConfig, SegmentData

def get_config():
    return SegmentConfig(
        data=SegmentData(
            ({brain!r},), image_px=60, um_per_px=64.0, atlas=True, batch_images=8, threads=2
        ),
        model=ModelConfig(stem_kernel=3, stem_stride=1, widths=(4, 4, 8)),
        optim=OptimConfig(optimizer=optax.adam, learning_rate=0.01),
        steps={steps}, log_every=1, eval_every={eval_every}, checkpoint_every=3, eval_images=4,
        batch_stats_steps=2,
    )
""",
}


def write_config(path: Path, task: str, brain: Path) -> Path:
    """Write the config file of a run of STEPS steps."""
    text = CONFIGS[task].format(brain=str(brain), steps=STEPS, eval_every=EVAL_EVERY)
    path.write_text(text)
    return path


def environment(cache: Path | None) -> dict[str, str]:
    """Return environment variables for one CPU device, with a compilation cache if given."""
    variables = os.environ | {"JAX_PLATFORMS": "cpu"}
    if cache is not None:
        variables |= {
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
    return variables


def start(config: Path, workdir: Path, cache: Path | None = None) -> subprocess.Popen[str]:
    """Start the training command. Its output is appended to WORKDIR.log."""
    with open(f"{workdir}.log", "a") as log:
        return subprocess.Popen(
            [sys.executable, "train.py", "--config", str(config), "--workdir", str(workdir)],
            cwd=ROOT, env=environment(cache), text=True, stdout=log, stderr=log,
        )  # fmt: skip


def finish(config: Path, workdir: Path, cache: Path | None = None) -> float:
    """Run the command to its end, and return the seconds until it has written a line."""
    before, old = time.monotonic(), lines(workdir)
    process = start(config, workdir, cache)
    while process.poll() is None and lines(workdir) == old:
        time.sleep(0.01)
    seconds = time.monotonic() - before
    if process.wait():
        raise SystemExit(f"exit status {process.returncode}: {log_tail(workdir)}")
    return seconds


def log_tail(workdir: Path) -> str:
    """Return the end of the output of a run."""
    return Path(f"{workdir}.log").read_text()[-2000:]


def lines(workdir: Path) -> list[dict[str, Any]]:
    """Read the lines of metrics.jsonl, without the fields that depend on the clock."""
    path = workdir / "metrics.jsonl"
    return [
        {k: v for k, v in line.items() if k != "time" and not k.startswith("speed/")}
        for line in (read_metrics(path) if path.exists() else [])
    ]


def phase(workdir: Path, before: list[dict[str, Any]]) -> str:
    """Tell what a run is doing now.

    Args:
        workdir: the folder of the run.
        before: the lines of its metrics when it was started.

    Returns:
        One of PHASES.
    """
    now = lines(workdir)
    if not now or now == before:
        return "start"
    last = now[-1]
    validated = any(key.startswith("val/") for key in last)
    if validated and last["step"] == STEPS:
        return "final evaluation"
    writes = any(workdir.glob("checkpoints/*.orbax-checkpoint-tmp*"))
    if last["step"] % EVAL_EVERY == 0 and not validated:  # even if its checkpoint is being written
        return "validation"
    return "checkpoint" if writes else "step"


def kill_in(
    wanted: str,
    process: subprocess.Popen[str],
    workdir: Path,
    delay: float = 0.0,
    signum: signal.Signals = signal.SIGKILL,
) -> tuple[str, float] | None:
    """End a run `delay` seconds after it is first seen in the wanted phase.

    A run in the start phase is ended when the phase is over at the latest, because some runs start
    much faster than others.

    Returns:
        The phase in which it was ended, and the seconds until it had exited. None if the run had
        finished before.
    """
    before = lines(workdir)
    while process.poll() is None and phase(workdir, before) != wanted:
        time.sleep(0.002)
    until = time.monotonic() + delay
    while process.poll() is None and time.monotonic() < until:
        time.sleep(0.001)
        if wanted == "start" and phase(workdir, before) != wanted:
            break
    landed = phase(workdir, before) if signum != signal.SIGKILL else None
    process.send_signal(signum)
    sent = time.monotonic()
    if process.wait() == 0:
        return None
    return landed or phase(workdir, before), time.monotonic() - sent


def lost_steps(workdir: Path) -> int:
    """Count the steps that a run had logged but not saved when it ended."""
    names = [path.name for path in workdir.glob("checkpoints/*") if path.name.isdecimal()]
    trained = [line["step"] for line in lines(workdir)]
    return max(trained, default=0) - max(map(int, names), default=0)


def differences(first: Path, second: Path) -> list[str]:
    """List what differs between the results of two runs. The list is empty if all bits agree."""
    found = []
    states: list[Any] = [
        ocp.load_checkpointables(str(folder.resolve() / f"checkpoints/{STEPS}"))["state"]
        for folder in (first, second)
    ]
    for name in sorted(states[0].keys() | states[1].keys()):
        values = [np.asarray(state.get(name)) for state in states]
        same = values[0].dtype == values[1].dtype and values[0].shape == values[1].shape
        if not same or values[0].tobytes() != values[1].tobytes():
            found.append(f"state: {name}")
    if lines(first) != lines(second):
        found.append("metrics.jsonl")
    for name in ("weights.safetensors", "results.json", "config.json"):
        if (first / name).read_bytes() != (second / name).read_bytes():
            found.append(name)
    trained = [line["step"] for line in lines(second) if "train/loss" in line]
    if trained != list(range(1, STEPS + 1)):
        found.append(f"steps of metrics.jsonl: {trained}")
    return found


def main() -> None:
    """Kill runs until all kills are done, and print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--task", choices=sorted(CONFIGS), default="pretext")
    parser.add_argument("--signal", choices=["KILL", "TERM", "INT"], default="KILL")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    signum = signal.Signals[f"SIG{options.signal}"]
    landed: collections.Counter[str] = collections.Counter()
    runs, slowest, lost, faults = 0, 0.0, 0, []
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        config = write_config(scratch / "config.py", options.task, make_brain(scratch / "brain"))
        whole, cache = scratch / "whole", scratch / "cache"
        starting = finish(config, whole, cache)
        while landed.total() < options.kills:
            runs += 1
            parts = scratch / f"parts{runs}"
            while landed.total() < options.kills:
                wanted = PHASES[landed.total() % len(PHASES)]
                fresh = rng.random() < 0.2
                longest = {
                    "start": starting * (0.9 if fresh else 0.3),
                    "checkpoint": 0.01,
                    "validation": 0.1,
                }
                delay = rng.uniform(0, longest.get(wanted, 0.3))
                process = start(config, parts, None if fresh else cache)
                ended = kill_in(wanted, process, parts, delay, signum)
                if ended is None:
                    break
                landed[ended[0]] += 1
                slowest, lost = max(slowest, ended[1]), max(lost, lost_steps(parts))
                print(f"{options.signal} {landed.total()}: run {runs}, {ended[0]}", flush=True)
                # Before train.py has installed its handlers, a signal ends it like any program.
                if process.returncode not in (-signum, 128 + signum):
                    faults.append(f"exit status {process.returncode}: {log_tail(parts)}")
            finish(config, parts, cache)
            found = differences(whole, parts)
            faults += found
            print(f"run {runs}: {found or 'the same, bit for bit'}", flush=True)
    if signum != signal.SIGKILL and (slowest > 30 or lost):
        faults.append(f"left after {slowest:.1f} s, {lost} steps lost")
    figures = {
        "task": options.task,
        "signal": options.signal,
        "kills": landed.total(),
        "landed": {name: landed[name] for name in PHASES},
        "runs": runs,
        "slowest_exit_s": round(slowest, 2),
        "most_steps_lost": lost,
        "faults": faults,
    }
    print(json.dumps(figures))
    raise SystemExit(bool(faults))


def make_brain(folder: Path) -> Path:
    """Make a small phantom with patches and pairs."""
    from jaxcyto.brain.prepare import pair_brain, sample_brain
    from jaxcyto.phantom.make import make_phantom
    from jaxcyto.phantom.settings import PRESETS

    root = make_phantom(folder, PRESETS["tiny"], workers=1)
    sample_brain(root, num_patches=240, patch_px=32, um_per_px=64.0)
    pair_brain(root, num_pairs=480, method="heat", workers=1)
    return root


if __name__ == "__main__":
    main()
