"""Handle training examples that cannot be read, by an error or by replacing and counting them."""

import logging
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from jaxcyto.errors import InputError

logger = logging.getLogger("jaxcyto")
TRIES = 32  # replacements drawn for an example before it is an error
T = TypeVar("T")


class ReadError(InputError):
    """A data file that cannot be read because it is missing, damaged, changed or inaccessible."""

    def __init__(self, path: Path, message: str):
        super().__init__(message)
        self.path = path


class Skipped:
    """A thread-safe record of the reads that failed, by training step.

    Batches are read ahead of their step. Some are read again, to report their examples or to
    re-estimate batch statistics. Each failed example counts once, when `take` reaches its step.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failed: set[tuple[int, int, Path]] = set()  # step, example, file
        self._taken = 0  # last step passed to `take`
        self._warned: set[Path] = set()

    def read(self, draw: Callable[[int], T], step: int, example: int) -> T:
        """Return draw(0), or the first of draw(1), draw(2), ... that can be read.

        Args:
            draw: reads the example of an attempt. Later attempts are random replacements, which
                depend only on the seed of the run, `example` and the attempt.
            step: training step that uses the example. Failures are counted if it is above 0.
            example: index of the example in the run.

        Raises:
            InputError: the example and all `TRIES` replacements cannot be read.
        """
        attempt = 0
        while True:
            try:
                return draw(attempt)
            except ReadError as error:
                self._add(step, example, error)
                if attempt == TRIES:
                    raise InputError(
                        f"{TRIES + 1} examples in a row cannot be read. The last error: {error}"
                    ) from error
                attempt += 1

    def _add(self, step: int, example: int, error: ReadError) -> None:
        with self._lock:
            warned = error.path in self._warned
            self._warned.add(error.path)
            if step > self._taken:  # a step that was taken has been counted
                self._failed.add((step, example, error.path))
        if not warned:
            logger.warning("skipped, as others of this file will be: %s", error)

    def take(self, step: int) -> dict[str, int]:
        """Return and forget how many reads of each file failed, for the steps up to this one."""
        with self._lock:
            done = [entry for entry in self._failed if entry[0] <= step]
            self._failed.difference_update(done)
            self._taken = max(self._taken, step)
        return dict(Counter(str(path) for _, _, path in sorted(done)))
