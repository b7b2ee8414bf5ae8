"""Convert the samples of a TIFF to 8-bit gray values.

Each pixel is converted independently, so values do not depend on the window or the tile:
* More than 8 bits: take the upper 8 of the used bits. `bits` of brain.toml states them, or the file
  does (`stated_bits`). Without either, all bits count as used. Larger values become 255. They are
  not guessed from the values, which would read each section of a brain in its own way.
* Fewer than 8 bits: scale so that the largest value becomes 255.
* RGB and palettes: take the luma of ITU-R BT.601, (19595 R + 38470 G + 7471 B + 32768) >> 16, and
  ignore alpha and other extra samples. The decoder converts JPEG's YCbCr to RGB before.
* MinIsWhite: invert.
"""

import re
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
        bits_used: the bits of a sample in use, None if not stated.

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
    _check_channels(path, page)
    eight = _eight_bits(bits, bits_used)
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


def stated_bits(page: tifffile.TiffPage, ome: str) -> int | None:
    """Return how many bits of a sample are in use by the file, None if it does not state it.

    Args:
        page: the first page, which may have a MaxSampleValue.
        ome: the OME-XML, which may have SignificantBits. Empty if there is none.
    """
    largest = page.tags.valueof(281)  # MaxSampleValue
    if largest:
        return int(np.max(largest)).bit_length()
    found = re.search(r'SignificantBits="(\d+)"', ome)
    return int(found[1]) if found else None


def used_bits(bits_used: int | None, bits: int) -> int:
    """Return how many of `bits` bits to take as used, where `bits_used` are stated."""
    return min(max(bits_used or bits, 8), bits)


def _check_channels(path: Path, page: tifffile.TiffPage) -> None:
    """Raise InputError if a page holds channels, which are neither gray nor RGB.

    One sample more than gray or RGB need is taken for alpha, which is ignored. Two samples of which
    the second is not said to be alpha are two channels.
    """
    needed = 3 if int(page.photometric) in (2, 6) else 1
    extra = page.samplesperpixel - needed
    if extra > 1 or (extra == 1 == needed and not any(page.extrasamples)):
        raise InputError(
            f"{path}: {page.samplesperpixel} channels in one page, and a section has one gray "
            "channel or RGB; export the stained channel as a gray image of its own"
        )


def _eight_bits(bits: int, bits_used: int | None) -> Gray | None:
    """Return the conversion of samples of `bits` bits to uint8, None if they have 8 bits."""
    if bits == 8:
        return None
    if bits < 8:
        table = np.full(
            256, 255, np.uint8
        )  # for values over the largest, which a decoder may return
        table[: 1 << bits] = np.round(np.arange(1 << bits) * (255 / ((1 << bits) - 1)))
        return lambda samples: table[samples.astype(np.uint8)]
    used = used_bits(bits_used, bits)
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
