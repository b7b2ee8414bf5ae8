"""Choose the sections that an annotator would annotate, so that all areas are shown.

    python benchmarks/evidence/choose_sections.py brains/quickstart --count 6

The choice uses the labels of the training sections alone. Sections are taken one by one. Each is
the one with which the most areas are shown on at least 1 mm2. Of several such sections, it is the
one with the largest sum over areas of the square root of the annotated surface, which prefers areas
that are shown little so far.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from jaxcyto.brain.manifest import read_brain
from jaxcyto.brain.sections.label_image import LABEL_UM, label_counts, open_label

SHOWN_MM2 = 1.0


def choose(mm2: np.ndarray, count: int) -> list[int]:
    """Choose sections greedily.

    Args:
        mm2: annotated surface of each area in each section [S, A], mm2.
        count: number of sections.

    Returns:
        Indices of the sections, in the order of the choice.
    """
    chosen: list[int] = []
    for _ in range(min(count, len(mm2))):
        together = mm2[chosen].sum(axis=0) + mm2

        def value(section: int, together: np.ndarray = together) -> tuple[int, float]:
            shown = together[section]
            return int((shown >= SHOWN_MM2).sum()), float(np.sqrt(shown).sum())

        rest = [section for section in range(len(mm2)) if section not in chosen]
        chosen.append(max(rest, key=value))
    return chosen


def main() -> None:
    """Print the names of the chosen sections, and what they show."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("brain", type=Path)
    parser.add_argument("--count", type=int, default=6)
    options = parser.parse_args()
    brain = read_brain(options.brain)
    areas = [k for k, entry in enumerate(brain.classes) if entry.kind == "area"]
    rows = [row for row in brain.sections if row.split == "train" and row.label is not None]
    counts = [label_counts(open_label(row.label))[areas] for row in rows if row.label]
    mm2 = np.array(counts) * (LABEL_UM / 1000) ** 2
    chosen = sorted(choose(mm2, options.count))
    print(" ".join(rows[k].name for k in chosen))
    for index, surface in zip(areas, mm2[chosen].sum(axis=0), strict=True):
        print(f"{brain.classes[index].name}: {surface:.1f} mm2")


if __name__ == "__main__":
    main()
