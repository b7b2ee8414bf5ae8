"""Write and read class and probability maps as tiled, pyramidal OME-TIFF (OME schema 2016-06).

A class map holds class indices (uint8, 255 = not predicted) with a palette of the class colors. A
probability map has one channel for each class (uint8, 255 = probability 1) with the name of the
class. The reduced images are sub-IFDs of the first image, as Bio-Formats, QuPath and tifffile
expect. A MapAnnotation of the OME-XML holds the class names and the digest of the settings.
"""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import tifffile

from jaxcyto.brain.manifest import AreaClass
from jaxcyto.brain.sections.headers import open_tiff
from jaxcyto.brain.sections.tiff import TiffLevel, tiff_level
from jaxcyto.errors import InputError
from jaxcyto.predict.planes import Plane, mean, mode

NOT_PREDICTED = 255
TILE = 512  # px
SMALLEST = 512  # px. Images with no larger side are not reduced further
SETTINGS = "settings SHA-256"  # key in the MapAnnotation
OME = "{http://www.openmicroscopy.org/Schemas/OME/2016-06}"


def write_class_map(
    path: Path, plane: Plane, pixel_um: float, classes: Sequence[AreaClass], settings: str
) -> None:
    """Write a class map under a temporary name, then rename it.

    Args:
        path: the file. Its name should end in .ome.tif.
        plane: class indices.
        pixel_um: pixel size in micrometers.
        classes: names and colors of the classes, in the order of their indices.
        settings: digest of everything that the map depends on. `settings_of` returns it.

    Raises:
        InputError: the file cannot be written.
    """
    names = {f"class {index}": entry.name for index, entry in enumerate(classes)}
    palette = np.zeros((256, 3), np.uint16)
    # TIFF palettes have 16 bits, and 257 maps 255 to 65535
    palette[: len(classes)] = 257 * colors(classes).astype(np.uint16)
    metadata = {"axes": "YX", "MapAnnotation": names | {SETTINGS: settings}}
    options = {"photometric": "palette", "colormap": palette.T}
    _write(path, _pyramids([plane], mode), pixel_um, metadata, options)


def write_probability_map(
    path: Path,
    planes: Sequence[Plane],
    pixel_um: float,
    classes: Sequence[AreaClass],
    settings: str,
) -> None:
    """Write a probability map with one plane for each class. See `write_class_map`."""
    names = [entry.name for entry in classes]
    metadata = {
        "axes": "CYX",
        "Channel": {"Name": names, "Color": [_ome_color(entry) for entry in classes]},
        "MapAnnotation": {SETTINGS: settings},
    }
    options = {"photometric": "minisblack"}
    _write(path, _pyramids(planes, mean), pixel_um, metadata, options)


def colors(classes: Sequence[AreaClass]) -> np.ndarray:
    """Return the RGB colors of C classes, uint8 [C, 3]."""
    return np.array([list(bytes.fromhex(entry.color[1:])) for entry in classes], np.uint8)


def settings_of(path: Path) -> str | None:
    """Return the digest of settings that a map was written with, or None without a valid map."""
    try:
        with open_tiff(path) as tiff:
            return _annotation(tiff.ome_metadata or "").get(SETTINGS)
    except Exception:  # a missing, damaged or foreign file is not a finished map
        return None


