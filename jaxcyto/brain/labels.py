"""One whole number for each vertex of a surface: area labels in the formats of the field."""

import os
import re
from pathlib import Path

import numpy as np
from nibabel.freesurfer.mghformat import MGHImage

from jaxcyto.brain.annot import annot_vertices, parse_annot
from jaxcyto.brain.gifti import load_gifti
from jaxcyto.brain.mni_obj import numbers_of
from jaxcyto.brain.surface_files import load_bytes, xml_root
from jaxcyto.errors import InputError


def read_labels(path: str | os.PathLike, num_vertices: int) -> np.ndarray:
    """Labels int32 [num_vertices] from GIFTI label or shape, FreeSurfer .annot or .mgz, or text.

    The format is told from the content. An .annot gives the index into its own table of areas
    (-1 where it names none); text holds one whole number a line.

    Raises:
        InputError: not such a file, a number that is not whole, or another number of vertices.
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
        # Of another surface: said below, whatever else may be wrong.
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
    """Names of the numbers that `read_labels` gives: of a GIFTI label table or an .annot.

    Empty for formats that hold none.

    Raises:
        InputError: the file cannot be read.
    """
    path = Path(path)
    data = load_bytes(path)
    kind = _kind(data)
    if kind == "gifti":
        found = load_gifti(path, data).labeltable.labels
        names = {int(entry.key): getattr(entry, "label", None) for entry in found}
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
