"""Test reading arrays: what a schema accepts and refuses, messages, and digests."""

import hashlib
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from jaxcyto.errors import InputError
from jaxcyto.utils import files
from jaxcyto.utils.files import Array, Schema, naming_damage, read_arrays

FORMAT = "test 1"
SCHEMA: Schema = {
    "index": Array(np.int32, ("N",), low=0, high=9),
    "point_mm": Array(np.floating, ("N", 3)),
    "matrix": Array(np.float32, ("M", "M"), low=0, finite=False),
    "name": str,
    "settings": dict,
}


def good() -> dict:
    """Return arguments of `np.savez` that fit the schema."""
    return {
        "format": FORMAT,
        "index": np.array([0, 9], np.int32),
        "point_mm": np.arange(6.0).reshape(2, 3),
        "matrix": np.full((3, 3), np.inf, np.float32),
        "name": "a",
        "settings": json.dumps({"seed": 1}),
    }


def save(folder: Path, **changes) -> Path:
    arrays = {name: array for name, array in (good() | changes).items() if array is not None}
    np.savez(folder / "a.npz", **arrays)
    return folder / "a.npz"


def test_what_fits_is_returned(tmp_path):
    fortran = np.asfortranarray(good()["point_mm"])
    arrays = read_arrays(save(tmp_path, point_mm=fortran, other=np.zeros(2)), FORMAT, SCHEMA)
    assert arrays.keys() == SCHEMA.keys()
    for name in ("index", "point_mm", "matrix"):
        np.testing.assert_array_equal(arrays[name], good()[name])
        assert arrays[name].dtype == good()[name].dtype and arrays[name].flags.writeable
        assert arrays[name].flags.aligned
    assert arrays["name"] == "a" and arrays["settings"] == {"seed": 1}
    none = {"index": np.zeros(0, np.int32), "point_mm": np.zeros((0, 3), np.float32)}
    arrays = read_arrays(save(tmp_path, **none), FORMAT, SCHEMA)
    assert arrays["index"].shape == (0,) and arrays["point_mm"].shape == (0, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "format other, not 'test 1'"),
        ({"index": None}, "index is missing"),
        ({"index": np.zeros(2, np.int64)}, r"index is int64 \[2\], not int32 \[N"),
        ({"index": np.zeros(2, ">i4")}, r"index is >i4 \[2\], not int32"),
        ({"index": np.zeros((2, 1), np.int32)}, r"index is int32 \[2, 1\]"),
        ({"index": np.array([0, -1], np.int32)}, "index holds values below 0"),
        ({"index": np.array([0, 10], np.int32)}, "index holds values above 9"),
        ({"point_mm": np.zeros((2, 3), int)}, "point_mm is int64"),
        ({"point_mm": np.zeros((4, 3))}, r"point_mm is float64 \[4, 3\], not .*\[N = 2, 3\]"),
        ({"point_mm": np.zeros((2, 2))}, "point_mm"),
        ({"point_mm": np.full((2, 3), np.nan)}, "point_mm holds values that are not finite"),
        ({"matrix": np.zeros((2, 3), np.float32)}, "matrix is float32"),
        ({"matrix": np.full((2, 2), np.nan, np.float32)}, "matrix holds values below 0"),
        ({"name": np.zeros(3)}, r"name is float64 \[3\], not a text"),
        ({"name": np.array(["a", "b"])}, "name is"),
        ({"settings": "{"}, "Expecting"),
        ({"settings": "[1]"}, "settings is not a JSON object"),
        ({"other": np.array([{}])}, "not an array of plain numbers"),
    ],
)
def test_what_differs_is_refused_with_file_member_and_remedy(tmp_path, changes, message):
    path = save(tmp_path, **changes)
    with pytest.raises(InputError, match=message) as caught:
        with naming_damage(path, "file of tests", "write it again"):
            read_arrays(path, FORMAT, SCHEMA)
    assert str(caught.value).startswith(f"{path}: not a readable file of tests (")
    assert str(caught.value).endswith("; write it again")


def test_truncated_files_are_refused(tmp_path):
    path = save(tmp_path)
    whole = path.read_bytes()
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match="write it again"):
            with naming_damage(path, "file of tests", "write it again"):
                read_arrays(path, FORMAT, SCHEMA)


@pytest.mark.parametrize("tail", [1 << 10, 128 << 10])  # the directory takes less than 1 KiB
def test_digest_of_the_bytes_that_were_read(tmp_path, monkeypatch, tail):
    monkeypatch.setattr(files, "TAIL_BYTES", tail)
    monkeypatch.setattr(files, "CHUNK_BYTES", 1000)
    points = np.random.default_rng(0).normal(size=(500, 3))
    path = save(tmp_path, index=np.zeros(500, np.int32), point_mm=points)
    content = path.read_bytes()
    digest = hashlib.sha256()
    read = files._array

    def change(file, size):
        """Append to the file and overwrite what has not been read, in the middle of reading."""
        array = read(file, size)
        if array.shape == points.shape:
            path.write_bytes(bytes(len(content) + 1000))
        return array

    monkeypatch.setattr(files, "_array", change)
    try:
        arrays = read_arrays(path, FORMAT, SCHEMA, update=digest.update)
    except files.READ_ERRORS:
        assert tail < len(content)
    else:
        np.testing.assert_array_equal(arrays["point_mm"], points)
        assert digest.hexdigest() == hashlib.sha256(content).hexdigest()
    monkeypatch.undo()
    path.write_bytes(content)
    digest = hashlib.sha256()
    read_arrays(path, FORMAT, SCHEMA, update=digest.update)
    assert digest.hexdigest() == hashlib.sha256(content).hexdigest()


def test_digest_holds_no_second_copy(tmp_path):
    size = 16 << 20
    path = save(tmp_path, index=np.zeros(0, np.int32), point_mm=np.zeros((0, 3)))
    np.savez(path, format=FORMAT, large=np.arange(size // 8))
    digest = hashlib.sha256()
    tracemalloc.start()
    schema: Schema = {"large": Array(np.int64, ("N",))}
    arrays = read_arrays(path, FORMAT, schema, update=digest.update)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(arrays["large"], np.arange(size // 8))
    assert digest.hexdigest() == files.file_sha256(path)
    assert peak < 1.4 * size  # the array, a mask of finite values, and chunks
