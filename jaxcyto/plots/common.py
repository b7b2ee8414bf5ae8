"""Provide the colors, the loss curves and the saving of figures (PNG)."""

import itertools
import os

os.environ.setdefault("MPLBACKEND", "agg")

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from jaxcyto.utils.files import atomic_write

# colors of Okabe and Ito, which can be distinguished with any color vision
BLUE, ORANGE, GREEN, RED, GRAY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#999999"


def save_figures(folder: Path, figures: dict[str, Figure]) -> None:
    """Write figures as PNG files and close them.

    Args:
        folder: output folder, created if missing.
        figures: figures by file name.
    """
    folder.mkdir(exist_ok=True)
    for name, figure in figures.items():
        with atomic_write(folder / name) as file:
            figure.savefig(file, format="png", dpi=120, bbox_inches="tight")
        plt.close(figure)


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Return the running mean [N] over the last `window` values, over fewer at the start."""
    total = np.cumsum(np.concatenate([[0.0], values]))
    end = np.arange(1, len(values) + 1)
    start = np.maximum(0, end - window)
    return (total[end] - total[start]) / (end - start)


Panel = tuple[str, list[tuple[str, str, str]]]  # title and curves (key, label, color)


def error_panel(title: str, key: str) -> Panel:
    """Describe a panel with the curves of an error in training and validation."""
    curves = [
        (f"train/{key}", "training batch", GRAY),
        (f"val/{key}", "validation", BLUE),
        (f"val_train_mode/{key}", "validation, batch statistics", ORANGE),
    ]
    return title, curves


def loss_curves(lines: list[dict[str, Any]], panels: list[Panel]) -> Figure:
    """Plot the loss terms by step, with the given panels beside them.

    Args:
        lines: lines of metrics.jsonl.
        panels: further panels.
    """

    def series(key: str) -> tuple[np.ndarray, np.ndarray]:
        points = [(line["step"], line[key]) for line in lines if key in line]
        return np.array([x for x, _ in points]), np.array([y for _, y in points])

    terms = sorted({key for line in lines for key in line if key.startswith("train/loss/")})
    colors = zip(terms, itertools.cycle((BLUE, ORANGE, GREEN, RED)), strict=False)
    losses = [(key, key.split("/")[-1], color) for key, color in colors]
    panels = [("loss", [("train/loss", "total", GRAY), *losses]), *panels]
    figure, axes = plt.subplots(1, len(panels), figsize=(13, 3.8), layout="constrained")
    for axis, (title, curves) in zip(axes, panels, strict=True):
        for key, label, color in curves:
            steps, values = series(key)
            if not len(steps):
                continue
            if key.startswith("train/"):
                axis.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
                axis.plot(steps, smooth(values, 10), color=color, label=label)
            else:
                axis.plot(steps, values, "o-", color=color, label=label, markersize=4)
        axis.set(xlabel="step", title=title)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    return figure
