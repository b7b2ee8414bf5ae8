"""Convert the samples of a TIFF to 8-bit gray values.

Each pixel is converted independently, so values do not depend on the window or the tile:
* More than 8 bits: take the upper 8 of the used bits. The file states them as MaxSampleValue or as
  OME SignificantBits. Without either, all bits count as used. Larger values become 255.
* Fewer than 8 bits: scale so that the largest value becomes 255.
* RGB and palettes: take the luma of ITU-R BT.601, (19595 R + 38470 G + 7471 B + 32768) >> 16, and
  ignore alpha and other extra samples. The decoder converts JPEG's YCbCr to RGB before.
* MinIsWhite: invert.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from jaxcyto.errors import InputError

# Compressions whose decoder needs the JPEG tables, which a TIFF stores apart from the tiles.
JPEG = (6, 7, 34892, 33007)

Gray = Callable[[np.ndarray], np.ndarray]


def gray_rule(
    path: Path, page: tifffile.TiffPage, bits_used: int | None
) -> tuple[Gray | None, int]:
    """Choose the conversion of one page.

    Args:
        path: the file, for messages.
        page: the page.
        bits_used: the bits of a sample in use by the file's metadata, None if not stated.

    Returns:
        The function from samples [h, w, samples] to gray values uint8 [h, w], or None if the first
        sample is the gray value. And the number of separate planes that it needs.

    Raises:
        InputError: samples of a type, a color space or a compression that is not supported.
    """
    photometric, bits, dtype = int(page.photometric), page.bitspersample, page.dtype
    if not isinstance(bits, int) or bits > 16 or dtype is None or dtype.kind not in "ub":
        raise InputError(
            f"{path}: {dtype} samples of {bits} bits; convert it to 8 or 16 bits without sign"
        )
    if (
        photometric not in (0, 1, 2, 3, 6) or page.compression == 33003
    ):  # 33003: Aperio's YCbCr JPEG 2000
        raise InputError(f"{path}: colors are {page.photometric!r}; convert it to gray or RGB")
    if photometric == 6 and page.compression not in JPEG:
        raise InputError(f"{path}: YCbCr that is not JPEG; convert it to gray or RGB")
    eight = _eight_bits(page, bits, bits_used)
    if photometric in (2, 6):  # RGB, YCbCr
        if page.samplesperpixel < 3:
            raise InputError(f"{path}: RGB with {page.samplesperpixel} samples; it is damaged")
        return (luma if eight is None else lambda samples: luma(eight(samples[:, :, :3]))), 3
    if photometric == 3:  # palette
        colormap = page.colormap
        if colormap is None or colormap.ndim != 2 or colormap.shape[1] < 1 << bits:
            raise InputError(f"{path}: a palette image without its whole palette; it is damaged")
        table = luma((np.asarray(colormap).T >> 8).astype(np.uint8)[None])[0]
        return lambda samples: table[samples[:, :, 0].astype(np.uint16)], 1
    if photometric == 0:  # MinIsWhite
        return lambda samples: ~(samples if eight is None else eight(samples))[:, :, 0], 1
    return (None if eight is None else lambda samples: eight(samples[:, :, 0])), 1


def _eight_bits(page: tifffile.TiffPage, bits: int, bits_used: int | None) -> Gray | None:
    """Return the conversion of samples of `bits` bits to uint8, None if they have 8 bits."""
    if bits == 8:
        return None
    if bits < 8:
        table = np.full(
            256, 255, np.uint8
        )  # for values over the largest, which a decoder may return
        table[: 1 << bits] = np.round(np.arange(1 << bits) * (255 / ((1 << bits) - 1)))
        return lambda samples: table[samples.astype(np.uint8)]
    stated = page.tags.valueof(281)  # MaxSampleValue
    if stated:
        bits_used = int(np.max(stated)).bit_length()
    used = min(max(bits_used or bits, 8), bits)
    if used == bits:
        return lambda samples: (samples >> (bits - 8)).astype(np.uint8)
    return lambda samples: np.minimum(samples >> (used - 8), 255).astype(np.uint8)


def luma(rgb: np.ndarray) -> np.ndarray:
    """Return the luma of RGB samples by Pillow's integer form of the BT.601 weights.

    Args:
        rgb: uint8 [h, w, 3 or more]. Samples after the third are ignored.

    Returns:
        uint8 [h, w].
    """
    return np.asarray(Image.fromarray(np.ascontiguousarray(rgb[:, :, :3])).convert("L"))
