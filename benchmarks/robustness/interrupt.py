"""Does Ctrl-C end a call of a network's layers with KeyboardInterrupt, at any moment?

    python benchmarks/robustness/interrupt.py --signals 200
    python benchmarks/robustness/interrupt.py --signals 200 --calls network

A process repeats one kind of calls and gets SIGINT at random moments. `eager` are convolutions,
their gradients, pooling and a block outside of `jax.jit`, which run in XLA. `block` is a jitted
block, and `network` the jitted gradient of a small network, whose convolutions run in oneDNN. A
signal may end in one of these ways:

* interrupted: KeyboardInterrupt.
* renamed: another exception whose traceback holds the KeyboardInterrupt. JAX turns what is raised
  in the comparison of its cache keys into a ValueError, and XLA makes it an error of the program.
* dropped: Python drops an exception that is raised in the callback of a weak reference or in
  `__del__` ("Exception ignored in ..."). The call goes on, and a second signal ends it.
* other: an exception without a KeyboardInterrupt.
* aborted: the process has died.
* hung: a second signal does not end the call either.

After each signal, the same process must compute the same values as before, or it counts as other.
Exit status 1 if any signal ended in one of the last three ways. Last line: one JSON object.
"""

import argparse
import collections
import json
import queue
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[2]
LONGEST_S = 0.1  # from the start of the calls to the signal
PATIENCE_S = 20.0  # until a second signal is sent, and until the process counts as hung
START_S = 300.0  # for imports, compilation and the first calls
WAYS = "interrupted", "renamed", "dropped", "other", "aborted", "hung"
FAULTS = WAYS[3:]
CALLS = {
    "eager": """
def calls():
    y, pull = jax.vjp(lambda x, k: layers.max_pool(layers.conv(x, k)), x, kernel)
    return pull(y)[0].sum() + layers.affine_block(x, block, 1, True, True).sum()
""",
    "block": """
program = jax.jit(lambda x: layers.affine_block(x, block, 1, True, True).sum())

def calls():
    return program(x)
""",
    "network": """
model = SiameseNet(features=4, stem_kernel=3, stem_stride=1, widths=(4, 4, 8))
patches = jnp.ones((4, 2, 32, 32, 1))
variables = model.init(jax.random.key(0), patches)
out = lambda p: model.apply(variables | {"params": p}, patches, True, mutable=["batch_stats"])[0]
loss = lambda p: sum(jnp.sum(leaf) for leaf in jax.tree.leaves(out(p)))
program = jax.jit(lambda p: sum(jnp.sum(leaf) for leaf in jax.tree.leaves(jax.grad(loss)(p))))

def calls():
    return program(variables["params"])
""",
}
CHILD = """
import os, sys, threading, traceback
sys.path.insert(0, {root!r})
import jax, jax.numpy as jnp
from jaxcyto.models import layers
from jaxcyto.models.siamese import SiameseNet

# Ends with the process that has started this one, however that ends.
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(1)), daemon=True).start()
x, kernel = jnp.ones((2, 24, 24, 8)), jnp.ones((3, 3, 8, 8))
block = [(kernel, jnp.ones(8), jnp.zeros(8))] * 2
{calls}
expected = float(calls())
while True:
    end = "other values" if float(calls()) != expected else ""
    try:
        print(end or "ready", flush=True)
        while True:
            calls().block_until_ready()
    except KeyboardInterrupt:
        end = "interrupted"
    except Exception as error:
        text = traceback.format_exc()
        end = "renamed" if "KeyboardInterrupt" in text else "other"
        end += f" {{type(error).__name__}}: {{error}}".splitlines()[0]
    print(end, flush=True)
"""


class Child:
    """A process that repeats the calls, and the lines that it prints. A context manager."""

    def __init__(self, calls: str):
        self._errors = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-c", CHILD.format(root=str(ROOT), calls=CALLS[calls])],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
            start_new_session=True,  # Ctrl-C in a terminal is for this script alone
        )  # fmt: skip
        assert self._process.stdout is not None
        self._lines: queue.Queue[str] = queue.Queue()
        reading = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        reading.start()

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            self._lines.put(line.strip())
        self._lines.put("")

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def line(self, patience: float) -> str | None:
        """Return the next line, "" if the process has ended, or None after `patience` seconds."""
        try:
            return self._lines.get(timeout=patience)
        except queue.Empty:
            return None

    def errors(self) -> str:
        """Return the end of what the process has printed to stderr."""
        self._errors.seek(0)
        return self._errors.read()[-2000:]

    def interrupt(self, delay: float) -> tuple[str, str]:
        """Send SIGINT after a delay.

        Returns:
            One of WAYS, and what is known beyond.
        """
        time.sleep(delay)
        self._process.send_signal(signal.SIGINT)
        line, way = self.line(PATIENCE_S), None
        if line is None:
            self._process.send_signal(signal.SIGINT)
            line, way = self.line(PATIENCE_S), "dropped"
        if line is None:
            return "hung", ""
        if not line:
            return "aborted", f"status {self._process.wait()}: {self.errors()}"
        found, _, more = line.partition(" ")
        return (way if way and found not in FAULTS else found), more


def interrupt(calls: str, signals: int, rng: random.Random) -> tuple[dict[str, int], list[str]]:
    """Send signals to processes that repeat one kind of calls.

    Returns:
        How many signals ended in each of WAYS, and what is known about those of FAULTS.
    """
    ways: collections.Counter[str] = collections.Counter()
    faults: list[str] = []
    while ways.total() < signals:
        with Child(calls) as child:
            line = child.line(START_S)
            if line != "ready":
                raise SystemExit(f"the calls do not start: {child.errors()}")
            while line == "ready" and ways.total() < signals:
                way, more = child.interrupt(rng.uniform(0, LONGEST_S))
                ways[way] += 1
                if way in FAULTS:
                    faults.append(f"{way} {more}")
                print(
                    f"\r{calls}: {ways.total()} of {signals}", end="", file=sys.stderr, flush=True
                )
                if way in ("aborted", "hung", "dropped"):  # then another signal may be under way
                    break
                line = child.line(START_S)
                if line == "other values" or not line:
                    ways["other"] += 1
                    faults.append(f"other {line or 'end of the process'} after a signal")
    print(file=sys.stderr)
    return {way: ways[way] for way in WAYS}, faults


def main() -> None:
    """Send the signals, and print how each ended."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--signals", type=int, default=200)
    parser.add_argument("--calls", choices=sorted(CALLS), default="eager")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the child is killed, too
    ways, faults = interrupt(options.calls, options.signals, random.Random(options.seed))
    for fault in faults:
        print(fault)
    print(json.dumps({"calls": options.calls, "signals": options.signals} | ways))
    sys.exit(any(ways[way] for way in FAULTS))


if __name__ == "__main__":
    main()
