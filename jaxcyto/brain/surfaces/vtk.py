"""Parse legacy VTK files with polygons (DATASET POLYDATA), as text or binary.

meshio reads only unstructured grids of this format, and surfaces are usually polygons. Sections of
a file follow each other, each with a line of keywords before its numbers:
* POINTS n type: 3 n coordinates
* POLYGONS n size, up to version 4.2: `size` integers, for each polygon the number of its corners
  and then their indices
* POLYGONS n + 1 size, from version 5: OFFSETS type with n + 1 integers, then CONNECTIVITY type with
  `size` indices. Polygon i has the indices from offset i to offset i + 1
* VERTICES, LINES and TRIANGLE_STRIPS, laid out like POLYGONS
* METADATA, up to an empty line, and FIELD, in which each array has a line of its own
* POINT_DATA and CELL_DATA, which come last and are not read.
Keywords may have any case. Numbers of binary files are big-endian.
Source: VTK File Formats (vtk.org), and the files that VTK and FreeSurfer write.
"""

import re
from pathlib import Path

import numpy as np

from jaxcyto.brain.surfaces.text import numbers_of
from jaxcyto.errors import InputError

POLYDATA = re.compile(
    rb"# vtk DataFile[^\n]*\n[^\n]*\n\s*(ascii|binary)\s+dataset\s+polydata\b", re.I
)
TYPES = {
    "unsigned_char": "u1", "char": "i1", "unsigned_short": "u2", "short": "i2",
    "unsigned_int": "u4", "int": "i4", "unsigned_long": "u8", "long": "i8",
    "float": "f4", "double": "f8", "vtkidtype": "i4",
    "vtktypeint32": "i4", "vtktypeint64": "i8",
}  # fmt: skip
# In a text file, numbers end where one of these words begins.
KEYWORD = re.compile(
    rb"(?:points|vertices|lines|polygons|triangle_strips|offsets|connectivity|metadata|field"
    rb"|point_data|cell_data)\b",
    re.I,
)


def parse_polydata(path: Path, data: bytes) -> tuple[np.ndarray, np.ndarray] | None:
    """Parse a legacy VTK file of polygons.

    Args:
        path: the file, for messages.
        data: its content.

    Returns:
        Vertices [V, 3] and faces [F, 3]. None if it is no such file.

    Raises:
        InputError: the file is truncated or damaged, or has other polygons than triangles.
    """
    head = POLYDATA.match(data[:1024])
    if head is None:
        return None
    return _Polydata(path, data, head).parse()


