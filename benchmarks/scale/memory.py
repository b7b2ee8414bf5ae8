"""Check whether memory and open files grow in a long training run, and in the loader alone.

    python benchmarks/scale/memory.py --steps 2000
    python benchmarks/scale/memory.py --steps 2000 --save-last    # one checkpoint, at the end

The script makes the tiny phantom in a temporary folder. It trains both tasks on it with `train.py`
in a separate process, with validations and checkpoints, and reads as many batches without training.
From outside it samples the private memory, the open files and the threads of this process ten times
a second. Growth is the slope of a line fitted to all samples after the first quarter of the steps.
The last line on stdout is one JSON object.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from benchmarks.provenance import commit
from jaxcyto.brain.prepare import pair_brain, sample_brain
from jaxcyto.config import Config, DataConfig, ModelConfig, SegmentConfig, SegmentData
from jaxcyto.phantom.make import make_phantom
from jaxcyto.phantom.settings import PRESETS

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 0.1  # between samples
WARM_UP = 0.25  # share of the steps that the fit leaves out
CONFIG = """\
import sys
sys.path.insert(0, {root!r})
from benchmarks.scale.memory import {task} as task

def get_config():
    return task({brain!r}, {steps})
"""
EVERY: dict[str, Any] = {
    "log_every": 20,
    "eval_every": 250,
    "checkpoint_every": 100,
    "batch_stats_steps": 5,
}
SMALL: dict[str, Any] = {"stem_kernel": 3, "stem_stride": 1, "widths": (4, 4, 8)}


def pretext(brain: str, steps: int) -> Config:
    """Return a config for pre-training, with all distances."""
    data = DataConfig((brain,), patch_px=32, um_per_px=64.0, batch_pairs=8, all_distances=True)
    return Config(data=data, model=ModelConfig(**SMALL), steps=steps, eval_pairs=32, **EVERY)


def segment(brain: str, steps: int) -> SegmentConfig:
    """Return a config for segmentation, with the atlas."""
    data = SegmentData((brain,), image_px=60, um_per_px=64.0, atlas=True, batch_images=4)
    model = ModelConfig(**SMALL)
    return SegmentConfig(data=data, model=model, steps=steps, eval_images=4, **EVERY)


def read_batches(task: str, brain: str, steps: int, log: Path) -> None:
    """Read batches without training, and write the time of every 20th batch to a file."""
    from absl import flags

    from jaxcyto.data.loading import iterate
    from jaxcyto.training.pretext import open_pretraining
    from jaxcyto.training.segment import open_segmentation

    flags.FLAGS.mark_as_parsed()  # grain reads flags
    if task == "pretext":
        experiment = open_pretraining(pretext(brain, steps), None)
    else:
        experiment = open_segmentation(segment(brain, steps), None)
    batches = iterate(experiment.train_batches(0), 4, lambda batches: batches)
    with log.open("w", buffering=1) as file:
        for step in range(1, steps + 1):
            next(batches)
            if step % 20 == 0:
                file.write(json.dumps({"step": step, "time": time.time()}) + "\n")


def sample(pid: int) -> list[float]:
    """Sample a process: time (s), private memory in RAM or swap (MiB), open files, threads.

    The resident set would be misleading, because the system drops and reloads pages of mapped files
    (libraries) at any time.
    """
    status = Path(f"/proc/{pid}/status").read_text()
    own = sum(int(n) for n in re.findall(r"^(?:RssAnon|VmSwap):\s+(\d+) kB", status, re.M))
    files, threads = (len(os.listdir(f"/proc/{pid}/{each}")) for each in ("fd", "task"))
    return [time.time(), own / 2**10, files, threads]


def watch(command: list[str], log: Path, steps: int) -> dict[str, Any]:
    """Run a command that writes steps and times to `log`, and measure what it holds at each step.

    Returns:
        Figures of memory, open files and threads.
    """
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    samples = []
    while process.poll() is None:
        try:
            samples.append(sample(process.pid))
        except (OSError, IndexError):  # the process has just ended
            break
        time.sleep(SECONDS)
    if process.wait():
        raise SystemExit(f"{command} ended with {process.returncode}")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    clock, memory, files, threads = np.array(samples).T
    inside = (clock >= lines[0]["time"]) & (clock <= lines[-1]["time"])
    known = np.array([[line["time"], line["step"]] for line in lines])
    at = np.interp(clock[inside], known[:, 0], known[:, 1])
    memory, files, threads = memory[inside], files[inside], threads[inside]
    late = at >= WARM_UP * steps
    figures: dict[str, Any] = {"steps": steps, "samples": int(late.sum())}
    for name, share in (("start", WARM_UP), ("middle", (1 + WARM_UP) / 2), ("end", 1.0)):
        figures[f"{name}_mib"] = round(float(np.interp(share * steps, at, memory)), 1)
    tenths = np.linspace(0.1, 1, 10) * steps
    figures["mib_by_tenth"] = np.interp(tenths, at, memory).round(1).tolist()
    figures["highest_mib"] = round(float(memory.max()), 1)
    slope = np.polyfit(at[late], memory[late], 1)[0]
    figures["growth_mib_per_1000_steps"] = round(1000 * float(slope), 2)
    for name, values in (("files", files[late]), ("threads", threads[late])):
        half = len(values) // 2
        figures[f"{name}_first_half"] = int(values[:half].max())
        figures[f"{name}_second_half"] = int(values[half:].max())
    return figures


def main() -> None:
    """Run the loader and the training of both tasks, and print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--task", choices=["pretext", "segment"], help="default: both")
    parser.add_argument(
        "--save-last", action="store_true", help="save and validate at the end only"
    )
    parser.add_argument("--loader", nargs=3, help=argparse.SUPPRESS)  # task, brain, log
    arguments = parser.parse_args()
    if arguments.loader:
        task, brain, log = arguments.loader
        return read_batches(task, brain, arguments.steps, Path(log))
    steps, results, version = arguments.steps, {}, commit()  # before the checkout changes
    rare = [f"--config.{name}_every={steps}" for name in ("checkpoint", "eval")]
    options = rare if arguments.save_last else []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        brain = make_phantom(folder / "brain", PRESETS["tiny"], workers=1)
        sample_brain(brain, num_patches=240, patch_px=32, um_per_px=64.0)
        pair_brain(brain, num_pairs=480, method="heat", all_distances=True, workers=1)
        for task in [arguments.task] if arguments.task else ["pretext", "segment"]:
            config = folder / f"{task}.py"
            config.write_text(
                CONFIG.format(root=str(ROOT), task=task, brain=str(brain), steps=steps)
            )
            log = folder / f"{task}.jsonl"
            own = [sys.executable, __file__, "--steps", str(steps)]
            results[f"{task}, loader alone"] = watch(
                [*own, "--loader", task, str(brain), str(log)], log, steps
            )
            run = folder / task
            train = [sys.executable, "train.py", "--config", str(config), "--workdir", str(run)]
            results[f"{task}, training"] = watch([*train, *options], run / "metrics.jsonl", steps)
    print(f"{'MiB':<24}{'start':>9}{'middle':>9}{'end':>9}{'per 1000 steps':>16}{'files':>8}")
    for name, row in results.items():
        print(
            f"{name:<24}{row['start_mib']:>9}{row['middle_mib']:>9}{row['end_mib']:>9}"
            f"{row['growth_mib_per_1000_steps']:>16}{row['files_second_half']:>8}"
        )
    print(json.dumps(results | {"commit": version}))


if __name__ == "__main__":
    main()
