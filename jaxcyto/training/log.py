"""Log a run: metrics.jsonl, TensorBoard (if tensorboardX is installed), and a progress line."""

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
    """Send the messages of jaxcyto, but not of other libraries, to stderr with the time of day."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


def only_warnings() -> None:
    """Show warnings of jaxcyto only. For processes other than 0, which logs for all of them."""
    logger.setLevel(logging.WARNING)
    warnings.simplefilter("ignore")


class MetricsWriter:
    """A writer that appends to `metrics.jsonl` and, with tensorboardX installed, `tensorboard/`."""

    def __init__(self, workdir: Path | None, start: int):
        """Open the files, and drop the lines of steps that will be repeated.

        Args:
            workdir: the run folder. None, as in processes other than 0, writes nothing.
            start: step that the run continues from. Lines of later steps are dropped, so that no
                step is listed twice.
        """
        self._file = self._board = None
        if workdir is None:
            return
        self._path = workdir / "metrics.jsonl"
        if self._path.exists():
            kept = [line for line in read_metrics(self._path) if line["step"] <= start]
            with atomic_write(self._path) as file:
                file.write("".join(json.dumps(line) + "\n" for line in kept).encode())
        # Unbuffered: a kill leaves whole lines behind, and a full disk raises at the write itself.
        self._file = self._path.open("ab", buffering=0)
        with contextlib.suppress(ImportError):
            self._board = _Board(workdir / "tensorboard", start)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write the scalars of a step. Infinities and NaN are left out, as JSON has none.

        Args:
            step: steps taken so far
            values: scalars by name

        Raises:
            OSError: the line could not be written. The error names the file.
        """
        values = {key: value for key, value in values.items() if math.isfinite(value)}
        if self._file is None or not values:
            return
        now = time.time()
        left = (json.dumps({"step": step, "time": round(now, 3)} | values) + "\n").encode()
        try:
            while left:  # on a disk that fills up, write() may accept only a part of the line
                left = left[self._file.write(left) :]
        except OSError as error:
            error.filename = str(self._path)
            raise
        if self._board is not None:
            self._board.write(step, values, now)

    def sync(self) -> None:
        """Flush all lines to the disk.

        Call it before saving a checkpoint. A resumed run does not write the lines of steps before
        the checkpoint again, so they must survive whatever the checkpoint survives.
        """
        if self._file is not None:
            os.fsync(self._file.fileno())
        if self._board is not None:
            self._board.flush()

    def close(self) -> None:
        """Close the files."""
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()


class _Board:
    """A writer of TensorBoard events that works in the calling thread.

    tensorboardX's own SummaryWriter writes in a thread. A full disk ends that thread, and the run
    would then wait for it forever. TensorBoard only gets a copy of metrics.jsonl, so the first
    error is logged and ends the copy, not the run.
    """

    def __init__(self, folder: Path, start: int):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2
        from tensorboardX.summary import scalar

        proto: Any = event_pb2  # its classes are made at import, where pyright cannot see them
        self._event, self._scalar = proto.Event, scalar
        self._folder = folder
        self._writer: Any = None
        with self._not_stopping():
            folder.mkdir(exist_ok=True)
            # This event makes TensorBoard discard what an earlier start wrote from this step on,
            # which the run will repeat.
            begin = proto.SessionLog(status=proto.SessionLog.START)
            purge = proto.Event(step=start + 1, session_log=begin)
            self._writer = EventsWriter(str(folder / "events"), f".{os.getpid()}")
            self._writer.write_event(purge)

    def write(self, step: int, values: dict[str, float], now: float) -> None:
        """Add the scalars of a step. `now` is the time in seconds since the epoch."""
        if self._writer is not None:
            with self._not_stopping():
                for key, value in values.items():
                    summary = self._scalar(key, value)
                    event = self._event(step=step, wall_time=now, summary=summary)
                    self._writer.write_event(event)

    def flush(self) -> None:
        """Flush the added scalars to the operating system."""
        if self._writer is not None:
            with self._not_stopping():
                self._writer.flush()

    def close(self) -> None:
        """Flush and close the file."""
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
    """The progress line: step, loss, error, throughput, time waited for data, time left.

    Attributes:
        waited: seconds spent waiting for the loader since the last line, added by the caller
    """

    def __init__(self, start: int, total: int, examples_per_step: int, unit: str):
        """Start measuring.

        Args:
            start: step that the run continues from
            total: steps of the whole run
            examples_per_step: examples (of `unit`) in a global batch
            unit: what throughput counts, such as "patches"
        """
        self._total = total
        self._examples = examples_per_step
        self._unit = unit
        self._step = start
        self._time = time.monotonic()
        self.waited = 0.0

    def line(self, step: int, loss: float, headline: str) -> dict[str, float]:
        """Log the line, and return its rates for metrics.jsonl."""
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
        """Leave the time since the last line (compilation, validation) out of the rates."""
        self._step, self._time, self.waited = step, time.monotonic(), 0.0


def duration(seconds: float) -> str:
    """Format seconds as "1 h 02 min", "3 min 04 s" or "5 s"."""
    if seconds == float("inf"):
        return "unknown"
    seconds = round(seconds)
    if seconds >= 3600:
        return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
    if seconds >= 60:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds} s"
