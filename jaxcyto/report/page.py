"""Assemble the HTML page of a report.

A section whose data is missing holds one line that says how to get the data. The page needs no
network, because the style, the script and the images are embedded. A content security policy
forbids loading or running anything else.
"""

import base64
import hashlib
import time
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

from jaxcyto.report import curves, facts, panes, tables
from jaxcyto.report.gather import Gathered
from jaxcyto.report.html import Html, count, number, tag
from jaxcyto.training.log import duration
from jaxcyto.utils.files import atomic_write

TASKS = {"pretraining": "Pre-training", "segmentation": "Segmentation"}


def write_page(gathered: Gathered, out: Path) -> int:
    """Write the page of a run and return its size in bytes.

    Raises:
        InputError: a file of the run is damaged.
        OSError: `out` cannot be written.
    """
    data = page(gathered).encode()
    with atomic_write(out) as file:
        file.write(data)
    return len(data)


def page(gathered: Gathered) -> str:
    """Return the page of a run as text. This reads the images that the page shows.

    Raises:
        InputError: a file of the run is damaged.
    """
    sections = {
        "scores": ("Errors", tables.errors(gathered)),
        "curves": ("Training curves", curves.training(gathered)),
        "pairs": ("Sample pairs", panes.pairs(gathered)),
        "sections": ("Sections", panes.sections(gathered)),
        "data": ("Data and splits", facts.data(gathered)),
        "config": ("Config", facts.config(gathered)),
        "throughput": ("Throughput", curves.throughput(gathered)),
        "environment": ("Environment", facts.environment(gathered)),
    }
    shown = {key: value for key, value in sections.items() if value[1] is not None}
    links = [tag("li", tag("a", title, href=f"#{key}")) for key, (title, _) in shown.items()]
    main = [
        tag("section", tag("h2", title, id=f"{key}-title"), content, id=key,
            aria_labelledby=f"{key}-title")
        for key, (title, content) in shown.items()
    ]  # fmt: skip
    written = time.strftime("%Y-%m-%d %H:%M", time.gmtime())
    footer = f"Written by jaxcyto {version('jaxcyto')} on {written} UTC. All times are UTC."
    body = [
        tag("a", "Skip to the content", href="#main", class_="skip"),
        tag("div", tag("nav", tag("ul", links), aria_label="Contents"),
            tag("div", _header(gathered), tag("main", main, id="main", tabindex=-1),
                tag("footer", tag("p", footer)), class_="content"),
            class_="frame"),
    ]  # fmt: skip
    style, script = (Html(_resource(name)) for name in ("style.css", "script.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'"
    )
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{gathered.name}: {TASKS[gathered.task].lower()} report"),
        tag("style", style),
    ]
    html = tag("html", tag("head", head), tag("body", body, tag("script", script)), lang="en")
    return f"<!doctype html>\n{html}\n"


def _resource(name: str) -> str:
    return files("jaxcyto.report").joinpath(name).read_text()


def _header(gathered: Gathered) -> Html:
    status = gathered.status
    planned = "" if status.steps_planned is None else f" of {count(status.steps_planned)}"
    steps = f"{count(status.steps)}{planned} steps"
    state = "Finished" if status.finished else "Not finished"
    when = f", last logged {status.last_log}" if status.last_log else ""
    badge = tag("span", state, class_="badge done" if status.finished else "badge")
    return tag(
        "header",
        tag("p", f"{TASKS[gathered.task]} run", class_="kicker"),
        tag("h1", gathered.name),
        tag("p", badge, f" {steps}{when}", class_="status"),
        tag("dl", [_headline(*entry) for entry in _headlines(gathered)], class_="headlines"),
    )


def _headline(name: str, value: str, unit: str, note: str) -> Html:
    figure = tag("dd", value, tag("span", f"\u202f{unit}" if unit else "", class_="unit"))
    return tag("div", tag("dt", name), figure, tag("dd", note, class_="note") if note else None)


def _headlines(gathered: Gathered) -> list[tuple[str, str, str, str]]:
    """Return the main figures of a run as (name, value, unit, note)."""
    headlines: list[tuple[str, str, str, str]] = []
    if gathered.test is not None:
        for name, key in (
            ("Distance error", "distance_mae_mm"),
            ("Position error", "coordinate_mae_mm"),
        ):
            constant = number(gathered.test[f"{key}_constant"])
            note = f"test, training median {constant} mm"
            headlines.append((name, number(gathered.test[key]), "mm", note))
    elif gathered.scores:
        test = gathered.scores[0].test
        split = gathered.scores[0].split
        headlines.append(("Wrong pixels", number(test["err_seg_percent"], ".1f"), "%", split))
        for name, key in (("Dice, areas", "dice_macro_areas"), ("Dice, classes", "dice_macro")):
            headlines.append((name, number(test[key], ".3f"), "", f"{split}, mean"))
    else:
        for key, name, unit, form in (
            ("val/distance_mae_mm", "Distance error", "mm", ".2f"),
            ("val/coordinate_mae_mm", "Position error", "mm", ".2f"),
            ("val/err_seg_percent", "Wrong pixels", "%", ".1f"),
            ("val/dice_macro_areas", "Dice, areas", "", ".3f"),
        ):
            if key in gathered.curves:
                steps, values = gathered.curves[key]
                headlines.append(
                    (name, number(values[-1], form), unit, f"validation, step {steps[-1]}")
                )
    if gathered.throughput is not None:
        speed = gathered.throughput
        rate = number(speed.per_second, ".3g")
        headlines.append(
            ("Throughput", rate, f"{speed.unit}/s", f"{duration(speed.seconds_in_steps)} in steps")
        )
    return headlines
