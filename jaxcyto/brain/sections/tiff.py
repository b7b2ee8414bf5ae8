"""Read windows of one resolution of a TIFF as 8-bit gray values (see `gray.py`).

A read touches only the tiles or strips of the window, and only the rows of the window in those that
are not compressed. Any number of threads may read at once, because `os.preadv` uses no shared file
position.
"""

import dataclasses
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tifffile

from jaxcyto.brain.sections.gray import JPEG, Gray, gray_rule
from jaxcyto.brain.sections.headers import jpeg_2000_pixels, jpeg_pixels
from jaxcyto.errors import InputError

MAX_SEGMENT_BYTES = 1 << 30  # size of one decoded tile or strip
# Rows up to this length are read whole, which costs less than a system call for each row.
WIDE_ROW_BYTES = 1 << 13
MAX_SIDE_PX = 1 << 20  # 0.5 m at 0.5 um
JPEG_2000 = (33004, 33005, 34712)
# Uncompressed, LZW, deflate (two codes), PackBits, LZMA and zstd (two codes). Their decoders never
# return more bytes than requested.
SIZED = (1, 5, 8, 32946, 32773, 34925, 34926, 50000)
# LZW, deflate and zstd, whose decoders can decode into a tile of given size directly.
FILLING = (5, 8, 32946, 50000)
# Largest ratio of decoded to encoded bytes. LZMA and zstd have no limit.
MOST_TIMES = {1: 1, 5: 2800, 8: 1100, 32946: 1100, 32773: 128}


@dataclasses.dataclass(frozen=True, eq=False)
class TiffLevel:
    """One page of a TIFF, prepared for reading by `tiff_level`.

    Attributes:
        path: the file, for messages.
        shape: (height, width) px.
        segment: (height, width) px of a tile or strip.
        kind: "tile" or "strip".
        offsets: int64 [planes, rows of segments, columns of segments], bytes. 0 if omitted.
        counts: sizes in the file, like `offsets`.
        decode: maps encoded bytes and the index of the segment to samples [h, w, samples].
        raw: dtype of the samples in the file, None if they must be decoded.
        samples: samples of one pixel in one segment.
        gray: maps samples [h, w, samples of all planes] to the values that are read. None takes the
            first sample unchanged.
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
        """Fill an array with a window that lies inside the page.

        Args:
            fd: file descriptor of the file.
            top: first row of the window, px.
            left: first column of the window, px.
            out: uint8 [h, w], the window, or [h, w, samples] if the page is not read as gray.
                Pixels of omitted tiles are left unchanged.

        Raises:
            InputError: a tile or strip is truncated or damaged.
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
        except Exception as error:  # each decoder raises kinds of its own
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
            else:  # a narrow window of a wide image, read row by row
                block = np.empty((height, width * pixel), np.uint8)
                start += columns.start * pixel
                for row, line in enumerate(block):
                    if os.preadv(fd, [line], start + row * stride) != len(line):
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
    """Prepare a page for reading.

    Args:
        path: the file, for messages.
        page: the page.
        bits_used: the bits of a sample in use, None if not stated.
        as_gray: convert samples to gray values. Otherwise windows are read into [h, w, samples].

    Raises:
        InputError: the kind of image is not supported, or a tile ends beyond the end of the file.
    """
    gray, used = gray_rule(path, page, bits_used) if as_gray else (_unchanged, page.samplesperpixel)
    _check_page(path, page)
    layout = _page_layout(page)
    offsets, counts = _segment_table(path, page, layout)
    raw = _raw_type(page)
    if raw is not None:
        counts = np.where(counts == 0, 0, _raw_bytes(page, layout))
    elif layout.segment_bytes > MAX_SEGMENT_BYTES:
        raise InputError(
            f"{path}: one {layout.kind} unpacks to {layout.segment_bytes >> 20} MiB; write it as "
            "tiled TIFF"
        )
    _check_ends(path, page.parent.filehandle.size, layout, offsets, counts)
    if raw is not None and _is_one_run(layout, offsets, counts):
        offsets, counts = offsets[:1], counts.sum()[None]
        # Strips in one run are read like one large strip, with fewer system calls.
        layout = layout._replace(segment=(page.imagelength, page.imagewidth), grid=(1, 1, 1))
    return TiffLevel(
        path=path,
        shape=(page.imagelength, page.imagewidth),
        segment=layout.segment,
        kind=layout.kind,
        offsets=offsets.reshape(layout.grid)[:used],
        counts=counts.reshape(layout.grid)[:used],
        decode=_decoder(page),
        raw=raw,
        samples=layout.samples,
        gray=gray,
    )


class _Layout(NamedTuple):
    """How a page is divided into tiles or strips, both called segments."""

    kind: str  # "tile" or "strip"
    segment: tuple[int, int]  # (height, width) px
    grid: tuple[int, int, int]  # planes, rows of segments, columns of segments
    samples: int  # of one pixel in one segment
    row_bytes: int  # of one row of pixels in a decoded segment

    @property
    def segment_bytes(self) -> int:
        """Size of a decoded segment, bytes."""
        return self.segment[0] * self.row_bytes