@dataclasses.dataclass(frozen=True, eq=False)
class ClassMap:
    """A class map on disk. Threads may share it.

    Attributes:
        path: the file.
        pixel_um: pixel size at full resolution in micrometers.
        names: names of the classes.
        levels: levels of the pyramid, each with a `shape`.
    """

    path: Path
    pixel_um: float
    names: tuple[str, ...]
    levels: tuple[TiffLevel, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) px at full resolution."""
        return self.levels[0].shape

    def read(self, top: int, left: int, height: int, width: int, level: int = 0) -> np.ndarray:
        """Read a window of class indices, uint8 [height, width].

        Pixels outside of the map are NOT_PREDICTED.

        Args:
            top: first row, in px of the level. It may be negative.
            left: first column, in px of the level. It may be negative.
            height: height of the window in px.
            width: width of the window in px.
            level: level of the pyramid.

        Raises:
            InputError: a tile of the file is damaged.
        """
        out = np.full((height, width), NOT_PREDICTED, np.uint8)
        rows, columns = self.levels[level].shape
        y0, y1, x0, x1 = (
            max(top, 0),
            min(top + height, rows),
            max(left, 0),
            min(left + width, columns),
        )
        if y0 < y1 and x0 < x1:
            fd = os.open(self.path, os.O_RDONLY)
            try:
                part = out[y0 - top : y1 - top, x0 - left : x1 - left]
                self.levels[level].read_into(fd, y0, x0, part[..., None])
            finally:
                os.close(fd)
        return out


def open_class_map(path: str | os.PathLike) -> ClassMap:
    """Open a class map that `write_class_map` has written.

    Raises:
        InputError: the file is not a class map.
    """
    path = Path(path)
    try:
        with open_tiff(path) as tiff:
            annotation = _annotation(tiff.ome_metadata or "")
            pages = [level.pages[0].aspage() for level in tiff.series[0].levels]  # pyright: ignore
            if any(page.samplesperpixel != 1 or page.dtype != np.uint8 for page in pages):
                raise ValueError("its pixels are not class indices")
            levels = [tiff_level(path, page, None, as_gray=False) for page in pages]
            pixels = ElementTree.fromstring(tiff.ome_metadata or "").find(f".//{OME}Pixels")
            pixel_um = float(pixels.attrib["PhysicalSizeX"])  # pyright: ignore
            if not 0.01 <= pixel_um <= 1e6:
                raise ValueError(f"its pixel size is {pixel_um} um")
            names = [annotation[f"class {k}"] for k in range(len(annotation) - 1)]
    except Exception as error:
        raise InputError(
            f"{path}: not a class map of `jaxcyto predict` ({error or type(error).__name__}); "
            "remove it and run the command again"
        ) from None
    return ClassMap(path, pixel_um, tuple(names), tuple(levels))


def _annotation(ome: str) -> dict[str, str]:
    entries = ElementTree.fromstring(ome).iter(f"{OME}M")
    return {entry.attrib["K"]: entry.text or "" for entry in entries}


def _pyramids(planes: Sequence[Plane], reduce) -> list[list[Plane]]:
    """Build all planes of each resolution, from the full one down."""
    levels = [list(planes)]
    while max(levels[-1][0].shape) > SMALLEST:
        levels.append([plane.half(reduce) for plane in levels[-1]])
    return levels


def _write(
    path: Path,
    levels: list[list[Plane]],
    pixel_um: float,
    metadata: dict[str, Any],
    options: dict[str, Any],
) -> None:
    # tifffile opens the file by its name, so atomic_write does not fit
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    size = {"PhysicalSizeX": pixel_um, "PhysicalSizeY": pixel_um}
    units = {"PhysicalSizeXUnit": "µm", "PhysicalSizeYUnit": "µm"}
    name = path.name.removesuffix(".ome.tif")
    try:
        with tifffile.TiffWriter(temporary, bigtiff=True, ome=True) as tiff:
            for level, planes in enumerate(levels):
                per_cm = 1e4 / (pixel_um * 2**level)
                planar = (len(planes),) if metadata["axes"] == "CYX" else ()
                tiff.write(
                    _tiles(planes),
                    shape=(*planar, *planes[0].shape),
                    dtype=np.uint8,
                    tile=(TILE, TILE),
                    compression="adobe_deflate",
                    resolution=(per_cm, per_cm),
                    resolutionunit="CENTIMETER",
                    subifds=len(levels) - 1 if level == 0 else 0,
                    subfiletype=int(level > 0),
                    metadata={**metadata, "Name": name, **size, **units} if level == 0 else None,
                    software="jaxcyto",
                    maxworkers=1,
                    **options,
                )
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)


def _tiles(planes: Sequence[Plane]) -> Iterator[np.ndarray]:
    for plane in planes:
        for top in range(0, plane.shape[0], TILE):
            band = plane.read(top, TILE)
            for left in range(0, plane.shape[1], TILE):
                part = band[:, left : left + TILE]
                yield np.pad(part, [(0, TILE - side) for side in part.shape])


def _ome_color(entry: AreaClass) -> int:
    """Convert a color to the signed 32-bit RGBA integer of the OME schema."""
    value = int(entry.color[1:] + "ff", 16)
    return value - (1 << 32) if value >= 1 << 31 else value
