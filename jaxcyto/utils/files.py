"""Files written whole or not at all; arrays on disk, read without pickle.

What a header counts is compared with the size of the file before anything is allocated by it, so
members of an npz must not be compressed; `np.savez` writes them so.
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from jaxcyto.errors import InputError

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

# As NumPy writes it; what else its reader would evaluate is not looked at.
NPY_HEADER = re.compile(
    rb"\{\s*'descr':\s*'((?:[<>|=][biuf]|<U)[1-9]\d{0,8})',\s*'fortran_order':\s*(?:True|False),"
    rb"\s*'shape':\s*\(([\d,\s]{0,200})\),?\s*\}\s*"
)
MAX_TEXT_BYTES = (
    64 << 20
)  # brain.toml and section tables are small; a larger file is not one of them


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[IO[bytes]]:
    """A binary file that takes the place of `path` once it is complete."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # a power cut must not leave an empty file under the name
        os.replace(temporary, path)
    except OSError as error:
        # of a full disk there is no name; of the temporary file nobody knows
        if error.filename is None or str(error.filename) == str(temporary):
            error.filename = str(path if path.parent.is_dir() else path.parent)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes plain values as JSON, whole or not at all."""
    with atomic_write(path) as file:
        file.write(json.dumps(value, indent=2).encode() + b"\n")


def read_npz(path: Path, expected: str, field: str = "format") -> dict[str, np.ndarray]:
    """All arrays of an npz whose `field` must be the expected text.

    Raises:
        One of READ_ERRORS; the caller says in an InputError what to do.
    """
    with _open_npz(path) as archive:
        found = _text(archive, field)
        if found != expected:
            raise ValueError(f"{field} {found[:80]}, not {expected!r}")
        return {
            member.filename.removesuffix(".npy"): _member(archive, member)
            for member in archive.infolist()
        }


def npz_format(path: Path) -> str:
    """The `format` that an npz states, "" if it states none; the other arrays are not read.

    Raises:
        One of READ_ERRORS.
    """
    with _open_npz(path) as archive:
        return _text(archive, "format") if "format.npy" in archive.namelist() else ""


def read_npy(path: Path) -> np.ndarray:
    """The array of an npy file of numbers.

    Raises:
        One of READ_ERRORS.
    """
    with open_file(path) as file:
        return _array(file, os.fstat(file.fileno()).st_size)


def map_npy(path: Path) -> np.ndarray:
    """The array of an npy file of numbers, mapped from disk.

    Raises:
        One of READ_ERRORS.
    """
    with open_file(path) as file:
        _check_header(file, os.fstat(file.fileno()).st_size)
    return np.load(path, mmap_mode="r", allow_pickle=False)


def open_file(path: Path) -> IO[bytes]:
    """Opens for reading what is a file: on a pipe or a device a reader could wait forever.

    Raises:
        OSError: it is none, or cannot be opened.
    """
    if not path.is_file():
        missing = errno.ENOENT if not path.exists() else errno.EINVAL
        raise OSError(missing, "no such file" if missing == errno.ENOENT else "not a file")
    return open(path, "rb")


@contextlib.contextmanager
def _open_npz(path: Path) -> Iterator[zipfile.ZipFile]:
    with open_file(path) as file, zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise ValueError("its arrays are compressed")
        if sum(member.file_size for member in members) > os.fstat(file.fileno()).st_size:
            raise ValueError("its directory counts more bytes than the file has")
        yield archive


def _text(archive: zipfile.ZipFile, field: str) -> str:
    return str(_member(archive, archive.getinfo(f"{field}.npy")))


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(member) as file:
        return _array(file, member.file_size)


def _array(file: IO[bytes], size: int) -> np.ndarray:
    _check_header(file, size)
    file.seek(0)
    array = np.lib.format.read_array(file, allow_pickle=False)
    # Python's own functions fail on text that NumPy lets pass.
    if array.dtype.kind == "U" and np.frombuffer(array.tobytes(), "<u4").max(initial=0) > 0x10FFFF:
        raise ValueError("text of characters that do not exist")
    return array


def _check_header(file: IO[bytes], size: int) -> None:
    head = file.read(10)
    text = file.read(int.from_bytes(head[8:], "little"))
    found = NPY_HEADER.fullmatch(text)
    if head[:8] != b"\x93NUMPY\1\0" or not found:
        raise ValueError("not an array of plain numbers or text")
    needed = math.prod(map(int, found[2].replace(b",", b" ").split()))
    needed *= np.dtype(found[1].decode()).itemsize
    if needed != size - file.tell():
        raise ValueError(f"its header counts {needed} bytes, but it has {size - file.tell()}")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_text(path: Path) -> str:
    """A UTF-8 text file, with or without a byte order mark.

    Raises:
        InputError: it cannot be read, is not UTF-8 or too large.
    """
    try:
        if path.stat().st_size > MAX_TEXT_BYTES:
            raise InputError(f"{path}: over {MAX_TEXT_BYTES >> 20} MiB; not a file of this format")
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error}); save it as UTF-8") from None


def inside(root: Path, path: Path, field: str, value: object, faults: list[str]) -> Path | None:
    """The absolute path of an existing file inside the brain's folder, links resolved.

    Args:
        root: the folder, links resolved.
        path: the file in which the name stands, for the message.
        field: where in it.
        value: what stands there.
        faults: gets a line if it is no such file; the result is then None.
    """
    if not isinstance(value, str) or not value or "\0" in value:
        faults.append(f"{path}: {field}: expected a file name, found {value!r}")
        return None
    target = Path(os.path.realpath(root / value))  # unlike Path.resolve, never raises
    if Path(value).is_absolute() or not target.is_relative_to(root):
        faults.append(
            f"{path}: {field}: {value!r} leaves the brain's folder; "
            "copy or mount the file inside it and give a relative path"
        )
        return None
    if not os.path.isfile(target):
        faults.append(f"{path}: {field}: no file {value!r} in {root}; correct the name or add it")
        return None
    return target
