"""Draw the figures of segmentation: curves, confusion matrices and sections."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from jaxcyto.brain.manifest import AreaClass
from jaxcyto.brain.sections.label_image import UNLABELED
from jaxcyto.plots.common import GRAY, error_panel, loss_curves, save_figures
from jaxcyto.runs.metrics_file import read_metrics

Classes = Sequence[AreaClass]
INSET_SIDE = 0.25  # fraction of the side of the axis
RIGHT, WRONG = "#56B4E9", "#D55E00"  # sky blue and vermilion of Okabe and Ito


def segment_figures(workdir: Path, classes: Classes, confusion: np.ndarray | None) -> None:
    """Write the curves and the confusion matrix of the test to `workdir/figures`.

    Args:
        workdir: run folder.
        classes: classes of the run.
        confusion: confusion matrix of the test in pixels, or None without a test.
    """
    areas = any(entry.kind == "area" for entry in classes)
    dice = ("areas", "dice_macro_areas") if areas else ("classes", "dice_macro")
    panels = [
        error_panel("wrong pixels, %", "err_seg_percent"),
        error_panel(f"Dice, mean of {dice[0]}", dice[1]),
    ]
    lines = read_metrics(workdir / "metrics.jsonl")
    figures = {"curves.png": loss_curves(lines, panels)} if lines else {}  # a head alone has none
    if confusion is not None:
        figures["confusion.png"] = confusion_matrices([("test", confusion)], classes)
    save_figures(workdir / "figures", figures)


def confusion_matrices(matrices: Sequence[tuple[str, np.ndarray]], classes: Classes) -> Figure:
    """Draw confusion matrices side by side, such as with and without pre-training.

    Cells show the percentage of the pixels annotated as a class that got each prediction.

    Args:
        matrices: pairs of a title and a matrix [C, C or more] of pixel counts, with annotated
            classes as rows and predicted ones as columns.
        classes: the C classes.
    """
    count, names = len(classes), [entry.name for entry in classes]
    side = 2.2 + 0.42 * count
    figure, axes = plt.subplots(
        1, len(matrices), figsize=(side * len(matrices) + 0.6, side), squeeze=False,
        sharey=True, layout="constrained",
    )  # fmt: skip
    for axis, (title, matrix) in zip(axes[0], matrices, strict=True):
        total = matrix.sum(axis=1, keepdims=True)
        share = np.where(total > 0, 100 * matrix / np.maximum(total, 1), np.nan)
        wrong = 100 * (1 - np.trace(matrix) / max(1, matrix.sum()))
        axis.imshow(share[:, :count], cmap="Blues", vmin=0, vmax=100)
        for i in range(count):
            for j in range(count):
                if share[i, j] >= 0.5:  # also false for classes without a pixel
                    color = "white" if share[i, j] > 55 else "black"
                    text = f"{share[i, j]:.0f}"
                    axis.text(j, i, text, ha="center", va="center", color=color, fontsize=8)
        axis.set_xticks(range(count), names, rotation=60, ha="right", rotation_mode="anchor")
        axis.set_yticks(range(count), names)
        axis.set(xlabel="predicted", title=f"{title}: {wrong:.1f} % wrong")
    axes[0, 0].set_ylabel("annotated")
    shown = axes[0, 0].images[0]
    figure.colorbar(shown, ax=axes[0].tolist(), label="% of the annotated pixels", shrink=0.7)
    return figure


def section_figure(
    tissue: np.ndarray, label: np.ndarray, predicted: np.ndarray, classes: Classes
) -> Figure:
    """Draw the annotation, the prediction and the differences of a section side by side.

    Args:
        tissue: gray image, uint8 [h, w].
        label: annotated classes, uint8 [h, w], with 255 where not annotated.
        predicted: predicted classes, uint8 [h, w], with 255 where not predicted.
        classes: names and colors.
    """
    height, width = tissue.shape
    across = 5.2
    figure, axes = plt.subplots(
        1, 3, figsize=(3 * across, across * height / width + 1.5), layout="constrained"
    )
    annotated = label != UNLABELED
    wrong = annotated & (label != predicted)
    differences = fill(fill(tissue, annotated & ~wrong, RIGHT), wrong, WRONG)
    for axis, image, caption in zip(
        axes,
        (outline(tissue, label, classes), outline(tissue, predicted, classes), differences),
        ("annotation", "prediction", "right and wrong, where annotated"),
        strict=True,
    ):
        axis.imshow(image, interpolation="nearest")
        axis.set_title(caption)
        axis.axis("off")
    if not annotated.all():
        paper = [k for k, entry in enumerate(classes) if entry.kind == "background"]
        _inset(axes[1], outline(tissue, label, classes), annotated, ~np.isin(predicted, paper))
    seen = np.union1d(label[annotated], predicted[predicted != UNLABELED])
    colors = [(classes[k].color, classes[k].name) for k in seen]
    colors += [(RIGHT, "right"), (WRONG, "wrong")]
    handles = [Patch(facecolor=color, label=name, edgecolor=GRAY) for color, name in colors]
    figure.legend(handles=handles, loc="outside lower center", ncols=8, fontsize=9, frameon=False)
    return figure


def fill(image: np.ndarray, where: np.ndarray, color: str, strength: float = 0.55) -> np.ndarray:
    """Color an image where a mask is true.

    Args:
        image: gray [h, w] or RGB [h, w, 3], uint8.
        where: mask, bool [h, w].
        color: any matplotlib color.
        strength: opacity of the color, 0 ... 1.

    Returns:
        RGB image, uint8 [h, w, 3].
    """
    rgb = image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)
    rgb = rgb.copy()
    tint = 255 * np.array(to_rgb(color))
    rgb[where] = (1 - strength) * rgb[where] + strength * tint
    return rgb


def outline(
    tissue: np.ndarray, label: np.ndarray, classes: Classes, strength: float = 0.25
) -> np.ndarray:
    """Draw classes over tissue as tints with opaque border pixels.

    Pixels without a label (255) and classes of kind "background" stay gray.

    Args:
        tissue: gray image, uint8 [h, w].
        label: classes, uint8 [h, w].
        classes: names and colors.
        strength: opacity of the tint, 0 ... 1.

    Returns:
        RGB image, uint8 [h, w, 3].
    """
    rgb = np.repeat(tissue[..., None], 3, axis=2)
    border = borders(label)
    for index, entry in enumerate(classes):
        if entry.kind == "background":
            continue
        inside = label == index
        rgb = fill(rgb, inside, entry.color, strength)
        rgb = fill(rgb, inside & border, entry.color, 1.0)
    return rgb


def borders(label: np.ndarray) -> np.ndarray:
    """Return which pixels [h, w] have a 4-neighbor of another class, bool [h, w]."""
    border = np.zeros(label.shape, bool)
    for axis in (0, 1):
        differs = np.diff(label.astype(np.int16), axis=axis) != 0
        border |= np.insert(differs, 0, False, axis=axis)
        border |= np.insert(differs, differs.shape[axis], False, axis=axis)
    return border


def _inset(axis: Axes, image: np.ndarray, annotated: np.ndarray, used: np.ndarray) -> None:
    """Show the annotated part of an image in the corner that covers the fewest used pixels.

    Draw nothing if the annotation spans more than half of the image, because the inset would show
    it smaller. `used` is a mask, bool [h, w].
    """
    rows, columns = (np.flatnonzero(annotated.any(axis=k)) for k in (1, 0))
    if not len(rows):
        return
    part = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    if part[..., 0].size > 0.5 * annotated.size:
        return
    side = INSET_SIDE
    height, width = (round(side * size) for size in used.shape)
    corners = {(x, y): used[-height:] if y == 0 else used[:height] for x in (0, 1) for y in (0, 1)}
    covered = {
        (x, y): (band[:, :width] if x == 0 else band[:, -width:]).sum()
        for (x, y), band in corners.items()
    }
    x, y = min(covered, key=lambda corner: covered[corner])
    inset = axis.inset_axes((x * (1 - side), y * (1 - side), side, side))
    inset.imshow(part, interpolation="nearest")
    inset.set(xticks=[], yticks=[])
    inset.set_xlabel("annotation", fontsize=7, labelpad=1)
