"""A large square matrix in a file, of which blocks are read."""

import dataclasses
import os
from pathlib import Path

import numpy as np

from jaxcyto.errors import InputError
from jaxcyto.utils.files import map_npy
from jaxcyto.utils.unchanged import Stamp, opened_unchanged, stamp


@dataclasses.dataclass(frozen=True, eq=False)
class MatrixFile:
    """A float32 [N, N] npy file; made by `open_matrix`. Threads may share it.

    The file is open only while a block is read.
    """

    path: Path
    size: int  # N
    offset: int  # of the first value, bytes
    stamp: Stamp

    def block(self, numbers: np.ndarray) -> np.ndarray:
        """float32 [M, M]: rows and columns of these numbers [M].

        Raises:
            InputError: the file is out of reach, or has changed since it was opened.
        """
        out = np.empty((len(numbers), len(numbers)), np.float32)
        line = np.empty(self.size, np.float32)
        with opened_unchanged(self.path, self.stamp) as fd:
            for row, number in zip(out, numbers, strict=True):
                self._read(fd, line, int(number) * self.size)
                row[:] = line[numbers]
        return out

    def values(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """float32 [M]: single values.

        Raises:
            InputError: as `block`.
        """
        out = np.empty((len(rows), 1), np.float32)
        with opened_unchanged(self.path, self.stamp) as fd:
            for place, value in zip(rows.astype(np.int64) * self.size + columns, out, strict=True):
                self._read(fd, value, int(place))
        return out[:, 0]

    def _read(self, fd: int, into: np.ndarray, place: int) -> None:
        try:
            got = os.preadv(fd, [into], self.offset + 4 * place)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read: {error.strerror}") from None
        if got != into.nbytes:
            raise InputError(f"{self.path}: is cut off; write it again")


def open_matrix(path: Path) -> MatrixFile:
    """Reads the header.

    Raises:
        One of files.READ_ERRORS: not a square float32 matrix, or cut off.
    """
    before = stamp(path)
    header = map_npy(path)  # nothing of it is looked at: see `opened_unchanged`
    square = header.ndim == 2 and header.shape[0] == header.shape[1]
    if not (square and header.dtype == np.float32 and header.flags.c_contiguous):
        raise ValueError(f"{header.dtype} {list(header.shape)}; expected a square of float32")
    assert isinstance(header, np.memmap)
    return MatrixFile(path, len(header), header.offset, before)
