"""Build the sections of the page that show training curves and throughput."""

from jaxcyto.report.charts import Curve, curves_chart
from jaxcyto.report.gather import Gathered
from jaxcyto.report.html import Content, Html, count, facts, hint, number, table, tag
from jaxcyto.training.log import duration

KINDS = {
    "train": "training batch",
    "val": "validation",
    "val_train_mode": "validation, batch statistics",
}
ERRORS = {
    "distance_mae_mm": "Distance error, mm",
    "coordinate_mae_mm": "Position error, mm",
    "err_seg_percent": "Wrong pixels, %",
    "dice_macro_areas": "Dice, mean of areas",
    "dice_macro": "Dice, mean of classes",
}


def training(gathered: Gathered) -> Content:
    """Show the loss and the errors by step."""
    curves = gathered.curves
    if not curves:
        return hint(gathered.missing.get("curves"))
    terms = sorted(key for key in curves if key.startswith("train/loss/"))
    panels = {
        "Loss, weighted and with weight decay": {"train/loss": "training batch"},
        "Loss terms, unweighted": {
            key: key.removeprefix("train/loss/").replace("_", " ") for key in terms
        },
    }
    for error, title in ERRORS.items():
        panels[title] = {f"{kind}/{error}": label for kind, label in KINDS.items()}
    charts = []
    for title, named in panels.items():
        shown = [
            Curve(label, *curves[key], dots=not key.startswith("train/"))
            for key, label in named.items()
            if key in curves
        ]
        if shown:
            charts.append(curves_chart(title, shown))
    return [tag("div", charts, class_="charts"), _validations(curves)]


def _validations(curves: dict[str, tuple[list[int], list[float]]]) -> Html | None:
    named = {
        f"{kind}/{error}": f"{title}{', batch statistics' if kind != 'val' else ''}"
        for error, title in ERRORS.items()
        for kind in ("val", "val_train_mode")
    }
    keys = [key for key in named if key in curves]
    steps = sorted({step for key in keys for step in curves[key][0]})
    if not steps:
        return hint("Not validated yet.")
    by_step = {key: dict(zip(*curves[key], strict=True)) for key in keys}
    rows = [
        [count(step), *(number(by_step[key].get(step), ".3f") for key in keys)] for step in steps
    ]
    shown = table(["Step", *(named[key] for key in keys)], rows, "Validations")
    return tag("details", tag("summary", "Validations as a table"), shown)


def throughput(gathered: Gathered) -> Content:
    """Show the training throughput."""
    speed = gathered.throughput
    if speed is None:
        return hint(gathered.missing.get("throughput"))
    named = [
        (f"{speed.unit.capitalize()} per second, median", number(speed.per_second, ".3g")),
        ("Waiting for data, median", f"{number(100 * speed.data_wait_share, '.1f')} %"),
        ("In training steps", duration(speed.seconds_in_steps)),
        ("From the first log line to the last", duration(speed.seconds_logged)),
    ]
    title = f"{speed.unit.capitalize()} per second"
    steps, rates = gathered.curves[f"speed/{speed.unit}_per_second"]
    if len(steps) > 1:  # the first value includes the compilation
        steps, rates = steps[1:], rates[1:]
    chart = curves_chart(title, [Curve("training steps", steps, rates)])
    return [facts(named), tag("div", chart, class_="charts")]
