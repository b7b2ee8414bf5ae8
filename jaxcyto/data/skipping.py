"""Training examples that cannot be read: an error, or others in their place, which are counted."""

import logging
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from jaxcyto.errors import InputError

logger = logging.getLogger("jaxcyto")
TRIES = 32  # examples drawn in place of one
T = TypeVar("T")


class ReadError(InputError):
    """A file of the data cannot be read: missing, damaged, changed, or out of reach."""

    def __init__(self, path: Path, message: str):
        super().__init__(message)
        self.path = path


class Skipped:
    """What could not be read, by the training step that it was for. Threads share it.

    Batches are read ahead of their step, and again to name or to re-estimate from them: each
    example counts once, when its step is `taken`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: set[tuple[int, int, Path]] = set()  # step, example, file
        self._taken = 0  # steps
        self._warned: set[Path] = set()

    def read(self, draw: Callable[[int], T], step: int, example: int) -> T:
        """draw(0), else the first of draw(1), draw(2), ... that can be read.

        Args:
            draw: attempt -> what is read; random, by the seed of the run, `example` and attempt.
            step: that the example is for; counted if above 0.
            example: its number in the run.

        Raises:
            InputError: TRIES in a row cannot be read.
        """
        attempt = 0
        while True:
            try:
                return draw(attempt)
            except ReadError as error:
                self._add(step, example, error)
                if attempt == TRIES:
                    raise InputError(
                        f"{TRIES + 1} examples in a row cannot be read; the last: {error}"
                    ) from error
                attempt += 1

    def _add(self, step: int, example: int, error: ReadError) -> None:
        with self._lock:
            warned = error.path in self._warned
            self._warned.add(error.path)
            if step > self._taken:
                self._found.add((step, example, error.path))
        if not warned:
            logger.warning("skipped, as others of this file will be: %s", error)

    def take(self, step: int) -> dict[str, int]:
        """Reads that failed, by file, for the steps up to this one that were not asked for yet."""
        with self._lock:
            done = [entry for entry in self._found if entry[0] <= step]
            self._found.difference_update(done)
            self._taken = max(self._taken, step)
        return dict(Counter(str(path) for _, _, path in sorted(done)))
