"""Write files completely or not at all, and read arrays without pickle.

Before anything is allocated, the sizes that a header states are compared with the size of the
file. This works only for uncompressed members of an npz, which is how `np.savez` writes them.
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
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from jaxcyto.errors import InputError

# What NumPy and zipfile raise on files that are damaged, truncated or of another kind.
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
    RuntimeError,  # includes NotImplementedError, for features of zip that we do not read
    tokenize.TokenError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)

# A header as NumPy writes it. NumPy's own reader would evaluate other Python literals, too.
NPY_HEADER = re.compile(
    rb"\{\s*'descr':\s*'((?:[<>|=][biuf]|<U)[1-9]\d{0,8})',\s*'fortran_order':\s*(True|False),"
    rb"\s*'shape':\s*\(([\d,\s]{0,200})\),?\s*\}\s*"
)
MAX_TEXT_BYTES = 64 << 20  # brain.toml and section tables are much smaller
CHUNK_BYTES = 1 << 20  # read at a time, so that no second copy of an array is held
# The end of an npz that is read first, see `_HashedFile`. The directory of a zip lies there, behind
# it a comment of up to 64 KiB.
TAIL_BYTES = 128 << 10


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[IO[bytes]]:
    """Open a temporary binary file that replaces `path` once it is complete."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # a power cut must not leave an empty file under the name
        os.replace(temporary, path)
    except OSError as error:
        # A full disk raises an error without a name, and users do not know the temporary file.
        if error.filename is None or str(error.filename) == str(temporary):
            error.filename = str(path if path.parent.is_dir() else path.parent)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write plain values as JSON, completely or not at all."""
    with atomic_write(path) as file:
        file.write(json.dumps(value, indent=2).encode() + b"\n")


class Array(NamedTuple):
    """What a member of an npz must be, as part of a schema for `read_arrays`."""

    dtype: type[np.generic]  # such as np.int32, or a kind such as np.integer
    # Lengths, or names of lengths: dimensions with the same name must have the same length in all
    # arrays of the file.
    shape: tuple[int | str, ...]
    low: float | None = None  # smallest value allowed
    high: float | None = None  # largest value allowed
    finite: bool = True  # False allows infinite values and, without `low` and `high`, NaN


# Names of the members of an npz, and what each must be: an array, a text (`str`) or a JSON object
# that is stored as a text (`dict`).
Schema = Mapping[str, Array | type[str] | type[dict]]


def read_arrays(
    path: Path,
    expected: str,
    schema: Schema,
    *,
    field: str = "format",
    update: Callable[[bytes], object] | None = None,
) -> dict[str, Any]:
    """Read an npz and check its members against a schema.

    Members that the schema does not name are read, so that damage is noticed, and left out.

    Args:
        path: the file.
        expected: the text that the member `field` must hold.
        schema: what each member must be.
        field: name of the member that identifies the format.
        update: called with the bytes of the file in order, such as the `update` method of a hash.
            The arrays are made from these very bytes, so the digest belongs to them even if the
            file changes meanwhile.

    Returns:
        By the names of the schema: arrays, texts and JSON objects.

    Raises:
        One of READ_ERRORS: if the file cannot be read, or a member is missing or differs from the
            schema. The message names the member. Callers add file and remedy, see `naming_damage`.
    """
    members = read_npz(path, expected, field, update)
    lengths: dict[str, int] = {}
    result: dict[str, Any] = {}
    for name, wanted in schema.items():
        if name not in members:
            raise ValueError(f"{name} is missing")
        array = members[name]
        if isinstance(wanted, Array):
            _check_array(name, array, wanted, lengths)
            result[name] = array
            continue
        if array.dtype.kind != "U" or array.shape:
            raise ValueError(f"{name} is {_described(array)}, not a text")
        result[name] = str(array)
        if wanted is dict:
            result[name] = json.loads(result[name])
            if not isinstance(result[name], dict):
                raise ValueError(f"{name} is not a JSON object")
    return result


def _check_array(name: str, array: np.ndarray, wanted: Array, lengths: dict[str, int]) -> None:
    """Check an array against a schema, and add the lengths that it is the first to name."""
    same_kind = np.issubdtype(array.dtype, wanted.dtype) and array.dtype.isnative
    same_shape = array.ndim == len(wanted.shape) and all(
        length == (lengths.setdefault(size, length) if isinstance(size, str) else size)
        for length, size in zip(array.shape, wanted.shape, strict=True)
    )
    if not (same_kind and same_shape):
        shape = ", ".join(
            f"{size} = {lengths[size]}" if size in lengths else str(size) for size in wanted.shape
        )
        raise ValueError(f"{name} is {_described(array)}, not {wanted.dtype.__name__} [{shape}]")
    if wanted.finite and not np.isfinite(array).all():
        raise ValueError(f"{name} holds values that are not finite")
    # Both comparisons are false for NaN.
    if wanted.low is not None and not (array >= wanted.low).all():
        raise ValueError(f"{name} holds values below {wanted.low:g}")
    if wanted.high is not None and not (array <= wanted.high).all():
        raise ValueError(f"{name} holds values above {wanted.high:g}")


def _described(array: np.ndarray) -> str:
    return f"{array.dtype} {list(array.shape)}"


@contextlib.contextmanager
def naming_damage(path: Path, kind: str, remedy: str) -> Iterator[None]:
    """Raise InputError with the file and the remedy in place of what a damaged file raises.

    Args:
        path: the file that is read inside.
        kind: what it should be, as "file of patches".
        remedy: what the user can do.
    """
    try:
        yield
    except InputError:
        raise
    except READ_ERRORS as error:
        raise InputError(f"{path}: not a readable {kind} ({error}); {remedy}") from None


def read_npz(
    path: Path,
    expected: str,
    field: str = "format",
    update: Callable[[bytes], object] | None = None,
) -> dict[str, np.ndarray]:
    """Read all arrays of an npz whose member `field` must be the expected text.

    `update` is as in `read_arrays`.

    Raises:
        One of READ_ERRORS: if the file cannot be read. Callers add file and remedy.
    """
    arrays = {}
    with _open_npz(path, update) as archive:
        if f"{field}.npy" not in archive.namelist():
            raise ValueError(f"{field} is missing")
        for member in sorted(archive.infolist(), key=lambda each: each.header_offset):
            name = member.filename.removesuffix(".npy")
            arrays[name] = _member(archive, member)
            if name == field and str(arrays[name]) != expected:
                raise ValueError(f"{field} {str(arrays[name])[:80]}, not {expected!r}")
    return arrays


def npz_format(path: Path) -> str:
    """Return the `format` that an npz states, or "" if it states none. Read no other array.

    Raises:
        One of READ_ERRORS: if the file cannot be read.
    """
    with _open_npz(path) as archive:
        if "format.npy" not in archive.namelist():
            return ""
        return str(_member(archive, archive.getinfo("format.npy")))


def read_npy(path: Path) -> np.ndarray:
    """Read the array of an npy file of numbers.

    Raises:
        One of READ_ERRORS: if the file cannot be read.
    """
    with open_file(path) as file:
        return _array(file, os.fstat(file.fileno()).st_size)


def map_npy(path: Path) -> np.ndarray:
    """Map the array of an npy file of numbers from disk, read-only.

    Raises:
        One of READ_ERRORS: if the file cannot be read.
    """
    with open_file(path) as file:
        _read_header(file, os.fstat(file.fileno()).st_size)
    return np.load(path, mmap_mode="r", allow_pickle=False)


def open_file(path: Path) -> IO[bytes]:
    """Open a regular file for reading. A pipe or a device could block the reader forever.

    Raises:
        OSError: if it is not a regular file, or cannot be opened.
    """
    if not path.is_file():
        missing = errno.ENOENT if not path.exists() else errno.EINVAL
        raise OSError(missing, "no such file" if missing == errno.ENOENT else "not a file")
    return open(path, "rb")


@contextlib.contextmanager
def _open_npz(
    path: Path, update: Callable[[bytes], object] | None = None
) -> Iterator[zipfile.ZipFile]:
    """Open an npz, and check that its members are uncompressed and fit into the file.

    With `update`, members must be read once and in order, see `_HashedFile`.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        hashed = None if update is None else _HashedFile(file, size, update)
        with zipfile.ZipFile(hashed or file) as archive:
            members = archive.infolist()
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise ValueError("its arrays are compressed")
            if sum(member.file_size for member in members) > size:
                raise ValueError("its directory counts more bytes than the file has")
            yield archive
        if hashed is not None:
            hashed.finish()


