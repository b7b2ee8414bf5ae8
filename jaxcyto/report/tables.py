"""Build the tables of errors, scores and confusion matrices."""

from pathlib import Path
from typing import Any

import numpy as np

from jaxcyto.brain.manifest import AreaClass
from jaxcyto.report.charts import points_chart
from jaxcyto.report.gather import Gathered, Scores
from jaxcyto.report.html import Content, Html, count, hint, number, scrolled, table, tag
from jaxcyto.runs.pair_predictions import read_predictions

NUMBERED = 30  # most classes for which the cells of a confusion matrix hold numbers
STRONG = 66.5  # %, above which the text of a cell changes color to stay legible (style.css)
CONFUSIONS = 8  # listed mistakes
ROWS = 40  # a table with more rows is folded at first


def errors(gathered: Gathered) -> Content:
    """Show the test errors of pre-training, or the scores of segmentation."""
    if "scores" in gathered.missing:
        return hint(gathered.missing.get("scores"))
    if gathered.task == "pretraining":
        return [_pretraining(gathered), _predictions(gathered)]
    first, *others = gathered.scores
    shown: list[Content] = [
        _summary(gathered.scores),
        tag("h3", first.title),
        _details(first, gathered.classes),
    ]
    for scores in others:
        content = _details(scores, gathered.classes)
        shown.append(tag("details", tag("summary", f"{scores.title}: the same tables"), content))
    return shown


def _predictions(gathered: Gathered) -> Content:
    predictions = read_predictions(Path(gathered.path))
    if predictions is None:
        return hint(gathered.missing.get("predictions"))
    charts = [
        points_chart(
            "Distance", predictions["distance_mm"], predictions["predicted_distance_mm"], "mm"
        ),
    ]
    x = "|x|" if gathered.config["data"].get("absolute_x") else "x"
    true, predicted = (
        predictions[key].reshape(-1, 3) for key in ("coordinates_mm", "predicted_coordinates_mm")
    )
    for axis, name in enumerate((x, "y", "z")):
        charts.append(points_chart(f"Position {name}", true[:, axis], predicted[:, axis], "mm"))
    return [tag("h3", "Predicted and true"), tag("div", charts, class_="charts small")]


def _pretraining(gathered: Gathered) -> Html:
    """Compare the test errors with constants, and show correlation and calibration."""
    test, batch = gathered.test or {}, gathered.test_train_mode or {}
    x = "|x|" if gathered.config["data"].get("absolute_x") else "x"

    def row(name: Any, target: str, axis: int | None = None) -> list[Any]:
        suffix = "" if axis is None else "_per_axis"
        mae = f"{target}_mae_mm{suffix}"

        def value(key: str, entries: dict[str, Any] = test) -> float | None:
            found = entries.get(key)
            return found[axis] if axis is not None and found is not None else found

        error, constant = value(mae), value(f"{mae}_constant")
        change = None
        if error is not None and constant:
            change = 100 * (error / constant - 1)
        return [
            name,
            number(error),
            number(constant),
            number(change, "+.0f"),
            number(value(f"{mae}_own_constant")),
            number(value(f"{mae}_recalibrated")),
            number(value(f"{target}_correlation{suffix}")),
            number(value(f"{target}_spread{suffix}")),
            number(value(mae, batch)),
        ]

    rows = [
        row("Distance", "distance"),
        row("Position", "coordinate"),
        *(
            row(tag("span", name, class_="inner"), "coordinate", axis)
            for axis, name in enumerate((x, "y", "z"))
        ),
    ]
    head = [
        "Mean error",
        "Network, mm",
        "Constant, mm",
        "Change, %",
        "Own constant, mm",
        "Recalibrated, mm",
        "Correlation",
        "Spread",
        "Batch statistics, mm",
    ]
    note = (
        "Errors on all test pairs. Constant is the error of always predicting the training "
        "median, and Own constant that of the test pairs' own median (for positions, geometric "
        "medians). Recalibrated is the error after the least-squares line from predictions to "
        "truth, fitted to the test pairs. Spread is the standard deviation of the predictions, "
        "relative to that of the truth. Batch statistics is the error of the same network when "
        "batch normalization uses the statistics of each test batch."
    )
    return Html(table(head, rows, "Test errors") + tag("p", note, class_="note"))


def _summary(scores: list[Scores]) -> Html:
    """Show one row of scores for each test of a segmentation."""
    rows = [
        [
            entry.title,
            number(entry.test["err_seg_percent"]),
            number(entry.test["dice_macro_areas"], ".3f"),
            number(entry.test["dice_macro"], ".3f"),
            count(entry.test["pixels"]),
        ]
        for entry in scores
    ]
    head = ["Test", "Wrong, %", "Dice, mean of areas", "Dice, mean of classes", "Annotated px"]
    return table(head, rows, "Scores")


