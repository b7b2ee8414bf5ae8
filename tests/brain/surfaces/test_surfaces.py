"""Test that surfaces and labels are read by content, and that faults raise clear errors."""

import gzip
import warnings

import meshio
import nibabel as nib
import numpy as np
import pytest
from damage import damaged_files
from hypothesis import HealthCheck, given, settings

from jaxcyto.brain.manifest import Hemisphere
from jaxcyto.brain.surfaces import formats as surface_files
from jaxcyto.brain.surfaces import gifti as gifti_reader
from jaxcyto.brain.surfaces.surface import (
    Surface,
    hemisphere_surface,
    read_surface,
    surface_warnings,
    write_surface,
)
from jaxcyto.brain.surfaces.vertex_labels import read_labels
from jaxcyto.errors import InputError

OCTAHEDRON = Surface(
    np.array([[3, 0, 0], [-1, 0, 0], [0, 1.5, 0], [0, -1, 0], [0, 0, 1], [0, 0, -2]]),
    np.array(
        [[0, 2, 4], [2, 1, 4], [1, 3, 4], [3, 0, 4], [2, 0, 5], [1, 2, 5], [3, 1, 5], [0, 3, 5]],
        np.int32,
    ),
)

REAL = {
    "bigbrain/surf/tpl-bigbrain_hemi-L_desc-pial.surf.gii": 163_842,
    "bigbrain/surf/tpl-bigbrain_hemi-L_desc-white.surf.gii": 163_842,
    "bigbrain/surf/derived_ico/bigbrain_hemi-L_pial_10k.surf.gii": 10_242,
    "bigbrain/surf/derived_ico/bigbrain_hemi-L_white_10k.surf.gii": 10_242,
    "bigbrain/surf/rh.midsurface.10k.obj": 10_482,
    "meshes/enigma/fsa5_lh": 10_242,
    "meshes/enigma/fsa5_lh.gii": 10_242,
    "meshes/enigma/fsa5_lh.obj": 10_242,
    "meshes/enigma/fsa5_lh.vtk": 10_242,
} | {
    f"meshes/nilearn_fsaverage5/{kind}_{side}.gii.gz": 10_242
    for kind in ("infl", "pial", "sphere", "white")
    for side in ("left", "right")
}


@pytest.mark.parametrize("name", REAL)
def test_real_surfaces(shared_data, name):
    surface = read_surface(shared_data / name)
    number = REAL[name]
    # A mesh with the topology of a sphere has V - E + F = 2 and E = 3 F / 2.
    assert surface.vertices.shape == (number, 3) and surface.vertices.dtype == np.float64
    assert surface.faces.shape == (2 * number - 4, 3)
    assert surface_warnings(surface) == []
    spread = np.ptp(surface.vertices, axis=0)
    assert (spread > 40).all() and (spread < 300).all()


def test_all_real_surfaces_are_tried(shared_data):
    found = {p for p in shared_data.rglob("*") if p.is_file() and p.parent.name != "labels"}
    kinds = (".gii", ".gii.gz", ".obj")
    found = {p for p in found if p.name.endswith(kinds) or p.parent.name == "enigma"}
    assert {str(p.relative_to(shared_data)) for p in found} == REAL.keys()


def test_one_real_mesh_in_three_formats(shared_data):
    folder = shared_data / "meshes" / "enigma"
    first = read_surface(folder / "fsa5_lh")
    oracle = nib.freesurfer.read_geometry(str(folder / "fsa5_lh"))
    np.testing.assert_array_equal(first.vertices, oracle[0])
    np.testing.assert_array_equal(first.faces, oracle[1])
    for name in ("fsa5_lh.gii", "fsa5_lh.obj"):
        other = read_surface(folder / name)
        np.testing.assert_allclose(other.vertices, first.vertices, atol=1e-4)
        np.testing.assert_array_equal(other.faces, first.faces)


@pytest.mark.parametrize("name", ["surface.gii", "surface.gii.gz"])
def test_written_surface_reads_back(tmp_path, name):
    path = tmp_path / name
    write_surface(path, OCTAHEDRON)
    surface = read_surface(path)
    np.testing.assert_array_equal(surface.vertices, OCTAHEDRON.vertices)
    np.testing.assert_array_equal(surface.faces, OCTAHEDRON.faces)
    assert (path.read_bytes()[:2] == b"\x1f\x8b") == name.endswith(".gz")
    oracle = nib.load(path)
    np.testing.assert_array_equal(oracle.darrays[0].data, OCTAHEDRON.vertices)
    assert [p.name for p in tmp_path.iterdir()] == [name]


