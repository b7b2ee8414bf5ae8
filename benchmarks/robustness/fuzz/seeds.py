"""Write small valid files of every kind that a brain folder may hold, as seeds of mutations."""

import io
import itertools
import json
from pathlib import Path
from typing import Any

import meshio
import numpy as np
import tifffile
from nibabel.freesurfer.io import write_annot, write_geometry
from nibabel.freesurfer.mghformat import MGHImage
from nibabel.gifti.gifti import GiftiDataArray, GiftiImage, GiftiLabel, GiftiLabelTable
from PIL import Image
from scipy.spatial import ConvexHull

from jaxcyto.brain import geodesics
from jaxcyto.brain.geodesics.mesh import mesh_sha256
from jaxcyto.brain.geodesics.oracle import oracle_key
from jaxcyto.brain.manifest import AreaClass, read_brain, write_table
from jaxcyto.brain.sampling.pairs import Pairs
from jaxcyto.brain.sampling.patches import Patches, sections_sha256
from jaxcyto.brain.sections.writer import write_section
from jaxcyto.brain.surfaces.surface import Surface, write_surface
from jaxcyto.predict.maps import write_class_map
from jaxcyto.predict.planes import Plane
from jaxcyto.utils.files import file_sha256

SHAPE = 40, 50  # of the images in px. Labels and atlases have twice as many per side.
CLASSES = tuple(
    AreaClass(name, color, kind)
    for name, color, kind in (
        ("inner", "#aa0000", "area"),
        ("outer", "#00aa00", "area"),
        ("background", "#ffffff", "background"),
    )
)
TOML = """\
format = 1
name = "ball"
licence = "CC0-1.0"
background = 255
[[hemispheres]]
name = "left"
pial = "pial.gii"
white = "white.gii"
labels = "areas.txt"
""" + "".join(
    f'[[classes]]\nname = "{c.name}"\ncolor = "{c.color}"\nkind = "{c.kind}"\n' for c in CLASSES
)
MESHES = ("ply", "off", "obj", "vtk", "stl")


def write_seeds(root: Path) -> Surface:
    """Write the brain folder `root` with all seeds, and `outside.tif` beside it.

    Returns:
        The brain's surface, a ball.
    """
    root.mkdir()
    rng = np.random.default_rng(0)
    points = rng.normal(size=(60, 3))
    points = (3 * points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)
    ball = Surface(points.astype(float), ConvexHull(points).simplices.astype(np.int32))
    _surfaces(root, ball)
    _images(root, rng)
    affine = "0.032 0 0 -0.8  0 0 0 0  0 -0.032 0 0.6"
    rows = [
        {"section": "a", "image": "a.tif", "pixel_um": "32", "affine": affine, "split": "train"},
        {"section": "b", "image": "b.tif", "pixel_um": "32", "coordinates": "map.npy"},
    ]
    rows[0] |= {"label": "label.tif", "atlas": "atlas.tif"}
    write_table(root / "sections.csv", rows)
    (root / "brain.toml").write_text(TOML)
    _results(root, ball, rng)
    (root / "link").symlink_to(root.parent / "outside.tif")
    (root.parent / "outside.tif").write_bytes((root / "a.tif").read_bytes())
    return ball


