"""Define the fuzz targets of a brain folder's readers.

A target has seeds, their mutations and a function `read`. The function takes the path of a changed
file, whose companions are unchanged. It raises what the reader raises, and AssertionError where the
reader returns an invalid result.
"""

import dataclasses
import gzip
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.robustness.fuzz.containers import in_gifti, in_npy, in_npz, in_png, in_tiff
from benchmarks.robustness.fuzz.mutations import Mutation, in_bytes, in_json, in_text
from benchmarks.robustness.fuzz.seeds import CLASSES, MESHES, SHAPE, rehash, write_seeds
from jaxcyto.brain import check, geodesics
from jaxcyto.brain.annotation.geojson import read_annotations
from jaxcyto.brain.annotation.polygons import rasterize
from jaxcyto.brain.geodesics.landmarks import Parts
from jaxcyto.brain.manifest import read_brain
from jaxcyto.brain.registration import registration
from jaxcyto.brain.sampling import pairs, patches
from jaxcyto.brain.section_table import SectionRow
from jaxcyto.brain.sections.atlas_image import section_atlas
from jaxcyto.brain.sections.label_image import UNLABELED, label_counts, section_label
from jaxcyto.brain.sections.section import open_section
from jaxcyto.brain.surfaces.surface import read_surface
from jaxcyto.brain.surfaces.vertex_labels import read_label_names, read_labels
from jaxcyto.errors import InputError
from jaxcyto.predict.maps import open_class_map

KINDS: dict[str, Mutation] = {
    "bytes": in_bytes, "text": in_text, "json": in_json, "npy": in_npy, "npz": in_npz,
    "gifti": in_gifti, "tiff": in_tiff, "png": in_png,
}  # fmt: skip
STROKE = 3.0  # px, width of lines and points
Seeds = Sequence[tuple[bytes, tuple[Mutation, ...]]]


@dataclasses.dataclass(frozen=True)
class Target:
    """A reader with its inputs.

    Attributes:
        file: path of the changed file within the folder of its companions.
        seeds: valid files, each with its mutations.
        read: reads the file and checks the result.
        real: seeds from real data. They are slow, so they are drawn one time in fifty.
        repair: makes a changed file match its hash, so that the code behind the hash is reached.
    """

    file: str
    seeds: Seeds
    read: Callable[[Path], Any]
    real: Seeds = ()
    repair: Callable[[bytes], bytes] | None = None


def _readers(root: Path, vertices: int) -> dict[str, Callable[[Path], Any]]:
    """Return the readers that need the brain in `root`, whose surface has `vertices` vertices."""
    brain, own = read_brain(root), pairs.load_pairs(root / "pairs.npz")
    row = SectionRow(0, "a", root / "a.tif", 32.0, affine=np.eye(3, 4))

    def label(path: Path) -> None:
        image = section_label(dataclasses.replace(row, label=path), SHAPE)
        assert label_counts(image).sum() == np.prod(image.shape)

    def atlas(path: Path) -> None:
        image = section_atlas(dataclasses.replace(row, atlas=path), SHAPE, CLASSES)
        _pixels(image.read(-2, -2, 90, 110), (90, 110, 2))

    def coordinate_map(path: Path) -> None:
        where = registration(dataclasses.replace(row, affine=None, coordinates=path), SHAPE)
        points = where.to_mm([0, 49, 20], [0, 39, 10])
        assert np.isfinite(points).all() and np.isfinite(where.to_px(points)).all()

    def patches_file(path: Path) -> None:
        check._kind(path)
        found = patches.load_patches(path)
        every = [getattr(found, field) for field in patches.DTYPES]
        assert all(np.isfinite(array).all() and len(array) == len(found) for array in every)
        assert isinstance(found.settings, dict)
        patches.load_patches(path, brain)

    def pairs_file(path: Path) -> None:
        found = pairs.load_pairs(path)
        ends = np.concatenate([found.first, found.second])
        assert ends.min(initial=0) >= 0 and isinstance(found.settings, dict)
        assert np.isfinite(found.distance_mm).all() and found.distance_mm.min(initial=0) >= 0
        pairs.open_distances(root, found, len(own))

    def part(path: Path) -> None:
        if Parts(path.parent, "key").read(path.stem) is None:
            raise InputError(f"{path}: solved again")  # the caller of `Parts` solves it again

    def labels(path: Path) -> None:
        _labels(path, vertices)

    def distances(path: Path) -> None:
        pairs.open_distances(root, own, len(own))

    readers = (label, atlas, coordinate_map, patches_file, pairs_file, part, labels, distances)
    return {read.__name__: read for read in readers}


