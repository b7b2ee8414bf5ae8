"""Check the structure of image files before a decoder follows it, and open TIFFs."""

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

    A multi-file OME-TIFF names other files. They are not opened.

    Raises:
        InputError: the chain of pages is damaged, see `check_pages`.
        OSError: the file cannot be opened.
        tifffile.TiffFileError: the file is not a TIFF. On damaged headers tifffile raises other
            exceptions, too.
    """
    check_pages(path)
    # `_multifile` is the only private part of tifffile that is used. If a version drops it, every
    # TIFF fails with a TypeError. Without it, a section could open the files that it names.
    return tifffile.TiffFile(path, _multifile=False)


def check_pages(path: str | os.PathLike) -> None:
    """Check that the chain of pages (IFDs) of a TIFF ends, reading only its offsets.

    tifffile takes minutes on a damaged chain that leads back to itself. A file that is no TIFF
    passes: its reader reports it.

    Raises:
        InputError: the chain has a loop or more than MAX_PAGES pages.
        OSError: the file cannot be opened.
    """
    path = Path(path)
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size

        def unpack(form: str, offset: int) -> int | None:
            length = struct.calcsize(form)
            if offset + length > size:  # a damaged offset can be too large for seek()
                return None
            file.seek(offset)
            data = file.read(length)
            return struct.unpack(form, data)[0] if len(data) == length else None

        order = {b"II": "<", b"MM": ">"}.get(file.read(2))
        if order is None:
            return  # not a TIFF
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
    """Check that every chunk of a PNG lies inside the file, reading only the lengths.

    Pillow allocates the length that a chunk states, even if the file is shorter. A file that is no
    PNG passes: its reader reports it.

    Raises:
        InputError: a chunk ends beyond the end of the file.
    """
    size = os.stat(path).st_size
    with open(path, "rb") as file:
        if file.read(8) != b"\x89PNG\r\n\x1a\n":
            return  # not a PNG
        position = 8
        while position + 8 <= size:
            file.seek(position)
            length = int.from_bytes(file.read(4))
            if position + 12 + length > size:
                raise InputError(
                    f"{path}: a PNG chunk ends beyond the end of the file; it is truncated or "
                    "damaged: copy or export it again"
                )
            if file.read(4) == b"IEND":
                return
            position += 12 + length


def jpeg_pixels(data: np.ndarray) -> int:
    """Return height x width of a JPEG stream by its frame header, 0 if it has none.

    Source: ITU-T T.81, B.2.2.
    """
    position = 2
    while position + 9 <= len(data) and data[position] == 0xFF:
        marker = int(data[position + 1])
        if marker == 0xFF:  # a fill byte
            position += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return int.from_bytes(data[position + 5 : position + 7].tobytes()) * int.from_bytes(
                data[position + 7 : position + 9].tobytes()
            )
        else:
            position += 2 + int.from_bytes(data[position + 2 : position + 4].tobytes())
    return 0


def jpeg_2000_pixels(data: np.ndarray) -> int:
    """Return height x width of a JPEG 2000 code stream by its SIZ marker.

    Source: ITU-T T.800, A.5.1.

    Raises:
        ValueError: the data hold no code stream.
    """
    head = data[:4096].tobytes()
    position = head.find(b"\xff\x4f\xff\x51")
    if position < 0 or position + 24 > len(head):
        raise ValueError("no JPEG 2000 code stream")
    right, bottom, left, top = struct.unpack_from(">4I", head, position + 8)
    return max(right - left, 0) * max(bottom - top, 0)
