"""Write section images as tiled BigTIFF, by bands of rows.

Memory does not grow with the height of the image.
"""

import math
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from jaxcyto.brain.sections.resample import resample
from jaxcyto.errors import InputError


def write_section(
    path: str | os.PathLike,
    image: np.ndarray | Iterable[np.ndarray],
    pixel_um: float,
    *,
    shape: tuple[int, int] | None = None,
    tile: int = 512,
    compression: str | None = None,
    levels: int = 1,
    workers: int = 1,
) -> None:
    """Write a gray image atomically, under a temporary name that is renamed at the end.

    Args:
        path: the file to write.
        image: uint8 [height, width], or its rows from the top in blocks uint8 [any, width].
        pixel_um: pixel size, um, written as the resolution.
        shape: (height, width) px, required for blocks.
        tile: side of a tile, px, a multiple of 16.
        compression: None, "zstd" or "deflate".
        levels: number of resolutions. Each has half the resolution of the one before, by means of
            2 x 2 px, and is a sub-IFD of the first. The last row or column of an odd side is
            repeated.
        workers: threads that compress.

    Raises:
        InputError: the file cannot be written.
        ValueError: the blocks do not add up to `shape`.
    """
    path = Path(path)
    if isinstance(image, np.ndarray):
        shape, blocks = image.shape, [image]  # pyright: ignore[reportAssignmentType]
    else:
        blocks = image
    if shape is None:
        raise ValueError("blocks of rows need a shape")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    options: dict[str, Any] = dict(
        dtype=np.uint8,
        tile=(tile, tile),
        photometric="minisblack",
        compression={None: None, "zstd": "zstd", "deflate": "adobe_deflate"}[compression],
        metadata=None,
        software=False,
        maxworkers=workers,
    )
    size = shape
    try:
        with tifffile.TiffWriter(temporary, bigtiff=True) as tiff:
            for level in range(levels):
                # Reduce this level while it is written. The result waits on disk for its turn.
                smaller = None
                if level < levels - 1:
                    smaller = _scratch(path.parent, (-(-size[0] // 2), -(-size[1] // 2)))
                per_cm = 1e4 / (pixel_um * 2**level)
                tiff.write(
                    _tiles(_bands(blocks, size, tile), tile, smaller),
                    shape=size,
                    subifds=levels - 1 if level == 0 else 0,
                    subfiletype=int(level > 0),
                    resolution=(per_cm, per_cm),
                    resolutionunit="CENTIMETER",
                    **options,
                )
                if smaller is not None:
                    blocks, size = [smaller], smaller.shape
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)


def _scratch(folder: Path, size: tuple[int, int]) -> np.ndarray:
    """Create a uint8 array in an unnamed file, which is deleted together with the array."""
    with tempfile.TemporaryFile(dir=folder) as file:
        if hasattr(os, "posix_fallocate"):  # writing to a memory map of a full disk raises SIGBUS
            os.posix_fallocate(file.fileno(), 0, math.prod(size))
        return np.memmap(file, np.uint8, "w+", shape=size)


def _bands(
    blocks: Iterable[np.ndarray], shape: tuple[int, int], height: int
) -> Iterator[np.ndarray]:
    """Yield blocks of any height as bands of `height` rows. The last band may be shorter."""
    band, filled, total = np.empty((height, shape[1]), np.uint8), 0, 0
    for block in blocks:
        if block.ndim != 2 or block.shape[1] != shape[1] or block.dtype != np.uint8:
            raise ValueError(f"block {block.dtype} {block.shape}; uint8 [any, {shape[1]}] expected")
        total += len(block)
        while len(block):
            if not filled and len(block) >= height:
                yield block[:height]
                block = block[height:]
                continue
            rows = min(len(block), height - filled)
            band[filled : filled + rows] = block[:rows]
            filled, block = filled + rows, block[rows:]
            if filled == height:
                yield band
                band, filled = np.empty_like(band), 0
    if total != shape[0]:
        raise ValueError(f"{total} rows written; {shape[0]} expected")
    if filled:
        yield band[:filled]


def _tiles(
    bands: Iterable[np.ndarray], tile: int, smaller: np.ndarray | None
) -> Iterator[np.ndarray]:
    """Yield the tiles of bands, row by row, and write the means of 2 x 2 px to `smaller`."""
    row = 0
    for band in bands:
        if smaller is not None:
            even = np.pad(band, [(0, side % 2) for side in band.shape], mode="edge")
            rows = len(even) // 2
            smaller[row : row + rows] = resample(even, 0, 0, rows, even.shape[1] // 2, 2.0)
            row += rows
        for left in range(0, band.shape[1], tile):
            part = band[:, left : left + tile]
            if part.shape != (tile, tile):
                part = np.pad(part, [(0, tile - side) for side in part.shape])
            yield np.ascontiguousarray(part)
