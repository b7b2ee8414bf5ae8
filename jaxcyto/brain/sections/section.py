"""Read windows of section images of any size, at full resolution or resampled.

At full resolution (level 0) the center of pixel (column, row) lies at these integer coordinates.
Pixels outside of the image and in tiles that the file omits have the background value. Pixels keep
the order of the file, whatever its orientation tag states. `gray.py` describes how samples become
gray values.
"""

import math
import os
import re
import threading
import warnings
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from jaxcyto.brain.sections.gray import luma, stated_bits, used_bits
from jaxcyto.brain.sections.headers import check_chunks, open_tiff
from jaxcyto.brain.sections.resample import resample, source_range
from jaxcyto.brain.sections.tiff import TiffLevel, tiff_level
from jaxcyto.errors import InputError
from jaxcyto.utils.files import open_file
from jaxcyto.utils.unchanged import Stamp, opened_unchanged, stamp

TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
ZARR_FILES = (".zgroup", ".zattrs", "zarr.json")  # one of them lies in every OME-Zarr
MAX_PIXELS = 1 << 26  # of PNG and JPEG images, which are decoded as a whole
MAX_SOURCE_PX = 1 << 23  # source pixels that `read_at` reads at once
# 72 and 96 dpi, which programs write when they know no resolution.
SCREEN_UM = (25400 / 72, 25400 / 96)


def open_section(
    path: str | os.PathLike,
    file_pixel_um: float | None = None,
    background: int = 255,
    bits: int | None = None,
) -> "Section":
    """Open a section image, a TIFF of most kinds or a small PNG or JPEG.

    Args:
        path: the image.
        file_pixel_um: pixel size at full resolution, um. None takes the size that the file states.
        background: gray value outside of the image.
        bits: bits in use in samples of 16 bits. None takes what the file states, else all 16.

    Raises:
        InputError: the file is no such image, is truncated, or has samples or colors that are not
            supported.
    """
    section = Section(path, file_pixel_um, background, bits)
    section._opened()
    return section


def array_section(gray: np.ndarray, pixel_um: float, background: int = 255) -> "Section":
    """Make a section of pixels in memory. Do not close it before its last use.

    Args:
        gray: uint8 [H, W].
        pixel_um: pixel size, um.
        background: gray value outside of the image.
    """
    section = Section("array", pixel_um, background)
    section._file = _WholeImage(gray)
    return section


