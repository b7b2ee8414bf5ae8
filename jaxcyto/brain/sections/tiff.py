"""Windows of one resolution of a TIFF, as 8-bit gray values (see `tiff_gray.py`).

Reads only the tiles or strips that a window touches, and of uncompressed ones only the rows it
touches. Any number of threads may read at once: `os.pread` has no file position to share.
"""

import dataclasses
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from jaxcyto.brain.sections.gray import JPEG, Gray, gray_rule
from jaxcyto.brain.sections.headers import jpeg_2000_pixels, jpeg_pixels
from jaxcyto.errors import InputError

MAX_SEGMENT_BYTES = 1 << 30  # of one decoded tile or strip
WIDE_ROW_BYTES = 1 << 13  # of which reading more than is needed costs more than another system call
MAX_SIDE_PX = 1 << 20  # half a meter at half a micrometer
JPEG_2000 = (33004, 33005, 34712)
# None, LZW, deflate, PackBits, LZMA, zstd: their decoders never give more than they are asked for.
SIZED = (1, 5, 8, 32946, 32773, 34925, 34926, 50000)
# Of these, decoders that fill a tile of bytes by themselves: LZW, deflate, zstd.
FILLING = (5, 8, 32946, 50000)
# To how much those can unpack, times; LZMA and zstd have no limit.
MOST_TIMES = {1: 1, 5: 2800, 8: 1100, 32946: 1100, 32773: 128}


@dataclasses.dataclass(frozen=True, eq=False)
class TiffLevel:
    """One page of a TIFF, ready to be read.

    Attributes:
        path: the file, for messages.
        shape: (height, width) px.
        segment: (height, width) px of a tile or strip.
        kind: "tile" or "strip".
        offsets, counts: int64 [planes, rows of segments, columns of segments], bytes.
        decode: encoded bytes and index -> samples [h, w, samples in a segment].
        raw: the type of the samples as they lie in the file, if they can be read unchanged.
        samples: samples a pixel has in one segment.
        gray: samples [h, w, samples of all planes] -> what is read; None: the first one, as it is.
    """

    path: Path
    shape: tuple[int, int]
    segment: tuple[int, int]
    kind: str
    offsets: np.ndarray
    counts: np.ndarray
    decode: Callable[[np.ndarray, int], np.ndarray]
    raw: np.dtype | None
    samples: int
    gray: Gray | None

    def read_into(self, fd: int, top: int, left: int, out: np.ndarray) -> None:
        """Fills `out` uint8 [h, w] from a window that lies inside; left-out tiles change nothing.

        Raises:
            InputError: a tile or strip that is cut off or damaged.
        """
        columns = _parts(left, out.shape[1], self.segment[1])
        for row, y, down in _parts(top, out.shape[0], self.segment[0]):
            band = out[down]
            for column, x, across in columns:
                self._segment_into(fd, row, column, y, x, band[:, across])

    def _segment_into(self, fd, row, column, rows: slice, columns: slice, out) -> None:
        planes = []
        for plane in range(len(self.offsets)):
            samples = self._samples(fd, plane, row, column, rows, columns)
            if samples is None:
                return
            planes.append(samples)
        samples = planes[0] if len(planes) == 1 else np.concatenate(planes, axis=2)
        out[:] = samples[:, :, 0] if self.gray is None else self.gray(samples)

    def _samples(self, fd, plane, row, column, rows: slice, columns: slice) -> np.ndarray | None:
        offset, count = int(self.offsets[plane, row, column]), int(self.counts[plane, row, column])
        if not offset or not count:
            return None
        _, down, across = self.offsets.shape
        index = (plane * down + row) * across + column
        if self.raw is not None:
            return self._raw_samples(fd, index, offset, rows, columns)
        expected = (rows.stop - rows.start, columns.stop - columns.start, self.samples)
        try:
            samples = self.decode(_pread(fd, count, offset), index)
            part = samples[rows, columns]
            if part.shape != expected:
                if part.shape[:2] == expected[:2]:
                    raise ValueError(
                        f"decodes to {part.shape[2]} samples a pixel, not {self.samples}"
                    )
                raise ValueError(f"decodes to {samples.shape[1]} x {samples.shape[0]} px")
        except Exception as error:  # each decoder has its own kinds
            raise self._fault(index, f"cannot be decoded: {error}") from None
        return part

    def _raw_samples(self, fd, index, offset, rows: slice, columns: slice) -> np.ndarray:
        assert self.raw is not None
        height, width = rows.stop - rows.start, columns.stop - columns.start
        pixel = self.samples * self.raw.itemsize
        stride = self.segment[1] * pixel
        start = offset + rows.start * stride
        try:
            if 4 * width * pixel >= stride or stride <= WIDE_ROW_BYTES:
                block = _pread(fd, height * stride, start).reshape(height, stride)
                block = block[:, columns.start * pixel : columns.stop * pixel]
            else:  # a narrow window of a wide image: its rows one by one
                block = np.empty((height, width * pixel), np.uint8)
                start += columns.start * pixel
                for number, line in enumerate(block):
                    if os.preadv(fd, [line], start + number * stride) != len(line):
                        raise EOFError
        except EOFError:
            raise self._fault(index, "is cut off; the file is truncated") from None
        except OSError as error:
            raise self._fault(index, f"cannot be read: {error.strerror}") from None
        if self.raw.itemsize == 1:
            return (
                block.reshape(height, width, self.samples) if self.samples > 1 else block[..., None]
            )
        return np.ascontiguousarray(block).view(self.raw).reshape(height, width, self.samples)

    def _fault(self, index: int, what: str) -> InputError:
        return InputError(f"{self.path}: {self.kind} {index} {what}; copy or export the file again")