class _HashedFile:
    """A file as `zipfile` reads it, whose bytes are read from disk once and passed to a hash.

    `zipfile` begins with the directory at the end of an archive. So the last `TAIL_BYTES` are read
    first and kept. The bytes before them must be read in order.

    Args:
        file: the open file.
        size: its size, bytes. What is appended to the file later is ignored.
        update: called with all bytes, in order.
    """

    def __init__(self, file: IO[bytes], size: int, update: Callable[[bytes], object]):
        self._file, self._size, self._update = file, size, update
        self._tail_start = max(0, size - TAIL_BYTES)
        file.seek(self._tail_start)
        self._tail = file.read(size - self._tail_start)
        file.seek(0)
        self._position = self._hashed = 0

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position at which the next read begins."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a position, as files do."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise OSError(errno.EINVAL, "a position before the start of the file")
        self._position = start + offset
        return self._position

    def read(self, count: int = -1) -> bytes:
        """Read `count` bytes, or to the end.

        Raises:
            ValueError: if bytes before the tail are read again.
            EOFError: if the file has been truncated.
        """
        end = self._size if count < 0 else min(self._position + count, self._size)
        data = b""
        if self._position < min(end, self._tail_start):
            data = self._read_on(min(end, self._tail_start))
        if end > self._tail_start:
            begin = max(self._position, self._tail_start) - self._tail_start
            data += self._tail[begin : end - self._tail_start]
        self._position = max(self._position, end)
        return data

    def _read_on(self, end: int) -> bytes:
        """Read from disk up to `end`, and return what lies behind the position."""
        skipped = self._position - self._hashed
        if skipped < 0:
            raise ValueError("its arrays do not lie one after the other")
        data = self._file.read(end - self._hashed)
        if len(data) < end - self._hashed:
            raise EOFError("truncated while it was read")
        self._update(data)
        self._hashed = end
        return data[skipped:]

    def finish(self) -> None:
        """Hash the bytes that have not been read."""
        while self._hashed < self._tail_start:
            self._position = self._hashed
            self.read(min(CHUNK_BYTES, self._tail_start - self._hashed))
        self._update(self._tail)


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(member) as file:
        return _array(file, member.file_size)


