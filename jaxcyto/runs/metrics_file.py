"""Read metrics.jsonl of a run, which holds the scalars of each logged step by name.

    {"step": 20, "time": 1795434000.123, "train/loss": 1.9, "train/distance_mae_mm": 7.2, ...}

`training.log.MetricsWriter` writes the file.
"""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

LARGEST = sys.float_info.max
SKIPPED = "skipped/"  # prefix of a path. The value says how often the file could not be read


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a metrics.jsonl, without lines that a kill or a disk error has damaged.

    Returns:
        One dict of finite numbers for each logged step, in the order of the file.
    """
    lines = []
    for text in path.read_text(errors="replace").splitlines():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            # JSON integers have no limit, but the values must fit into a float
            if all(isinstance(x, int | float) and abs(x) <= LARGEST for x in line.values()):
                lines.append(line)
    return lines


def skipped_files(lines: list[dict[str, Any]]) -> Counter[str]:
    """Count how often each file could not be read, from the lines of a metrics.jsonl."""
    total: Counter[str] = Counter()
    for line in lines:
        for key in line:
            if key.startswith(SKIPPED):
                total[key.removeprefix(SKIPPED)] += int(line[key])
    return total
