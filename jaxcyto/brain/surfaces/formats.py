"""Parse surface files into vertices and triangles, in a format inferred from the content.

nibabel reads GIFTI and FreeSurfer binary files. `parse_mni_obj` reads MNI text .obj, `vtk.py` reads
legacy VTK with polygons, and `parse_text_stl` reads STL as text. meshio reads PLY, OFF, binary STL,
Wavefront .obj and legacy VTK with unstructured grids. The counts in a header are compared with the
size of the file before a reader allocates memory for them.
"""

import contextlib
import gzip
import io
import os
import re
import tempfile
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import meshio
import numpy as np
from nibabel.freesurfer.io import read_geometry

from jaxcyto.brain.surfaces.gifti import load_gifti
from jaxcyto.brain.surfaces.text import numbers_of
from jaxcyto.brain.surfaces.vtk import parse_polydata
from jaxcyto.errors import InputError
from jaxcyto.utils.files import open_file

MAX_BYTES = 1 << 30  # a mesh of 10 million vertices as text stays below this
# First bytes of the meshio formats that hold surfaces. Its formats for volume meshes are omitted,
# because their readers open other files or allocate whatever a header states.
MESHIO_SIGNATURES = (
    (rb"# vtk DataFile", "vtk"),
    (rb"ply\s", "ply"),
    (rb"OFF[ \r]*\n(?>(?:#[^\n]*\n|\s)*)\d", "off"),  # meshio searches for the counts without end
    (rb"\s*solid\b", "stl"),
    (rb"(?>(?:#[^\n]*\n|(?:mtllib|usemtl|o|g|s|vn|vt)\s[^\n]*\n|\s)*)v\s", "obj"),
)

Parsed = tuple[np.ndarray, np.ndarray, list[str]]


def load_bytes(path: Path, limit: int = MAX_BYTES) -> bytes:
    """Read the content of a file and gunzip it if it is gzipped.

    Raises:
        InputError: the file cannot be read, is empty, or holds more than `limit` bytes.
    """
    try:
        with open_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > limit:
                raise _too_large(path, limit)
            data = file.read()
        if data[:2] == b"\x1f\x8b":
            limit = min(limit, unpacked_limit(len(data)))
            with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
                data = file.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    if not data:
        raise InputError(f"{path}: the file is empty")
    if len(data) > limit:
        raise _too_large(path, limit)
    return data


def unpacked_limit(packed: int) -> int:
    """Return to how many bytes `packed` gzipped bytes may unpack. More is taken for a bomb."""
    return max(1 << 25, 100 * packed)


def _too_large(path: Path, limit: int) -> InputError:
    return InputError(f"{path}: over {limit >> 20} MiB; not a file of this kind")


def parse_surface(path: Path, data: bytes) -> Parsed:
    """Parse a surface file.

    Args:
        path: the file, for messages.
        data: its content, gunzipped.

    Returns:
        Vertices [V, 3] and faces [F, 3] as stored and not yet checked, and notes for the user.

    Raises:
        InputError: the format is unknown, or the file is damaged or holds no triangle mesh.
    """
    if data[:3] in (b"\xff\xff\xfe", b"\xff\xff\xff", b"\xff\xff\xfd"):
        return *_freesurfer(path, data), []
    root = xml_root(data)
    if root == b"GIFTI":
        return _gifti(path, data)
    if re.match(rb"P\s+[-+.\d]", data) or (data[:1] == b"p" and b"\0" in data[:64]):
        return *parse_mni_obj(path, data), []
    if (polygons := parse_polydata(path, data)) is not None:
        return *polygons, []
    if re.match(rb"\s*solid\b", data) and not _is_binary_stl(data):
        return *parse_text_stl(path, data), []
    return *_through_meshio(path, data, _meshio_format(path, data, root)), []


def xml_root(data: bytes) -> bytes | None:
    """Return the name of the XML root element, None if the data are not XML."""
    head = data[:65536].removeprefix(b"\xef\xbb\xbf").lstrip()
    if not head.startswith(b"<"):
        return None
    # Declarations, comments and a document type may come before the root.
    tag = re.search(rb"<([A-Za-z_][\w.-]*)", re.sub(rb"<!--.*?-->", b"", head, flags=re.S))
    return tag[1] if tag else None