class _Header(NamedTuple):
    """What the header of an npy file states."""

    dtype: np.dtype
    shape: tuple[int, ...]
    fortran_order: bool


def _array(file: IO[bytes], size: int) -> np.ndarray:
    """Read an array from an npy file of `size` bytes, from its begin to its end and once."""
    dtype, shape, fortran_order = _read_header(file, size)
    data = np.empty(dtype.itemsize * math.prod(shape), np.uint8)
    for begin in range(0, len(data), CHUNK_BYTES):
        part = data[begin : begin + CHUNK_BYTES]
        chunk = file.read(len(part))
        if len(chunk) < len(part):
            raise EOFError("truncated while it was read")
        part[:] = np.frombuffer(chunk, np.uint8)
    # Python's own functions fail on text that NumPy accepts.
    if dtype.kind == "U" and data.view("<u4").max(initial=0) > 0x10FFFF:
        raise ValueError("text of characters that do not exist")
    array = data.view(dtype)
    return array.reshape(shape[::-1]).T if fortran_order else array.reshape(shape)


def _read_header(file: IO[bytes], size: int) -> _Header:
    """Read the header of an npy file of `size` bytes, and check that the file holds its array."""
    head = file.read(10)
    text = file.read(int.from_bytes(head[8:], "little"))
    match = NPY_HEADER.fullmatch(text)
    if head[:8] != b"\x93NUMPY\1\0" or not match:
        raise ValueError("not an array of plain numbers or text")
    dtype = np.dtype(match[1].decode())
    shape = tuple(map(int, match[3].replace(b",", b" ").split()))
    needed, left = math.prod(shape) * dtype.itemsize, size - file.tell()
    if needed != left:
        raise ValueError(f"its header counts {needed} bytes, but it has {left}")
    return _Header(dtype, shape, match[2] == b"True")


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_text(path: Path) -> str:
    """Read a UTF-8 text file, with or without a byte order mark.

    Raises:
        InputError: if it cannot be read, is not UTF-8 or is too large.
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
    """Return the absolute path of an existing file in the brain's folder, links resolved.

    Args:
        root: the folder, links resolved.
        path: the file that names it, for the message.
        field: the field that names it, for the message.
        value: the value of this field.
        faults: gets a message if there is no such file. The result is then None.
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
    if os.path.isdir(target):
        zarr = ": convert an OME-Zarr to OME-TIFF" if ".zarr" in value.lower() else ""
        faults.append(f"{path}: {field}: {value!r} is a folder; one file is needed{zarr}")
        return None
    if not os.path.isfile(target):
        faults.append(f"{path}: {field}: no file {value!r} in {root}; correct the name or add it")
        return None
    return target
