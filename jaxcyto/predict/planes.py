"""Images that wait on disk, in files without a name: nothing is left of them, whatever happens."""

import os
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np

from jaxcyto.errors import InputError

BAND_ROWS = 512  # read or written at once; even
Reduce = Callable[[np.ndarray], np.ndarray]


class Plane:
    """A uint8 image [height, width] in a nameless file, read and written by whole rows.

    The file goes when the object goes.

    Raises:
        InputError: the folder cannot be written.
    """

    def __init__(self, folder: Path, shape: tuple[int, int]):
        self.folder, self.shape = folder, shape
        try:
            with tempfile.TemporaryFile(dir=folder) as file:
                self._fd = os.dup(file.fileno())
        except OSError as error:
            raise InputError(f"{folder}: cannot be written: {error.strerror}") from None
        weakref.finalize(self, os.close, self._fd)

    def write(self, top: int, rows: np.ndarray) -> None:
        """Writes rows uint8 [any, width] from row `top` on.

        Raises:
            InputError: the disk is full.
        """
        data = memoryview(np.ascontiguousarray(rows)).cast("B")
        place = top * self.shape[1]
        try:
            while data:
                done = os.pwrite(self._fd, data, place)
                data, place = data[done:], place + done
        except OSError as error:
            raise InputError(f"{self.folder}: cannot be written: {error.strerror}") from None

    def read(self, top: int, height: int) -> np.ndarray:
        """uint8 [up to height, width] from row `top`, fewer at the bottom."""
        width = self.shape[1]
        rows = max(0, min(height, self.shape[0] - top))
        data = os.pread(self._fd, rows * width, top * width)
        return np.frombuffer(data, np.uint8).reshape(rows, width)

    def half(self, reduce: Reduce) -> "Plane":
        """The image of half the side; `reduce` turns [..., 4] px of 2 x 2 into one.

        The last row or column of an odd side is repeated.
        """
        height, width = (-(-side // 2) for side in self.shape)
        smaller = Plane(self.folder, (height, width))
        for top in range(0, height, BAND_ROWS // 2):
            band = self.read(2 * top, BAND_ROWS)
            band = np.pad(band, [(0, side % 2) for side in band.shape], mode="edge")
            fours = [band[i::2, j::2] for i in (0, 1) for j in (0, 1)]
            smaller.write(top, reduce(np.stack(fours, axis=-1)))
        return smaller


def mean(pixels: np.ndarray) -> np.ndarray:
    """uint8 [..., 4] -> uint8 [...]; halves round up."""
    return ((pixels.sum(axis=-1, dtype=np.uint16) + 2) // 4).astype(np.uint8)


def mode(pixels: np.ndarray) -> np.ndarray:
    """The most frequent of four numbers, the smallest of equally frequent ones."""
    a, b, c, d = np.moveaxis(np.sort(pixels, axis=-1), -1, 0)
    return np.where(a == b, a, np.where(b == c, b, np.where(c == d, c, a)))
