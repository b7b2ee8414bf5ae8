"""Test that harmful files are refused with a message, and that nothing in them is executed.

Nor do they cause other files to be opened or large amounts of data to be unpacked. Inputs that
`benchmarks/robustness/fuzz/run.py` has discovered are kept here in a small form.
"""

import base64
import gzip
import io
import json
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import safetensors.numpy
import tifffile
from minimal_brain import make_ball, replace
from segment_run import write_run

from jaxcyto.brain import geodesics
from jaxcyto.brain.geodesics.oracle import oracle_key
from jaxcyto.brain.manifest import read_brain
from jaxcyto.brain.registration import registration
from jaxcyto.brain.sampling import pairs, patches
from jaxcyto.brain.section_table import SectionRow
from jaxcyto.brain.sections.label_image import open_label
from jaxcyto.brain.sections.section import open_section
from jaxcyto.brain.surfaces.surface import Surface, read_surface
from jaxcyto.brain.surfaces.vertex_labels import read_labels
from jaxcyto.errors import InputError
from jaxcyto.models import UNet
from jaxcyto.predict.maps import open_class_map
from jaxcyto.runs import load as runs
from jaxcyto.runs.metrics_file import read_metrics
from jaxcyto.training.state.transfer import pretraining_scales
from jaxcyto.utils.files import read_npz

ROOT = Path(__file__).resolve().parents[1]
TETRAHEDRON = Surface(
    np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float64),
    np.array([[0, 2, 1], [0, 1, 3], [1, 2, 3], [0, 3, 2]], np.int32),
)
MIB = 1 << 20


