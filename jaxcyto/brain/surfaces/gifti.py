"""Read and write GIFTI files with nibabel.

Three features of the format are dangerous in a file of unknown origin: XML entities, arrays stored
in other files, and packed arrays that unpack to far more than their dimensions state. The reader
refuses them before nibabel sees the file.
"""

import base64
import binascii
import gzip
import math
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.parsers import expat

import numpy as np
from nibabel.gifti.gifti import GiftiDataArray, GiftiImage, GiftiLabel, GiftiMetaData
from nibabel.gifti.util import gifti_encoding_codes
from nibabel.nifti1 import data_type_codes

from jaxcyto.errors import InputError
from jaxcyto.utils.files import atomic_write

MAX_BYTES = 1 << 30  # of all arrays of a file. A mesh of 10 million vertices stays below this
NIFTI_TYPES = {"float32": "NIFTI_TYPE_FLOAT32", "int32": "NIFTI_TYPE_INT32"}
PIECE = 1 << 16  # bytes given to the XML parser at once
LONGEST_TAG = 1 << 20  # bytes. The parser's time grows with the square of a tag's attributes


def load_gifti(path: Path, data: bytes) -> GiftiImage:
    """Parse the content of a GIFTI file.

    Args:
        path: the file, for messages.
        data: its content, gunzipped.

    Raises:
        InputError: the content is not GIFTI, is damaged, declares XML entities, or refers to arrays
            in other files.
    """
    try:
        _check(data)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # e.g. fewer arrays than stated
            return GiftiImage.from_bytes(data)
    except Exception as error:  # nibabel lets any error of its XML and array code through
        raise InputError(
            f"{path}: not a readable GIFTI file: {error or type(error).__name__}; export it again"
        ) from None


def _check(data: bytes) -> None:
    """Raise ValueError for content that must not reach nibabel."""
    array: dict[str, str] = {}
    text: list[str] = []
    inside = False
    left = MAX_BYTES

    def doctype(_name, _system, _public, own_declarations) -> None:
        if own_declarations:  # entities can include other files or expand without end
            raise ValueError("it declares XML entities of its own")

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal array, inside
        if inside:  # nibabel would unpack the text before the element
            raise ValueError(f"an element <{name}> among the data of an array")
        if name == "DataArray":
            array = attributes
        inside = name == "Data"
        text.clear()

    def end(name: str) -> None:
        nonlocal inside, left
        if inside and name == "Data":
            left -= _array_bytes(array, "".join(text))
            if left < 0:
                raise ValueError(f"its arrays hold over {MAX_BYTES >> 20} MiB")
        inside = False

    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = doctype
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = lambda piece: text.append(piece) if inside else None
    for done in range(0, len(data), PIECE):
        parser.Parse(data[done : done + PIECE], False)
        if done - parser.CurrentByteIndex > LONGEST_TAG:
            raise ValueError(f"a tag or comment of over {LONGEST_TAG >> 20} MiB")
    parser.Parse(b"", True)


def _array_bytes(attributes: dict[str, str], text: str) -> int:
    """Return the size of an array by its attributes, bytes, and check that its text holds it."""
    encoding = gifti_encoding_codes.label[attributes["Encoding"]]
    if encoding == "External":
        raise ValueError("its arrays lie in other files; write it as one file")
    ndim = int(attributes.get("Dimensionality", 0))
    if not 0 < ndim <= 7:
        raise ValueError(f"an array of {ndim} dimensions")
    sides = [int(attributes[f"Dim{k}"]) for k in range(ndim)]
    if min(sides) < 0:
        raise ValueError(f"an array of the shape {sides}")
    kind: Any = data_type_codes.dtype[attributes["DataType"]]
    wanted = math.prod(sides) * np.dtype(kind).itemsize
    if wanted > MAX_BYTES:
        raise ValueError(f"an array of {wanted >> 20} MiB")
    if encoding == "ASCII":
        if math.prod(sides) > len(text):
            raise ValueError(f"an array of {math.prod(sides)} numbers in {len(text)} letters")
        return wanted
    try:
        packed = base64.b64decode(text)
        if encoding == "B64GZ":
            packed = zlib.decompressobj().decompress(packed, wanted + 1)
    except (binascii.Error, zlib.error) as error:
        raise ValueError(f"an array that cannot be unpacked: {error}") from None
    if len(packed) != wanted:
        raise ValueError(
            f"an array of {wanted} bytes by its dimensions holds another number of bytes"
        )
    return wanted


def gifti_array(values: np.ndarray, intent: str, name: str | None = None) -> GiftiDataArray:
    """Return an array for `write_gifti`, gzipped and base64-encoded in the file.

    Args:
        values: float32 or int32, any shape.
        intent: what the values are, for example "NIFTI_INTENT_LABEL".
        name: shown for the array by viewers.
    """
    return GiftiDataArray(
        np.ascontiguousarray(values),
        intent=intent,
        datatype=NIFTI_TYPES[values.dtype.name],
        encoding="GIFTI_ENCODING_B64GZ",
        meta=None if name is None else {"Name": name},
    )


def write_gifti(
    path: Path,
    arrays: Sequence[GiftiDataArray],
    hemisphere: str | None = None,
    labels: Sequence[tuple[str, tuple[float, float, float, float]]] = (),
) -> None:
    """Write a GIFTI file atomically, gzipped if the name ends in .gz.

    Args:
        path: the file to write.
        arrays: made by `gifti_array`.
        hemisphere: name of the hemisphere. Connectome Workbench reads the structure from the file.
        labels: name and color (red, green, blue, alpha in [0, 1]) of the keys 0, 1, 2, ...
    """
    meta = None if hemisphere is None else structure_meta(hemisphere)
    image = GiftiImage(meta=meta, darrays=list(arrays))
    for key, (name, rgba) in enumerate(labels):
        label = GiftiLabel(key, *rgba)
        label.label = name  # pyright: ignore[reportAttributeAccessIssue]
        image.labeltable.labels.append(label)
    data = image.to_bytes()
    if path.suffix == ".gz":
        data = gzip.compress(data, mtime=0)  # without the time, equal content gives equal bytes
    with atomic_write(path) as file:
        file.write(data)


def structure_meta(hemisphere: str) -> GiftiMetaData:
    """Return the metadata that tell Connectome Workbench which structure a file belongs to.

    The side is inferred from the first letter of the hemisphere's name (left, lh, L, right, ...).
    For other names the metadata are empty.
    """
    sides = {"l": "CortexLeft", "r": "CortexRight"}
    structure = sides.get(hemisphere.strip().lower()[:1])
    return GiftiMetaData({"AnatomicalStructurePrimary": structure} if structure else {})
