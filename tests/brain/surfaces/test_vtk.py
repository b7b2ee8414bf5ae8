"""Test legacy VTK surfaces, STL as text, and files that look like surfaces but are none."""

import gzip
import warnings

import meshio
import numpy as np
import pytest
from damage import damaged_files
from hypothesis import HealthCheck, given, settings
from test_surfaces import OCTAHEDRON

from jaxcyto.brain.surfaces.surface import read_surface
from jaxcyto.errors import InputError

VERTICES, FACES = OCTAHEDRON.vertices, OCTAHEDRON.faces
# What VTK writes after an array that has a name or a range.
METADATA = b"METADATA\nINFORMATION 1\nNAME L2_NORM_RANGE LOCATION vtkDataArray\nDATA 2 1 3\n\n"


def numbers(values, kind: str, text: bool) -> bytes:
    """Return numbers as VTK writes them: nine of them a line, or big-endian."""
    values = np.asarray(values).ravel()
    if not text:
        return values.astype(f">{kind}").tobytes() + b"\n"
    lines = [values[at : at + 9].tolist() for at in range(0, len(values), 9)]
    return b"".join(" ".join(map(str, line)).encode() + b" \n" for line in lines)


def vtk(
    version="4.2", text=True, faces=FACES, between=b"", after=b"", double=False, title="vtk output"
) -> bytes:
    """Return a file of polygons in the layout of a version."""
    kind, word = ("f8", b"double") if double else ("f4", b"float")
    parts = [
        f"# vtk DataFile Version {version}\n{title}\n{'ASCII' if text else 'BINARY'}\n".encode(),
        b"DATASET POLYDATA\nPOINTS %d %s\n" % (len(VERTICES), word),
        numbers(VERTICES, kind, text),
        between,
    ]
    corners = [len(face) for face in faces]
    flat = [index for face in faces for index in face]
    if float(version) < 5:
        parts.append(b"POLYGONS %d %d\n" % (len(faces), len(faces) + len(flat)))
        cells = [number for face in faces for number in (len(face), *face)]
        parts.append(numbers(cells, "i4", text))
    else:
        parts.append(b"POLYGONS %d %d\nOFFSETS vtktypeint64\n" % (len(faces) + 1, len(flat)))
        parts.append(numbers(np.cumsum([0, *corners]), "i8", text))
        parts.append(b"CONNECTIVITY vtktypeint64\n" + numbers(flat, "i8", text))
    return b"".join(parts) + after


def field(text: bool) -> bytes:
    """Return a field of two arrays, whose numbers have no keyword before the second."""
    return (
        b"FIELD FieldData 2\ntime 1 1 double\n"
        + numbers([0.5], "f8", text)
        + b"ids 2 3 int\n"
        + numbers(range(6), "i4", text)
    )


@pytest.mark.parametrize("gzipped", [False, True])
@pytest.mark.parametrize("text", [True, False])
@pytest.mark.parametrize("version", ["1.0", "2.0", "3.0", "4.2", "5.1"])
def test_polygons_of_all_versions(tmp_path, version, text, gzipped):
    path = tmp_path / "surface.gii"  # a name of another format
    point_data = b"\nPOINT_DATA 6\nSCALARS curv float\nLOOKUP_TABLE default\n" + bytes(24)
    for data in (
        vtk(version, text),
        vtk(version, text, double=True, title="", after=point_data),
        vtk(version, text, between=METADATA, after=METADATA + b"CELL_DATA 8\n"),
        vtk(version, text, between=field(text)),
        vtk(version, text).replace(b"POLYDATA\n", b"POLYDATA\n" + field(text)),
    ):
        path.write_bytes(gzip.compress(data) if gzipped else data)
        surface = read_surface(path)
        np.testing.assert_array_equal(surface.vertices, VERTICES)
        np.testing.assert_array_equal(surface.faces, FACES)


@pytest.mark.parametrize("version", ["4.2", "5.1"])
@pytest.mark.parametrize("text", [True, False])
def test_layout_of_cells_is_that_of_meshio(tmp_path, version, text):
    """Rewrite a grid of meshio as polygons. Both hold cells in the same layout."""
    path = tmp_path / "surface.vtk"
    mesh = meshio.Mesh(VERTICES, [("triangle", FACES)])
    mesh.write(path, f"vtk{version.replace('.', '')}", binary=not text)
    grid = path.read_bytes()
    expected = read_surface(path)
    polygons = grid[: grid.index(b"CELL_TYPES")].replace(b"UNSTRUCTURED_GRID", b"POLYDATA")
    path.write_bytes(polygons.replace(b"CELLS", b"POLYGONS"))
    surface = read_surface(path)
    np.testing.assert_array_equal(surface.vertices, expected.vertices)
    np.testing.assert_array_equal(surface.faces, expected.faces)


def test_lines_and_vertices_are_left_out(tmp_path):
    path = tmp_path / "surface.vtk"
    for text in (True, False):
        others = b"VERTICES 2 4\n" + numbers([1, 0, 1, 5], "i4", text)
        others += b"LINES 2 7\n" + numbers([3, 0, 1, 2, 2, 4, 5], "i4", text)
        path.write_bytes(vtk(text=text, between=others))
        np.testing.assert_array_equal(read_surface(path).faces, FACES)