def refused(read, path: Path, most: int = 64 * MIB) -> str:
    """Return the message of the InputError, which names the file, and check the memory used."""
    tracemalloc.start()
    try:
        with pytest.raises(InputError) as caught:
            read(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert path.name in str(caught.value)
    assert peak < most
    return str(caught.value)


def gifti(surface: Surface = TETRAHEDRON) -> str:
    arrays = [
        nib.gifti.GiftiDataArray(data, intent, kind, "GIFTI_ENCODING_B64GZ")
        for data, intent, kind in (
            (surface.vertices.astype("f4"), "NIFTI_INTENT_POINTSET", "NIFTI_TYPE_FLOAT32"),
            (surface.faces, "NIFTI_INTENT_TRIANGLE", "NIFTI_TYPE_INT32"),
        )
    ]
    return nib.gifti.GiftiImage(darrays=arrays).to_bytes().decode()


def with_entities(declarations: str, use: str) -> str:
    text = re.sub("<!DOCTYPE[^>]*>", "", gifti())
    text = text.replace("<GIFTI", f"<!DOCTYPE GIFTI [{declarations}]>\n<GIFTI", 1)
    return text.replace("</Data>", f"{use}</Data>", 1)


# --- GIFTI: entities, other files, decompression bombs ---

LAUGHS = '<!ENTITY a0 "lol">' + "".join(
    f'<!ENTITY a{k} "{f"&a{k - 1};" * 10}">' for k in range(1, 10)
)
BOMB = base64.b64encode(zlib.compress(bytes(64 * MIB))).decode()
BAD_GIFTI = {
    "billion laughs": (with_entities(LAUGHS, "&a9;"), "entities of its own"),
    "external entity": (
        with_entities('<!ENTITY e SYSTEM "file:///etc/passwd">', "&e;"),
        "entities",
    ),
    "parameter entity": (with_entities('<!ENTITY % e SYSTEM "x.dtd"> %e;', ""), "entities"),
    "arrays elsewhere": (
        gifti().replace("GZipBase64Binary", "ExternalFileBinary"),
        "arrays lie in other files",
    ),
    "bomb": (re.sub("<Data>[^<]*", f"<Data>{BOMB}", gifti(), count=1), "48 bytes"),
    "bomb before an element": (
        re.sub("<Data>[^<]*", f"<Data>{BOMB}<Name></Name>", gifti(), count=1),
        "among the data",
    ),
    "large dimensions": (gifti().replace('Dim0="4"', 'Dim0="4000000000"'), "an array of"),
    "negative": (gifti().replace('Dim0="4"', 'Dim0="-4"'), "shape"),
    "many dimensions": (gifti().replace('Dimensionality="2"', 'Dimensionality="99"'), "99 dim"),
    "fewer arrays": (gifti().replace('NumberOfDataArrays="2"', 'NumberOfDataArrays="3"'), "Actual"),
    "many attributes": (
        gifti().replace("<GIFTI", "<GIFTI " + " ".join(f'a{k}=">"' for k in range(300_000)), 1),
        "a tag or comment of over 1 MiB",
    ),
    "complex": (gifti().replace("NIFTI_TYPE_FLOAT32", "NIFTI_TYPE_COMPLEX64"), "."),
}


@pytest.mark.parametrize("case", BAD_GIFTI)
def test_gifti(tmp_path, case):
    text, message = BAD_GIFTI[case]
    path = tmp_path / "surface.gii"
    path.write_text(text)
    assert re.search(message, refused(read_surface, path))


def test_gifti_with_the_usual_document_type(tmp_path):
    path = tmp_path / "surface.gii"
    text = re.sub("<!DOCTYPE[^>]*>", "", gifti())
    kind = '<!DOCTYPE GIFTI SYSTEM "http://www.nitrc.org/frs/download.php/115/gifti.dtd">'
    path.write_text(text.replace("<GIFTI", f"{kind}\n<GIFTI", 1))
    assert len(read_surface(path).faces) == 4


def test_gzip_bomb(tmp_path):
    path = tmp_path / "surface.gii.gz"
    path.write_bytes(gzip.compress(bytes(256 * MIB)))
    assert re.search("over 32 MiB", refused(read_surface, path, 128 * MIB))


# --- other surfaces and labels ---


def test_reading_allocates_no_more_than_the_file(tmp_path):
    path = tmp_path / "surface.gii"
    path.write_bytes(b"nothing known")
    assert re.search("not a surface", refused(read_surface, path, MIB))


BAD_MESHES = {
    # meshio would search for the next line forever
    "off without counts": (b"OFF\n# made by hand\n", "not a surface"),
    "ply without end": (b"ply\nformat ascii 1.0\ncomment\n", "does not end"),
    # formats that would open other files, or allocate memory by a count in the file
    "gmsh": (b"$MeshFormat\n4.1 0 8\n$EndMeshFormat\n", "not a surface in a known format"),
    "abaqus": (b"*HEADING\n*INCLUDE, INPUT=/etc/passwd\n", "not a surface in a known format"),
    "xdmf": (b"<Xdmf><DataItem>/etc/passwd</DataItem></Xdmf>", "no surface format"),
    "far away": (b"v 0 0 1e300\nv 1 0 0\nv 0 1 0\nf 1 2 3\n", "coordinates over 1e"),
    "long number": (b"P 0.3 0.3 0.4 10 1 " + b"0" * 70_000 + b"1\n" * 70_000, "a word"),
}


@pytest.mark.parametrize("case", BAD_MESHES)
def test_meshes(tmp_path, case):
    data, message = BAD_MESHES[case]
    path = tmp_path / "surface.mesh"
    path.write_bytes(data)
    assert re.search(message, refused(read_surface, path))


def annot(codes=(0, 1, 2, 7), entries: int = 3, length: int = 2) -> bytes:
    data = struct.pack(">i", len(codes))
    data += b"".join(struct.pack(">2i", k, code) for k, code in enumerate(codes))
    data += struct.pack(">4i", 1, -2, 3, 2) + b"x\0" + struct.pack(">i", entries)
    for k in range(3):
        data += struct.pack(">2i", k, length) + b"a\0" + struct.pack(">4i", k, 0, 0, 0)
    return data


def test_annot(tmp_path):
    path = tmp_path / "lh.annot"
    path.write_bytes(annot())
    # No area has the code 7. It must not become the area with the nearest code.
    np.testing.assert_array_equal(read_labels(path, 4), [-1, 1, 2, -1])
    for data in (annot(entries=1 << 29), annot(length=1 << 30), annot()[:-6], annot(length=-1)):
        path.write_bytes(data)
        assert re.search("damaged table", refused(lambda path: read_labels(path, 4), path))


def test_text_labels(tmp_path):
    path = tmp_path / "areas.txt"
    path.write_bytes(b"1 " * 50_000 + b"1" * 50_000)  # 5 GB as a NumPy array of text
    assert re.search("over 64 letters", refused(lambda path: read_labels(path, 50_001), path))
    path.write_bytes(b"1" * 200_000 + b"x")  # parsing this once took minutes
    assert re.search("not labels", refused(lambda path: read_labels(path, 4), path))


# --- arrays ---


def npy(header: str, values: bytes = b"") -> bytes:
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header.encode() + values


def header(kind: str = "<f4", shape: str = "(2, 2, 3)") -> str:
    return f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}\n"