def _details(scores: Scores, classes: tuple[AreaClass, ...]) -> list[Html | None]:
    """Show the scores by class and by section, the confusion matrix and the main mistakes."""
    if len(classes) != len(scores.confusion):
        # the classes of the run are not those of this test, so only their names are known
        classes = tuple(AreaClass(name, "#999999", "area") for name in scores.test["dice"])
    matrix = np.array(scores.confusion)
    return [
        _by_class(scores, classes, matrix),
        _confusion(matrix, classes),
        _mistakes(matrix, classes),
        _by_section(scores),
    ]


def swatch(entry: AreaClass) -> Html:
    """Show a class by its color and its name."""
    return Html(
        tag("span", class_="swatch", style=f"background:{entry.color}") + tag("span", entry.name)
    )


def _by_class(scores: Scores, classes: tuple[AreaClass, ...], matrix: np.ndarray) -> Html:
    annotated, predicted = matrix.sum(axis=1).tolist(), matrix.sum(axis=0).tolist()
    rows = []
    for k, entry in enumerate(classes):
        dice = scores.test["dice"].get(entry.name)
        bar = None
        if dice is not None:
            bar = tag("span", class_="bar", style=f"--share:{dice:.3f}", aria_hidden="true")
        cells = [[bar, number(dice, ".3f")], count(annotated[k]), count(predicted[k])]
        rows.append([swatch(entry), *cells])
    head = ["Class", "Dice", "Annotated px", "Predicted px"]
    shown = table(head, rows, "By class")
    note = "A class has no Dice coefficient if no pixel is annotated as this class."
    return Html(shown + tag("p", note, class_="note"))


def _confusion(matrix: np.ndarray, classes: tuple[AreaClass, ...]) -> Html:
    """Show a confusion matrix with annotated classes as rows and predicted ones as columns.

    Cells are percentages of their row. Classes without any pixel are omitted.
    """
    size = len(classes)
    kept = [k for k in range(size) if matrix[k].sum() or matrix[:, k].sum()]
    total = matrix.sum(axis=1, keepdims=True)
    share = 100 * matrix / np.maximum(total, 1)
    columns = [(classes[k].name, k) for k in kept]
    if matrix.shape[1] > size and matrix[:, size].any():
        columns.append(("no prediction", size))
    head = [tag("th", tag("span", name), scope="col") for name, _ in columns]
    body = []
    for k in kept:
        cells = []
        for name, j in columns:
            value = share[k, j]
            title = f"{classes[k].name} predicted as {name}: {number(value, '.1f')} %"
            text = number(value, ".0f") if value >= 0.5 and len(kept) <= NUMBERED else None
            style = f"--share:{value / 100:.2f}" if value >= 0.5 else None
            strong = "strong" if value > STRONG else None
            cells.append(tag("td", text, style=style, class_=strong, title=title))
        if total[k]:
            body.append(tag("tr", tag("th", classes[k].name, scope="row"), cells))
    corner = tag("td", "annotated ↓ predicted →", class_="corner")
    caption = "Confusion matrix, % of the annotated pixels of each row"
    grid = tag(
        "table",
        tag("caption", caption),
        tag("thead", tag("tr", corner, head)),
        tag("tbody", body),
        class_="confusion" + (" dense" if len(kept) > NUMBERED else ""),
    )
    return scrolled(grid, caption)


def _mistakes(matrix: np.ndarray, classes: tuple[AreaClass, ...]) -> Html | None:
    """List the most frequent mistakes by their number of pixels."""
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    names = [*(entry.name for entry in classes), "no prediction"]
    rows = []
    for flat in np.argsort(-wrong, axis=None, kind="stable")[:CONFUSIONS]:
        i, j = np.unravel_index(flat, wrong.shape)
        if wrong[i, j]:
            of_class = 100 * wrong[i, j] / matrix[i].sum()
            of_wrong = 100 * wrong[i, j] / wrong.sum()
            figures = [count(int(wrong[i, j])), number(of_class, ".1f"), number(of_wrong, ".1f")]
            rows.append([names[i], names[j], *figures])
    if not rows:
        return None
    head = ["Annotated", "Predicted", "px", "% of the class", "% of all wrong px"]
    return table(head, rows, "Most frequent mistakes", text=2)


def _by_section(scores: Scores) -> Html:
    rows = [
        [
            name,
            number(section["err_seg_percent"]),
            number(section["dice_macro_areas"], ".3f"),
            number(section["dice_macro"], ".3f"),
            count(section["pixels"]),
        ]
        for name, section in scores.sections.items()
    ]
    head = ["Section", "Wrong, %", "Dice, mean of areas", "Dice, mean of classes", "Annotated px"]
    shown = table(head, rows, "By section")
    if len(rows) <= ROWS:
        return shown
    return tag("details", tag("summary", f"All {len(rows)} sections"), shown)
