"""Read blocks of a large square matrix from a file."""

import dataclasses
import os
from pathlib import Path

import numpy as np

from jaxcyto.errors import InputError
from jaxcyto.utils.files import map_npy
from jaxcyto.utils.unchanged import Stamp, opened_unchanged, stamp


@dataclasses.dataclass(frozen=True, eq=False)
class MatrixFile:
    """A float32 [N, N] npy file, opened by `open_matrix`. Threads may share it.

    The file is open only while a block is read.

    Attributes:
        path: the file.
        size: N.
        offset: position of the first value in the file, bytes.
        stamp: state of the file when it was opened, to detect changes.
    """

    path: Path
    size: int
    offset: int
    stamp: Stamp

    def block(self, numbers: np.ndarray) -> np.ndarray:
        """Read the block of the given rows and the same columns.

        Args:
            numbers: int [M], indices of rows and columns.

        Returns:
            float32 [M, M].

        Raises:
            InputError: the file cannot be read, or has changed since it was opened.
        """
        out = np.empty((len(numbers), len(numbers)), np.float32)
        line = np.empty(self.size, np.float32)
        with opened_unchanged(self.path, self.stamp) as fd:
            for row, index in zip(out, numbers, strict=True):
                self._read(fd, line, int(index) * self.size)
                row[:] = line[numbers]
        return out

    def values(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Read single values.

        Args:
            rows: int [M], row of each value.
            columns: int [M], its column.

        Returns:
            float32 [M].

        Raises:
            InputError: as `block`.
        """
        out = np.empty((len(rows), 1), np.float32)
        with opened_unchanged(self.path, self.stamp) as fd:
            for index, value in zip(rows.astype(np.int64) * self.size + columns, out, strict=True):
                self._read(fd, value, int(index))
        return out[:, 0]

    def _read(self, fd: int, into: np.ndarray, index: int) -> None:
        try:
            got = os.preadv(fd, [into], self.offset + 4 * index)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read: {error.strerror}") from None
        if got != into.nbytes:
            raise InputError(f"{self.path}: is truncated; write it again")


def open_matrix(path: Path) -> MatrixFile:
    """Open a matrix by reading the header of its file.

    Raises:
        InputError: the file is missing or not a regular file.
        One of files.READ_ERRORS: the file holds no square float32 matrix or is truncated.
    """
    before = stamp(path)
    header = map_npy(path)  # its values are not touched, see `opened_unchanged`
    square = header.ndim == 2 and header.shape[0] == header.shape[1]
    if not (square and header.dtype == np.float32 and header.flags.c_contiguous):
        raise ValueError(f"{header.dtype} {list(header.shape)}; expected a square of float32")
    assert isinstance(header, np.memmap)
    return MatrixFile(path, len(header), header.offset, before)
