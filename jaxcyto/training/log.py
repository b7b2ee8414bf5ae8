"""What a run tells while it runs: JSON lines, TensorBoard if installed, one progress line."""

import contextlib
import json
import logging
import math
import os
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxcyto.runs.metrics_file import read_metrics
from jaxcyto.utils.files import atomic_write

logger = logging.getLogger("jaxcyto")


def log_to_stderr() -> None:
    """Sends the project's messages to stderr, with the time of day; other libraries' stay out."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


def only_warnings() -> None:
    """For all processes of a job but the first, which tells the rest."""
    logger.setLevel(logging.WARNING)
    warnings.simplefilter("ignore")


class MetricsWriter:
    """Appends to `metrics.jsonl`, and to `tensorboard/` where tensorboardX is installed.

    On resume, lines of steps after the restored one are dropped, so no step stands twice. Without a
    folder, as in processes other than the first, nothing is written.
    """

    def __init__(self, workdir: Path | None, start: int):
        self._file = self._board = None
        if workdir is None:
            return
        self._path = workdir / "metrics.jsonl"
        if self._path.exists():
            kept = [line for line in read_metrics(self._path) if line["step"] <= start]
            with atomic_write(self._path) as file:
                file.write("".join(json.dumps(line) + "\n" for line in kept).encode())
        # no buffer: what a kill leaves behind is whole lines, and a full disk is noticed at once
        self._file = self._path.open("ab", buffering=0)
        with contextlib.suppress(ImportError):
            self._board = _Board(workdir / "tensorboard", start)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Writes scalars of a step (steps taken so far), without those that JSON cannot hold.

        Raises:
            OSError: they could not be written; names the file.
        """
        values = {key: value for key, value in values.items() if math.isfinite(value)}
        if self._file is None or not values:
            return
        now = time.time()
        left = (json.dumps({"step": step, "time": round(now, 3)} | values) + "\n").encode()
        try:
            while left:  # a disk that fills up takes a part
                left = left[self._file.write(left) :]
        except OSError as error:
            error.filename = str(self._path)
            raise
        if self._board is not None:
            self._board.write(step, values, now)

    def sync(self) -> None:
        """Returns when all lines are on the disk: a checkpoint must not outlive those before it."""
        if self._file is not None:
            os.fsync(self._file.fileno())
        if self._board is not None:
            self._board.flush()

    def close(self) -> None:
        """Closes the files."""
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()


class _Board:
    """Scalars for TensorBoard, written in this thread.

    tensorboardX's SummaryWriter has a thread that a full disk ends; the run would then wait for it
    forever. Curves are a copy of metrics.jsonl, so an error here is said once and stops nothing.
    """

    def __init__(self, folder: Path, start: int):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2
        from tensorboardX.summary import scalar

        proto: Any = event_pb2  # its classes are made when it is imported
        self._event, self._scalar = proto.Event, scalar
        self._folder = folder
        self._writer: Any = None
        with self._not_stopping():
            folder.mkdir(exist_ok=True)
            # TensorBoard hides what an earlier writer has after this step
            begin = proto.SessionLog(status=proto.SessionLog.START)
            purge = proto.Event(step=start + 1, session_log=begin)
            self._writer = EventsWriter(str(folder / "events"), f".{os.getpid()}")
            self._writer.write_event(purge)

    def write(self, step: int, values: dict[str, float], now: float) -> None:
        """Adds scalars of a step, at a time in seconds."""
        if self._writer is not None:
            with self._not_stopping():
                for key, value in values.items():
                    summary = self._scalar(key, value)
                    event = self._event(step=step, wall_time=now, summary=summary)
                    self._writer.write_event(event)

    def flush(self) -> None:
        """Hands what was added to the system."""
        if self._writer is not None:
            with self._not_stopping():
                self._writer.flush()

    def close(self) -> None:
        """Flushes and closes the file."""
        if self._writer is not None:
            with self._not_stopping():
                self._writer.close()

    @contextlib.contextmanager
    def _not_stopping(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._writer = None
            logger.warning("%s: no longer written (%s)", self._folder, error.strerror)


class ProgressLine:
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
