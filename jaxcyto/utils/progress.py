"""Show progress on stderr as one line with count, rate and time left."""

import sys
import time
from typing import Protocol


class Progress(Protocol):
    """A callable that receives the count of finished items and the total, see `StderrProgress`."""

    def __call__(self, done: int, total: int) -> None: ...


class StderrProgress:
    """A progress line that is rewritten on a terminal, and repeated every 10 s in a log file.

    Args:
        label: shown before the count.
        unit: of the count, shown after it.
    """

    def __init__(self, label: str, unit: str):
        self.label, self.unit = label, unit
        self._terminal = sys.stderr.isatty()
        self._last = time.monotonic()
        self._start: tuple[float, int] | None = None  # time and count of the first call

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self._start is None or done < self._start[1]:
            self._start = (now, done)
        if done < total and now - self._last < (0.2 if self._terminal else 10):
            return
        self._last = now
        rate = (done - self._start[1]) / max(now - self._start[0], 1e-9)
        line = f"{self.label}: {done}/{total} {self.unit}"
        if rate:
            line += f", {rate:.3g}/s, {(total - done) / rate:.0f} s left"
        end = "\n" if done >= total or not self._terminal else ""
        print(f"\r{line:<70}" if self._terminal else line, end=end, file=sys.stderr, flush=True)