def _page_layout(page: tifffile.TiffPage) -> _Layout:
    height, width = _segment(page)
    # Separate planes hold one sample of each pixel, and have segments of their own.
    separate = page.planarconfig == 2 and page.samplesperpixel > 1
    planes, samples = (page.samplesperpixel, 1) if separate else (1, page.samplesperpixel)
    assert page.dtype is not None  # `gray_rule` and the callers have checked it
    return _Layout(
        kind="tile" if page.is_tiled else "strip",
        segment=(height, width),
        grid=(planes, -(-page.imagelength // height), -(-page.imagewidth // width)),
        samples=samples,
        row_bytes=width * samples * page.dtype.itemsize,
    )


def _segment_table(
    path: Path, page: tifffile.TiffPage, layout: _Layout
) -> tuple[np.ndarray, np.ndarray]:
    """Return offset and size in the file of each segment, int64 [segments], bytes.

    Raises:
        InputError: the file lists fewer segments than the page needs.
    """
    needed = math.prod(layout.grid)
    if min(len(page.dataoffsets), len(page.databytecounts)) < needed:
        raise InputError(
            f"{path}: {len(page.dataoffsets)} {layout.kind}s where {page.imagewidth} x "
            f"{page.imagelength} px need {needed}; the file is truncated or damaged"
        )
    offsets = np.array(page.dataoffsets[:needed], np.int64)
    return offsets, np.array(page.databytecounts[:needed], np.int64)


def _raw_type(page: tifffile.TiffPage) -> np.dtype | None:
    """Return the type of samples that lie in the file as arrays, None if they must be decoded."""
    plain = page.compression == 1 and page.predictor == 1 and page.fillorder == 1
    if plain and page.bitspersample in (8, 16) and not page.is_subsampled:
        return np.dtype(page.dtype).newbyteorder(page.parent.byteorder)
    return None


def _raw_bytes(page: tifffile.TiffPage, layout: _Layout) -> np.ndarray:
    """Return the size of each segment that is not compressed, int64 [segments], bytes."""
    height = layout.segment[0]
    rows = np.full(layout.grid, height)
    if not page.is_tiled:  # tiles are padded to their full height, the last strip is not
        rows[:, -1] = page.imagelength - (layout.grid[1] - 1) * height
    return rows.ravel() * layout.row_bytes


def _check_ends(
    path: Path, file_size: int, layout: _Layout, offsets: np.ndarray, counts: np.ndarray
) -> None:
    """Raise InputError if a segment ends beyond the end of the file."""
    ends = offsets + counts
    beyond = np.flatnonzero((ends > file_size) & (offsets > 0) & (counts > 0))
    if len(beyond):
        raise InputError(
            f"{path}: {layout.kind} {beyond[0]} ends at byte {ends[beyond[0]]}, but the file has "
            f"{file_size}; it is truncated: copy or export it again"
        )


def _is_one_run(layout: _Layout, offsets: np.ndarray, counts: np.ndarray) -> bool:
    """Return whether the strips follow each other in the file, so that they make one strip."""
    if layout.kind != "strip" or layout.grid[0] != 1 or not counts.all():
        return False
    return bool((offsets[1:] == offsets[:-1] + counts[:-1]).all())


def _check_page(path: Path, page: tifffile.TiffPage) -> None:
    """Raise InputError if the sizes or the compression of a page are not supported."""
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
    """Return (height, width) px of a tile or strip. A single strip may state too many rows."""
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
    assert kind is not None  # see `_page_layout`
    times = MOST_TIMES.get(page.compression)
    # `page.decode` spends a tenth of the time outside of the decoder. Whole tiles of plain bytes
    # need only the decoder.
    plain = page.bitspersample == 8 and kind == np.uint8 and not page.is_subsampled
    plain &= page.predictor == page.fillorder == 1
    whole = page.is_tiled and page.tiledepth == 1
    fills = plain and whole and page.compression in FILLING
    fill = tifffile.TIFF.DECOMPRESSORS[page.compression] if fills else None
    shape = (*_segment(page), page.samplesperpixel if page.planarconfig == 1 else 1)
    size = math.prod(shape)

    def samples(data: Any, index: int) -> np.ndarray:
        # Check what a decoder would allocate before it does.
        if not sized and announced(data) > 2 * pixels + (1 << 16):
            raise ValueError(f"its header announces {announced(data)} px")
        if times and pixels > 8 * times * len(data) + (1 << 24):  # 8 px of 1 bit
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
    """List the segments that a window touches along one axis.

    Args:
        start: first pixel of the window.
        size: its pixels.
        segment: pixels of a segment.

    Returns:
        For each segment its index, the slice of it inside the window, and the slice of the window.
    """
    parts = []
    for index in range(start // segment, -(-(start + size) // segment)):
        first = index * segment
        low, high = max(start, first), min(start + size, first + segment)
        parts.append((index, slice(low - first, high - first), slice(low - start, high - start)))
    return parts


def _unchanged(samples: np.ndarray) -> np.ndarray:
    return samples


def _pread(fd: int, count: int, offset: int) -> np.ndarray:
    """Read bytes of a file, uint8 [count]. Raises EOFError if the file ends before."""
    block = np.empty(count, np.uint8)
    done = 0
    while done < count:
        got = os.preadv(fd, [block[done:]], offset + done)
        if not got:
            raise EOFError(f"the file ends {count - done} bytes too early")
        done += got
    return block