class Touch:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


BAD_NPY = {
    "too many": npy(header(shape="(1099511627776, 2, 3)"), bytes(48)),
    "overflow": npy(header(shape="(4611686018427387904, 4, 3)"), bytes(48)),
    "negative": npy(header(shape="(-1, 2, 3)"), bytes(48)),
    "objects": npy(header("|O"), pickle.dumps([1])),
    "long text": npy(header("<U999999999", "()"), bytes(48)),
    "code": npy("{'descr': [('a', '<f4')] * 10**9, 'fortran_order': False, 'shape': ()}"),
    "nesting": npy("{'descr': " + "(" * 5000 + ")" * 5000 + "}"),
    "version": npy(header(), bytes(48)).replace(b"\1\0", b"\3\0", 1),
    "empty": b"",
}


@pytest.mark.parametrize("case", BAD_NPY)
def test_coordinate_map(tmp_path, case):
    path = tmp_path / "map.npy"
    path.write_bytes(BAD_NPY[case])
    row = SectionRow(0, "a", tmp_path / "a.tif", 32.0, coordinates=path)
    assert re.search(
        "not a coordinate map", refused(lambda path: registration(row, (40, 50)), path, MIB)
    )


def npz(path: Path, method=zipfile.ZIP_STORED, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return path


def plain(value) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.asarray(value))
    return stream.getvalue()


def with_size(path: Path, size: int) -> None:
    """Change the size of the first member that the directory of an archive states."""
    data = bytearray(path.read_bytes())
    start = data.index(b"PK\1\2")
    data[start + 20 : start + 28] = struct.pack("<2I", size, size)
    path.write_bytes(data)


READERS = {
    "patches.npz": patches.load_patches,
    "pairs.npz": pairs.load_pairs,
    "cache.npz": geodesics.load,
}


@pytest.mark.parametrize("name", READERS)
def test_npz(tmp_path, name):
    path, read = tmp_path / name, READERS[name]
    touched = tmp_path / "touched"
    objects = npy(header("|O", "(1,)"), pickle.dumps([Touch(touched)]))
    format_ = plain(
        {"patches": patches.PATCHES_FORMAT, "pairs": pairs.PAIRS_FORMAT}.get(path.stem, "x")
    )
    for members in ({"format": objects}, {"format": format_, "first": objects}):
        npz(path, **members)
        assert re.search("not ", refused(read, path, MIB))
    np.save(path.with_suffix(".npy"), np.array([Touch(touched)]), allow_pickle=True)
    os.replace(path.with_suffix(".npy"), path)
    assert re.search("not ", refused(read, path, MIB))
    assert not touched.exists()
    npz(path, zipfile.ZIP_DEFLATED, format=format_, first=plain(np.zeros(8 * MIB)))
    assert re.search("compressed", refused(read, path, MIB))
    npz(path, format=plain(np.zeros(1000)))
    with_size(path, 1 << 31)
    assert re.search("counts more bytes", refused(read, path, MIB))
    npz(path, format=format_, first=npy(header("<i4", "(268435456,)"), bytes(8)))
    assert re.search("counts|missing|not a", refused(read, path, MIB))
    npz(path, format=npy(header("<U1", "()"), struct.pack("<I", 1 << 31)))
    assert re.search("do not exist", refused(read, path, MIB))


