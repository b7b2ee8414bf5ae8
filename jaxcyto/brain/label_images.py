"""Label and atlas images: numbers that stand for classes and probabilities, not for grey.

A label image holds class numbers, so it is read only where its samples are the numbers themselves:
nothing that `sections` would turn into grey values (palettes, colours, other depths, MinIsWhite)
and no lossy compression.
"""

from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from jaxcyto.brain.sections import TIFF_MAGIC, Section, open_section
from jaxcyto.brain.tiff_level import tiff_level
from jaxcyto.brain.tiff_pages import check_pages
from jaxcyto.errors import InputError

LABEL_UM = 16.0  # of label and atlas images (the paper: the network's output resolution)
IGNORE = 255  # in label images: not annotated
BAND_PX = 1 << 22  # read at once by `label_counts`
REMEDY = (
    "write one 8-bit class number for each pixel, as plain grey values (no palette, no colours) in "
    "a TIFF or PNG without lossy compression"
)
# Uncompressed, LZW, deflate (2), PackBits, LZMA, zstd (2): what gives back the numbers written.
LOSSLESS = (1, 5, 8, 32946, 32773, 34925, 34926, 50000)
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


def open_label(path: Path) -> Section:
    """Opens a label image; what lies outside of it is IGNORE.

    Raises:
        InputError: not a readable image, or one whose samples are not class numbers as they are.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(26)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    if head[:4] in TIFF_MAGIC:
        found = _tiff_kind(path)
    elif head[:8] == PNG_MAGIC:
        bits, colour = head[24:26] if len(head) == 26 else (8, 0)  # IHDR (PNG, 11.2.2)
        kinds = {0: "grey", 2: "colours", 3: "a palette", 4: "grey and alpha", 6: "colours"}
        kind = kinds.get(colour, "unknown")
        found = "" if (bits, colour) == (8, 0) else f"a PNG with {kind} of {bits} bits"
    else:
        found = "neither TIFF nor PNG"
    if found:
        raise InputError(f"{path}: a label image that is {found}; {REMEDY}")
    return open_section(path, LABEL_UM, IGNORE)


def label_counts(label: Section) -> np.ndarray:
    """How many pixels hold each number, int64 [256]; read in bands of rows."""
    height, width = label.shape
    counts = np.zeros(256, np.int64)
    rows = max(1, BAND_PX // width)
    for top in range(0, height, rows):
        band = label.read(top, 0, min(rows, height - top), width)
        counts += Image.fromarray(band).histogram()  # ten times as fast as np.bincount
    return counts


def atlas_layout(path: Path) -> tuple[int, tuple[int, int]]:
    """Number of 8-bit channels and (height, width) px of an atlas image.

    Channels are the samples of one page (planar or interleaved) or a page each.

    Raises:
        InputError: not a readable TIFF, of another kind, or truncated.
    """
    check_pages(path)
    try:
        with tifffile.TiffFile(path) as tiff:
            series = tiff.series[0]
            axes, shape, dtype = series.axes, series.shape, series.dtype
            pages = [page.aspage() for page in series.pages if page is not None]
            others = [axis for axis in axes if axis not in "YX"]
            if dtype != np.uint8 or len(others) > 1 or not {"Y", "X"} <= set(axes):
                raise InputError(
                    f"{path}: an atlas image of {dtype} {list(shape)} ({axes}); expected uint8 "
                    "with one channel for each area"
                )
            for page in pages:
                tiff_level(path, page, None)  # finds tiles beyond the end of the file
            sizes = dict(zip(axes, shape, strict=True))
            return sizes.get(others[0], 1) if others else 1, (sizes["Y"], sizes["X"])
    except InputError:
        raise
    except Exception as error:  # a damaged header shows in many ways
        raise InputError(
            f"{path}: not a readable TIFF ({error or type(error).__name__}); an atlas image is a "
            "TIFF with one 8-bit channel for each area: export it again"
        ) from None


def _tiff_kind(path: Path) -> str:
    """What makes a TIFF no label image; empty if nothing does."""
    check_pages(path)
    try:
        with tifffile.TiffFile(path) as tiff:
            page = tiff.series[0].pages[0].aspage()  # pyright: ignore[reportOptionalMemberAccess]
            if page.samplesperpixel != 1 or page.photometric in (2, 6):
                return f"{int(page.samplesperpixel)} samples a pixel"
            if page.photometric == 3:
                return "a palette image"
            if page.photometric != 1:
                return "stored with inverted values"
            if page.dtype != np.uint8 or page.bitspersample != 8:
                return f"{page.dtype} of {page.bitspersample} bits"
            if page.compression not in LOSSLESS:
                return f"compressed with loss ({page.compression!r})"
            return ""
    except Exception as error:
        raise InputError(f"{path}: not a readable TIFF: {error}; export it again") from None
