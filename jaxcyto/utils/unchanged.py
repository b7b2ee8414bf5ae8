"""Detect files that change between reads."""

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from jaxcyto.errors import InputError

Stamp = tuple[int, int, int]  # inode, size in bytes, modification time in ns


def stamp(path: str | os.PathLike) -> Stamp:
    """Return the state of a file, by which `opened_unchanged` detects changes.

    Raises:
        InputError: the file is missing, inaccessible or not a regular file.
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
    """Yield a descriptor for reading, and compare the file with a stamp before and after.

    Files are read instead of memory-mapped, because SIGBUS kills a process that reads from a mapped
    file after its truncation.

    Args:
        path: the file.
        expected: its `stamp` when its headers were read.

    Raises:
        InputError: the file is missing, inaccessible, changed or replaced.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # do not block on a pipe
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
