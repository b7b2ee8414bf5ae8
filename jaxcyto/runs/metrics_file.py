"""metrics.jsonl of a run as it is read: of each step that was logged, its scalars by name.

    {"step": 20, "time": 1795434000.123, "train/loss": 1.9, "train/distance_mae_mm": 7.2, ...}

`training.log.MetricsWriter` writes it.
"""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

LARGEST = sys.float_info.max
SKIPPED = "skipped/"  # a file follows: how often it could not be read


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Lines of a metrics.jsonl; what a kill or a damaged disk made unreadable is left out."""
    lines = []
    for text in path.read_text(errors="replace").splitlines():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            # not even a whole number may be larger: what is drawn are floats
            if all(isinstance(x, int | float) and abs(x) <= LARGEST for x in line.values()):
                lines.append(line)
    return lines


def skipped_files(lines: list[dict[str, Any]]) -> Counter[str]:
    """How often each file could not be read, from the lines of a metrics.jsonl."""
    total: Counter[str] = Counter()
    for line in lines:
        for key in line:
            if key.startswith(SKIPPED):
                total[key.removeprefix(SKIPPED)] += int(line[key])
    return total
