"""Files that are opened again and again must stay the files that they were."""

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from jaxcyto.errors import InputError

Stamp = tuple[int, int, int]  # inode, size in bytes, time of the last change in ns


def stamp(path: str | os.PathLike) -> Stamp:
    """What tells that a file has been changed or replaced.

    Raises:
        InputError: it is missing, out of reach, or no file.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path}: not a file")
    return _stamp(status)


@contextlib.contextmanager
def opened_unchanged(path: Path, expected: Stamp) -> Iterator[int]:
    """A descriptor to read a file by, which must be the one of that stamp before and after.

    Files are not mapped into memory: where a mapped file is cut off, a signal kills the process.

    Raises:
        InputError: the file is missing, out of reach, or another one by now.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # of a pipe in its place, no waiting
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        _check(path, fd, expected)
        yield fd
        _check(path, fd, expected)
    finally:
        os.close(fd)


def _check(path: Path, fd: int, expected: Stamp) -> None:
    if _stamp(os.fstat(fd)) != expected:
        raise InputError(f"{path}: changed while it was in use; start again")


def _stamp(status: os.stat_result) -> Stamp:
    return status.st_ino, status.st_size, status.st_mtime_ns
