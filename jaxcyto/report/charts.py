"""Draw curves and scatter plots as SVG in the style of the page.

Coordinates are px in the view box of the SVG, which the page scales. Colors are classes of
style.css, so they follow the light or dark color scheme. Curves also differ in their dashes.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxcyto.plots.common import smooth
from jaxcyto.report.html import Html, count, number, tag

WIDTH, HEIGHT = 460, 236
LEFT, RIGHT, TOP, BOTTOM = 40, 6, 8, 24
SMOOTHED = 10  # values averaged, or a tenth of all if there are fewer than a hundred
MOST_POINTS = 400  # of a curve, because more cannot be distinguished at this size
MOST_DOTS = 2000  # of a scatter plot


class Curve(NamedTuple):
    """A curve of values by step.

    With `dots`, each value is marked. Otherwise, a running mean is drawn over the values.
    """

    label: str
    steps: Sequence[int]
    values: Sequence[float]
    dots: bool = False


def curves_chart(title: str, curves: Sequence[Curve]) -> Html:
    """Draw curves by step with a legend above them. The y axis includes 0."""
    curves = [curve for curve in curves if len(curve.values)]
    last = max(max(curve.steps) for curve in curves)
    low = min(0.0, *(_extremes(curve)[0] for curve in curves))
    top = max(0.0, *(_extremes(curve)[1] for curve in curves))
    marks = ticks(low, top, 4)
    step = marks[1] - marks[0] if len(marks) > 1 else 1.0
    # extend to the next ticks, unless a value exceeds a tick by less than 2 % of the step
    low, top = step * math.floor(low / step + 0.02), step * math.ceil(top / step - 0.02)
    top = top if top > low else low + step
    frame = _Frame((0, max(last, 1)), (low, top), WIDTH, HEIGHT, TOP)
    drawn: list[Html] = []
    for k, curve in enumerate(curves):
        values = np.clip(curve.values, low, top)
        style = f"curve c{k % 5}"
        if curve.dots:
            drawn.append(tag("path", d=frame.line(curve.steps, values), class_=style))
            drawn.append(tag("path", d=frame.dots(curve.steps, values), class_=f"{style} dot"))
            continue
        steps, window = _thin(np.array(curve.steps)), _window(curve)
        if window > 1:
            drawn.append(tag("path", d=frame.line(steps, _thin(values)), class_=f"{style} raw"))
        mean = _thin(smooth(np.array(curve.values, float), window))
        drawn.append(tag("path", d=frame.line(steps, mean), class_=style))
    spoken = "; ".join(
        f"{curve.label}: {number(curve.values[0], '.3g')} at step {curve.steps[0]}, "
        f"{number(curve.values[-1], '.3g')} at step {curve.steps[-1]}"
        for curve in curves
    )
    legend = tag("ul", [_entry(k, curve) for k, curve in enumerate(curves)], class_="legend")
    svg = frame.svg(f"{title} by step. {spoken}", f"step {count(last)}", "", drawn)
    return tag("figure", tag("figcaption", title), legend, svg, class_="chart")


def points_chart(title: str, true: np.ndarray, predicted: np.ndarray, unit: str) -> Html:
    """Plot predicted against true values, with the line of equality."""
    error = np.abs(true - predicted).mean()
    both = np.concatenate([true, predicted])
    low, high = min(0.0, float(np.quantile(both, 0.002))), float(np.quantile(both, 0.998))
    # the quantiles keep a few outliers from setting the scale
    frame = _Frame((low, high), (low, high), 210, 220, 22)
    chosen = np.linspace(0, len(true) - 1, min(len(true), MOST_DOTS)).astype(int)
    inside = [i for i in chosen if low <= true[i] <= high and low <= predicted[i] <= high]
    drawn = [
        tag("path", d=frame.line((low, high), (low, high)), class_="curve same"),
        tag("path", d=frame.dots(true[inside], predicted[inside]), class_="curve cloud"),
    ]
    mean = f"mean error {number(error)} {unit}"
    svg = frame.svg(f"{title}: {mean}", f"true, {unit}", f"predicted, {unit}", drawn)
    return tag("figure", tag("figcaption", title, tag("span", mean)), svg, class_="chart")


class _Frame:
    """Axes of a plot. They map values to px in the view box."""

    def __init__(
        self, x: tuple[float, float], y: tuple[float, float], width: int, height: int, top: int
    ):
        self.x_ticks, self.y_ticks = ticks(*x, width // 50), ticks(*y, 4)
        self.x, self.y, self.width, self.height, self.top = x, y, width, height, top

    def across(self, value: float) -> float:
        share = (value - self.x[0]) / (self.x[1] - self.x[0] or 1)
        return round(LEFT + share * (self.width - LEFT - RIGHT), 1)

    def down(self, value: float) -> float:
        share = (value - self.y[0]) / (self.y[1] - self.y[0] or 1)
        return round(self.height - BOTTOM - share * (self.height - self.top - BOTTOM), 1)

    def line(self, x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> str:
        points = [f"{self.across(a):g},{self.down(b):g}" for a, b in zip(x, y, strict=True)]
        return "M" + " ".join(points) if points else ""

    def dots(self, x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> str:
        """Return a path that draws dots.

        It consists of lines of zero length with round caps, which take a quarter of the bytes of
        circles.
        """
        points = zip(x, y, strict=True)
        return "".join(f"M{self.across(a):g},{self.down(b):g}h0" for a, b in points)

    def svg(self, label: str, x_label: str, y_label: str, drawn: list[Html]) -> Html:
        bottom, right = self.height - BOTTOM, self.width - RIGHT
        grid, texts = [], []
        for value in self.y_ticks:
            y = self.down(value)
            grid.append(tag("line", x1=LEFT, x2=right, y1=y, y2=y, class_="grid"))
            texts.append(_text(LEFT - 6, y + 4, _tick(value), "end"))
        for value in self.x_ticks:
            x = self.across(value)
            if x < right - 7 * len(x_label) - 20:  # leave room for the axis label
                texts.append(_text(x, bottom + 16, _tick(value), "middle"))
        texts.append(_text(right, bottom + 16, x_label, "end"))
        if y_label:
            texts.append(_text(0, 10, y_label, "start"))
        return tag(
            "svg", grid, drawn, texts, viewBox=f"0 0 {self.width} {self.height}", role="img",
            aria_label=label,
        )  # fmt: skip


def ticks(low: float, high: float, about: int) -> list[float]:
    """Choose round values from `low` to `high`.

    The step is 1, 2 or 5 times a power of ten, so that there are approximately `about` steps.
    """
    rough = (high - low) / about
    if not (math.isfinite(rough) and rough > 1e-300):
        return [low]
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(k * power for k in (1, 2, 5, 10) if k * power >= 0.999 * rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


def _window(curve: Curve) -> int:
    return max(1, min(SMOOTHED, len(curve.values) // 10))


def _extremes(curve: Curve) -> tuple[float, float]:
    """Return the range that the y axis must cover.

    Single values far above the running mean do not extend it.
    """
    values = np.array(curve.values, float)
    if curve.dots:
        return float(values.min()), float(values.max())
    mean = smooth(values, _window(curve))
    return float(mean.min()), min(float(values.max()), 1.5 * abs(float(mean.max())))


def _thin(values: np.ndarray) -> np.ndarray:
    return values[np.linspace(0, len(values) - 1, min(len(values), MOST_POINTS)).astype(int)]


def _tick(value: float) -> str:
    return number(value, ",.0f") if abs(value) >= 1000 else number(value, ".4g")


def _text(x: float, y: float, text: str, anchor: str) -> Html:
    return tag("text", text, x=x, y=y, text_anchor=anchor)


def _entry(k: int, curve: Curve) -> Html:
    sample = tag("path", d="M1,5 H25", class_=f"curve c{k % 5}")
    dot = tag("path", d="M13,5h0", class_=f"curve c{k % 5} dot") if curve.dots else None
    svg = tag("svg", sample, dot, viewBox="0 0 26 10", class_="key", aria_hidden="true")
    return tag("li", svg, curve.label)
