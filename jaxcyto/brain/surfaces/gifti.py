"""GIFTI files as nibabel reads them, once it is known that they are what they say.

Three things of the format are dangerous in a file from elsewhere: XML entities, arrays that lie in
other files, and packed arrays that unpack to far more than their dimensions say.
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

MAX_BYTES = 1 << 30  # of all arrays; a mesh of 10 million vertices stays below this
NIFTI_TYPES = {"float32": "NIFTI_TYPE_FLOAT32", "int32": "NIFTI_TYPE_INT32"}
PIECE, LONGEST_TAG = 1 << 16, 1 << 20  # bytes; time grows with the square of its attributes


def load_gifti(path: Path, data: bytes) -> GiftiImage:
    """Parses the content of a GIFTI file.

    Raises:
        InputError: not GIFTI, damaged, with an XML declaration of its own or arrays in other files.
    """
    try:
        _check(data)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # as of fewer arrays than announced
            return GiftiImage.from_bytes(data)
    except Exception as error:  # nibabel raises what its XML and array parts happen to raise
        raise InputError(
            f"{path}: not a readable GIFTI file: {error or type(error).__name__}; export it again"
        ) from None


def _check(data: bytes) -> None:
    """Raises ValueError for what must not reach nibabel."""
    array: dict[str, str] = {}
    text: list[str] = []
    inside = False
    left = MAX_BYTES

    def doctype(_name, _system, _public, own_declarations) -> None:
        if own_declarations:  # entities could stand for other files, or for endless text
            raise ValueError("it declares XML entities of its own")

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal array, inside
        if inside:  # nibabel would unpack the text up to here
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
    """The size of an array by its attributes, if its text holds as much."""
    encoding = gifti_encoding_codes.label[attributes["Encoding"]]
    if encoding == "External":
        raise ValueError("its arrays lie in other files; write it as one file")
    number = int(attributes.get("Dimensionality", 0))
    if not 0 < number <= 7:
        raise ValueError(f"an array of {number} dimensions")
    sides = [int(attributes[f"Dim{k}"]) for k in range(number)]
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
        raise ValueError(f"an array of {wanted} bytes by its dimensions holds others")
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
