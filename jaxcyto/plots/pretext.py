"""Draw the figures of a pre-training run."""

import os

os.environ.setdefault("MPLBACKEND", "agg")

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from jaxcyto.brain.figures import points_figure
from jaxcyto.data.pair_batches import PairSource
from jaxcyto.data.pair_table import PairTable
from jaxcyto.data.skipping import ReadError
from jaxcyto.plots.common import (
    BLUE,
    GRAY,
    ORANGE,
    error_panel,
    loss_curves,
    save_figures,
)
from jaxcyto.runs.metrics_file import read_metrics


def pretext_figures(
    workdir: Path,
    table: PairTable,
    source: PairSource,
    predictions: dict[str, np.ndarray] | None,
) -> None:
    """Write all figures of a pre-training run to `workdir/figures`.

    Args:
        workdir: run folder.
        table: pairs of the run.
        source: images of the pairs.
        predictions: predictions of P test pairs: `index` [P], `distance_mm` [P] and
            `coordinates_mm` [P, 2, 3].
    """
    figures = {
        "curves.png": loss_curves(
            read_metrics(workdir / "metrics.jsonl"),
            [
                error_panel("distance error, mm", "distance_mae_mm"),
                error_panel("coordinate error, mm", "coordinate_mae_mm"),
            ],
        ),
        "points.png": points_figure(list(zip(table.brains, table.patches, strict=True))),
        "pairs.png": sample_pairs(table, source),
    }
    if predictions is not None:
        figures["distance.png"] = predicted_distance(
            table.distance_mm[predictions["index"]], predictions["distance_mm"]
        )
        index = predictions["index"]
        patches = np.stack([table.first[index], table.second[index]], axis=1)
        figures["coordinates.png"] = predicted_coordinates(
            table.coordinates_mm[patches].reshape(-1, 3),
            predictions["coordinates_mm"].reshape(-1, 3),
        )
    save_figures(workdir / "figures", figures)


def predicted_distance(true_mm: np.ndarray, predicted_mm: np.ndarray) -> Figure:
    """Plot predicted against true distances in mm, with the median and the quartiles."""
    figure, axis = plt.subplots(figsize=(5, 5), layout="constrained")
    # the quantile keeps a few outliers from setting the scale
    top = float(max(np.quantile(predicted_mm, 0.995), true_mm.max()))
    axis.plot([0, top], [0, top], color=GRAY, linewidth=1)
    axis.scatter(true_mm, predicted_mm, s=5, alpha=0.35, color=BLUE, edgecolors="none")
    edges = np.quantile(true_mm, np.linspace(0, 1, 13))
    bins = np.clip(np.searchsorted(edges, true_mm, side="right") - 1, 0, 11)
    middle, quartiles = [], []
    for k in range(12):
        if (bins == k).sum() >= 5:
            middle.append(np.median(true_mm[bins == k]))
            quartiles.append(np.quantile(predicted_mm[bins == k], [0.25, 0.5, 0.75]))
    if middle:
        low, median, high = np.array(quartiles).T
        axis.fill_between(middle, low, high, color=ORANGE, alpha=0.3, label="quartiles")
        axis.plot(middle, median, color=ORANGE, label="median")
        axis.legend(loc="upper left")
    error = np.abs(true_mm - predicted_mm).mean()
    axis.set(
        xlim=(0, top), ylim=(0, top), aspect="equal",
        xlabel="distance along the surface, mm", ylabel="predicted, mm",
        title=f"{len(true_mm)} test pairs, mean error {error:.2f} mm",
    )  # fmt: skip
    return figure


def predicted_coordinates(true_mm: np.ndarray, predicted_mm: np.ndarray) -> Figure:
    """Plot predicted against true coordinates [N, 3] in mm, one panel for each axis."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 4.2), layout="constrained")
    for k, axis in enumerate(axes):
        low, high = true_mm[:, k].min(), true_mm[:, k].max()
        axis.plot([low, high], [low, high], color=GRAY, linewidth=1)
        axis.scatter(
            true_mm[:, k], predicted_mm[:, k], s=5, alpha=0.3, color=BLUE, edgecolors="none"
        )
        error = np.abs(true_mm[:, k] - predicted_mm[:, k]).mean()
        axis.set(
            xlabel=f"{'xyz'[k]}, mm", ylabel="predicted, mm", title=f"mean error {error:.2f} mm"
        )
    return figure


def sample_pairs(table: PairTable, source: PairSource, count: int = 12) -> Figure:
    """Show `count` training pairs from near to far, each with its distance."""
    pairs = table.of_split("train")
    pairs = pairs[np.argsort(table.distance_mm[pairs], kind="stable")]
    pairs = pairs[np.linspace(0, len(pairs) - 1, min(count, len(pairs))).astype(int)]
    columns = 4
    rows = -(-len(pairs) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(12, 1.75 * rows + 0.2), squeeze=False,
                                layout="constrained")  # fmt: skip
    for axis in axes.flat:
        axis.axis("off")
    for axis, pair in zip(axes.flat, pairs, strict=False):
        try:
            left, right = (source.read_patch(int(p[pair])) for p in (table.first, table.second))
        except ReadError as error:  # training is finished and its figures are still useful
            axis.set_title(f"{error.path.name} cannot be read", fontsize=10)
            continue
        gap = np.full((left.shape[0], max(1, left.shape[0] // 16)), 255, np.uint8)
        axis.imshow(np.hstack([left, gap, right]), cmap="gray", vmin=0, vmax=255)
        axis.set_title(f"{table.distance_mm[pair]:.1f} mm", fontsize=10)
    return figure
