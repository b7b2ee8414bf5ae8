"""MNI text .obj: the polygon files of the Montreal Neurological Institute's tools, and BigBrain's.

Layout (bicpl, `Objects/polygon_io.c` describes it): `P`, five surface properties, the number of
points; points and normals, three numbers each; the number of items; a colour flag (0 one colour
for all, 1 one for each item, 2 one for each point) and the colours, four numbers each; the end
index of each item; all indices in a row. All separated by white space.
"""

from pathlib import Path

import numpy as np

from jaxcyto.errors import InputError

MAX_LETTERS = 64  # of a number


def numbers_of(words: list[bytes]) -> np.ndarray:
    """float64 [N] of N words. Raises ValueError where one is no number."""
    # As an array every word takes as much memory as the longest.
    if max(map(len, words), default=0) > MAX_LETTERS:
        raise ValueError(f"a word of over {MAX_LETTERS} letters")
    return np.array(words, "S").astype(np.float64)


def parse_mni_obj(path: Path, data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Vertices float64 [V, 3] and faces int [F, 3] of a text file; all items must be triangles."""
    if data[:1] == b"p":
        raise InputError(f"{path}: a binary MNI .obj; convert it to text or to GIFTI first")
    words = data.split()
    place = 1

    def take(count: int, what: str) -> np.ndarray:
        nonlocal place
        if count < 0 or place + count > len(words):
            raise InputError(
                f"{path}: an MNI .obj that ends before its {what} ({count} numbers expected, "
                f"{len(words) - place} left); the file is truncated or damaged"
            )
        chunk = words[place : place + count]
        place += count
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
    flag = int(whole(1, "colour flag")[0])
    if flag not in (0, 1, 2):
        raise InputError(f"{path}: an MNI .obj with colour flag {flag}; 0, 1 or 2 expected")
    take(4 * (1, items, points)[flag], "colours")
    ends = whole(items, "end indices")
    if not np.array_equal(ends, 3 * np.arange(1, items + 1)):
        raise InputError(f"{path}: an MNI .obj with items that are no triangles; triangulate it")
    return vertices, whole(3 * items, "indices").reshape(-1, 3)