def test_flipped_bits_in_an_array_are_seen(tmp_path):
    path = npz(tmp_path / "a.npz", format=plain("x"), values=plain(np.zeros(100)))
    data = bytearray(path.read_bytes())
    data[data.index(b"values.npy") + 300] ^= 1
    path.write_bytes(data)
    with pytest.raises(zipfile.BadZipFile, match="CRC"):
        read_npz(path, "x")


@pytest.fixture
def some_patches() -> patches.Patches:
    arrays = {name: np.zeros((4, *shape), dtype) for name, (dtype, shape) in patches.DTYPES.items()}
    return patches.Patches(**arrays, settings={"patch_px": 32, "um_per_px": 64.0})


@pytest.mark.parametrize(
    ("field", "value"),
    [("position_mm", np.nan), ("center_px", np.inf), ("bary", np.nan), ("section", -1),
     ("face", -5), ("hemisphere", -1), ("split", 200)],
)  # fmt: skip
def test_patches_are_sound(tmp_path, some_patches, field, value):
    getattr(some_patches, field)[2] = value
    some_patches.save(tmp_path / "patches.npz")
    assert re.search(field, refused(patches.load_patches, tmp_path / "patches.npz"))


@pytest.mark.parametrize(
    "settings", [[1], None, {"patch_px": "x"}, {"um_per_px": -1}, {"patch_px": [3]}]
)
def test_settings_of_patches_are_sound(tmp_path, some_patches, settings):
    some_patches.settings.clear()
    object.__setattr__(some_patches, "settings", settings)
    some_patches.save(tmp_path / "patches.npz")
    assert re.search(
        "run `jaxcyto sample` again", refused(patches.load_patches, tmp_path / "patches.npz")
    )


def some_pairs(root: Path, **changes) -> Path:
    values = {"first": np.zeros(3, np.int32), "second": np.ones(3, np.int32)}
    values |= {"distance_mm": np.ones(3, np.float32), "patches_file": "patches.npz"}
    values |= {"patches_sha256": "", "settings": {}} | changes
    pairs.Pairs(**values).save(root / "pairs.npz")
    return root / "pairs.npz"


def test_pairs_are_sound(tmp_path):
    for name, value in (
        ("first", np.full(3, -1, np.int32)),
        ("distance_mm", np.full(3, -1, np.float32)),
        ("settings", [1]),
    ):
        assert re.search(
            "not a readable file", refused(pairs.load_pairs, some_pairs(tmp_path, **{name: value}))
        )


# --- paths that leave the brain's folder ---


def test_links_and_paths_out_of_the_folder(tmp_path):
    root = make_ball(tmp_path / "ball")
    outside = tmp_path / "outside.tif"
    outside.write_bytes((root / "a.tif").read_bytes())
    (root / "link.tif").symlink_to(outside)
    (root / "up").symlink_to(tmp_path)
    (root / "inner.tif").symlink_to(root / "a.tif")  # allowed, because its target is inside
    table = (root / "sections.csv").read_text()
    for name in ("../outside.tif", str(outside), "link.tif", "up/outside.tif", "up/ball/../x.tif"):
        (root / "sections.csv").write_text(table.replace("a.tif", name))
        with pytest.raises(InputError, match=r"sections.csv: line 2: image: .*leaves the brain"):
            read_brain(root)
    (root / "sections.csv").write_text(table.replace("a.tif", "inner.tif"))
    assert read_brain(root).sections[0].image == root / "a.tif"
    replace(root / "brain.toml", '"areas.txt"', '"/etc/passwd"')
    with pytest.raises(InputError, match=r"brain.toml: hemispheres\[0\].labels: .*leaves"):
        read_brain(root)
    os.replace(root / "brain.toml", tmp_path / "brain.toml")
    (root / "brain.toml").symlink_to(tmp_path / "brain.toml")
    with pytest.raises(InputError, match=r"brain.toml: leaves the brain's folder"):
        read_brain(root)


