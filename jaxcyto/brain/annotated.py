"""Where label images are annotated: class counts of blocks, small enough to hold for all sections.

The grid of blocks is that of the network's output: `factor` label pixels make one of its pixels,
`side` of its pixels one side of a block.
"""

import numpy as np
from PIL import Image

from jaxcyto.brain.label_images import BAND_PX, IGNORE, check_numbers, majority
from jaxcyto.brain.section_table import SectionRow
from jaxcyto.brain.sections import Section

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
        annotated = labels != IGNORE
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
