"""Label images: numbers that stand for classes, not for gray.

A label image holds class numbers, so it is read only where its samples are the numbers themselves:
nothing that `sections` would turn into gray values (palettes, colors, other depths, MinIsWhite)
and no lossy compression.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from jaxcyto.brain.section_table import SectionRow
from jaxcyto.brain.sections.headers import open_tiff
from jaxcyto.brain.sections.section import TIFF_MAGIC, Section, open_section
from jaxcyto.errors import InputError
from jaxcyto.utils.files import open_file

LABEL_UM = 16.0  # of label and atlas images (the paper: the network's output resolution)
UNLABELED = 255  # in label images: not annotated
BAND_PX = 1 << 22  # read at once by `label_counts`
REMEDY = (
    "write one 8-bit class number for each pixel, as plain gray values (no palette, no colors) in "
    "a TIFF or PNG without lossy compression"
)
# Uncompressed, LZW, deflate (2), PackBits, LZMA, zstd (2): what gives back the numbers written.
LOSSLESS = (1, 5, 8, 32946, 32773, 34925, 34926, 50000)
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
# One class in one block; row and column of the block's first pixel.
BLOCK = np.dtype(
    [
        ("section", np.int32),
        ("row", np.int32),
        ("column", np.int32),
        ("label", np.uint8),
        ("count", np.int32),  # pixels of the output grid
    ]
)


def open_label(path: Path) -> Section:
    """Opens a label image; what lies outside of it is UNLABELED.

    Raises:
        InputError: not a readable image, or one whose samples are not class numbers as they are.
    """
    try:
        with open_file(path) as file:
            head = file.read(26)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    if head[:4] in TIFF_MAGIC:
        found = _tiff_kind(path)
    elif head[:8] == PNG_MAGIC:
        bits, color = head[24:26] if len(head) == 26 else (8, 0)  # IHDR (PNG, 11.2.2)
        kinds = {0: "gray", 2: "colors", 3: "a palette", 4: "gray and alpha", 6: "colors"}
        kind = kinds.get(color, "unknown")
        found = "" if (bits, color) == (8, 0) else f"a PNG with {kind} of {bits} bits"
    else:
        found = "neither TIFF nor PNG"
    if found:
        raise InputError(f"{path}: a label image that is {found}; {REMEDY}")
    return open_section(path, LABEL_UM, UNLABELED)


def label_counts(label: Section) -> np.ndarray:
    """How many pixels hold each number, int64 [256]; read in bands of rows."""
    height, width = label.shape
    counts = np.zeros(256, np.int64)
    rows = max(1, BAND_PX // width)
    for top in range(0, height, rows):
        band = label.read(top, 0, min(rows, height - top), width)
        counts += Image.fromarray(band).histogram()  # ten times as fast as np.bincount
    return counts


def expected_shape(section_shape: tuple[int, int], pixel_um: float) -> tuple[int, int]:
    """(height, width) px of the label and atlas images that a section image calls for."""
    height, width = (max(1, round(side * pixel_um / LABEL_UM)) for side in section_shape)
    return height, width


def same_shape(found: tuple[int, ...], expected: tuple[int, int]) -> bool:
    """To one pixel: images need not be whole multiples of a label pixel."""
    return all(abs(a - b) <= 1 for a, b in zip(found, expected, strict=True))


def section_label(row: SectionRow, section_shape: tuple[int, int]) -> Section:
    """Opens the label image of a section whose image has this shape.

    Raises:
        InputError: not a label image (see `open_label`), or of another size than the section.
    """
    assert row.label is not None
    label = open_label(row.label)
    height, width = expected_shape(section_shape, row.pixel_um)
    if not same_shape(label.shape, (height, width)):
        raise InputError(
            f"section {row.name}: label {row.label} has {label.shape[0]} x {label.shape[1]} px, "
            f"but the image calls for {height} x {width} px at {LABEL_UM:g} um; rasterize the "
            "annotation at that size"
        )
    return label


def check_numbers(row: SectionRow, counts: np.ndarray, num_classes: int) -> None:
    """Of a label image that holds these numbers (see `label_counts`).

    Raises:
        InputError: some are not classes.
    """
    unknown = [n for n in np.flatnonzero(counts[:UNLABELED]).tolist() if n >= num_classes]
    if unknown:
        known = f"0 ... {num_classes - 1} and " if num_classes else ""
        raise InputError(
            f"section {row.name}: label {row.label} holds {unknown[:8]}, but brain.toml lists "
            f"{num_classes} classes ({known}{UNLABELED} = not annotated are known); add the "
            "classes or correct the image"
        )


def majority(label: np.ndarray, factor: int) -> np.ndarray:
    """Labels on a grid `factor` times coarser: the most frequent class of each block.

    Pixels that are not annotated do not count; of classes equally frequent the lowest is taken; a
    block without annotated pixels is UNLABELED.

    Args:
        label: uint8 [factor * h, factor * w].
        factor: side of a block, px.

    Returns:
        uint8 [h, w].
    """
    if factor == 1:
        return label
    height, width = (side // factor for side in label.shape)
    out = np.full((height, width), UNLABELED, np.uint8)
    most = np.zeros((height, width), np.uint16)
    present = np.asarray(Image.fromarray(label).histogram())[:UNLABELED]
    for number in np.flatnonzero(present):
        found = label == number
        rows = np.zeros((height, label.shape[1]), np.uint16)
        count = np.zeros((height, width), np.uint16)
        for shift in range(factor):
            rows += found[shift::factor]
        for shift in range(factor):
            count += rows[:, shift::factor]
        out[count > most] = number
        np.maximum(most, count, out=most)
    return out


def _tiff_kind(path: Path) -> str:
    """What makes a TIFF no label image; empty if nothing does."""
    try:
        with open_tiff(path) as tiff:
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
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{path}: not a readable TIFF: {error}; export it again") from None


def annotated_blocks(
    row: SectionRow, label: Section, factor: int, side: int, num_classes: int
) -> np.ndarray:
    """The annotated blocks of one section, in order of row, column and class.

    Read once, in bands of rows.

    Returns:
        BLOCK [K], an entry for each class of each block; `section` is 0.

    Raises:
        InputError: the image is damaged, or holds numbers that are no classes.
    """
    height, width = label.shape
    down, across = -(-height // (factor * side)), -(-width // (factor * side))
    block_px = (factor * side) ** 2
    band = side * min(down, max(1, BAND_PX // (block_px * across)))  # rows of the output grid
    # (block, class) as one number, in the order wanted; of class 0 at each pixel of a band
    y, x = np.arange(band)[:, None] // side, np.arange(side * across) // side
    first_key = (y * across + x) * num_classes
    found = []
    for top in range(0, down * side, band):
        window = label.read(factor * top, 0, factor * band, factor * side * across)
        check_numbers(row, np.asarray(Image.fromarray(window).histogram()), num_classes)
        labels = majority(window, factor)
        annotated = labels != UNLABELED
        if not annotated.any():
            continue
        counts = np.bincount(first_key[annotated] + labels[annotated])
        entries = np.flatnonzero(counts)
        block, number = np.divmod(entries, num_classes)
        blocks = np.zeros(len(entries), BLOCK)
        blocks["row"] = top + side * (block // across)
        blocks["column"] = side * (block % across)
        blocks["label"] = number
        blocks["count"] = counts[entries]
        found.append(blocks)
    return np.concatenate(found) if found else np.zeros(0, BLOCK)