class _Polydata:
    """The content of a file, and the position that was read last."""

    def __init__(self, path: Path, data: bytes, head: re.Match):
        self.path, self.data, self.position = path, data, head.end()
        self.is_text = head[1].lower() == b"ascii"

    def parse(self) -> tuple[np.ndarray, np.ndarray]:
        vertices, faces = np.zeros((0, 3)), np.zeros((0, 3), np.int64)
        while words := self._line():
            section, counts = words[0].lower(), words[1:]
            if section == "points":
                vertices = self._numbers(3 * self._count(counts, 0), self._type(counts, 1), section)
                vertices = vertices.reshape(-1, 3)
            elif section in ("vertices", "lines", "polygons", "triangle_strips"):
                corners, indices = self._cells(section, counts)
                if section == "triangle_strips" and len(corners):
                    raise self._no_triangles("triangle strips")
                if section == "polygons":
                    others = int((corners != 3).sum())
                    if others:
                        raise self._no_triangles(f"{others} polygons of other than 3 corners")
                    faces = indices.reshape(-1, 3)
            elif section == "metadata":
                while self._line(skip_empty=False):
                    pass
            elif section == "field":
                for _ in range(self._count(counts, 1)):
                    self._array()
            elif section in ("point_data", "cell_data"):
                break
            else:
                raise self._fault(f"has an unknown section {words[0][:40]!r}")
        return vertices, faces

    def _cells(self, section: str, counts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Read cells: the number of corners of each, and the indices of all corners."""
        number, size = self._count(counts, 0), self._count(counts, 1)
        begin = self.position
        words = self._line()
        if words and words[0].lower() == "offsets":
            offsets = self._numbers(number, self._type(words, 1), "offsets")
            words = self._line()
            if not words or words[0].lower() != "connectivity":
                raise self._fault("has OFFSETS without CONNECTIVITY")
            indices = self._numbers(size, self._type(words, 1), "connectivity")
            corners = np.diff(offsets)
            if number < 1 or offsets[0] != 0 or offsets[-1] != size or (corners < 0).any():
                raise self._fault(f"has OFFSETS that do not fit its {size} indices")
            return corners, indices
        self.position = begin
        values = self._numbers(size, "i4", section)
        # Cells of one size need no loop, and surfaces have no others.
        if number and size == 4 * number and (values[::4] == 3).all():
            return np.full(number, 3), values.reshape(-1, 4)[:, 1:].ravel()
        corners, kept, at = [], np.ones(size, bool), 0
        while at < size and len(corners) < number:
            corners.append(int(values[at]))
            kept[at] = False
            at += 1 + max(corners[-1], 0)
        if at != size or len(corners) != number:
            raise self._fault(f"has {section.upper()} whose numbers do not fit their counts")
        return np.array(corners, np.int64), values[kept]

    def _array(self) -> None:
        """Skip one array of a field."""
        words = self._line()
        while words and words[0].lower() == "metadata":  # of the array before
            while self._line(skip_empty=False):
                pass
            words = self._line()
        if len(words) == 4 and words[3].lower() in TYPES:
            size = self._count(words, 1) * self._count(words, 2)
            if self.is_text:  # the next array has no keyword before it, so words are counted
                self._check(size, "field")
                found = re.compile(rb"\s*(?:\S+\s+){%d}" % size).match(self.data, self.position)
                if found is None:
                    raise self._fault("ends in a field")
                self.position = found.end()
            else:
                self._numbers(size, TYPES[words[3].lower()], "field")
            return
        raise self._fault("has a field that cannot be read")

    def _line(self, skip_empty: bool = True) -> list[str]:
        """Return the words of the next line, of the next that is not empty by default."""
        while self.position < len(self.data):
            end = self.data.find(b"\n", self.position)
            end = len(self.data) if end < 0 else end
            words = self.data[self.position : min(end, self.position + 1024)].split()
            self.position = end + 1
            if words or not skip_empty:
                return [word.decode("latin-1") for word in words]
        return []

    def _numbers(self, count: int, kind: str, section: str) -> np.ndarray:
        """Read numbers [count]: float64 or int64."""
        wanted = np.float64 if kind[0] == "f" else np.int64
        if not self.is_text:
            dtype = np.dtype(f">{kind}")
            self._check(count * dtype.itemsize, section)
            values = np.frombuffer(self.data, dtype, count, self.position)
            self.position += count * dtype.itemsize
            return values.astype(wanted)
        self._check(count, section)
        end = KEYWORD.search(self.data, self.position)
        stop = end.start() if end else len(self.data)
        words = self.data[self.position : stop].split()
        if len(words) != count:
            raise self._fault(
                f"has {len(words)} numbers in {section.upper()} where its header counts {count}"
            )
        self.position = stop
        try:
            values = numbers_of(words)
        except ValueError as error:
            raise self._fault(
                f"has a word among the numbers of {section.upper()}: {error}"
            ) from None
        whole = np.isfinite(values).all() and (np.abs(values) < 2**53).all()
        if wanted is np.int64 and not (whole and (values % 1 == 0).all()):
            raise self._fault(f"has {section.upper()} that are not whole numbers")
        return values.astype(wanted)

    def _check(self, size: int, section: str) -> None:
        """Raise InputError if fewer than `size` bytes are left."""
        left = max(len(self.data) - self.position, 0)
        if size > left:
            raise self._fault(f"ends in {section.upper()}: {size} bytes needed, {left} left")

    def _count(self, words: list[str], index: int) -> int:
        word = words[index] if index < len(words) else ""
        if not re.fullmatch(r"\d{1,18}", word, re.ASCII):
            raise self._fault(f"has {word[:40]!r} where a count is expected")
        return int(word)

    def _type(self, words: list[str], index: int) -> str:
        word = words[index].lower() if index < len(words) else ""
        if word not in TYPES:
            raise self._fault(f"has numbers of type {word[:40]!r}; known are {', '.join(TYPES)}")
        return TYPES[word]

    def _no_triangles(self, what: str) -> InputError:
        return InputError(
            f"{self.path}: a VTK file with {what}; only triangles make a surface here: "
            "triangulate it first (vtkTriangleFilter, or Triangulate in ParaView)"
        )

    def _fault(self, what: str) -> InputError:
        return InputError(
            f"{self.path}: a VTK file that {what}; it is truncated or damaged: export it again"
        )