def _gifti(path: Path, data: bytes) -> Parsed:
    image = load_gifti(path, data)
    arrays = {}
    for intent, name in ((1008, "vertices (POINTSET)"), (1009, "triangles (TRIANGLE)")):
        matches = [array for array in image.darrays if array.intent == intent]
        if len(matches) != 1:
            raise InputError(f"{path}: a GIFTI surface has one array of {name}, not {len(matches)}")
        arrays[intent] = matches[0]
    notes = []
    system = arrays[1008].coordsys
    if system is not None and not np.array_equal(system.xform, np.eye(4)):
        notes.append("its coordinate transform is not applied; coordinates are used as stored")
    return arrays[1008].data, arrays[1009].data, notes


def _freesurfer(path: Path, data: bytes) -> tuple[np.ndarray, np.ndarray]:
    if data[:3] == b"\xff\xff\xfe":  # triangle file: two lines of text, then two counts
        counts = data.split(b"\n", 2)[-1][:8]
        vertices, faces = np.frombuffer(counts, ">i4") if len(counts) == 8 else (-1, -1)
        size = 12 * (int(vertices) + int(faces))
    else:  # quadrangle file: 3-byte counts, int16 or float32 coordinates, 3-byte indices
        vertices, faces = (int.from_bytes(data[i : i + 3]) for i in (3, 6))
        size = (6 if data[2] == 0xFF else 12) * vertices + 12 * faces
    # A file of values per vertex begins like a quadrangle file: 3 bytes, then three int32.
    counts = np.frombuffer(data[3:15], ">i4").tolist() if len(data) >= 15 else [0, 0, 0]
    if data[:3] == b"\xff\xff\xff" and len(data) == 15 + 4 * counts[0] * counts[2] > 15:
        raise InputError(
            f"{path}: a FreeSurfer curv file (values of {counts[0]} vertices, such as curvature, "
            "sulc or thickness), not a surface; give the surface itself, such as lh.white"
        )
    if vertices < 0 or faces < 0 or size > len(data):
        raise InputError(
            f"{path}: a FreeSurfer surface of {vertices} vertices and {faces} faces by its "
            f"header, which do not fit in {len(data)} bytes; the file is truncated or damaged"
        )
    with _as_file(path, data) as file:
        try:
            vertices, faces = read_geometry(file)[:2]
            return np.asarray(vertices), np.asarray(faces)
        except Exception as error:
            raise InputError(f"{path}: not a readable FreeSurfer surface: {error}") from None


def _meshio_format(path: Path, data: bytes, root: bytes | None) -> str:
    if root is not None:
        raise InputError(
            f"{path}: XML with root <{root.decode()}>, which is no surface format here; convert it "
            "to GIFTI"
        )
    for pattern, name in MESHIO_SIGNATURES:
        if re.match(pattern, data[:65536]):
            return name
    if _is_binary_stl(data):
        return "stl"
    raise InputError(
        f"{path}: not a surface in a known format; known are GIFTI, FreeSurfer binary, MNI text "
        ".obj, PLY, OFF, STL, Wavefront .obj and legacy VTK"
    )


def _through_meshio(path: Path, data: bytes, name: str) -> tuple[np.ndarray, np.ndarray]:
    counts = re.findall(rb"(?:POINTS|POLYGONS|CELLS|OFF|element \w+)\s+(\d+)", data[:65536])
    if name == "ply" and not re.search(rb"\n\s*end_header\s*\n", data[:65536]):
        raise InputError(f"{path}: a PLY whose header does not end; export it again")
    if any(len(count) > 18 or int(count) > len(data) for count in counts):
        raise InputError(f"{path}: its header counts more than its {len(data)} bytes can hold")
    output = io.StringIO()  # meshio prints its reason, then exits
    with _as_file(path, data) as file:
        try:
            with (
                contextlib.redirect_stdout(output),
                contextlib.redirect_stderr(output),
                warnings.catch_warnings(),
            ):
                warnings.simplefilter("ignore")  # meshio's own: overflows, deprecated NumPy calls
                mesh = meshio.read(file, file_format=name)
        except SystemExit:
            reason = output.getvalue().partition("Error:")[0].strip() or "it gives no reason"
            raise InputError(
                f"{path}: meshio cannot read it as {name}: {reason}; convert it to GIFTI"
            ) from None
        except Exception as error:
            raise InputError(
                f"{path}: meshio cannot read it as {name}: {error or type(error).__name__}"
            ) from None
    if not len(mesh.points):
        raise InputError(f"{path}: meshio finds no vertices in it (read as {name})")
    kinds = {block.type for block in mesh.cells if len(block.data)}
    if kinds - {"triangle", "line", "vertex"}:
        raise InputError(
            f"{path}: has cells of kind {', '.join(sorted(kinds))} (read as {name}); only "
            "triangles make a surface here: triangulate it first"
        )
    return mesh.points, mesh.cells_dict.get("triangle", np.zeros((0, 3), np.int32))


