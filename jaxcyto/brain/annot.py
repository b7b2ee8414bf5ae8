"""FreeSurfer's .annot: a colour code for each vertex, and a table of areas with their colours.

Big-endian int32 throughout: the number of vertices; for each its number and its colour code
(red + 256 green + 65536 blue); 1; the table. A table of version 2: -2, the highest index + 1, the
length and name of the file it came from, the number of entries, and for each its index, the length
and text of its name, and red, green, blue and transparency. In older tables the number of entries
takes the place of the first two and of the fourth, and entries have no index.
"""

import struct
from pathlib import Path

import numpy as np

from jaxcyto.errors import InputError

MAX_ENTRIES = 1 << 16


def annot_vertices(data: bytes) -> int | None:
    """The number of vertices by the header; None if the content cannot be an .annot of so many."""
    count = int.from_bytes(data[:4], signed=True)
    return count if 0 < count <= (len(data) - 4) // 8 else None


def parse_annot(path: Path, data: bytes) -> tuple[np.ndarray, dict[int, str]]:
    """Index int32 [V] into the table of areas, -1 where a vertex is of none; names by index.

    Raises:
        InputError: truncated, damaged, or a vertex is not named exactly once.
    """
    count = annot_vertices(data)
    if count is None:
        raise InputError(f"{path}: not an .annot file; export it again")
    pairs = np.frombuffer(data, ">i4", 2 * count, 4).reshape(count, 2)
    order = np.argsort(pairs[:, 0], kind="stable")
    if not np.array_equal(pairs[order, 0], np.arange(count)):
        raise InputError(f"{path}: an .annot that does not name every vertex once")
    try:
        table = _table(data, 4 + 8 * count)
    except (struct.error, ValueError) as error:
        raise InputError(f"{path}: an .annot with a damaged table of areas: {error}") from None
    codes = {code: index for index, (code, _) in reversed(table.items())}
    found, inverse = np.unique(pairs[order, 1], return_inverse=True)
    # Code 0 means no area, whatever the table says.
    index = [codes.get(code, -1) if code else -1 for code in found.tolist()]
    return np.array(index, np.int32)[inverse], {key: name for key, (_, name) in table.items()}


def _table(data: bytes, place: int) -> dict[int, tuple[int, str]]:
    """Colour code and name of each index."""

    def number() -> int:
        nonlocal place
        place += 4
        return struct.unpack_from(">i", data, place - 4)[0]

    def text() -> str:
        nonlocal place
        length = number()
        if not 0 <= length <= len(data) - place:
            raise ValueError(f"a text of {length} bytes")
        place += length
        return data[place - length : place].rstrip(b"\0").decode("utf-8", "replace")

    if number() != 1:
        raise ValueError("there is none")
    entries, version = number(), 1
    if entries < 0:
        version, highest = -entries, number()
    if version > 2:
        raise ValueError(f"version {version}")
    text()
    if version == 2:
        entries = number()
    if not 0 < entries <= MAX_ENTRIES:
        raise ValueError(f"{entries} entries")
    table = {}
    for entry in range(entries):
        index = number() if version == 2 else entry
        if version == 2 and not 0 <= index < highest:
            raise ValueError(f"index {index} of {highest}")
        name = text()
        red, green, blue, _ = number(), number(), number(), number()
        table[index] = red + (green << 8) + (blue << 16), name
    return table