MESHIO_FORMATS = ["ply", "off", "obj", "vtk", "stl"]


@pytest.mark.parametrize("gzipped", [False, True])
@pytest.mark.parametrize("format_", MESHIO_FORMATS)
def test_meshio_formats_by_content(tmp_path, format_, gzipped):
    path = tmp_path / "surface.gii"  # a name of another format
    meshio.Mesh(OCTAHEDRON.vertices, [("triangle", OCTAHEDRON.faces)]).write(path, format_)
    if gzipped:
        path.write_bytes(gzip.compress(path.read_bytes()))
    surface = read_surface(path)
    # STL holds triangles without shared vertices, so compare their corners.
    np.testing.assert_allclose(
        surface.vertices[surface.faces], OCTAHEDRON.vertices[OCTAHEDRON.faces], atol=1e-6
    )


@pytest.mark.parametrize("gzipped", [False, True])
def test_freesurfer_binary_by_content(tmp_path, gzipped):
    path = tmp_path / "lh.ply"
    nib.freesurfer.write_geometry(
        str(path), OCTAHEDRON.vertices, OCTAHEDRON.faces, "created by a\x00 test"
    )
    if gzipped:
        path.write_bytes(gzip.compress(path.read_bytes()))
    surface = read_surface(path)
    np.testing.assert_array_equal(surface.vertices, OCTAHEDRON.vertices)
    np.testing.assert_array_equal(surface.faces, OCTAHEDRON.faces)


def mni_obj(color_flag: int = 0) -> bytes:
    vertices, faces = OCTAHEDRON.vertices, OCTAHEDRON.faces
    colors = {0: 1, 1: len(faces), 2: len(vertices)}[color_flag]
    parts = [
        f"P 0.3 0.3 0.4 10 1 {len(vertices)}",
        *(f"{x} {y} {z}" for x, y, z in vertices),
        "",
        *("0 0 1" for _ in vertices),
        "",
        f"{len(faces)}",
        f"{color_flag} " + "1 1 1 1\n" * colors,
        " ".join(str(3 * i + 3) for i in range(len(faces))),
        "",
        " ".join(map(str, faces.ravel())),
    ]
    return "\n".join(parts).encode()


@pytest.mark.parametrize("color_flag", [0, 1, 2])
def test_mni_obj(tmp_path, color_flag):
    path = tmp_path / "surface"
    path.write_bytes(mni_obj(color_flag))
    surface = read_surface(path)
    np.testing.assert_array_equal(surface.vertices, OCTAHEDRON.vertices)
    np.testing.assert_array_equal(surface.faces, OCTAHEDRON.faces)


def gifti(vertices, faces, **options) -> bytes:
    arrays = [
        nib.gifti.GiftiDataArray(
            np.asarray(vertices, np.float32),
            "NIFTI_INTENT_POINTSET",
            "NIFTI_TYPE_FLOAT32",
            **options,
        ),
        nib.gifti.GiftiDataArray(
            np.asarray(faces, np.int32), "NIFTI_INTENT_TRIANGLE", "NIFTI_TYPE_INT32"
        ),
    ]
    return nib.gifti.GiftiImage(darrays=arrays).to_bytes()


def freesurfer_header(vertices: int, faces: int) -> bytes:
    counts = np.array([vertices, faces], ">i4").tobytes()
    return b"\xff\xff\xfecreated by\n\n" + counts + bytes(100)


