"""What a run tells while it runs: JSON lines, TensorBoard if installed, one progress line."""

import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

logger = logging.getLogger("jaxcyto")


def log_to_stderr() -> None:
    """Sends the project's messages to stderr, with the time of day; other libraries' stay out."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


class MetricsWriter:
    """Appends to `metrics.jsonl`, and to `tensorboard/` where tensorboardX is installed.

    On resume, lines of steps after the restored one are dropped, so no step stands twice.
    """

    def __init__(self, workdir: Path, start: int):
        self._path = workdir / "metrics.jsonl"
        if self._path.exists():
            kept = [line for line in read_metrics(self._path) if line["step"] <= start]
            temporary = self._path.with_suffix(".tmp")
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
            temporary.replace(self._path)
        self._file = self._path.open("a", buffering=1)
        try:
            from tensorboardX import SummaryWriter

            self._board: Any = SummaryWriter(str(workdir / "tensorboard"), purge_step=start + 1)
        except ImportError:
            self._board = None

    def write(self, step: int, values: dict[str, float]) -> None:
        """Writes scalars of a step (steps taken so far)."""
        line = {"step": step, "time": round(time.time(), 3)} | values
        self._file.write(json.dumps(line) + "\n")
        if self._board is not None:
            for key, value in values.items():
                self._board.add_scalar(key, value, step)

    def close(self) -> None:
        """Flushes and closes the files."""
        self._file.close()
        if self._board is not None:
            self._board.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Lines of a metrics.jsonl; a last line that was cut off by a kill is left out."""
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines


class Progress:
    """One line with step, loss, error, examples/s, share of time waiting for data, time left."""

    def __init__(self, start: int, total: int, examples_per_step: int, unit: str):
        self._total = total
        self._examples = examples_per_step
        self._unit = unit
        self._step = start
        self._time = time.monotonic()
        self.waited = 0.0  # seconds, in the loader since the last line

    def line(self, step: int, loss: float, headline: str) -> dict[str, float]:
        """Logs the line; returns its rates for the metrics file."""
        seconds = max(time.monotonic() - self._time, 1e-9)
        rate = (step - self._step) / seconds
        values = {
            f"{self._unit}_per_second": rate * self._examples,
            "data_wait_share": min(1.0, self.waited / seconds),
        }
        left = (self._total - step) / rate if rate else float("inf")
        logger.info(
            "step %d/%d  loss %.4f  %s  %.3g %s/s  wait %.0f%%  left %s",
            step,
            self._total,
            loss,
            headline,
            rate * self._examples,
            self._unit,
            100 * values["data_wait_share"],
            duration(left),
        )
        self.restart(step)
        return values

    def restart(self, step: int) -> None:
        """Leaves out what happened since the last line (evaluation, compilation)."""
        self._step, self._time, self.waited = step, time.monotonic(), 0.0


def duration(seconds: float) -> str:
    """Seconds as "1 h 02 min", "3 min 04 s" or "5 s"."""
    if seconds == float("inf"):
        return "unknown"
    seconds = round(seconds)
    if seconds >= 3600:
        return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
    if seconds >= 60:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds} s"
