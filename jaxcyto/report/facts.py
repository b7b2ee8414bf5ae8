"""Build the sections of the page on data, config and environment."""

from pathlib import Path
from typing import Any

from PIL import Image

from jaxcyto.brain.manifest import SPLITS
from jaxcyto.report.brains import BrainData
from jaxcyto.report.gather import Gathered
from jaxcyto.report.html import Content, Html, count, facts, hint, number, table, tag
from jaxcyto.report.pictures import uri

NOT_CONFIG = {
    *("classes", "training_sections", "training_fingerprints"),
    *("pairs_sha256", "annotation_sha256"),
}
POINTS_PX = 1900  # maximum length of the longest side of the figure of sampled points


def data(gathered: Gathered) -> Content:
    """Show the brains with their splits, unreadable files and the training sections."""
    shown: list[Content] = [_brain(brain) for brain in gathered.data]
    for path, times in gathered.skipped.items():
        shown.append(hint(f"{path} could not be read {count(times)} times in training."))
    sections = gathered.config.get("training_sections")
    if isinstance(sections, list) and sections:
        names = tag("p", ", ".join(map(str, sections)), class_="names")
        summary = tag("summary", f"{len(sections)} training sections")
        shown.append(tag("details", summary, names))
    return [*shown, _points(Path(gathered.path) / "figures" / "points.png")]


def _brain(brain: BrainData) -> Content:
    distances = [
        (f"Nearest patches, {pair.replace('-', ' and ')}", f"{number(distance)} mm")
        for pair, distance in (brain.distances_mm or {}).items()
    ]
    folder = ("Folder", tag("code", brain.path))
    named = [("License", brain.licence), ("Citation", brain.citation)]
    columns = {
        "Sections": brain.sections,
        "Annotated sections": brain.annotated,
        "Patches": brain.patches,
        "Pairs": brain.pairs,
    }
    counts = {name: values for name, values in columns.items() if values is not None}
    rows = [
        [split, *(count(values[split]) for values in counts.values())]
        for split in SPLITS
        if any(values[split] for values in counts.values())
    ]
    return [
        tag("h3", brain.name or brain.path),
        facts([folder, *named, *distances]),
        table(["Split", *counts], rows, f"Splits of {brain.name}") if rows else None,
        hint(brain.fault),
    ]


def _points(path: Path) -> Html | None:
    """Return training's figure of the sampled patches, or None if it cannot be read."""
    try:
        image = Image.open(path).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    image.thumbnail((POINTS_PX, POINTS_PX), Image.Resampling.LANCZOS)
    alt = "Patches on the cortical surface, one color for each split"
    picture = tag("img", src=uri(image, lossy=True), alt=alt)
    return tag("figure", tag("figcaption", "Patches by split"), picture, class_="plot")


def config(gathered: Gathered) -> Content:
    """Show config.json by group. Top-level fields come first."""
    table = gathered.config
    groups = {"run": {key: value for key, value in table.items() if not isinstance(value, dict)}}
    groups |= {key: value for key, value in table.items() if isinstance(value, dict)}
    shown = [_group(name, group) for name, group in groups.items() if name not in NOT_CONFIG]
    return tag("div", shown, class_="groups")


def _group(name: str, group: dict[str, Any]) -> Html:
    rows = [
        tag("tr", tag("th", key, scope="row"), tag("td", _value(value)))
        for key, value in group.items()
        if key not in NOT_CONFIG
    ]
    return tag("table", tag("caption", name), tag("tbody", rows), class_="group")


def _value(value: Any) -> Content:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        if any(isinstance(entry, dict) for entry in value):
            return [tag("div", _value(entry)) for entry in value]
        return ", ".join(str(_value(entry)) for entry in value) or "none"
    if isinstance(value, dict):  # a loss term: the function, then its parameters
        named = [f"{key} {_value(entry)}" for key, entry in value.items() if key != "function"]
        return ", ".join(([str(value["function"])] if "function" in value else []) + named)
    return str(value)


def environment(gathered: Gathered) -> Content:
    """Show the environment of the last start of the run."""
    if not gathered.environment:
        return hint(gathered.missing.get("environment"))
    last, starts = gathered.environment[-1], len(gathered.environment)

    def listed(key: str, form: str) -> str:
        value = last.get(key)
        if isinstance(value, dict):
            return ", ".join(form.format(name, entry) for name, entry in value.items())
        return "" if value is None else str(value)

    note = f"This is the last of {starts} starts. environment.json holds all of them."
    named = [
        ("Devices", listed("devices", "{1} \u00d7 {0}")),
        ("JAX backend", listed("backend", "")),
        ("Processes", listed("processes", "")),
        ("CPUs", listed("cpus", "")),
        ("Python", listed("python", "")),
        ("Packages", listed("packages", "{} {}")),
        ("System", listed("system", "")),
    ]
    return [facts(named), tag("p", note, class_="note") if starts > 1 else None]