def test_pairs_name_no_file_outside(tmp_path, some_patches):
    some_patches.save(tmp_path / "patches.npz")
    (tmp_path / "brain").mkdir()
    (tmp_path / "brain" / "patches.npz").symlink_to(tmp_path / "patches.npz")
    for name in ("patches.npz", "../patches.npz", str(tmp_path / "patches.npz"), "..", ""):
        assert re.search(
            "leaves|expec",
            refused(pairs.load_pairs, some_pairs(tmp_path / "brain", patches_file=name)),
        )


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_is_no_file_is_not_waited_for(tmp_path, kind):
    path = tmp_path / "file.npz"
    os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    for read in (*READERS.values(), read_surface, open_section, open_label, open_class_map):
        assert re.search("no.* file|not a file|cannot be read|not a", refused(read, path, MIB))


# --- images ---


def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (40, 50), np.uint8)


def set_tags(path: Path, values: dict[int, int]) -> None:
    """Overwrite the values of tags, even if the file becomes invalid."""
    with tifffile.TiffFile(path) as tiff:
        tags = tiff.pages[0].tags
        offsets = {tag: (tags[tag].valueoffset, tags[tag].dtype) for tag in values}
    with open(path, "r+b") as file:
        for tag, (offset, kind) in offsets.items():
            file.seek(offset)
            file.write(struct.pack({3: "<H", 4: "<I", 5: "<II"}[kind], *np.atleast_1d(values[tag])))


def read_some(path: Path) -> None:
    section = open_section(path)
    section.read(0, 0, 40, 50)
    assert section.pixel_um is None or 0.01 <= section.pixel_um <= 10_000


TILES = {"tile": (16, 16)}
BAD_TIFF = {
    "strip that cannot hold it": (
        {"compression": "zlib", "rowsperstrip": 40},
        {256: 30_000, 257: 30_000, 278: 30_000},
        "cannot hold",
    ),
    "endless sides": (TILES, {256: 60_000, 257: 60_000, 322: 60_000}, "beyond|truncated|px"),
    "decoder without a limit": (TILES, {259: 50_001}, "compressed by"),
    "no samples": (TILES, {277: 0}, "samples|readable"),
    "values beyond the bits": (TILES | {"compression": "jpeg"}, {258: 1}, ""),
    "short palette": (
        {"photometric": "palette", "colormap": np.zeros((3, 256), np.uint16)},
        {258: 16},
        "palette|truncated",
    ),
    "palette of bits": (
        {"photometric": "palette", "colormap": np.zeros((3, 256), np.uint16)},
        {258: 1},
        "",
    ),
    "pixels of nothing": (TILES | {"resolution": (1, 1, 3)}, {282: (2**32 - 1, 1)}, ""),
    "pixels of a kilometer": (TILES | {"resolution": (1, 1, 3)}, {282: (1, 2**32 - 1)}, ""),
}


@pytest.mark.parametrize("case", BAD_TIFF)
def test_tiff(tmp_path, case):
    options, values, message = BAD_TIFF[case]
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, image(), **options)
    set_tags(path, values)
    if message:
        assert re.search(message, refused(read_some, path, 2 * MIB))
    else:
        read_some(path)


def test_sides_over_a_million(tmp_path):
    path = tmp_path / "a.tif"
    # A width of more than 16 bits makes tifffile write a 32-bit tag, which `set_tags` overwrites.
    tifffile.imwrite(path, np.zeros((1, 70_000), np.uint8))
    set_tags(path, {256: 1 << 21})
    assert re.search("a plane of up to 1048576 px", refused(read_some, path, 2 * MIB))


def test_jpeg_2000_that_announces_more_than_its_tile(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, image(), tile=(16, 16), compression="jpeg2000")
    data = path.read_bytes()
    start = data.index(b"\xff\x4f\xff\x51")
    path.write_bytes(data[: start + 8] + struct.pack(">2I", 1 << 16, 1 << 16) + data[start + 16 :])
    assert re.search("announces 4294967296 px", refused(read_some, path, 2 * MIB))


