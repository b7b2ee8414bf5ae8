"""Run the speed benchmarks, and write docs/performance.md from their output.

    python benchmarks/speed/run_all.py --peer-python TORCH/bin/python
    python benchmarks/speed/run_all.py --only peer,loader
    python benchmarks/speed/run_all.py --budget 480 --peer-python TORCH/bin/python  # 8 minutes
    python benchmarks/speed/run_all.py --page  # write only the page

Nothing else should run on the machine. Each benchmark runs in its own process. Its output and its
last line (JSON) are stored in benchmarks/results/speed/DEVICE/NAME.json, so that the page shows all
devices that were ever measured. With `--budget` the runs are short, and benchmarks at the end of
the list are skipped once the time is used up. The last line on stdout is one JSON object with the
goals.
"""

import argparse
import json
import platform
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import provenance  # noqa: E402
from benchmarks.speed import goals  # noqa: E402
from jaxcyto.utils.files import atomic_write  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "speed"
PAGE = ROOT / "docs" / "performance.md"
BEGIN = "<!-- begin: written by benchmarks/speed/run_all.py -->"
END = "<!-- end -->"

# name: script, arguments, more arguments for a short run. The most important come first.
BENCHMARKS: dict[str, tuple[str, list[str], list[str]]] = {
    "peer": ("peer.py", [], ["--rounds", "2", "--repeats", "3"]),
    "step": ("step.py", ["--config", "configs/pretrain.py", "--batch", "8"],
             ["--seconds", "1", "--windows", "3"]),
    "step_unet": ("step.py", ["--config", "configs/segment.py", "--batch", "2"],
                  ["--seconds", "1", "--windows", "3"]),
    "profile": ("speed/step_profile.py", ["--config", "configs/pretrain.py", "--batch", "8"], []),
    "profile_unet": ("speed/step_profile.py",
                     ["--config", "configs/segment.py", "--batch", "2"], []),
    "predict": ("speed/predict_speed.py", ["--side", "5120", "--rounds", "2"], ["--rounds", "1"]),
    "loader": ("speed/loader.py", ["--rounds", "5"], ["--rounds", "2"]),
    "end_to_end": ("step.py", ["--config", "configs/quickstart.py", "--loader", "--dtypes",
                   "float32", "--devices", "1"], []),
    "startup": ("speed/startup.py", ["--repeats", "2"], ["--repeats", "1"]),
    "scaling": ("speed/scaling.py", ["--batch", "8", "--devices", "1,2,8", "--seconds", "2"], []),
}  # fmt: skip
WITH_PEER = ("peer", "predict", "loader")


def device() -> str:
    """Return the platform and kind of the devices, as the name of the folder of results."""
    code = "import jax; d = jax.local_devices()[0]; print(d.platform, d.device_kind)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    kind = "-".join(done.stdout.split()).lower()
    return f"cpu-{platform.machine()}" if kind.startswith("cpu") else kind


def run(name: str, command: list[str], limit: float | None) -> dict[str, Any] | None:
    """Run a benchmark and show its output.

    Args:
        name: a key of `BENCHMARKS`.
        command: script and arguments.
        limit: seconds after which the process gets SIGTERM, or None.

    Returns:
        The record for the result file, or None if the benchmark failed or took too long.
    """
    print(f"--- {name}: {' '.join(command)}", flush=True)
    started, lines, commit = time.monotonic(), [], provenance.commit()
    process = subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    timer = threading.Timer(limit, process.terminate) if limit else None
    if timer:
        timer.start()
    for line in process.stdout:
        lines.append(line.rstrip())
        if not line.startswith("{"):
            print(line, end="", flush=True)
    status = process.wait()
    if timer:
        timer.cancel()
    if status or not lines or not lines[-1].startswith("{"):
        print(f"{name} ended with status {status} and is left out", file=sys.stderr)
        return None
    return {
        "name": name,
        "command": " ".join(["python", *command]),
        "printed": lines[:-1],
        "found": json.loads(lines[-1]),
        "seconds": round(time.monotonic() - started, 1),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit,
    }


def read_results() -> dict[str, dict[str, dict[str, Any]]]:
    """Read the records of all devices, by device and name."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for folder in sorted(path for path in RESULTS.glob("*") if path.is_dir()):
        records = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
        found[folder.name] = {name: records[name] for name in BENCHMARKS if name in records}
    return found


def page(results: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Return the text between the marks of the page."""
    lines = [BEGIN, ""]
    for device_name, records in results.items():
        lines += [f"## {device_name}", "", *goals.table(records), ""]
        for name, record in records.items():
            # a script may have moved since its record was written, so name its current path
            _, _, *arguments = record["command"].split(" ")
            command = " ".join(["python", f"benchmarks/{BENCHMARKS[name][0]}", *arguments])
            lines += [
                f"### {record['name'].replace('_', ' ')}",
                "",
                f"`{command}`, {record['seconds']:.0f} s, commit {record['commit']}",
                "",
                "```text",
                *record["printed"],
                "```",
                "",
            ]
    if all(device_name.startswith("cpu") for device_name in results):
        lines += ["## GPU, TPU", "", "Not measured yet, because none was available.", ""]
    return "\n".join([*lines, END])


def write_page() -> None:
    """Replace the text between the marks of docs/performance.md."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    with atomic_write(PAGE) as file:
        file.write((before + page(read_results()) + after).encode())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", help=f"some of {','.join(BENCHMARKS)}")
    parser.add_argument("--budget", type=float, help="seconds for short runs, as many as fit")
    parser.add_argument("--peer-python", help="an interpreter with torch, numpy and safetensors")
    parser.add_argument("--page", action="store_true", help="write only the page")
    arguments = parser.parse_args()
    names = arguments.only.split(",") if arguments.only else list(BENCHMARKS)
    if unknown := {*names} - {*BENCHMARKS}:
        parser.error(f"--only: no benchmark {', '.join(sorted(unknown))}")
    started = time.monotonic()
    folder = RESULTS / device()
    if not folder.name.startswith("cpu"):
        names = [name for name in names if name != "scaling"]  # it uses virtual CPU devices
    for name in [] if arguments.page else names:
        script, given, short = BENCHMARKS[name]
        command = [f"benchmarks/{script}", *given, *(short if arguments.budget else [])]
        if arguments.peer_python and name in WITH_PEER:
            command += ["--peer-python", arguments.peer_python]
        if name == "peer" and not folder.name.startswith("cpu"):
            command += ["--dtypes", "float32,bfloat16", "--pairs", "32", "--tiles", "8"]
        left = None
        if arguments.budget:
            left = arguments.budget - (time.monotonic() - started)
            if left < 20:
                print(f"{name}: no time left", file=sys.stderr)
                continue
            if name == "peer":  # it takes the longest, so it must leave time for the others
                command += ["--budget", f"{left / 3:.0f}"]
                left *= 0.6
        record = run(name, command, left)
        if record is not None:
            if arguments.peer_python:
                record["command"] = record["command"].replace(arguments.peer_python, "PEER")
            folder.mkdir(parents=True, exist_ok=True)
            with atomic_write(folder / f"{name}.json") as file:
                file.write(json.dumps(record, indent=1).encode() + b"\n")
            write_page()
    if arguments.page:
        write_page()
    print(json.dumps({name: goals.reached(records) for name, records in read_results().items()}))


if __name__ == "__main__":
    main()
