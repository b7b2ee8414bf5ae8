"""Read label images, whose pixels are class numbers.

The samples of a label image must be the class numbers themselves. Files that `open_section` would
convert to gray values (palettes, colors, other bit depths, MinIsWhite) are refused, and so are
files with lossy compression.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from jaxcyto.brain.section_table import SectionRow
from jaxcyto.brain.sections.headers import open_tiff
from jaxcyto.brain.sections.section import TIFF_MAGIC, Section, open_section
from jaxcyto.errors import InputError
from jaxcyto.utils.files import open_file

LABEL_UM = 16.0  # pixel size of label and atlas images (the paper: the network's output resolution)
UNLABELED = 255  # value of pixels that are not annotated
BAND_PX = 1 << 22  # pixels of a band of rows, read at once
REMEDY = (
    "write one 8-bit class number for each pixel, as plain gray values (no palette, no colors) in "
    "a TIFF or PNG without lossy compression"
)
# Uncompressed, LZW, deflate (two codes), PackBits, LZMA and zstd (two codes).
LOSSLESS = (1, 5, 8, 32946, 32773, 34925, 34926, 50000)
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
# One class in one block of the output grid. Row and column are those of its first pixel.
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
    """Open a label image, whose outside reads as UNLABELED.

    Raises:
        InputError: the image is not readable, or its samples are not plain class numbers.
    """
    try:
        with open_file(path) as file:
            head = file.read(26)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    if head[:4] in TIFF_MAGIC:
        fault = _tiff_fault(path)
    elif head[:8] == PNG_MAGIC:
        bits, color = head[24:26] if len(head) == 26 else (8, 0)  # IHDR (PNG specification, 11.2.2)
        kinds = {0: "gray", 2: "colors", 3: "a palette", 4: "gray and alpha", 6: "colors"}
        kind = kinds.get(color, "unknown")
        fault = "" if (bits, color) == (8, 0) else f"a PNG with {kind} of {bits} bits"
    else:
        fault = "neither TIFF nor PNG"
    if fault:
        raise InputError(f"{path}: a label image that is {fault}; {REMEDY}")
    return open_section(path, LABEL_UM, UNLABELED)


def label_counts(label: Section) -> np.ndarray:
    """Count the pixels of each value, int64 [256], in bands of rows."""
    height, width = label.shape
    counts = np.zeros(256, np.int64)
    rows = max(1, BAND_PX // width)
    for top in range(0, height, rows):
        band = label.read(top, 0, min(rows, height - top), width)
        counts += Image.fromarray(band).histogram()  # ten times as fast as np.bincount
    return counts


def expected_shape(section_shape: tuple[int, int], pixel_um: float) -> tuple[int, int]:
    """Return the size of the label and atlas images of a section image.

    Args:
        section_shape: (height, width) px of the section image at full resolution.
        pixel_um: its pixel size.

    Returns:
        (height, width) px at LABEL_UM.
    """
    height, width = (max(1, round(side * pixel_um / LABEL_UM)) for side in section_shape)
    return height, width


def same_shape(found: tuple[int, ...], expected: tuple[int, int]) -> bool:
    """Return whether two shapes agree to one pixel on each side.

    The size of a section image need not be a whole multiple of a label pixel.
    """
    return all(abs(a - b) <= 1 for a, b in zip(found, expected, strict=True))


def section_label(row: SectionRow, section_shape: tuple[int, int]) -> Section:
    """Open the label image of a section and check its size.

    Args:
        row: the section, with a label image.
        section_shape: (height, width) px of the section image at full resolution.

    Raises:
        InputError: the file is not a label image (see `open_label`), or has another size than the
            section.
    """
    assert row.label is not None
    label = open_label(row.label)
    height, width = expected_shape(section_shape, row.pixel_um)
    if not same_shape(label.shape, (height, width)):
        raise InputError(
            f"section {row.name}: label {row.label} has {label.shape[0]} x {label.shape[1]} px, "
            f"but {height} x {width} px at {LABEL_UM:g} um fit the image; rasterize the annotation "
            "at that size"
        )
    return label


def check_numbers(row: SectionRow, counts: np.ndarray, num_classes: int) -> None:
    """Check that all values of a label image are classes.

    Args:
        row: the section, for messages.
        counts: pixels of each value [256], see `label_counts`.
        num_classes: number of classes.

    Raises:
        InputError: some values are neither a class nor UNLABELED.
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
    """Reduce labels to a grid `factor` times coarser, by the most frequent class of each block.

    Pixels that are not annotated do not count. Ties go to the lowest class. A block without
    annotated pixels becomes UNLABELED.

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
    for value in np.flatnonzero(present):
        mask = label == value
        rows = np.zeros((height, label.shape[1]), np.uint16)
        count = np.zeros((height, width), np.uint16)
        for shift in range(factor):
            rows += mask[shift::factor]
        for shift in range(factor):
            count += rows[:, shift::factor]
        out[count > most] = value
        np.maximum(most, count, out=most)
    return out


def _tiff_fault(path: Path) -> str:
    """Describe why a TIFF is not a label image. The text is empty if it is one."""
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
    row: SectionRow, label: Section, factor: int, sides: Sequence[int], num_classes: int
) -> list[np.ndarray]:
    """Count the annotated pixels of one section by block and class, for several block sizes.

    The image is read once, in bands of rows.

    Args:
        row: the section, for messages.
        label: its label image.
        factor: label pixels along one side of an output pixel.
        sides: output pixels along one side of a block, for each grid of blocks.
        num_classes: number of classes.

    Returns:
        For each size a BLOCK [K] array, an entry for each class of each annotated block, sorted by
        row, column and class. `section` is 0.

    Raises:
        InputError: the image is damaged, or holds numbers that are not classes.
    """
    height, width = (-(-px // factor) for px in label.shape)  # output pixels
    across = [-(-width // side) for side in sides]
    counts = [
        np.zeros(-(-height // side) * columns * num_classes, np.int64)
        for side, columns in zip(sides, across, strict=True)
    ]
    band = max(1, BAND_PX // (factor**2 * width))  # output rows that are read at once
    x = np.arange(width)
    for top in range(0, height, band):
        rows = min(band, height - top)
        window = label.read(factor * top, 0, factor * rows, factor * width)
        check_numbers(row, np.asarray(Image.fromarray(window).histogram()), num_classes)
        labels = majority(window, factor)
        annotated = labels != UNLABELED
        if not annotated.any():
            continue
        y = np.arange(top, top + rows)[:, None]
        for side, columns, total in zip(sides, across, counts, strict=True):
            # the index of (block, class) for each pixel, if its class were 0
            first = (y // side * columns + x // side) * num_classes
            keys = first[annotated] + labels[annotated]
            low = int(keys.min())
            part = np.bincount(keys - low)
            total[low : low + len(part)] += part
    return [
        _blocks(total, side, columns, num_classes)
        for side, columns, total in zip(sides, across, counts, strict=True)
    ]


def _blocks(counts: np.ndarray, side: int, across: int, num_classes: int) -> np.ndarray:
    """Return the entries of a grid of blocks, `across` blocks wide, that hold a pixel."""
    entries = np.flatnonzero(counts)
    block, number = np.divmod(entries, num_classes)
    blocks = np.zeros(len(entries), BLOCK)
    blocks["row"] = side * (block // across)
    blocks["column"] = side * (block % across)
    blocks["label"] = number
    blocks["count"] = counts[entries]
    return blocks