def test_other_files_of_an_ome_tiff_are_not_opened(tmp_path):
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, image(), metadata={"axes": "YX"})
    with tifffile.TiffFile(path) as tiff:
        ome = tiff.ome_metadata
    assert ome is not None
    os.mkfifo(tmp_path / "b.ome.tif")  # opening it would block forever
    uuid = '<UUID FileName="b.ome.tif">urn:uuid:00000000-0000-0000-0000-000000000000</UUID>'
    data = f'<TiffData IFD="0" PlaneCount="1">{uuid}</TiffData>'
    ome = re.sub(r"<TiffData[^>]*/>|<TiffData.*?</TiffData>", data, ome, flags=re.S)
    assert uuid in ome
    tifffile.imwrite(path, image(), description=ome.encode(), metadata=None)
    np.testing.assert_array_equal(open_section(path).read(0, 0, 40, 50), image())


def png(width: int, height: int, length: int | None = None) -> bytes:
    def chunk(kind: bytes, body: bytes, length: int | None = None) -> bytes:
        size = struct.pack(">I", len(body) if length is None else length)
        return size + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    start = chunk(b"IHDR", struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes(51 * 40)), length)
    return b"\x89PNG\r\n\x1a\n" + start + pixels + chunk(b"IEND", b"")


def test_png(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png(50, 40))
    read_some(path)
    path.write_bytes(png(50, 40, length=1 << 31))
    for read in (read_some, open_label):
        assert re.search("chunk ends beyond the end of the file", refused(read, path, MIB))
    path.write_bytes(png(1 << 20, 1 << 20))
    assert re.search("pixels", refused(read_some, path, MIB))


def test_class_map_of_another_kind(tmp_path):
    path = tmp_path / "map.ome.tif"
    for array in (image().astype(np.uint16), np.stack([image()] * 3, -1)):
        tifffile.imwrite(path, array, ome=True, metadata={"PhysicalSizeX": 1.0})
        assert re.search("not a class map", refused(open_class_map, path))


# --- distances ---


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> dict[str, np.ndarray]:
    path = tmp_path_factory.mktemp("cache") / "oracle.npz"
    geodesics.build(TETRAHEDRON, "oracle", anchors=8).save(path)
    with np.load(path) as file:
        return dict(file)


BAD_CACHE = {
    "far away": ("vertices", lambda a: a * 1e300, "over 1e"),
    "triangles": ("faces", lambda a: a + 1, "names vertex 4"),
    "columns": ("indices", lambda a: a + 1000, "."),
    "rows": ("indptr", lambda a: a[::-1].copy(), "."),
    "no distance": ("data", lambda a: a * np.nan, "data holds values that are not finite"),
    "below zero": ("far", lambda a: a - 1, "far holds values below 0"),
    "measured": ("measured", lambda a: a * np.nan, "."),
    "endless": ("settings", lambda a: {"anchors": 10**12}, "anchors"),
    "one too few": ("settings", lambda a: {"anchors": "8"}, "."),
    "no settings": ("settings", lambda a: [], "."),
}


@pytest.mark.parametrize("case", BAD_CACHE)
def test_geodesic_cache(tmp_path, cache, case):
    name, change, message = BAD_CACHE[case]
    arrays = dict(cache)
    settings = json.loads(str(arrays["settings"]))
    if name == "settings":
        changed = change(settings)
        settings = settings | changed if isinstance(changed, dict) else changed
        arrays[name] = np.array(json.dumps(settings, sort_keys=True))
    else:
        arrays[name] = change(arrays[name])
    with np.errstate(all="ignore"):
        surface = Surface(arrays["vertices"], arrays["faces"])
    arrays["key"] = np.array(oracle_key(surface, settings))  # an attacker can compute the hash
    path = tmp_path / "oracle.npz"
    np.savez(path, **arrays)
    assert re.search(message, refused(geodesics.load, path))


# --- runs ---


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    model = UNet(num_classes=3, stem_kernel=3, stem_stride=1, widths=(4, 4, 4))
    return write_run(tmp_path_factory.mktemp("runs") / "run", model)


