"""Read area labels, one integer for each vertex of a surface, in the formats of the field.

This module parses FreeSurfer's .annot format, which consists of big-endian int32:
* the number of vertices, and for each its index and color code (red + 256 green + 65536 blue)
* the value 1, followed by the table of areas
* version 2 of the table: -2, the highest index + 1, the length and name of the file it came from,
  the number of entries, and for each entry its index, the length and text of its name, and red,
  green, blue and transparency
* older tables: the number of entries, the length and name of the file, and the entries without
  their index.
"""

import os
import re
import struct
from pathlib import Path

import numpy as np
from nibabel.freesurfer.mghformat import MGHImage

from jaxcyto.brain.surfaces.formats import load_bytes, xml_root
from jaxcyto.brain.surfaces.gifti import load_gifti
from jaxcyto.brain.surfaces.text import numbers_of
from jaxcyto.errors import InputError

MAX_ENTRIES = 1 << 16  # of the table of an .annot file


def read_labels(path: str | os.PathLike, num_vertices: int) -> np.ndarray:
    """Read labels from GIFTI label or shape files, FreeSurfer .annot or .mgz, or text.

    The format is inferred from the content. Labels of an .annot file are indices into its table of
    areas, -1 for vertices without an area. A text file holds one integer a line.

    Args:
        path: the file.
        num_vertices: vertices of the surface.

    Returns:
        int32 [num_vertices].

    Raises:
        InputError: the format is unknown, the file is damaged, a value is not an integer, or the
            number of labels is not `num_vertices`.
    """
    path = Path(path)
    data = load_bytes(path)
    kind = _kind(data)
    if kind == "gifti":
        arrays = [array.data for array in load_gifti(path, data).darrays]
        arrays = [array for array in arrays if array is not None and array.ndim == 1]
        if len(arrays) != 1:
            raise InputError(f"{path}: {len(arrays)} maps in the GIFTI file; one map is needed")
        values = arrays[0]
    elif kind == "mgh":
        values = _mgh(path, data)
    elif kind == "text":
        try:
            values = numbers_of(data.split())
        except ValueError as error:
            raise InputError(f"{path}: not one whole number a line: {error}") from None
    else:
        count = annot_vertices(data)
        if count is None:
            raise InputError(
                f"{path}: not labels in a known format; known are GIFTI, FreeSurfer .annot and "
                ".mgz, and text with one whole number a line"
            )
        # The file of another surface gets the error below, whatever else is wrong with it.
        other = np.broadcast_to(np.int32(0), count)
        values = parse_annot(path, data)[0] if count == num_vertices else other
    if len(values) != num_vertices:
        raise InputError(
            f"{path}: {len(values)} labels, but the surface has {num_vertices} vertices; "
            "labels belong to one surface: take the file made for this one"
        )
    if not (np.isfinite(values) & (np.abs(values) < 2**31)).all() or (values % 1 != 0).any():
        raise InputError(f"{path}: holds values that are not whole numbers; not area labels")
    return values.astype(np.int32)


def read_label_names(path: str | os.PathLike) -> dict[int, str]:
    """Read the names of the labels that `read_labels` returns.

    GIFTI label tables and .annot files have names. The result is empty for other formats.

    Raises:
        InputError: the file cannot be read.
    """
    path = Path(path)
    data = load_bytes(path)
    kind = _kind(data)
    if kind == "gifti":
        entries = load_gifti(path, data).labeltable.labels
        names = {int(entry.key): getattr(entry, "label", None) for entry in entries}
        return {key: str(name) for key, name in names.items() if name}
    if kind == "annot":
        return parse_annot(path, data)[1]
    return {}


def _kind(data: bytes) -> str:
    if xml_root(data) == b"GIFTI":
        return "gifti"
    if data[:4] == b"\0\0\0\1" and len(data) > 284:
        return "mgh"
    numbers = not data.translate(None, b"0123456789.eE+- \t\r\n") and re.search(rb"\d", data)
    return "text" if numbers else "annot"


def _mgh(path: Path, data: bytes) -> np.ndarray:
    shape = np.frombuffer(data[4:20], ">i4").astype(np.int64)
    if (shape < 1).any() or np.prod(shape.astype(float)) > len(data):
        raise InputError(f"{path}: an MGH file whose header counts more than the file holds")
    try:
        return np.asarray(MGHImage.from_bytes(data).dataobj).ravel()
    except Exception as error:
        raise InputError(f"{path}: not a readable MGH file: {error}") from None


def annot_vertices(data: bytes) -> int | None:
    """Return the number of vertices in the header of an .annot, None if they cannot fit in it."""
    count = int.from_bytes(data[:4], signed=True)
    return count if 0 < count <= (len(data) - 4) // 8 else None


def parse_annot(path: Path, data: bytes) -> tuple[np.ndarray, dict[int, str]]:
    """Parse an .annot file.

    Args:
        path: the file, for messages.
        data: its content.

    Returns:
        The index of each vertex into the table of areas, int32 [V] and -1 for vertices without an
        area. And the names by index.

    Raises:
        InputError: the file is truncated or damaged, or does not list each vertex exactly once.
    """
    count = annot_vertices(data)
    if count is None:
        raise InputError(f"{path}: not an .annot file; export it again")
    pairs = np.frombuffer(data, ">i4", 2 * count, 4).reshape(count, 2)
    order = np.argsort(pairs[:, 0], kind="stable")
    if not np.array_equal(pairs[order, 0], np.arange(count)):
        raise InputError(f"{path}: an .annot that does not list every vertex once")
    try:
        table = _table(data, 4 + 8 * count)
    except (struct.error, ValueError) as error:
        raise InputError(f"{path}: an .annot with a damaged table of areas: {error}") from None
    codes = {code: index for index, (code, _) in reversed(table.items())}
    unique, inverse = np.unique(pairs[order, 1], return_inverse=True)
    # Code 0 means no area, even if the table has an entry of this color.
    index = [codes.get(code, -1) if code else -1 for code in unique.tolist()]
    return np.array(index, np.int32)[inverse], {key: name for key, (_, name) in table.items()}


def _table(data: bytes, position: int) -> dict[int, tuple[int, str]]:
    """Parse the table of areas at a position into the color code and name of each index."""

    def integer() -> int:
        nonlocal position
        position += 4
        return struct.unpack_from(">i", data, position - 4)[0]

    def text() -> str:
        nonlocal position
        length = integer()
        if not 0 <= length <= len(data) - position:
            raise ValueError(f"a text of {length} bytes")
        position += length
        return data[position - length : position].rstrip(b"\0").decode("utf-8", "replace")

    if integer() != 1:
        raise ValueError("there is none")
    entries, version = integer(), 1
    if entries < 0:
        version, highest = -entries, integer()
    if version > 2:
        raise ValueError(f"version {version}")
    text()
    if version == 2:
        entries = integer()
    if not 0 < entries <= MAX_ENTRIES:
        raise ValueError(f"{entries} entries")
    table = {}
    for entry in range(entries):
        index = integer() if version == 2 else entry
        if version == 2 and not 0 <= index < highest:
            raise ValueError(f"index {index} of {highest}")
        name = text()
        red, green, blue, _ = integer(), integer(), integer(), integer()
        table[index] = red + (green << 8) + (blue << 16), name
    return table