def rehash(data: bytes) -> bytes:
    """Give a changed geodesic cache a hash that matches its content."""
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    surface = Surface(arrays["vertices"], arrays["faces"])
    if "key" in arrays:
        arrays["key"] = np.array(oracle_key(surface, json.loads(str(arrays["settings"]))))
    else:
        arrays["mesh_sha256"] = np.array(mesh_sha256(surface))
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def _surfaces(root: Path, ball: Surface) -> None:
    count = len(ball.vertices)
    for name in ("pial.gii", "white.gii", "pial.gii.gz"):
        write_surface(root / name, ball)
    plain = GiftiImage()
    for intent, kind, data in (
        ("NIFTI_INTENT_POINTSET", "NIFTI_TYPE_FLOAT32", ball.vertices.astype(np.float32)),
        ("NIFTI_INTENT_TRIANGLE", "NIFTI_TYPE_INT32", ball.faces),
    ):
        plain.add_gifti_data_array(GiftiDataArray(data, intent, kind, "GIFTI_ENCODING_ASCII"))
    (root / "plain.gii").write_bytes(plain.to_bytes())
    areas = np.arange(count, dtype=np.int32) % 3
    array = GiftiDataArray(areas, "NIFTI_INTENT_LABEL", "NIFTI_TYPE_INT32")
    table = GiftiLabelTable()
    for key, entry in enumerate(CLASSES):
        label: Any = GiftiLabel(key, 1.0, 0.5, 0.0, 1.0)
        label.label = entry.name
        table.labels.append(label)
    image = GiftiImage(darrays=[array], labeltable=table)
    (root / "labels.gii").write_bytes(image.to_bytes())
    (root / "areas.txt").write_text("\n".join(map(str, areas)) + "\n")
    colors = np.array([[k, 9 * k, 0, 0, k + (9 * k << 8)] for k in range(3)])
    names = [entry.name for entry in CLASSES]
    write_annot(str(root / "lh.annot"), areas, colors, names, fill_ctab=False)
    volume: Any = areas.reshape(-1, 1, 1)
    MGHImage(volume, np.eye(4)).to_filename(root / "lh.mgh")
    write_geometry(str(root / "lh.pial"), ball.vertices, ball.faces, "made")
    quads = b"\xff\xff\xff" + (4).to_bytes(3) + (1).to_bytes(3)
    corners = np.array([[0, 0, 0], [100, 0, 0], [100, 100, 0], [0, 100, 0]], ">i2")
    quads += corners.tobytes() + b"".join(k.to_bytes(3) for k in range(4))
    (root / "quad").write_bytes(quads)
    text = [f"P 0.3 0.3 0.4 10 1 {count}", *(" ".join(map(str, v)) for v in ball.vertices)]
    text += ["0 0 1"] * count + [str(len(ball.faces)), "0 1 1 1 1"]
    ends = 3 * np.arange(1, len(ball.faces) + 1)
    text += [" ".join(map(str, ends)), " ".join(map(str, ball.faces.ravel()))]
    (root / "mni.obj").write_text("\n".join(text) + "\n")
    for kind in MESHES:
        mesh = meshio.Mesh(ball.vertices.round(2), [("triangle", ball.faces)])
        mesh.write(root / f"mesh.{kind}", kind)
    # meshio writes grids, whose cells are laid out like polygons.
    for version, binary in itertools.product(("vtk42", "vtk51"), (False, True)):
        path = root / f"polygons_{version}_{binary}.vtk"
        mesh.write(path, version, binary=binary)
        grid = path.read_bytes().replace(b"UNSTRUCTURED_GRID", b"POLYDATA")
        path.write_bytes(grid[: grid.index(b"CELL_TYPES")].replace(b"CELLS", b"POLYGONS"))


