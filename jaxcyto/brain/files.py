"""Arrays on disk: written whole or not at all, read without pickle."""

import contextlib
import hashlib
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

# What numpy raises on files that are damaged, cut off or of another kind.
READ_ERRORS = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    EOFError,
    MemoryError,
    OverflowError,
    SyntaxError,
    RuntimeError,  # and NotImplementedError: kinds of zip that are not ours
    tokenize.TokenError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[IO[bytes]]:
    """A binary file that takes the place of `path` once it is complete."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
        os.replace(temporary, path)
    except OSError as error:
        if error.filename is None:  # as of a full disk
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def read_npz(path: Path, expected_format: str) -> dict[str, np.ndarray]:
    """All arrays of an npz whose `format` must be the expected one.

    Raises:
        One of READ_ERRORS; the caller says in an InputError what to do.
    """
    with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
        if str(arrays["format"]) != expected_format:
            raise ValueError(f"format {arrays['format']}, not {expected_format!r}")
        return {name: arrays[name] for name in arrays.files}


def file_sha256(path: Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
