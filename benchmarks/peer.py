"""Compare training step and forward pass with PyTorch on the same weights, inputs and losses.

    python benchmarks/peer.py --peer-python TORCH/bin/python
    python benchmarks/peer.py --dtypes float32,bfloat16                       # on a GPU
    python benchmarks/peer.py --patch 259 --tile 505 --rounds 2               # a quick look

Ours is the step that `train.py` runs, without augmentation and with the process settings that
`train.py` makes. PyTorch (torch_speed.py) runs eager and compiled, in both memory layouts. On a CPU
it runs as installed and also tuned, with glibc set to keep freed memory (TUNED), which `train.py`
does for itself. Every process stays alive and idle while another is timed. Rounds are interleaved,
the first call of each turn does not count, and all values are medians. The last column of the
tables is the loss of the first step or the mean square of the outputs, and must agree. The last
line on stdout is one JSON object.
"""

import argparse
import dataclasses
import importlib.util
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

OURS, PEER = (Path(__file__).with_name("pytorch") / f"{name}_speed.py" for name in ("jax", "torch"))
TUNED = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**35),
    "MALLOC_TOP_PAD_": str(2**28),
    "MALLOC_ARENA_MAX": "1",
}
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}  # relative difference of the first values
SUFFIX = {"weights": ".safetensors", "images": ".npy", "targets": ".npz"}


