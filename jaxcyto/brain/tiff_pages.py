"""A look at a TIFF's chain of pages before a reader follows it."""

import os
import struct
from pathlib import Path

from jaxcyto.errors import InputError

MAX_PAGES = 10_000


def check_pages(path: str | os.PathLike) -> None:
    """Follows the offsets from page to page, reading nothing else.

    tifffile follows a damaged chain for minutes where it leads back to itself.

    Raises:
        InputError: the chain does not end, or has more than MAX_PAGES pages.
    """
    path = Path(path)
    size = os.stat(path).st_size
    with open(path, "rb") as file:

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