def test_a_freesurfer_surface_in_vtk_1_0(shared_data):
    folder = shared_data / "meshes" / "enigma"
    surface, same = read_surface(folder / "fsa5_lh.vtk"), read_surface(folder / "fsa5_lh")
    np.testing.assert_allclose(surface.vertices, same.vertices, atol=1e-6)
    np.testing.assert_array_equal(surface.faces, same.faces)


QUADS = [(0, 2, 1, 3), (0, 2, 4)]
REFUSED = {
    "quads": (vtk(faces=QUADS), "1 polygons of other than 3 corners.*triangulate"),
    "quads of 5.1": (vtk("5.1", False, QUADS), "1 polygons of other than 3 corners.*triangulate"),
    "strips": (
        vtk(after=b"TRIANGLE_STRIPS 1 5\n4 0 2 1 3\n"),
        "triangle strips.*vtkTriangleFilter",
    ),
    "only lines": (vtk().replace(b"POLYGONS", b"LINES"), "no triangles"),
    "word": (vtk().replace(b"-2.0", b"zwei"), "a word among the numbers of POINTS"),
    "fraction": (vtk().replace(b"3 0 2 4", b"3 0 2 4.5"), "not whole numbers"),
    "infinite": (vtk().replace(b"3 0 2 4", b"3 0 2 inf"), "not whole numbers"),
    "too few": (vtk().replace(b"POINTS 6", b"POINTS 7"), "18 numbers in POINTS.*counts 21"),
    "too many": (vtk("5.1").replace(b"POINTS 6", b"POINTS 5"), "18 numbers in POINTS.*counts 15"),
    "counts": (
        vtk(text=False).replace(b"POINTS 6", b"POINTS 999999999999999"),
        "ends in POINTS",
    ),
    "no count": (vtk().replace(b"POINTS 6", b"POINTS x"), "'x' where a count is expected"),
    "type": (vtk().replace(b"float", b"quaternion"), "type 'quaternion'; known are"),
    "cells": (vtk().replace(b"POLYGONS 8 32", b"POLYGONS 9 32"), "do not fit their counts"),
    "offsets": (vtk("5.1").replace(b"21 24", b"21 23"), "OFFSETS that do not fit"),
    "no connectivity": (
        vtk("5.1").replace(b"CONNECTIVITY vtktypeint64", b"METADATA"),
        "OFFSETS without CONNECTIVITY",
    ),
    "section": (vtk().replace(b"POLYGONS", b"CELLS"), "numbers in POINTS|unknown section"),
    "truncated text": (vtk()[:-10], "numbers in POLYGONS where its header counts"),
    "truncated binary": (vtk("5.1", False)[:-20], "ends in CONNECTIVITY"),
    "field": (vtk(between=b"FIELD f 1\na 9999999 99999999 int\n"), "ends in FIELD"),
    "out of range": (vtk().replace(b"3 0 2 4", b"3 0 2 6"), "names vertex 6, but there are 6"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_refused_in_words(tmp_path, fault):
    data, message = REFUSED[fault]
    path = tmp_path / "surface.vtk"
    path.write_bytes(data)
    with pytest.raises(InputError, match=message) as caught:
        read_surface(path)
    assert "surface.vtk" in str(caught.value)


WHOLE = [vtk(version, text, between=METADATA) for version in ("1.0", "5.1") for text in (0, 1)]


@given(content=damaged_files(WHOLE))
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
def test_damage_is_read_or_refused(tmp_path, content):
    path = tmp_path / "surface"
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            surface = read_surface(path)
        except InputError as error:
            assert str(path) in str(error)
            return
    assert np.isfinite(surface.vertices).all()
    assert 0 <= surface.faces.min() and surface.faces.max() < len(surface.vertices)


def text_stl(blank: str = "") -> bytes:
    """Return an STL as text. trimesh writes empty lines between the last facet and the end."""
    facets = "".join(
        "facet normal 0 0 1\nouter loop\n"
        + "".join("vertex {} {} {}\n".format(*VERTICES[corner]) for corner in face)
        + "endloop\nendfacet\n"
        for face in FACES
    )
    return f"solid \n{facets}{blank}endsolid\n{blank}".encode()


def test_stl_as_text_with_empty_lines(tmp_path):
    path = tmp_path / "surface.stl"
    path.write_bytes(text_stl())
    with np.errstate(over="ignore"):  # meshio multiplies bytes that are no count
        oracle = meshio.read(path)
    for data in (text_stl(), text_stl("\n\n"), text_stl().replace(b"\n", b"\r\n")):
        path.write_bytes(data)
        surface = read_surface(path)
        assert surface.vertices.shape == (6, 3)  # corners at one position are one vertex
        np.testing.assert_array_equal(
            surface.vertices[surface.faces], oracle.points[oracle.cells_dict["triangle"]]
        )
    for damaged in (text_stl()[:-40], text_stl().replace(b"vertex -1", b"vertex x")):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"surface\.stl: an STL (as text|with a word)"):
            read_surface(path)


def test_a_curv_file_is_named(tmp_path):
    path = tmp_path / "lh.thickness"
    header = b"\xff\xff\xff" + np.array([6, 8, 1], ">i4").tobytes()
    path.write_bytes(header + np.ones(6, ">f4").tobytes())
    with pytest.raises(InputError, match=r"lh\.thickness: a FreeSurfer curv file .*6 vertices"):
        read_surface(path)