@contextlib.contextmanager
def _as_file(path: Path, data: bytes) -> Iterator[str]:
    """Yield the path of a file with the gunzipped content."""
    with open(path, "rb") as start:
        gzipped = start.read(2) == b"\x1f\x8b"
    if not gzipped:
        yield str(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / path.name.removesuffix(".gz")
        file.write_bytes(data)
        yield str(file)


def _is_binary_stl(data: bytes) -> bool:
    """Return whether the file has the size of a binary STL, which may begin like one as text."""
    return len(data) >= 84 and 84 + 50 * int.from_bytes(data[80:84], "little") == len(data)


def parse_text_stl(path: Path, data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Parse an STL as text, whatever its line breaks. Corners at equal positions are one vertex.

    Args:
        path: the file, for messages.
        data: its content.

    Returns:
        Vertices float64 [V, 3] and faces int64 [F, 3].

    Raises:
        InputError: the file is truncated or damaged.
    """
    words = re.findall(rb"\bvertex\s+(\S+)\s+(\S+)\s+(\S+)", data, re.IGNORECASE)
    facets = len(re.findall(rb"\bfacet\s+normal\b", data, re.IGNORECASE))
    if len(words) != 3 * facets or not re.search(rb"\bendsolid\b", data, re.IGNORECASE):
        raise InputError(
            f"{path}: an STL as text with {facets} facets and {len(words)} corners instead of "
            f"{3 * facets}, or without its end; it is truncated or damaged: export it again"
        )
    try:
        corners = numbers_of([word for corner in words for word in corner]).reshape(-1, 3)
    except ValueError as error:
        raise InputError(f"{path}: an STL with a word among its corners: {error}") from None
    vertices, faces = np.unique(corners, axis=0, return_inverse=True)
    return vertices, faces.reshape(-1, 3)


def parse_mni_obj(path: Path, data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Parse an MNI text .obj file. All its items must be triangles.

    Args:
        path: the file, for messages.
        data: its content.

    Returns:
        Vertices float64 [V, 3] and faces int64 [F, 3].

    Raises:
        InputError: the file is binary, truncated, damaged or holds other items.
    """
    if data[:1] == b"p":
        raise InputError(f"{path}: a binary MNI .obj; convert it to text or to GIFTI first")
    words = data.split()
    position = 1

    def take(count: int, what: str) -> np.ndarray:
        nonlocal position
        if count < 0 or position + count > len(words):
            raise InputError(
                f"{path}: an MNI .obj that ends before its {what} ({count} numbers expected, "
                f"{len(words) - position} left); the file is truncated or damaged"
            )
        chunk = words[position : position + count]
        position += count
        try:
            return numbers_of(chunk)
        except ValueError:
            raise InputError(f"{path}: an MNI .obj with a word among its {what}") from None

    def whole(count: int, what: str) -> np.ndarray:
        numbers = take(count, what)
        if not (np.abs(numbers) < 2**31).all() or (numbers % 1).any():
            raise InputError(f"{path}: an MNI .obj whose {what} are not whole numbers")
        return numbers.astype(np.int64)

    take(5, "surface properties")
    points = int(whole(1, "number of points")[0])
    vertices = take(3 * points, "points").reshape(-1, 3)
    take(3 * points, "normals")
    items = int(whole(1, "number of items")[0])
    flag = int(whole(1, "color flag")[0])
    if flag not in (0, 1, 2):
        raise InputError(f"{path}: an MNI .obj with color flag {flag}; 0, 1 or 2 expected")
    take(4 * (1, items, points)[flag], "colors")
    ends = whole(items, "end indices")
    if not np.array_equal(ends, 3 * np.arange(1, items + 1)):
        raise InputError(f"{path}: an MNI .obj with items that are no triangles; triangulate it")
    return vertices, whole(3 * items, "indices").reshape(-1, 3)