NOT_FINITE = np.where(np.arange(18).reshape(6, 3) == 7, np.nan, OCTAHEDRON.vertices)
OUT_OF_RANGE = np.where(OCTAHEDRON.faces == 5, 6, OCTAHEDRON.faces)
REFUSED = {
    "empty": (b"", "empty"),
    "text": (b"a letter to a friend\n", "not a surface in a known format"),
    "zeros": (bytes(1000), "not a surface in a known format"),
    "other xml": (b"<?xml version='1.0'?><svg></svg>", "root <svg>"),
    "damaged gzip": (gzip.compress(bytes(1000))[:-9], "cannot be read"),
    "damaged gifti": (gifti(OCTAHEDRON.vertices, OCTAHEDRON.faces)[:900], "not a readable GIFTI"),
    "gifti without surface": (nib.gifti.GiftiImage().to_bytes(), "POINTSET"),
    "gifti in another file": (
        gifti(OCTAHEDRON.vertices, OCTAHEDRON.faces)
        .replace(b'Encoding="GZipBase64Binary"', b'Encoding="ExternalFileBinary"')
        .replace(b'ExternalFileName=""', b'ExternalFileName="/etc/hostname"'),
        "not a readable GIFTI",
    ),
    "not finite": (gifti(NOT_FINITE, OCTAHEDRON.faces), "1 of 6 vertices are not finite.*vertex 2"),
    "out of range": (gifti(OCTAHEDRON.vertices, OUT_OF_RANGE), "names vertex 6, but there are 6"),
    "negative": (gifti(OCTAHEDRON.vertices, OCTAHEDRON.faces - 1), "names vertex -1"),
    "no triangles": (gifti(OCTAHEDRON.vertices, np.zeros((0, 3))), "no triangles|GIFTI"),
    "freesurfer counts": (freesurfer_header(2**31 - 1, 2**31 - 1), "do not fit in"),
    "freesurfer negative": (freesurfer_header(-1, 4), "do not fit in"),
    "freesurfer quads": (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff" + bytes(50), "do not fit in"),
    "freesurfer empty": (freesurfer_header(0, 0), "no vertices"),
    "mni counts": (b"P 0.3 0.3 0.4 10 1 2000000000\n1 2 3\n", "ends before its points"),
    "mni truncated": (mni_obj()[:-20], "ends before its indices|names vertex"),
    "mni word": (mni_obj().replace(b"-2", b"zwei"), "a word among its points"),
    "mni quads": (mni_obj().replace(b"3 6 9", b"4 6 9"), "no triangles"),
    "mni binary": (b"p" + bytes(80), "binary MNI"),
    "obj without vertices": (b"o nothing\nv\n", "."),
    "obj out of range": (b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 4\n", "names vertex 3"),
    "obj quads": (b"v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nf 1 2 3 4\n", "triangulate"),
    "off counts": (b"OFF\n99999999999 1 0\n", "counts more than"),
    "ply counts": (
        b"ply\nformat binary_little_endian 1.0\nelement vertex 99999999999\n"
        b"property float x\nend_header\n",
        "counts more than",
    ),
    "vtk": (
        b"# vtk DataFile Version 3.0\nx\nASCII\nDATASET POLYDATA\nPOINTS 0 float\n",
        "no vertices|no triangles",
    ),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_refused_in_words(tmp_path, fault, capfd):
    data, message = REFUSED[fault]
    path = tmp_path / "surface.gii"
    path.write_bytes(data)
    with pytest.raises(InputError, match=message) as caught:
        read_surface(path)
    assert "surface.gii" in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path / "absent.gii", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            read_surface(path)


def test_bombs_are_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(gifti_reader, "MAX_BYTES", 1 << 20)
    path = tmp_path / "bomb.gii"
    path.write_bytes(gifti(np.zeros((1 << 18, 3)), OCTAHEDRON.faces))
    assert path.stat().st_size < 1 << 16
    with pytest.raises(InputError, match="array of 3 MiB"):
        read_surface(path)
    path.write_bytes(gzip.compress(bytes(1 << 22)))
    with pytest.raises(InputError, match="over 1 MiB"):
        surface_files.load_bytes(path, 1 << 20)


WHOLE = [gifti(OCTAHEDRON.vertices, OCTAHEDRON.faces), mni_obj(), freesurfer_header(3, 1)]


@given(content=damaged_files(WHOLE))
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
def test_damage_is_read_or_refused(tmp_path, content):
    path = tmp_path / "surface"
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            surface = read_surface(path)
        except InputError:
            return
    assert np.isfinite(surface.vertices).all()
    assert 0 <= surface.faces.min() and surface.faces.max() < len(surface.vertices)


def test_warnings(tmp_path):
    path = tmp_path / "surface.gii"
    vertices = np.concatenate([OCTAHEDRON.vertices, OCTAHEDRON.vertices + 10, [[0, 0, 0]]])
    faces = np.concatenate([OCTAHEDRON.faces, OCTAHEDRON.faces + 6, [[0, 2, 1], [3, 3, 4]]])
    write_surface(path, Surface(vertices, faces))
    notes = surface_warnings(Surface(vertices, faces))
    assert [note.split(" (")[0] for note in notes] == [
        "1 of 13 vertices belong to no triangle",
        "2 components",
        "1 triangles name a vertex twice",
        # The edges 0-2 and 2-1 get a third triangle. The degenerate triangle adds 3-4 twice.
        "3 non-manifold edges",
    ]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read_surface(path)
    assert [str(w.message) for w in caught] == [f"{path}: {note}" for note in notes]


def test_gifti_transform_is_said_and_not_applied(tmp_path):
    shift = np.eye(4)
    shift[:3, 3] = 5, 6, 7
    path = tmp_path / "surface.gii"
    path.write_bytes(
        gifti(
            OCTAHEDRON.vertices, OCTAHEDRON.faces, coordsys=nib.gifti.GiftiCoordSystem(0, 3, shift)
        )
    )
    with pytest.warns(UserWarning, match="transform is not applied"):
        surface = read_surface(path)
    np.testing.assert_array_equal(surface.vertices, OCTAHEDRON.vertices)


def test_hemisphere_surface(tmp_path):
    pial, white, other = (tmp_path / f"{name}.gii" for name in ("pial", "white", "other"))
    write_surface(pial, OCTAHEDRON)
    write_surface(white, Surface(OCTAHEDRON.vertices / 2, OCTAHEDRON.faces))
    write_surface(other, Surface(OCTAHEDRON.vertices, OCTAHEDRON.faces[:, ::-1]))
    hemisphere = Hemisphere("left", pial=pial, white=white)
    mid = hemisphere_surface(hemisphere)
    np.testing.assert_array_equal(mid.vertices, 0.75 * OCTAHEDRON.vertices)
    for given_, factor in (("pial", 1), ("white", 0.5)):
        chosen = hemisphere_surface(Hemisphere("left", pial=pial, white=white, surface=given_))
        np.testing.assert_array_equal(chosen.vertices, factor * OCTAHEDRON.vertices)
    chosen = hemisphere_surface(Hemisphere("left", pial=pial, white=pial, mid=white))
    np.testing.assert_array_equal(chosen.vertices, 0.5 * OCTAHEDRON.vertices)
    with pytest.raises(InputError, match="not vertex-matched"):
        hemisphere_surface(Hemisphere("left", pial=pial, white=other))


def test_real_labels(shared_data):
    area = read_labels(
        shared_data / "bigbrain/labels/tpl-bigbrain_hemi-L_desc-vcatlas_hOc.label.gii", 163_842
    )
    assert area.dtype == np.int32 and set(area) == set(range(9))
    glasser = read_labels(shared_data / "bigbrain/labels/glasser_360_bigbrain_lh.txt", 163_842)
    # Two groups made these atlases independently. Most of hOc1 is Glasser's V1.
    assert (glasser[area == 1] == 181).mean() > 0.7
    path = shared_data / "labels/fsaverage/lh.rosenke18_vcatlas.v1_0.mgz"
    oracle = np.asarray(nib.load(path).dataobj).ravel()
    np.testing.assert_array_equal(read_labels(path, 163_842), oracle)
    path = shared_data / "labels/fsaverage5/lh.glasser-360_mics.annot"
    oracle = nib.freesurfer.read_annot(path)[0]
    np.testing.assert_array_equal(read_labels(path, 10_242), oracle)
    for number in (10_241, 10_243):
        with pytest.raises(InputError, match="10242 labels, but the surface has"):
            read_labels(path, number)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"1\n2\n3\n", "3 labels, but the surface has 4 vertices"),
        (b"1\n2\n3\n4.5\n", "not whole numbers"),
        (b"1\n2\n3\n1e300\n", "not whole numbers"),
        (b"1\n2\n3\n4-\n", "not one whole number a line"),
        (b"V1\nV2\n", "not labels in a known format"),
        (b"\0\0\0\1" + b"\x7f" * 400, "header counts more"),
        (b"\x7f\xff\xff\xff" + bytes(100), "not labels in a known format"),
        (nib.gifti.GiftiImage().to_bytes(), "0 maps"),
    ],
)
def test_refused_labels(tmp_path, data, message):
    path = tmp_path / "labels.txt"
    path.write_bytes(data)
    with pytest.raises(InputError, match=message):
        read_labels(path, 4)


def test_text_labels(tmp_path):
    path = tmp_path / "labels.annot"
    path.write_bytes(b"3\n-1\n0\n2.0\n")
    np.testing.assert_array_equal(read_labels(path, 4), [3, -1, 0, 2])
