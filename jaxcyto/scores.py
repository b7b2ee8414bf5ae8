"""Score predicted classes as a whole, by class and by section, as plain values and as text."""

from typing import Any

import numpy as np

from jaxcyto import metrics
from jaxcyto.brain.manifest import AreaClass
from jaxcyto.brain.sections.label_image import UNLABELED


def scores(confusion: np.ndarray, classes: tuple[AreaClass, ...]) -> dict[str, Any]:
    """Compute `metrics.segmentation_scores` for the classes of a brain.

    Args:
        confusion: pixel counts [C, C or more], see `metrics.segmentation_scores`.
        classes: the C classes of the brain.
    """
    names, areas = [c.name for c in classes], [c.kind == "area" for c in classes]
    return metrics.segmentation_scores(confusion, names, areas)


def confusion(predicted: np.ndarray, label: np.ndarray, num_classes: int) -> np.ndarray:
    """Count annotated pixels by annotated class (rows) and predicted class (columns).

    Args:
        predicted: class indices, uint8 [h, w]. Values of C and above mean no prediction.
        label: class indices, uint8 [h, w]. 255 means not annotated and is not counted.
        num_classes: C.

    Returns:
        int64 [C, C + 1]. The last column counts pixels without prediction.
    """
    counted = label != UNLABELED
    columns = np.minimum(predicted[counted].astype(np.int64), num_classes)
    key = label[counted].astype(np.int64) * (num_classes + 1) + columns
    size = num_classes * (num_classes + 1)
    return np.bincount(key, minlength=size).reshape(num_classes, num_classes + 1)


def sum_sections(
    by_section: dict[str, np.ndarray], classes: tuple[AreaClass, ...]
) -> dict[str, Any]:
    """Return the test entries of results.json from the confusion matrices of the sections.

    Args:
        by_section: confusion matrix [C, C or C + 1] of each section, by name.
        classes: the C classes.
    """
    total = np.sum(list(by_section.values()), axis=0)
    return {
        "test": scores(total, classes),
        "sections": {name: scores(matrix, classes) for name, matrix in by_section.items()},
        "confusion": total.tolist(),
    }


def scores_table(results: dict[str, Any]) -> str:
    """Format the result of `sum_sections` as a short table: in total, by class and by section."""

    def number(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    total, sections = results["test"], results["sections"]
    width = max(24, *(len(name) + 2 for name in (*total["dice"], *sections)))
    lines = [
        f"{'annotated pixels':<{width}}{total['pixels']:>12}",
        f"{'wrong, %':<{width}}{number(total['err_seg_percent'], '.2f'):>12}",
        f"{'Dice, mean of areas':<{width}}{number(total['dice_macro_areas'], '.3f'):>12}",
        f"{'Dice, mean of classes':<{width}}{number(total['dice_macro'], '.3f'):>12}",
        *(f"  {n:<{width - 2}}{number(v, '.3f'):>12}" for n, v in total["dice"].items()),
        f"{'section':<{width}}{'wrong, %':>12}{'Dice areas':>12}{'pixels':>12}",
    ]
    for name, section in sections.items():
        lines.append(
            f"  {name:<{width - 2}}{number(section['err_seg_percent'], '.2f'):>12}"
            f"{number(section['dice_macro_areas'], '.3f'):>12}{section['pixels']:>12}"
        )
    return "\n".join(lines)
