"""Score the atlas without a network: what do displaced probabilities alone reach?

    python benchmarks/evidence/atlas_alone.py --config configs/quickstart_segment_atlas.py

Each pixel gets the most probable class of its atlas (`most_probable`). The sections, pixels and
scores are those of the test at the end of a training with the same config. The table is the same,
too. An atlas does not tell white matter from background or other cortex, so compare the Dice of the
areas. The last line on stdout is one JSON object with the content of a results.json.
"""

import argparse
import json
import runpy
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from jaxcyto.brain.manifest import AreaClass
from jaxcyto.brain.sections.label_image import UNLABELED
from jaxcyto.config import SegmentConfig
from jaxcyto.data.segment_batches import SegmentSource
from jaxcyto.data.segment_table import SegmentTable, open_windows
from jaxcyto.errors import InputError
from jaxcyto.scores import confusion, scores_table, sum_sections


def most_probable(atlas: np.ndarray, classes: tuple[AreaClass, ...]) -> np.ndarray:
    """Return the most probable class of each pixel.

    What the probabilities of the areas lack to 1 is the probability of the class of kind
    "background". On ties, the background and then the first area wins.

    Args:
        atlas: uint8 [h, w, A], 255 = probability 1.
        classes: all classes, A of them of kind "area".

    Returns:
        class indices, uint8 [h, w]. Without a class of kind "background", its pixels are UNLABELED.
    """
    kinds = [each.kind for each in classes]
    background = kinds.index("background") if "background" in kinds else UNLABELED
    numbers = [background, *(k for k, kind in enumerate(kinds) if kind == "area")]
    areas = atlas.astype(int)
    rest = 255 - areas.sum(axis=2, keepdims=True)
    return np.array(numbers, np.uint8)[np.concatenate([rest, areas], axis=2).argmax(axis=2)]


def atlas_alone(table: SegmentTable) -> dict[str, Any]:
    """Score the atlas on the test windows of a table.

    Returns:
        The results as `jaxcyto.scores.sum_sections` returns them.

    Raises:
        InputError: no test section is annotated, or an image is damaged.
    """
    source, count = SegmentSource(table), len(table.classes)
    by_section: dict[str, np.ndarray] = {}
    for number in table.of_split("test"):
        window, name = table.window(number), table.section_name(number)
        atlas = table.sections[window.section].atlas
        assert atlas is not None, "the table was opened without atlas"
        found = most_probable(
            atlas.read(window.row, window.column, table.side, table.side), table.classes
        )
        matrix = confusion(found, source.read_label(window), count)
        by_section[name] = by_section.get(name, np.zeros_like(matrix)) + matrix
    if not by_section:
        raise InputError("no annotated section has the split test")
    return sum_sections(by_section, table.classes)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--config", type=Path, required=True, help="a segmentation config")
    arguments = parser.parse_args()
    config = runpy.run_path(str(arguments.config))["get_config"]()
    if not isinstance(config, SegmentConfig) or not config.data.atlas:
        parser.error(f"{arguments.config}: not a segmentation config with data.atlas = True")
    warnings.simplefilter("ignore", UserWarning)  # classes without training pixels
    try:
        results = atlas_alone(open_windows(config.data, config.model))
    except InputError as error:
        raise SystemExit(str(error)) from None
    print(scores_table(results))
    print(json.dumps(results))


if __name__ == "__main__":
    main()
