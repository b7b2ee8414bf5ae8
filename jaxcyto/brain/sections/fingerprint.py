"""Recognize a section image by its content, whatever its file is called and however it is stored.

A fingerprint is a hash of the size of an image and of its gray values in 16 windows at full
resolution, at fixed fractions of height and width. A copy that was renamed, moved or stored again
without loss (with another codec, tiling or pyramid) has the fingerprint of its original. Another
size or one changed pixel inside the windows changes it, so a copy with lossy compression or another
resolution has another. Pixels outside of the windows are not read, and their changes do not show.

Reading decodes some 16 tiles. If compressed strips are long, it takes longer, because a strip is
decoded as a whole for each window in it.
"""

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from jaxcyto.brain.manifest import Brain, SectionRow
from jaxcyto.brain.sections.section import Section
from jaxcyto.errors import InputError

SIDE_PX = 32  # of a window. It rarely touches more than one tile, and reading tiles takes the time.
# Windows lie at multiples of a fifth, so some are in the middle of a section, but none lies on the
# midline, where a coronal section has a gap.
PARTS = 5
THREADS = 4


def fingerprint(section: Section) -> str | None:
    """Return the fingerprint of a section, 32 hexadecimal digits.

    Return None if a window cannot be read, or if all windows together have one gray value. Sections
    of a stack whose images are equally large would share such a fingerprint.
    """
    try:
        height, width = section.shape
        down, across = min(SIDE_PX, height), min(SIDE_PX, width)
        steps = range(1, PARTS)
        windows = [
            section.read((height - down) * y // PARTS, (width - across) * x // PARTS, down, across)
            for y, x in itertools.product(steps, steps)
        ]
    except (InputError, OSError):  # whoever needs the pixels reports the fault
        return None
    grays = b"".join(window.tobytes() for window in windows)
    if grays.count(grays[:1]) == len(grays):
        return None
    return hashlib.sha256(f"{height} {width} ".encode() + grays).hexdigest()[:32]


def brain_fingerprints(brain: Brain, rows: Sequence[SectionRow]) -> dict[str, str | None]:
    """Return the fingerprints of sections of a brain, by BRAIN/SECTION with the folder's name."""

    def of_row(row: SectionRow) -> str | None:
        # An open PNG stays in memory as a whole, so each is closed at once.
        with Section(row.image, row.pixel_um, brain.background, brain.bits) as section:
            return fingerprint(section)

    names = [f"{brain.root.name}/{row.name}" for row in rows]
    with ThreadPoolExecutor(THREADS) as pool:
        return dict(zip(names, pool.map(of_row, rows), strict=True))


def fingerprints(sections: Mapping[str, Section], threads: int = THREADS) -> dict[str, str | None]:
    """Return the fingerprints of open sections by the same keys. Threads compute them."""
    with ThreadPoolExecutor(max(1, threads)) as pool:
        return dict(zip(sections, pool.map(fingerprint, sections.values()), strict=True))