class Section:
    """A section image, made by `open_section` or `array_section`.

    Threads may share it. It is pickled by its path, and the copy in another process reads the
    headers on first use. The file is open only while a window is read, so a process can hold any
    number of sections. The table of tiles stays in memory until `close`.
    """

    def __init__(self, path, file_pixel_um=None, background=255, bits=None):
        self.path = Path(path)
        self.background, self.bits = background, bits
        if file_pixel_um is not None and not (math.isfinite(file_pixel_um) and file_pixel_um > 0):
            raise InputError(f"{path}: pixel size {file_pixel_um} um; a positive number is needed")
        self._file_pixel_um = file_pixel_um
        self._lock = threading.Lock()
        self._file: _TiffFile | _WholeImage | None = None

    def __reduce__(self):
        return Section, (self.path, self._file_pixel_um, self.background, self.bits)

    def __enter__(self) -> "Section":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Free the table of tiles or the pixels of a small image. The next use reads them again."""
        self._file = None

    def _opened(self) -> "_TiffFile | _WholeImage":
        file = self._file
        if file is None:
            with self._lock:  # threads that start together must read the headers once
                file = self._file or _open(self.path, self.bits)
                self._file = file
        return file

    @property
    def levels(self) -> list[tuple[int, int]]:
        """(height, width) px of each resolution, from the full one to the coarsest."""
        return list(self._opened().shapes)

    @property
    def factors(self) -> list[int]:
        """Number of level 0 pixels along one side of a pixel, for each level."""
        return list(self._opened().factors)

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) px at full resolution."""
        return self._opened().shapes[0]

    @property
    def pixel_um(self) -> float | None:
        """Pixel size at full resolution, um. None if neither the caller nor the file states it."""
        return self._file_pixel_um or self._opened().pixel_um

    @property
    def bits_unstated(self) -> bool:
        """Whether samples have 16 bits, and neither caller nor file states how many are in use."""
        return self._opened().bits_unstated

    def read(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Read a window at full resolution.

        Args:
            top: first row, px. It may lie outside of the image.
            left: first column, px, likewise.
            height: rows.
            width: columns.

        Returns:
            uint8 [height, width].

        Raises:
            InputError: a tile or strip is truncated or damaged, or the file has changed.
        """
        return self._read_level(0, top, left, height, width)

    def read_at(self, um_per_px: float, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Read a window on a grid of pixels of `um_per_px`.

        With f = um_per_px / pixel_um, pixel m of that grid covers pixels [m f, (m + 1) f) of
        level 0, where its center lies at f (m + 0.5) - 0.5. Its value is the mean over that area
        in the coarsest level that is at least as fine as the grid. On a grid finer than level 0 it
        is interpolated linearly. Each window equals the same crop of a larger one.

        Args:
            um_per_px: pixel size of the grid, um.
            top: first row, in pixels of the grid. It may lie outside of the image.
            left: first column, likewise.
            height: rows.
            width: columns.

        Returns:
            uint8 [height, width].

        Raises:
            InputError: the pixel size is unknown, a tile or strip is truncated or damaged, or the
                file has changed.
        """
        pixel_um = self.pixel_um
        if pixel_um is None:
            raise InputError(
                f"{self.path}: states no pixel size; give file_pixel_um (pixel_um in the section "
                "table), its pixel size at full resolution"
            )
        if not (math.isfinite(um_per_px) and um_per_px > 0):
            raise InputError(f"{self.path}: um_per_px = {um_per_px}; a positive number is needed")
        ratio = um_per_px / pixel_um
        factors = self.factors
        level = max(i for i, f in enumerate(factors) if i == 0 or f <= ratio * (1 + 1e-9))
        ratio /= factors[level]
        if math.isclose(ratio, round(ratio), rel_tol=1e-9):
            ratio = float(round(ratio))
        if ratio == 1:  # the usual case in training, without resampling
            return self._read_level(level, top, left, height, width)
        out = np.empty((_size(height), _size(width)), np.uint8)
        if out.size == 0:
            return out
        x0, x1 = source_range(left, width, ratio)
        # Read bands of rows, so that memory does not grow with the ratio.
        band = max(1, int(MAX_SOURCE_PX / (max(x1 - x0, width) * max(ratio, 1))))
        for row in range(0, height, band):
            rows = min(band, height - row)
            y0, y1 = source_range(top + row, rows, ratio)
            source = self._read_level(level, y0, x0, y1 - y0, x1 - x0)
            out[row : row + rows] = resample(source, top + row, left, rows, width, ratio)
        return out

    def _read_level(self, level: int, top: int, left: int, height: int, width: int) -> np.ndarray:
        file = self._opened()
        rows, columns = file.shapes[level]
        out = np.empty((_size(height), _size(width)), np.uint8)
        y0, y1 = max(top, 0), min(top + height, rows)
        x0, x1 = max(left, 0), min(left + width, columns)
        if (y0, x0, y1, x1) != (top, left, top + height, left + width) or file.sparse:
            out[:] = self.background
        if y0 < y1 and x0 < x1:
            file.read_into(level, y0, x0, out[y0 - top : y1 - top, x0 - left : x1 - left])
        return out


class _TiffFile:
    """The levels of a TIFF, with the stamp of the file that they were read from."""

    def __init__(
        self, path: Path, stamp: Stamp, levels: list[TiffLevel], factors, pixel_um, bits_unstated
    ):
        self._path, self._stamp, self._levels = path, stamp, levels
        self.bits_unstated = bits_unstated
        self.shapes = [level.shape for level in levels]
        self.factors, self.pixel_um = factors, pixel_um
        self.sparse = any(((level.offsets == 0) | (level.counts == 0)).any() for level in levels)

    def read_into(self, level: int, top: int, left: int, out: np.ndarray) -> None:
        with opened_unchanged(self._path, self._stamp) as fd:
            self._levels[level].read_into(fd, top, left, out)


class _WholeImage:
    """A small image that is decoded as a whole."""

    sparse = False
    pixel_um = None
    factors = (1,)

    def __init__(self, gray: np.ndarray, bits_unstated: bool = False):
        self.shapes, self.bits_unstated = [gray.shape], bits_unstated
        self._gray = gray

    def read_into(self, level: int, top: int, left: int, out: np.ndarray) -> None:
        out[:] = self._gray[top : top + out.shape[0], left : left + out.shape[1]]


def _size(side: int) -> int:
    if side < 0:
        raise ValueError(f"a window cannot be {side} px high or wide")
    return side


def _open(path: Path, bits: int | None) -> _TiffFile | _WholeImage:
    if path.is_dir() and any((path / name).exists() for name in ZARR_FILES):
        raise InputError(
            f"{path}: an OME-Zarr image, which is a folder of files; a section is one file: "
            "convert it to a pyramidal OME-TIFF, for example with raw2ometiff or QuPath"
        )
    try:
        with open_file(path) as file:
            magic = file.read(4)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    if not magic:
        raise InputError(f"{path}: the file is empty; copy or export it again")
    return _open_tiff(path, bits) if magic in TIFF_MAGIC else _open_whole(path, bits)


def _open_tiff(path: Path, bits: int | None) -> _TiffFile:
    before = stamp(path)
    try:
        with open_tiff(path) as tiff:
            series = tiff.series[0]
            axes = series.axes
            if set(axes) - set("YXS") or len(series.pages) != 1:
                raise InputError(
                    f"{path}: holds {len(series.pages)} planes (axes {axes}, {series.shape}); "
                    "a section is one plane: export that one"
                )
            pages = [level.pages[0].aspage() for level in series.levels]  # pyright: ignore
            if any(page.parent is not tiff for page in pages):
                raise InputError(f"{path}: its pixels are in other files; export it as one file")
            ome = tiff.ome_metadata or ""
            bits_used = bits or stated_bits(pages[0], ome)
            levels, factors = [tiff_level(path, pages[0], bits_used)], [1]
            for page in pages[1:]:
                factor = _factor(levels[-1].shape, (page.imagelength, page.imagewidth))
                if factor is not None:
                    levels.append(tiff_level(path, page, bits_used))
                    factors.append(factors[-1] * factor)
            unstated = pages[0].bitspersample == 16 and bits_used is None
            pixel_um = _pixel_um(tiff, pages[0], ome)
            return _TiffFile(path, before, levels, factors, pixel_um, unstated)
    except InputError:
        raise
    except Exception as error:  # tifffile raises many kinds on damaged headers
        raise InputError(
            f"{path}: not a readable TIFF: {error or type(error).__name__}; copy or export it again"
        ) from None


def _factor(finer: tuple[int, int], shape: tuple[int, int]) -> int | None:
    """Return by which integer a level is smaller than the finer one.

    None means that the page is no reduced image, for example a thumbnail of another shape.
    """
    factor = round(math.sqrt(math.prod(finer) / math.prod(shape)))
    if factor > 1 and all(abs(f / factor - s) < 1 for f, s in zip(finer, shape, strict=True)):
        return factor
    return None


def _pixel_um(tiff: tifffile.TiffFile, page: tifffile.TiffPage, ome: str) -> float | None:
    """Return the pixel size that the file states, um.

    The OME-XML comes first, then Aperio's MPP, then the resolution tags. None means that the file
    states no size, only a screen resolution, or pixels that are not square.
    """
    match = re.search(r'PhysicalSizeX="([^"]+)"', ome)
    if match:
        unit = re.search(r'PhysicalSizeXUnit="([^"]+)"', ome)
        scale = {"nm": 1e-3, "µm": 1, "μm": 1, "um": 1, "mm": 1e3}.get(unit[1] if unit else "µm")
        return _positive(match[1], scale)
    match = re.search(r"\bMPP\s*=\s*([\d.eE+-]+)", page.description or "") if tiff.is_svs else None
    if match:
        return _positive(match[1], 1)
    scale = {2: 25400, 3: 10000}.get(page.tags.valueof(296, 2))  # per inch, per cm
    resolution = page.tags.valueof(282), page.tags.valueof(283)
    if scale is None or None in resolution:
        return None
    x, y = (upper / lower if lower else 0 for upper, lower in resolution)
    if x <= 0 or y <= 0 or abs(x / y - 1) > 0.01:
        return None
    pixel_um = _positive(scale / x, 1)
    if pixel_um is None or any(abs(pixel_um / screen - 1) < 1e-3 for screen in SCREEN_UM):
        return None
    return pixel_um


def _positive(text: str | float, scale: float | None) -> float | None:
    try:
        number = float(text) * (scale or math.nan)
    except ValueError:
        return None
    return number if 0.01 <= number <= 10_000 else None  # the limits of the section table


def _open_whole(path: Path, bits: int | None) -> _WholeImage:
    try:
        check_chunks(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path, formats=("PNG", "JPEG"))
        with image:
            if image.width * image.height > MAX_PIXELS:
                raise InputError(
                    f"{path}: {image.width} x {image.height} px; {image.format} files of over "
                    f"{MAX_PIXELS >> 20} Mpx are read as a whole: write it as tiled TIFF"
                )
            if image.mode.startswith("I;16"):
                gray = np.minimum(np.asarray(image) >> (used_bits(bits, 16) - 8), 255)
                return _WholeImage(gray.astype(np.uint8), bits_unstated=bits is None)
            if image.mode in ("1", "L", "LA"):
                return _WholeImage(np.asarray(image.convert("L")))
            if image.mode in ("P", "PA", "RGB", "RGBA"):
                return _WholeImage(luma(np.asarray(image.convert("RGB"))))
            raise InputError(f"{path}: pixels are {image.mode}; convert it to gray or RGB")
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{path}: not a readable TIFF, PNG or JPEG image: {error}") from None