@dataclasses.dataclass(eq=False)
class Server:
    """A process that answers each line of JSON with one."""

    name: str
    command: list[str]
    environment: dict[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        # all processes use the same single GPU
        first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": first} | self.environment
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def ask(self, **asked: Any) -> dict[str, Any]:
        """Send a request and return the answer. Exit if the process has ended."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with status {self.process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        """Close stdin, on which the process ends, and wait for it."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def servers(peer_python: str | None, on_cpu: bool) -> Iterator[Server]:
    """Start our process and those of PyTorch, ours first."""
    yield Server("ours", [sys.executable, str(OURS)])
    if peer_python is not None:
        yield Server("PyTorch", [peer_python, str(PEER)])
        if on_cpu:
            yield Server("PyTorch tuned", [peer_python, str(PEER)], TUNED)


def forms(arguments: argparse.Namespace) -> list[tuple[str, dict[str, bool]]]:
    """List the ways to run PyTorch, each with its name and arguments."""
    found = []
    for compiled in (False, True) if arguments.compile else (False,):
        for last in (False, True):
            name = f"{'compiled' if compiled else 'eager'} {'NHWC' if last else 'NCHW'}"
            found.append((name, {"compile": compiled, "channels_last": last}))
    return found


def measure(
    running: list[Server], task: dict[str, Any], arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """Time one network, mode and dtype with all servers and forms, interleaved."""
    made: list[tuple[Server, str, dict[str, Any]]] = []
    for server in running:
        ways = [("", {})] if server is running[0] else forms(arguments)
        for name, how in ways:
            answer = server.ask(make=name, **task, **how)
            row = {"who": f"{server.name} {name}".strip(), **answer, "seconds": []}
            made.append((server, name, row))
    for _ in range(arguments.rounds):
        for server, name, row in made:
            if "error" not in row:
                answer = server.ask(time=name, repeats=arguments.repeats)
                row["seconds"] += answer["seconds"]
    for server, name, _ in made:
        server.ask(drop=name)
    return [row for _, _, row in made]


def summarize(rows: list[dict[str, Any]], images: int, tolerance: float) -> dict[str, Any]:
    """Return median rates and the ratios of ours to the fastest peer, as installed and tuned.

    Args:
        rows: the answers of `measure`.
        images: images per call.
        tolerance: allowed relative difference between the first values.

    Raises:
        SystemExit: a peer computes something else.
    """
    values = {r["who"]: r["value"] for r in rows if "value" in r}
    far = {who: v for who, v in values.items() if abs(v / values["ours"] - 1) > tolerance}
    if far:
        raise SystemExit(f"not the same computation: {values}")
    rates = {r["who"]: images / statistics.median(r["seconds"]) for r in rows if r["seconds"]}
    found: dict[str, Any] = {"images_per_second": rates}
    found["seconds"] = {r["who"]: r["seconds"] for r in rows}
    found["values"] = {r["who"]: r.get("value", r.get("error")) for r in rows}
    installed = [rate for who, rate in rates.items() if who.startswith("PyTorch ")
                 and "tuned" not in who]  # fmt: skip
    tuned = [rate for who, rate in rates.items() if who.startswith("PyTorch tuned")]
    if installed:
        found["ratio_best_peer"] = rates["ours"] / max(installed)
    if tuned:
        found["ratio_best_tuned_peer"] = rates["ours"] / max(*tuned, *installed)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--peer-python", help="interpreter with torch, numpy and safetensors")
    parser.add_argument("--nets", default="siamese,unet")
    parser.add_argument("--modes", default="train,forward")
    parser.add_argument("--dtypes", default="float32")
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--patch", type=int, default=1019, help="side of patches in px")
    parser.add_argument("--tiles", type=int, default=2)
    parser.add_argument("--tile", type=int, default=2025, help="side of tiles in px")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=5, help="timed calls per round")
    parser.add_argument("--budget", type=float, help="seconds after which nothing new is started")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    arguments = parser.parse_args()
    peer = arguments.peer_python
    if peer is None and importlib.util.find_spec("torch"):
        peer = sys.executable
    if peer is None:
        print("torch is not installed, so only ours is timed. Use --peer-python to name a peer.")
    started = time.monotonic()
    running = list(servers(peer, on_cpu=not _has_accelerator()))
    about = {server.name: server.ask(about=True) for server in running}
    signal.signal(signal.SIGTERM, _stop)
    results: list[dict[str, Any]] = []
    try:
        compare(running, results, arguments, started)
        for server in running:
            server.close()
    except Stopped:
        print("stopped by SIGTERM, finished results are kept")
        for server in running:
            server.process.kill()
    packages = {name: version(name) for name in ("jax", "jaxlib", "flax")}
    found = {"results": results, "about": about, "versions": packages, "rounds": arguments.rounds}
    print(json.dumps(found | {"cores": os.cpu_count(), "machine": platform.machine()}), flush=True)


class Stopped(Exception):
    """Raised on SIGTERM, which run_all.py sends when its time is used up."""


def _stop(*_: object) -> None:
    raise Stopped


def compare(
    running: list[Server], results: list[dict[str, Any]], arguments: Any, started: float
) -> None:
    """Measure all requested combinations, and append a record to `results` after each table.

    The records are appended as they come, so that they survive `Stopped`.
    """
    with tempfile.TemporaryDirectory() as folder:
        for net in arguments.nets.split(","):
            size, side = (
                (arguments.pairs, arguments.patch) if net == "siamese"
                else (arguments.tiles, arguments.tile)
            )  # fmt: skip
            files = {name: f"{folder}/{net}_{name}" for name in ("weights", "images", "targets")}
            files = {name: path + SUFFIX[name] for name, path in files.items()}
            running[0].ask(write=True, net=net, batch=size, side=side, **files)
            for dtype in arguments.dtypes.split(","):
                for mode in arguments.modes.split(","):
                    if arguments.budget and time.monotonic() - started > arguments.budget:
                        print(f"{net} {mode} {dtype}: no time left")
                        continue
                    task = {"net": net, "mode": mode, "dtype": dtype, **files}
                    rows = measure(running, task, arguments)
                    images = size * (2 if net == "siamese" else 1)
                    found = summarize(rows, images, TOLERANCE[dtype])
                    results.append(
                        {"net": net, "mode": mode, "dtype": dtype, "batch": size, "side": side}
                        | found
                    )
                    show(results[-1])


def show(found: dict[str, Any]) -> None:
    """Print one table."""
    print(
        f"\n{found['net']} {found['mode']} {found['dtype']}, {found['batch']} x {found['side']} px"
    )
    best = found["images_per_second"]["ours"]
    for who, value in found["values"].items():
        if isinstance(value, str):
            print(f"  {who:<32}{value[:90]}")
            continue
        rate = found["images_per_second"][who]
        print(f"  {who:<32}{rate:>9.2f} images/s{best / rate:>8.2f}{value:>14.6f}")
    for key in ("ratio_best_peer", "ratio_best_tuned_peer"):
        if key in found:
            print(f"  {key:<32}{found[key]:>9.2f}", flush=True)


def _has_accelerator() -> bool:
    """Return whether JAX has a GPU or TPU, asked in another process, which would keep it."""
    code = "import jax; print(jax.default_backend())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()[-1] != "cpu"


if __name__ == "__main__":
    main()
