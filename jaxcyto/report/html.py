"""Elements of HTML and SVG: every text that is put into one is escaped."""

import html
import math
from typing import Any

VOID = frozenset(
    {"br", "hr", "image", "img", "input", "line", "link", "meta", "path", "rect", "use"}
)
SVG = frozenset({"image", "line", "path", "rect", "use"})
Content = Any  # what an element may hold: text, Html, numbers, lists of these; None: nothing


class Html(str):
    """Markup made by `tag`; any other text is escaped where it is put in."""


def tag(name: str, /, *children: Any, **attributes: Any) -> Html:
    """An element: `tag("td", "1 < 2", class_="number")`.

    Args:
        name: of the element.
        children: text (escaped), `Html`, numbers, lists of these; None is left out.
        attributes: `_` becomes `-`, at the end it is left out. None and False are left out, True
            stands alone.
    """
    parts = [name]
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        if value is True:
            parts.append(key)
        elif value is not None and value is not False:
            parts.append(f'{key}="{html.escape(str(value))}"')
    if name in VOID:
        return Html(f"<{' '.join(parts)}{'/' if name in SVG else ''}>")
    return Html(f"<{' '.join(parts)}>{join(children)}</{name}>")


def join(children: Any) -> Html:
    """Children of an element, one after the other."""
    if children is None:
        return Html()
    if isinstance(children, list | tuple):
        return Html("".join(map(join, children)))
    return children if isinstance(children, Html) else Html(html.escape(str(children)))


def number(value: float | None, form: str = ".2f") -> str:
    """A figure as text, with a true minus sign and thin spaces between thousands; None: a dash."""
    if value is None or not math.isfinite(value):
        return "\u2013"
    return format(value, form).replace(",", "\u202f").replace("-", "\u2212")


def count(value: int | None) -> str:
    """A whole number, as `number`."""
    return number(value, ",d")


def table(
    head: list[Any], rows: list[list[Any]], caption: str | None = None, text: int = 1
) -> Html:
    """A table in a frame that scrolls where the page is too narrow.

    Args:
        head: of the columns.
        rows: cells; the first of a row is its head.
        caption: what it shows, for all readers; None: what stands before it says so.
        text: so many columns from the left hold text; the others are right-aligned figures.
    """

    def kind(column: int) -> str | None:
        return "number" if column >= text else None

    cells = [tag("th", cell, scope="col", class_=kind(k)) for k, cell in enumerate(head)]
    body = []
    for first, *rest in rows:
        own = [tag("td", cell, class_=kind(k)) for k, cell in enumerate(rest, 1)]
        body.append(tag("tr", tag("th", first, scope="row"), own))
    return scrolled(
        tag(
            "table",
            tag("caption", caption) if caption else None,
            tag("thead", tag("tr", cells)),
            tag("tbody", body),
        ),
        caption or "table",
    )


def scrolled(content: Html, label: str) -> Html:
    """What may be wider than the page; script.js lets the keyboard reach it where it is."""
    return tag("div", content, class_="scroll", role="group", aria_label=label)


def hint(text: str | None) -> Html | None:
    """A line on what is not there; what stands between backticks is a command."""
    if not text:
        return None
    parts = text.split("`")
    return tag("p", [tag("code", part) if k % 2 else part for k, part in enumerate(parts)],
               class_="hint")  # fmt: skip


def facts(pairs: list[tuple[str, Any]]) -> Html:
    """Names and values; those without a value are left out."""
    return tag(
        "dl", [tag("div", tag("dt", k), tag("dd", v)) for k, v in pairs if v], class_="facts"
    )