@pytest.mark.parametrize(
    ("leaves", "message"),
    [
        ({"x": np.zeros(3, np.float32)}, "a leaf named 'x'"),
        ({"../../x/y": np.zeros(3, np.float32)}, "a leaf named"),
        ({"params/a/b": np.full(3, np.nan, np.float32)}, "not finite"),
        ({"params/a/b": np.zeros(3, np.int64)}, "int64"),
    ],
)
def test_weights(tmp_path, leaves, message):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / runs.WEIGHTS).write_bytes(safetensors.numpy.save(leaves))
    assert re.search(
        message, refused(lambda path: runs.load_weights(path.parent), tmp_path / runs.WEIGHTS)
    )


def test_weights_with_a_lying_header(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    path = tmp_path / runs.WEIGHTS
    entry = {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}
    text = json.dumps({"params/a/b": entry}).encode()
    for data in (
        struct.pack("<Q", 1 << 62) + text,
        struct.pack("<Q", len(text)) + text + bytes(16),
        struct.pack("<Q", 9000) + b"[" * 9000,
    ):
        path.write_bytes(data)
        assert re.search("damaged", refused(lambda path: runs.load_weights(path.parent), path, MIB))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"um_per_px": 16.0', '"um_per_px": NaN'),
        ('"input_std": 50.0', '"input_std": -1'),
        ('"input_mean": 128.0', '"input_mean": NaN'),
        ('"#aa0000"', '"red"'),
        ('"area"', '"hill"'),
        ('"float32"', '"int8"'),
        ('"scales"', '"training_sections": [{}], "scales"'),
        ('"scales"', '"training_fingerprints": {"a": 1}, "scales"'),
        ('"image_px": ', '"image_px": 1e400, "x": '),
        ("{", "[" * 100_000),
    ],
)
def test_run_config(tmp_path, run, old, new):
    shutil.copytree(run, tmp_path / "run")
    replace(tmp_path / "run" / "config.json", old, new)
    assert re.search(
        ".",
        refused(lambda path: runs.load_segment_run(path.parent), tmp_path / "run" / "config.json"),
    )


def test_scales_of_a_run(tmp_path):
    path = tmp_path / "config.json"
    scales = {"input_mean": 1.0, "input_std": -1.0}
    config = {"pairs_sha256": [], "data": {"um_per_px": 16.0}, "scales": scales}
    path.write_text(json.dumps(config))
    assert re.search(
        "damaged", refused(lambda path: pretraining_scales(path.parent, 16.0, {}), path)
    )


def test_metrics(tmp_path):
    path = tmp_path / "metrics.jsonl"
    good = b'{"step": 1, "loss": 0.5}\n'
    for bad in (b"\xff\xfe", b"[" * 100_000, b"[1]", b"9" * 5000, b'{"step": "x"}', b'{"loss": 1}'):
        path.write_bytes(good + bad + b"\n" + good[:9])
        assert read_metrics(path) == [{"step": 1, "loss": 0.5}]


# --- the whole package ---


def test_nothing_is_unpickled_or_evaluated():
    """Only configs are executed, which are Python files that ml_collections runs in train.py."""
    words = r"\b(eval|exec)\(|\bimport (pickle|marshal|shelve|joblib)|allow_pickle=True|yaml"
    for path in (*ROOT.glob("jaxcyto/**/*.py"), ROOT / "train.py"):
        assert not re.search(words, path.read_text()), path


def test_the_command():
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "robustness" / "fuzz" / "run.py"),
        "--inputs",
        "30",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["findings"] == 0 and len(result["readers"]) == 28
    for name, found in result["readers"].items():
        assert found["tried"] == found["accepted"] + found["refused"] == 30, name


def test_annotations_of_all_kinds():
    """Read more changed GeoJSON, whose polygons, lines and points are painted, too."""
    script = str(ROOT / "benchmarks" / "robustness" / "fuzz" / "run.py")
    command = [sys.executable, script, "--reader", "geojson", "--inputs", "400", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    found = json.loads(done.stdout.splitlines()[-1])["readers"]["geojson"]
    assert found["tried"] == 400 and found["accepted"] > 20
