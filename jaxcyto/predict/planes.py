"""Keep images on disk in unnamed files, which disappear even if the process is killed."""

import os
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np

from jaxcyto.errors import InputError

BAND_ROWS = 512  # rows read or written at once, an even count
Reduce = Callable[[np.ndarray], np.ndarray]


class Plane:
    """A uint8 image [height, width] in an unnamed file, read and written by whole rows.

    The file is deleted with the object.

    Args:
        folder: folder on whose disk the file is created.
        shape: (height, width) in px.

    Raises:
        InputError: the folder cannot be written to.
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
        """Write rows, uint8 [n, width], from row `top` on.

        Raises:
            InputError: the file cannot be written, for example because the disk is full.
        """
        data = memoryview(np.ascontiguousarray(rows)).cast("B")
        offset = top * self.shape[1]
        try:
            while data:  # a write may be partial
                done = os.pwrite(self._fd, data, offset)
                data, offset = data[done:], offset + done
        except OSError as error:
            raise InputError(f"{self.folder}: cannot be written: {error.strerror}") from None

    def read(self, top: int, height: int) -> np.ndarray:
        """Read up to `height` rows from row `top` on, uint8 [n, width]."""
        width = self.shape[1]
        rows = max(0, min(height, self.shape[0] - top))
        data = os.pread(self._fd, rows * width, top * width)
        return np.frombuffer(data, np.uint8).reshape(rows, width)

    def half(self, reduce: Reduce) -> "Plane":
        """Return the image reduced to half the side, rounded up.

        The last row or column of an odd side is repeated.

        Args:
            reduce: reduces blocks of 2 x 2 px, uint8 [..., 4], to pixels, uint8 [...].
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
    """Average over the last axis, uint8 [..., 4] -> uint8 [...]. Halves are rounded up."""
    return ((pixels.sum(axis=-1, dtype=np.uint16) + 2) // 4).astype(np.uint8)


def mode(pixels: np.ndarray) -> np.ndarray:
    """Take the most frequent of four values, uint8 [..., 4] -> uint8 [...].

    The smallest of equally frequent values is taken.
    """
    a, b, c, d = np.moveaxis(np.sort(pixels, axis=-1), -1, 0)
    # in ascending order, equal values are neighbors
    return np.where(a == b, a, np.where(b == c, b, np.where(c == d, c, a)))
