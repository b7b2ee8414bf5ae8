"""Measure how much memory each checkpoint leaves behind, and which lines have allocated it.

    python benchmarks/scale/checkpoint_memory.py --leaves 122 --saves 100

The script saves a state of small arrays again and again, as training does, and counts with
tracemalloc what is still allocated afterwards. It also calls `to_json` of a tensorstore
specification, which orbax calls for each leaf of each checkpoint. 122 leaves are those of the
segmentation network with the atlas. The last line on stdout is one JSON object.
"""

import argparse
import gc
import json
import sys
import tempfile
import tracemalloc
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import tensorstore
from absl import flags

from benchmarks.provenance import commit
from jaxcyto.training.state.checkpoint import Checkpoints

CALLS = 10000  # of to_json


def left_behind(work: Callable[[], None]) -> tuple[int, int, list[tracemalloc.StatisticDiff]]:
    """Count the objects and bytes that a call leaves behind, in all and by line."""
    gc.collect()
    before = tracemalloc.take_snapshot()
    work()
    gc.collect()
    own = [tracemalloc.Filter(False, name) for name in (tracemalloc.__file__, __file__)]
    after = tracemalloc.take_snapshot().filter_traces(own)
    lines = after.compare_to(before.filter_traces(own), "lineno")
    lines.sort(key=lambda line: -line.size_diff)
    return sum(x.count_diff for x in lines), sum(x.size_diff for x in lines), lines


def measure_saves(leaves: int, saves: int) -> dict[str, Any]:
    """Measure what each of `saves` checkpoints of `leaves` arrays leaves behind."""
    state: Any = {f"leaf_{k}": np.zeros(8, np.float32) for k in range(leaves)}
    with tempfile.TemporaryDirectory() as folder:
        with Checkpoints(Path(folder) / "checkpoints") as checkpoints:

            def save(first: int, count: int) -> None:
                for step in range(first, first + count):
                    checkpoints.save(step, state)
                checkpoints._wait()  # tracemalloc crashes if it starts or stops during a write

            save(1, 10)  # fills caches
            tracemalloc.start()
            save(11, 10)
            objects, size, lines = left_behind(lambda: save(21, saves))
            tracemalloc.stop()
    top = lines[0]
    frame = top.traceback[0]
    return {
        "objects_per_save": round(objects / saves, 1),
        "bytes_per_save": round(size / saves),
        "top_line": f"{'/'.join(Path(frame.filename).parts[-3:])}:{frame.lineno}",
        "top_line_objects_per_save": round(top.count_diff / saves, 1),
        "top_line_bytes_per_save": round(top.size_diff / saves),
    }


def measure_to_json() -> dict[str, Any]:
    """Measure what each call of `to_json` leaves behind."""
    spec = tensorstore.KvStore.Spec({"driver": "file", "path": "/tmp/folder/"})

    def call() -> None:
        for _ in range(CALLS):
            spec.to_json()

    call()
    gc.collect()
    blocks = sys.getallocatedblocks()
    call()
    gc.collect()
    return {"objects_per_to_json": round((sys.getallocatedblocks() - blocks) / CALLS, 1)}


def main() -> None:
    """Print what checkpoints and calls of `to_json` leave behind."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--leaves", type=int, default=122)
    parser.add_argument("--saves", type=int, default=100)
    options = parser.parse_args()
    flags.FLAGS.mark_as_parsed()  # orbax reads flags
    result = {"leaves": options.leaves, "saves": options.saves}
    result |= measure_saves(options.leaves, options.saves) | measure_to_json()
    result |= {name: version(name) for name in ("tensorstore", "orbax-checkpoint")}
    result["commit"] = commit()
    for key, value in result.items():
        print(f"{key:<28}{value}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
