"""Check the structure of image files before a decoder follows it, and open TIFFs."""

import os
import struct
from pathlib import Path
from typing import IO

import numpy as np
import tifffile

from jaxcyto.errors import InputError
from jaxcyto.utils.files import open_file

MAX_PAGES = 10_000
MAX_TAGS = 4096  # of a page; real ones have some 20
SUB_PAGES = 330  # the tag with the offsets of the smaller levels of a pyramid
POINTERS = {4: "I", 13: "I", 16: "Q", 18: "Q"}  # types of offsets: LONG, IFD, LONG8, IFD8


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
    """Check that the pages (IFDs) of a TIFF lie inside the file and end, without their pixels.

    tifffile takes minutes on a damaged chain that leads back to itself, and leaves out the levels
    of a pyramid that lie beyond the end of a truncated file. A file that is no TIFF passes: its
    reader reports it.

    Raises:
        InputError: there is no page, one lies beyond the end of the file, or the pages form a loop
            or are more than MAX_PAGES.
        OSError: the file cannot be opened.
    """
    path = Path(path)
    with open_file(path) as file:
        tiff = _Offsets(file, long=path.suffix == ".ndpi")
        if not tiff.order:
            return  # not a TIFF
        opened: list[int | None] = [tiff.first()]
        if opened == [0]:
            raise InputError(f"{path}: not a readable TIFF: it has no page; export it again")
        seen = set()
        while opened:
            offset = opened.pop()
            if offset == 0:  # the chain ends
                continue
            if offset in seen or len(seen) >= MAX_PAGES:
                raise InputError(
                    f"{path}: damaged: its list of pages does not end; copy or export it again"
                )
            seen.add(offset)
            following = None if offset is None else tiff.following(offset)
            if following is None:
                where = "is missing" if offset is None else f"begins at byte {offset}"
                raise InputError(
                    f"{path}: not a readable TIFF: page {len(seen)} {where}, and the file has "
                    f"{tiff.size} bytes; it is truncated: copy or export it again"
                )
            opened += following


class _Offsets:
    """Reads the offsets of pages in an open TIFF.

    Args:
        file: the file.
        long: whether the offsets of a classic TIFF have 64 bits, as in Hamamatsu's .ndpi.
    """

    def __init__(self, file: IO[bytes], long: bool):
        self._file, self.size = file, os.fstat(file.fileno()).st_size
        self.order = {b"II": "<", b"MM": ">"}.get(file.read(2), "")
        self._big = self._unpack("H", 2) == 43
        self._pointer = "Q" if self._big or long else "I"
        # Types of the number of tags of a page, and of the number of values of a tag.
        self._tags, self._values = ("Q", "Q") if self._big else ("H", "I")

    def first(self) -> int | None:
        """Return the offset of the first page, None if the file ends before."""
        return self._unpack(self._pointer, 8 if self._big else 4)

    def following(self, page: int) -> list[int | None] | None:
        """Return the offsets of the next page, or 0, and of all pages below a page.

        An offset is None, and so is the list, if it would lie beyond the end of the file.
        """
        tags = self._unpack(self._tags, page)
        begin, entry = page + struct.calcsize(self._tags), 20 if self._big else 12
        after = None if tags is None else self._unpack(self._pointer, begin + tags * entry)
        if tags is None or after is None:
            return None
        for tag in range(begin, begin + min(tags, MAX_TAGS) * entry, entry):
            if self._unpack("H", tag) == SUB_PAGES:
                return [after, *self._below(tag, entry)]
        return [after]

    def _below(self, tag: int, entry: int) -> list[int | None]:
        """Return the offsets that the tag SUB_PAGES at position `tag` holds."""
        form = POINTERS.get(self._unpack("H", tag + 2) or 0, "I")
        number = min(self._unpack(self._values, tag + 4) or 0, MAX_PAGES)
        at, step = tag + 4 + struct.calcsize(self._values), struct.calcsize(form)
        if number * step > tag + entry - at:  # too many to lie in the tag itself
            at = self._unpack(self._values, at) or 0
        return [self._unpack(form, at + index * step) for index in range(number)]

    def _unpack(self, form: str, offset: int) -> int | None:
        """Return one number, None if it would lie beyond the end of the file."""
        length = struct.calcsize(form)
        if offset + length > self.size:  # a damaged offset can be too large for seek()
            return None
        self._file.seek(offset)
        data = self._file.read(length)
        return struct.unpack(f"{self.order}{form}", data)[0] if len(data) == length else None


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
