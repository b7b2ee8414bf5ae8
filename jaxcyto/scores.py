"""Scores of predicted classes: together, by class, section by section; as plain values and text."""

from typing import Any

import numpy as np

from jaxcyto import metrics
from jaxcyto.brain.manifest import AreaClass
from jaxcyto.brain.sections.label_image import UNLABELED


def scores(confusion: np.ndarray, classes: tuple[AreaClass, ...]) -> dict[str, Any]:
    """`metrics.segmentation_scores` by the classes of a brain."""
    names, areas = [c.name for c in classes], [c.kind == "area" for c in classes]
    return metrics.segmentation_scores(confusion, names, areas)


def confusion(predicted: np.ndarray, label: np.ndarray, num_classes: int) -> np.ndarray:
    """Annotated pixels by annotated and predicted class, int64 [C, C + 1]; last: no prediction.

    Args:
        predicted: uint8 [h, w]; C and above: no prediction.
        label: uint8 [h, w]; 255 = not annotated.
        num_classes: C.
    """
    counted = label != UNLABELED
    columns = np.minimum(predicted[counted].astype(np.int64), num_classes)
    key = label[counted].astype(np.int64) * (num_classes + 1) + columns
    size = num_classes * (num_classes + 1)
    return np.bincount(key, minlength=size).reshape(num_classes, num_classes + 1)


def sum_sections(
    by_section: dict[str, np.ndarray], classes: tuple[AreaClass, ...]
) -> dict[str, Any]:
    """What results.json says of a test, from the confusion matrix [C, C] of each section."""
    total = np.sum(list(by_section.values()), axis=0)
    return {
        "test": scores(total, classes),
        "sections": {name: scores(matrix, classes) for name, matrix in by_section.items()},
        "confusion": total.tolist(),
    }


def scores_table(results: dict[str, Any]) -> str:
    """`sum_sections` as a short table: together, by class, by section."""

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
    for name, found in sections.items():
        lines.append(
            f"  {name:<{width - 2}}{number(found['err_seg_percent'], '.2f'):>12}"
            f"{number(found['dice_macro_areas'], '.3f'):>12}{found['pixels']:>12}"
        )
    return "\n".join(lines)
