"""Draw the figures of docs/results.md that need only the result files."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from benchmarks.evidence.plan import ROWS
from jaxcyto.brain.manifest import AreaClass
from jaxcyto.plots.common import BLUE, GRAY, GREEN, ORANGE, RED, save_figures
from jaxcyto.plots.segmentation import confusion_matrices

Results = dict[tuple[str, str, int], dict[str, Any]]
# Okabe and Ito's colors. Row 1 is gray, because the others are compared with it.
COLORS = dict(zip(ROWS, (GRAY, ORANGE, GREEN, BLUE, "#56B4E9", RED, "#CC79A7"), strict=True))
PICTURES = {  # drawn by pictures.py, which needs the runs
    "results_sections.png": "A test section of the phantom: annotation, segmentation from scratch "
    "and segmentation after pre-training (row 4), 3,000 steps of fine-tuning, seed 0",
    "results_neighbors.png": "Squared distance between averaged features of neighboring patches "
    "(row 4) along the ribbon of consecutive test sections. Ticks mark area borders.",
}


def draw(results: Results, folder: Path) -> dict[str, str]:
    """Draw the figures for which there are results, and save them in `folder`.

    Returns:
        The captions by file name, in the order of the page. They include those of `PICTURES` whose
        files exist.
    """
    figures, captions = {}, {}

    def add(name: str, caption: str, figure: Figure | None) -> None:
        if figure is not None:
            figures[name], captions[name] = figure, caption

    add(
        "results_rows.png",
        "Test scores on the phantom. A point is a seed and a bar is the mean.",
        rows_figure(results, "phantom"),
    )
    add(
        "results_pretext_curves.png",
        "Pre-training on the phantom: validation errors, mean and range over seeds",
        curves_figure(results, "pretext", PRETEXT_CURVES),
    )
    add(
        "results_segment_curves.png",
        "Fine-tuning on the phantom: training loss and validation scores, mean and range over "
        "seeds",
        curves_figure(results, "segment", SEGMENT_CURVES),
    )
    add(
        "results_distance.png",
        "Predicted against true distance of pairs of test patches, seed 0",
        scatter_figure(results),
    )
    add(
        "results_confusion.png",
        "Confusion matrices on the phantom's test sections, all seeds",
        confusion_figure(results),
    )
    add(
        "results_map.png",
        "t-SNE of frozen features of test patches, colored by area, seed 0",
        map_figure(results),
    )
    folder.mkdir(parents=True, exist_ok=True)
    save_figures(folder, figures)
    captions |= {name: text for name, text in PICTURES.items() if (folder / name).exists()}
    return captions  # fmt: skip


def of_kind(results: Results, study: str, row: str, kind: str) -> list[dict[str, Any]]:
    """Return the records of one kind of a row, in the order of seeds."""
    found = sorted((key, value) for key, value in results.items() if key[:2] == (study, row))
    return [kinds[kind] for _, kinds in found if kind in kinds]


def rows_figure(results: Results, study: str) -> Figure | None:
    """Draw Dice, error and k-NN accuracy by row, or return None without a segmentation."""
    panels: list[tuple[str, str, Callable[[dict[str, Any]], float | None]]] = [
        ("Dice, mean of areas", "segment", lambda r: (r["test"] or {}).get("dice_macro_areas")),
        ("wrong pixels, %", "segment", lambda r: (r["test"] or {}).get("err_seg_percent")),
        ("k-NN accuracy of frozen features, %", "probes", lambda r: r["knn"]["accuracy_percent"]),
    ]
    if not any(of_kind(results, study, row, "segment") for row in ROWS):
        return None
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
    for axis, (title, kind, read) in zip(axes, panels, strict=True):
        for position, row in enumerate(ROWS):
            values = [read(record) for record in of_kind(results, study, row, kind)]
            values = [value for value in values if value is not None]
            if values:
                axis.bar(position, np.mean(values), color=COLORS[row], alpha=0.55)
                axis.plot([position] * len(values), values, "o", color="black", markersize=4)
        labels = [f"{row}  {what.title}" for row, what in ROWS.items()]
        axis.set_xticks(range(len(ROWS)), labels, rotation=30, ha="right", fontsize=8)
        axis.set_xlim(-0.6, len(ROWS) - 0.4)
        axis.set_title(title)
        axis.grid(axis="y", alpha=0.3)
    return figure


PRETEXT_CURVES = (
    ("validation, distance error, mm", "val/distance_mae_mm", ("2", "4", "5", "6")),
    ("validation, coordinate error, mm", "val/coordinate_mae_mm", ("3", "4", "5", "6")),
)
SEGMENT_CURVES = (
    ("training loss, with weight decay", "train/loss", tuple(ROWS)),
    ("validation, wrong pixels, %", "val/err_seg_percent", tuple(ROWS)),
    ("validation, Dice of areas", "val/dice_macro_areas", tuple(ROWS)),
)


def curves_figure(
    results: Results, kind: str, panels: Iterable[tuple[str, str, tuple[str, ...]]]
) -> Figure | None:
    """Draw curves of the phantom's rows, mean and range over seeds.

    Args:
        results: all records.
        kind: "pretext" or "segment".
        panels: title, key of the curve and rows of each panel.

    Returns:
        The figure, or None if there is no curve.
    """
    panels = tuple(panels)
    figure, axes = plt.subplots(1, len(panels), figsize=(5.2 * len(panels), 3.8),
                                layout="constrained", squeeze=False)  # fmt: skip
    drawn = False
    for axis, (title, key, rows) in zip(axes[0], panels, strict=True):
        for row in rows:
            series = [r["curves"].get(key) for r in of_kind(results, "phantom", row, kind)]
            series = [np.array(one) for one in series if one]
            if not series:
                continue
            length = min(len(one) for one in series)
            steps, values = series[0][:length, 0], np.stack([one[:length, 1] for one in series])
            axis.plot(steps, values.mean(0), color=COLORS[row], label=f"{row} {ROWS[row].title}")
            axis.fill_between(
                steps, values.min(0), values.max(0), color=COLORS[row], alpha=0.15, linewidth=0
            )
            drawn = True
        axis.set(xlabel="step", title=title)
        axis.grid(alpha=0.3)
    if not drawn:
        plt.close(figure)
        return None
    lines = {line.get_label(): line for axis in axes[0] for line in axis.lines}
    names = sorted(lines, key=str)  # by row
    figure.legend([lines[name] for name in names], names, loc="outside lower center", ncols=4,
                  fontsize=8, frameon=False)  # fmt: skip
    return figure


def scatter_figure(results: Results) -> Figure | None:
    """Draw predicted against true distance for the rows that learn distances."""
    shown = {}
    for row in ("2", "4", "5", "6"):
        records = of_kind(results, "phantom", row, "probes")
        if records and records[0]["heads"]:
            shown[row] = records[0]["heads"]
    if not shown:
        return None
    figure, axes = plt.subplots(1, len(shown), figsize=(3.6 * len(shown), 3.8), sharey=True,
                                squeeze=False, layout="constrained")  # fmt: skip
    top = max(max(heads["scatter_true_mm"]) for heads in shown.values())
    for axis, (row, heads) in zip(axes[0], shown.items(), strict=True):
        axis.plot([0, top], [0, top], color=GRAY, linewidth=1)
        axis.scatter(
            heads["scatter_true_mm"], heads["scatter_predicted_mm"], s=6, alpha=0.4,
            color=COLORS[row], edgecolors="none",
        )  # fmt: skip
        axis.set(
            xlim=(0, top), ylim=(0, 1.2 * top), xlabel="distance along the cortex, mm",
            title=f"{row} {ROWS[row].title}\nmean error {heads['distance_mae_mm']:.2f} mm",
        )  # fmt: skip
        axis.title.set_fontsize(9)
    axes[0, 0].set_ylabel("predicted, mm")
    return figure


def confusion_figure(results: Results) -> Figure | None:
    """Draw the confusion matrices of rows 1 and 4, summed over seeds."""
    matrices, classes = [], None
    for row in ("1", "4"):
        records = of_kind(results, "phantom", row, "segment")
        records = [record for record in records if record["confusion"]]
        if not records:
            return None
        classes = [AreaClass(**entry) for entry in records[0]["classes"]]
        total = np.sum([np.array(record["confusion"]) for record in records], axis=0)
        matrices.append((f"{row} {ROWS[row].title}", total))
    assert classes is not None
    return confusion_matrices(matrices, classes)


def map_figure(results: Results) -> Figure | None:
    """Draw the t-SNE maps of the features of four rows, colored by area."""
    segmented = [r for row in ROWS for r in of_kind(results, "phantom", row, "segment")]
    shown = {}
    for row in ("1", "4", "6", "7"):
        records = of_kind(results, "phantom", row, "probes")
        if records:
            shown[row] = records[0]["map"]
    if not shown or not segmented:
        return None
    # the palette has changed since the first results, so the newest record has the current colors
    classes = max(segmented, key=lambda record: record["finished"])["classes"]
    figure, axes = plt.subplots(1, len(shown), figsize=(3.4 * len(shown), 4.1), squeeze=False,
                                layout="constrained")  # fmt: skip
    for axis, (row, points) in zip(axes[0], shown.items(), strict=True):
        area, x, y = (np.array(points[key]) for key in ("area", "x", "y"))
        for index, entry in enumerate(classes):
            if (here := area == index).any():
                name = entry["name"]
                axis.scatter(x[here], y[here], color=entry["color"], s=9, label=name)
        axis.set_title(f"{row} {ROWS[row].title}", fontsize=9)
        axis.set_xticks([])
        axis.set_yticks([])
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), fontsize=8,
                  frameon=False, handletextpad=0.1, columnspacing=1.0)  # fmt: skip
    return figure