def brain_targets(root: Path, data: Path | None) -> dict[str, Target]:
    """Make the brain folder `root`, and return the targets of all its readers.

    Args:
        root: the folder, which must not exist.
        data: a folder with real files, or None.
    """
    read = _readers(root, len(write_seeds(root).vertices))

    def target(file, names: str, mutations: str, reader, slow: str = "", **options) -> Target:
        kinds = tuple(KINDS[word] for word in mutations.split())
        files = [path for name in names.split() for path in sorted(root.glob(name))]
        found = [data / name for name in slow.split()] if data else []
        return Target(
            file,
            [(path.read_bytes(), kinds) for path in files],
            reader,
            [(_plain(path.read_bytes()), kinds) for path in found if path.is_file()],
            **options,
        )

    names = " ".join(f"mesh.{kind}" for kind in MESHES)
    mesh = "meshes/enigma/fsa5_lh"
    real = "small_example_tiled bigtif_example_tiled big_endian_small_example".split()
    tiffs = " ".join(
        ["tiff/boxes.tiff tiff/small.svs", *(f"tiff/pytiff_{name}.tif" for name in real)]
    )
    text, tiff, npz = "bytes text text", "bytes tiff tiff", "bytes npz npz"
    return {
        "gifti": target(
            "t.gii", "pial.gii plain.gii", "bytes gifti gifti", _surface, f"{mesh}.gii"
        ),
        "gifti labels": target("t.gii", "labels.gii", "bytes text gifti", read["labels"]),
        "freesurfer": target("t.pial", "lh.pial quad", "bytes", _surface, mesh),
        "freesurfer labels": target("t.annot", "lh.annot lh.mgh", "bytes", read["labels"]),
        "text labels": target("t.txt", "areas.txt", text, read["labels"]),
        "mni obj": target("t.obj", "mni.obj", text, _surface, f"{mesh}.obj"),
        "other meshes": target("t.mesh", names, "bytes text", _surface),
        "vtk": target("t.vtk", "polygons_*.vtk", "bytes text", _surface, f"{mesh}.vtk"),
        "gzipped": target("t.gii.gz", "pial.gii.gz", "bytes", _surface),
        "tiff": target("t.tif", "tiff_*", tiff, _section, tiffs),
        "png": target("t.png", "png_*.png whole.jpg", "bytes png png", _section),
        "label image": target("t.tif", "label.tif png_l.png", tiff + " png", read["label"]),
        "atlas image": target("t.tif", "atlas.tif atlas_s.tif", tiff, read["atlas"]),
        "class map": target("t.ome.tif", "map.ome.tif", tiff + " text", _class_map),
        "brain.toml": target("brain.toml", "brain.toml", text, _brain),
        "sections.csv": target("sections.csv", "sections.csv", text, _brain),
        "coordinate map": target("t.npy", "map.npy", "npy", read["coordinate_map"]),
        "patches": target("t.npz", "patches.npz", npz, read["patches_file"]),
        "pairs": target("t.npz", "pairs.npz", npz, read["pairs_file"]),
        "distances": target(
            "patches_distances.npy", "patches_distances.npy", "npy", read["distances"]
        ),
        "geodesic cache": target(
            "t.npz", "oracle.npz exact.npz heat.npz", npz, _distances, repair=rehash
        ),
        "oracle parts": target("row_00000.npz", "part.npz", npz, read["part"]),
        "geojson": target("t.geojson", "t.json", "bytes text json json", _annotations),
    }


def _surface(path: Path) -> None:
    surface = read_surface(path)
    vertices, faces = surface.vertices, surface.faces
    assert vertices.dtype == np.float64 and vertices.ndim == 2 and vertices.shape[1] == 3
    assert faces.dtype == np.int32 and faces.ndim == 2 and faces.shape[1] == 3 and len(faces)
    assert np.isfinite(vertices).all() and 0 <= faces.min() <= faces.max() < len(vertices)


def _labels(path: Path, vertices: int) -> None:
    labels = read_labels(path, vertices)
    assert labels.dtype == np.int32 and labels.shape == (vertices,)
    names = read_label_names(path)
    assert all(isinstance(key, int) and isinstance(name, str) for key, name in names.items())


def _pixels(window: np.ndarray, shape: tuple[int, ...]) -> None:
    assert window.dtype == np.uint8 and window.shape == shape


def _section(path: Path) -> None:
    section = open_section(path)
    pixel_um = section.pixel_um
    assert pixel_um is None or 0.01 <= pixel_um <= 10_000
    assert section.factors[0] == 1 and all(min(shape) > 0 for shape in section.levels)
    height, width = section.shape
    section = open_section(path, 2.0)
    for top, left in ((-3, -3), (height - 60, width - 60), (height // 2, 0)):
        _pixels(section.read(top, left, 64, 70), (64, 70))
    for factor in section.factors[1:]:
        _pixels(section.read_at(2.0 * factor, -1, -1, 40, 40), (40, 40))


def _class_map(path: Path) -> None:
    found = open_class_map(path)
    assert 0 < found.pixel_um < np.inf and all(isinstance(name, str) for name in found.names)
    for level in range(len(found.levels)):
        _pixels(found.read(-2, -2, 60, 70, level), (60, 70))


def _brain(path: Path) -> None:
    brain = read_brain(path.parent)
    files = [getattr(side, key) for side in brain.hemispheres for key in ("pial", "white", "mid")]
    files += [getattr(row, key) for row in brain.sections for key in ("image", "label", "atlas")]
    for file in filter(None, files):
        assert file.resolve().is_relative_to(brain.root) and file.is_file(), f"outside: {file}"
    for row in brain.sections:
        assert row.name and 0.01 <= row.pixel_um <= 10_000
        assert row.affine is None or (row.affine.shape == (3, 4) and np.isfinite(row.affine).all())


def _distances(path: Path) -> None:
    oracle = geodesics.load(path)
    last = len(oracle.surface.vertices) - 1
    first, second = np.array([0, 1, last]), np.array([last, 0, 0])
    try:
        distances = oracle.vertex_distances(first, second)
    except InputError:  # the mutated mesh may be unusable, although the file was read correctly
        return
    assert distances.shape == (3,) and (distances >= 0).all()  # infinite between components


def _annotations(path: Path) -> None:
    found = read_annotations(path, CLASSES, strokes=True)
    for each in found:
        rings = [ring for rings in each.polygons for ring in rings]
        assert all(np.isfinite(ring).all() and len(ring) >= 3 for ring in rings)
        assert all(np.isfinite(line).all() and len(line) >= 1 for line in each.lines)
        assert rings or each.lines
        assert np.isfinite(each.area(STROKE))
    label = rasterize(found, SHAPE, STROKE)
    assert {*np.unique(label).tolist()} <= {UNLABELED, *range(len(CLASSES))}


def _plain(data: bytes) -> bytes:
    """Unpack gzipped data, and return other data unchanged."""
    return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