def _images(root: Path, rng: np.random.Generator) -> None:
    gray = rng.integers(0, 255, SHAPE, np.uint8)
    gray[10:20] = 200
    color = np.stack([gray, 255 - gray, gray], -1)
    wide = 2 * SHAPE[0], 2 * SHAPE[1]
    tile: dict[str, Any] = {"tile": (16, 16)}
    for name in ("a.tif", "b.tif"):
        tifffile.imwrite(root / name, gray, **tile)
    seeds = {
        "raw": (gray, {}),
        "raw16": (gray.astype(np.uint16) << 4, {"byteorder": ">", "rowsperstrip": 7}),
        "deflate": (gray, tile | {"compression": "adobe_deflate", "predictor": True}),
        "lzw": (gray, tile | {"compression": "lzw", "resolution": (5000, 5000, 3)}),
        "zstd": (gray, {"compression": "zstd", "rowsperstrip": 11, "bigtiff": True}),
        "lzma": (gray, tile | {"compression": "lzma"}),
        "packbits": (gray > 99, {"compression": "packbits", "photometric": "miniswhite"}),
        "jpeg": (gray, tile | {"compression": "jpeg"}),
        "ycbcr": (color, tile | {"compression": "jpeg", "photometric": "rgb"}),
        "jpeg2000": (gray, tile | {"compression": "jpeg2000"}),
        "planes": (color.transpose(2, 0, 1), tile | {"photometric": "rgb"}),
        "palette": (gray, {"photometric": "palette", "colormap": np.zeros((3, 256), np.uint16)}),
        "big_tiles": (gray, tile | {"bigtiff": True, "byteorder": ">"}),
        "ome": (gray, tile | {"ome": True, "metadata": {"axes": "YX", "PhysicalSizeX": 2.0}}),
    }
    for name, (image, options) in seeds.items():
        tifffile.imwrite(root / f"tiff_{name}", image, **options)
    write_section(root / "tiff_pyramid", gray, 2.0, tile=16, compression="zstd", levels=3)
    write_section(root / "tiff_sparse", gray, 2.0, tile=16, levels=2)
    label = (np.arange(wide[0] * wide[1]) % 3).astype(np.uint8).reshape(wide)
    tifffile.imwrite(root / "label.tif", label, compression="zlib")
    atlas = np.zeros((2, *wide), np.uint8)
    tifffile.imwrite(root / "atlas.tif", atlas, photometric="minisblack", compression="zstd")
    options: dict[str, Any] = {"photometric": "minisblack", "planarconfig": "contig"}
    tifffile.imwrite(root / "atlas_s.tif", atlas.transpose(1, 2, 0), **options)
    Image.fromarray(label).save(root / "png_l.png")
    Image.fromarray(color).save(root / "png_rgb.png")
    Image.fromarray(gray).convert("P").save(root / "png_p.png")
    Image.fromarray(gray).convert("1").save(root / "png_1.png")
    Image.fromarray(gray.astype(np.uint16) << 8).save(root / "png_16.png")
    Image.fromarray(color).save(root / "whole.jpg")
    plane = Plane(root, wide)
    plane.write(0, label)
    write_class_map(root / "map.ome.tif", plane, 16.0, CLASSES, "0" * 64)
    i, j = np.mgrid[:4, :5]
    nodes = np.stack([0.032 * 49 / 4 * j, 0.032 * 39 / 3 * i, 0.01 * i * j], -1)
    np.save(root / "map.npy", nodes.astype(np.float32))


def _results(root: Path, ball: Surface, rng: np.random.Generator) -> None:
    brain = read_brain(root)
    count = 20
    face = rng.integers(0, len(ball.faces), count).astype(np.int32)
    bary = np.full((count, 3), 1 / 3, np.float32)
    patches = Patches(
        section=np.zeros(count, np.int32),
        center_px=rng.uniform(0, 40, (count, 2)),
        position_mm=ball.vertices[ball.faces[face]].mean(1).astype(np.float32),
        hemisphere=np.zeros(count, np.int8),
        face=face,
        bary=bary,
        split=np.zeros(count, np.uint8),
        settings={"patch_px": 32, "um_per_px": 64.0, "sections_sha256": sections_sha256(brain)},
    )
    patches.save(root / "patches.npz")
    matrix = rng.uniform(0, 9, (count, count)).astype(np.float32)
    np.save(root / "patches_distances.npy", matrix)
    first = np.arange(count, dtype=np.int32)
    second = np.roll(first, 1)
    digest = file_sha256(root / "patches.npz")
    pairs = Pairs(first, second, matrix[first, second], "patches.npz", digest, {"seed": 0})
    pairs.save(root / "pairs.npz")
    geodesics.build(ball, "oracle", anchors=20).save(root / "oracle.npz")
    geodesics.build(ball, "exact").save(root / "exact.npz")
    geodesics.build(ball, "heat").save(root / "heat.npz")
    np.savez(root / "part.npz", key="key", row=np.ones((3, 4), np.float32))
    ring = [[0, 0], [9, 0], [9, 9], [0, 9], [0, 0]]
    hole = [[2, 2], [3, 2], [3, 3], [2, 2]]
    features = [
        {
            "type": "Feature",
            "geometry": {"type": kind, "coordinates": coordinates},
            "properties": {"classification": name},
        }
        for kind, coordinates, name in (
            ("Polygon", [ring, hole], {"name": "inner"}),
            ("MultiPolygon", [[ring], [hole]], {"names": ["outer"]}),
            ("Point", [1, 1], "inner"),
            ("MultiPoint", [[4, 4], [5.5, 20]], "outer"),
            ("LineString", [[0, 0], [8, 3], [8, 3]], {"name": "inner"}),
            ("MultiLineString", [[[0, 9], [20, 9]], [[3, 3]]], "outer"),
            ("Polygon", [ring], "outer"),
        )
    ]
    collection = {"type": "FeatureCollection", "features": features}
    (root / "t.json").write_text(json.dumps(collection))
