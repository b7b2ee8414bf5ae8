"""A look at how an image file hangs together, before a reader follows it."""

import os
import struct
from pathlib import Path

import numpy as np
import tifffile

from jaxcyto.errors import InputError
from jaxcyto.utils.files import open_file

MAX_PAGES = 10_000


def open_tiff(path: str | os.PathLike) -> tifffile.TiffFile:
    """Open a TIFF with tifffile, after a check of its pages. The result is a context manager.

    Other files that the TIFF names (multi-file OME-TIFF) are not opened.

    Raises:
        InputError: the chain of pages does not end, see `check_pages`.
        OSError: the file cannot be opened.
        tifffile.TiffFileError: the file is not a TIFF. On damaged headers tifffile raises other
            exceptions, too.
    """
    check_pages(path)
    return tifffile.TiffFile(path, _multifile=False)


def check_pages(path: str | os.PathLike) -> None:
    """Follows the offsets from page to page, reading nothing else.

    tifffile follows a damaged chain for minutes where it leads back to itself.

    Raises:
        InputError: the chain does not end, or has more than MAX_PAGES pages.
    """
    path = Path(path)
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size

        def unpack(form: str, offset: int) -> int | None:
            length = struct.calcsize(form)
            if offset + length > size:  # a damaged offset may be too large even to seek to
                return None
            file.seek(offset)
            data = file.read(length)
            return struct.unpack(form, data)[0] if len(data) == length else None

        order = {b"II": "<", b"MM": ">"}.get(file.read(2))
        if order is None:
            return  # not a TIFF: its reader says so
        big = unpack(order + "H", 2) == 43
        count, pointer, entry = ("Q", "Q", 20) if big else ("H", "I", 12)
        offset = unpack(order + pointer, 8 if big else 4)
        seen = set()
        while offset and offset < size:
            if offset in seen or len(seen) >= MAX_PAGES:
                raise InputError(
                    f"{path}: damaged: its list of pages does not end; copy or export it again"
                )
            seen.add(offset)
            tags = unpack(order + count, offset)
            if tags is None:
                return
            offset = unpack(order + pointer, offset + struct.calcsize(order + count) + tags * entry)


def check_chunks(path: str | os.PathLike) -> None:
    """Follows the lengths from chunk to chunk of a PNG, reading nothing else.

    Pillow allocates what a chunk announces.

    Raises:
        InputError: a chunk ends behind the file.
    """
    size = os.stat(path).st_size
    with open(path, "rb") as file:
        if file.read(8) != b"\x89PNG\r\n\x1a\n":
            return  # not a PNG: its reader says so
        place = 8
        while place + 8 <= size:
            file.seek(place)
            length = int.from_bytes(file.read(4))
            if place + 12 + length > size:
                raise InputError(
                    f"{path}: a PNG whose parts end behind the file; it is truncated or damaged: "
                    "copy or export it again"
                )
            if file.read(4) == b"IEND":
                return
            place += 12 + length


def jpeg_pixels(data: np.ndarray) -> int:
    """Height times width in the frame header of a JPEG stream (ITU-T T.81, B.2.2); 0 if none."""
    place = 2
    while place + 9 <= len(data) and data[place] == 0xFF:
        marker = int(data[place + 1])
        if marker == 0xFF:  # a fill byte
            place += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return int.from_bytes(data[place + 5 : place + 7].tobytes()) * int.from_bytes(
                data[place + 7 : place + 9].tobytes()
            )
        else:
            place += 2 + int.from_bytes(data[place + 2 : place + 4].tobytes())
    return 0


def jpeg_2000_pixels(data: np.ndarray) -> int:
    """Height times width in the SIZ marker of a JPEG 2000 code stream (ITU-T T.800, A.5.1)."""
    head = data[:4096].tobytes()
    place = head.find(b"\xff\x4f\xff\x51")
    if place < 0 or place + 24 > len(head):
        raise ValueError("no JPEG 2000 code stream")
    right, bottom, left, top = struct.unpack_from(">4I", head, place + 8)
    return max(right - left, 0) * max(bottom - top, 0)
