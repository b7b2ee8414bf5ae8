"""How the samples of a TIFF become 8-bit gray values.

The rule is for every pixel alone, so that values depend on no window and no tile:
* more than 8 bits: the upper 8 bits of those that the file says it uses (MaxSampleValue, or OME
  SignificantBits; all of them if it says nothing), larger values 255;
* fewer than 8 bits: scaled so that the largest value is 255;
* RGB and palettes: luma by ITU-R BT.601, (19595 R + 38470 G + 7471 B + 32768) >> 16; alpha and
  other extra samples are left out; JPEG's YCbCr is first turned to RGB by the decoder;
* MinIsWhite: inverted.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from jaxcyto.errors import InputError

JPEG = (6, 7, 34892, 33007)  # compressions whose decoder takes tables apart from the data

Gray = Callable[[np.ndarray], np.ndarray]


def gray_rule(
    path: Path, page: tifffile.TiffPage, bits_used: int | None
) -> tuple[Gray | None, int]:
    """The rule for one page (None: its samples are the gray values), and how many planes it needs.

    Raises:
        InputError: a kind of image that has no gray value here.
    """
    photometric, bits, dtype = int(page.photometric), page.bitspersample, page.dtype
    if not isinstance(bits, int) or bits > 16 or dtype is None or dtype.kind not in "ub":
        raise InputError(
            f"{path}: {dtype} samples of {bits} bits; convert it to 8 or 16 bits without sign"
        )
    if photometric not in (0, 1, 2, 3, 6) or page.compression == 33003:  # Aperio's YCbCr JPEG 2000
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
    """Samples of `bits` bits -> uint8; None where they are that already."""
    if bits == 8:
        return None
    if bits < 8:
        table = np.full(256, 255, np.uint8)  # larger values, as a decoder may find them, 255
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
    """uint8 [h, w, 3 or more] -> uint8 [h, w]; Pillow's integer form of the BT.601 weights."""
    return np.asarray(Image.fromarray(np.ascontiguousarray(rgb[:, :, :3])).convert("L"))