def tiff_level(
    path: Path, page: tifffile.TiffPage, bits_used: int | None, as_gray: bool = True
) -> TiffLevel:
    """Prepares a page.

    Args:
        path: the file, for messages.
        page: the page.
        bits_used: the bits of a sample in use, where metadata states them.
        as_gray: else the samples stay as they are, and windows are read into [h, w, samples].

    Raises:
        InputError: a kind of image that has no gray value here, or tiles beyond the file's end.
    """
    samples = page.samplesperpixel
    separate = page.planarconfig == 2 and samples > 1
    gray, used = gray_rule(path, page, bits_used) if as_gray else (_as_it_is, samples)
    height, width = page.imagelength, page.imagewidth
    _check_page(path, page)
    tiled, segment = page.is_tiled, _segment(page)
    grid = (-(-height // segment[0]), -(-width // segment[1]))
    planes = samples if separate else 1
    kind = "tile" if tiled else "strip"
    number = planes * grid[0] * grid[1]
    if min(len(page.dataoffsets), len(page.databytecounts)) < number:
        raise InputError(
            f"{path}: {len(page.dataoffsets)} {kind}s where {width} x {height} px need {number}; "
            "the file is truncated or damaged"
        )
    offsets = np.array(page.dataoffsets[:number], np.int64)
    counts = np.array(page.databytecounts[:number], np.int64)
    in_segment = 1 if separate else samples
    raw = None
    assert page.dtype is not None  # or there were no rule for gray values
    stride = segment[1] * in_segment * page.dtype.itemsize
    plain = page.compression == 1 and page.predictor == 1 and page.fillorder == 1
    if plain and page.bitspersample in (8, 16) and not page.is_subsampled:
        raw = np.dtype(page.dtype).newbyteorder(page.parent.byteorder)
        rows = np.full((planes, *grid), segment[0])
        if not tiled:
            rows[:, -1] = height - (grid[0] - 1) * segment[0]
        counts = np.where(counts == 0, 0, rows.ravel() * stride)
    elif segment[0] * stride > MAX_SEGMENT_BYTES:
        raise InputError(
            f"{path}: one {kind} unpacks to {segment[0] * stride >> 20} MiB; write it as tiled TIFF"
        )
    size = page.parent.filehandle.size
    beyond = np.flatnonzero((offsets + counts > size) & (offsets > 0) & (counts > 0))
    if len(beyond):
        raise InputError(
            f"{path}: {kind} {beyond[0]} ends at byte {offsets[beyond[0]] + counts[beyond[0]]}, "
            f"but the file has {size}; it is truncated: copy or export it again"
        )
    if raw is not None and not tiled and planes == 1 and counts.all():
        if (offsets[1:] == offsets[:-1] + counts[:-1]).all():  # strips in a row: one large strip
            offsets, counts = offsets[:1], counts.sum()[None]
            grid, segment = (1, 1), (height, width)
    shape = (planes, *grid)
    return TiffLevel(
        path=path,
        shape=(height, width),
        segment=segment,
        kind=kind,
        offsets=offsets.reshape(shape)[:used],
        counts=counts.reshape(shape)[:used],
        decode=_decoder(page),
        raw=raw,
        samples=in_segment,
        gray=gray,
    )


def _check_page(path: Path, page: tifffile.TiffPage) -> None:
    """Raises InputError where sizes or compression are none that can be read."""
    height, width, samples = page.imagelength, page.imagewidth, page.samplesperpixel
    if page.imagedepth > 1 or min(height, width) < 1 or max(height, width) > MAX_SIDE_PX:
        raise InputError(
            f"{path}: {page.imagedepth} x {height} x {width} px; a plane of up to {MAX_SIDE_PX} px "
            "along each side is needed"
        )
    if not 0 < samples <= 4096:
        raise InputError(f"{path}: {samples} samples a pixel; the file is damaged")
    if page.compression not in (*SIZED, *JPEG, *JPEG_2000):
        raise InputError(
            f"{path}: compressed by {page.compression!r}; write it again with deflate, zstd or JPEG"
        )
    down, across = _segment(page)
    if min(down, across) < 1:
        raise InputError(f"{path}: tiles of {across} x {down} px; the file is damaged")


def _segment(page: tifffile.TiffPage) -> tuple[int, int]:
    """(height, width) px of a tile or strip; an image of one strip may state endless rows."""
    if page.is_tiled:
        return page.tilelength, page.tilewidth
    return min(page.rowsperstrip, page.imagelength), page.imagewidth


def _decoder(page: tifffile.TiffPage) -> Callable[[np.ndarray, int], np.ndarray]:
    decode = page.decode
    extra = {}
    if page.compression in JPEG:
        extra = {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader}

    pixels = math.prod(_segment(page))
    sized = page.compression in SIZED
    announced = jpeg_pixels if page.compression in JPEG else jpeg_2000_pixels
    kind = page.dtype
    assert kind is not None  # see `tiff_level`
    times = MOST_TIMES.get(page.compression)
    # Of whole tiles of plain bytes, what `page.decode` does besides costs a tenth of the time.
    plain = page.bitspersample == 8 and kind == np.uint8 and not page.is_subsampled
    plain &= page.predictor == page.fillorder == 1
    whole = page.is_tiled and page.tiledepth == 1
    fills = plain and whole and page.compression in FILLING
    fill = tifffile.TIFF.DECOMPRESSORS[page.compression] if fills else None
    shape = (*_segment(page), page.samplesperpixel if page.planarconfig == 1 else 1)
    size = math.prod(shape)

    def samples(data: Any, index: int) -> np.ndarray:
        # What a decoder would allocate, before it does.
        if not sized and announced(data) > 2 * pixels + (1 << 16):
            raise ValueError(f"its header announces {announced(data)} px")
        if times and pixels > 8 * times * len(data) + (1 << 24):  # 8: an image of bits
            raise ValueError(f"{len(data)} bytes cannot hold {pixels} px")
        if fill is not None:
            tile = fill(data, out=size)
            if len(tile) == size:
                return np.frombuffer(tile, np.uint8).reshape(shape)
        decoded = decode(data, index, **extra)[0]
        if decoded is None:
            raise ValueError("it is empty")
        if decoded.dtype.kind not in "ub" or decoded.dtype.itemsize > kind.itemsize:
            raise ValueError(f"decodes to {decoded.dtype}, not {kind}")
        return decoded[0]

    return samples


def _parts(start: int, size: int, segment: int) -> list[tuple[int, slice, slice]]:
    """Along one axis, the segments that a window from `start` on touches.

    Returns:
        Of each its number, the part of it that lies in the window, and where that goes.
    """
    parts = []
    for number in range(start // segment, -(-(start + size) // segment)):
        first = number * segment
        low, high = max(start, first), min(start + size, first + segment)
        parts.append((number, slice(low - first, high - first), slice(low - start, high - start)))
    return parts


def _as_it_is(samples: np.ndarray) -> np.ndarray:
    return samples


def _pread(fd: int, count: int, offset: int) -> np.ndarray:
    """Bytes of the file as uint8 [count]. Raises EOFError where the file ends before."""
    block = np.empty(count, np.uint8)
    done = 0
    while done < count:
        got = os.preadv(fd, [block[done:]], offset + done)
        if not got:
            raise EOFError(f"the file ends {count - done} bytes too early")
        done += got
    return block
