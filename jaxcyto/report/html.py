"""Build HTML and SVG elements. Text is escaped when it is put into an element."""

import html
import math
from typing import Any

VOID = frozenset(
    {"br", "hr", "image", "img", "input", "line", "link", "meta", "path", "rect", "use"}
)
SVG = frozenset({"image", "line", "path", "rect", "use"})
Content = Any  # content of an element: text, Html, numbers, lists of these, or None for nothing


class Html(str):
    """Markup that `tag` has built. Any other text is escaped."""


def tag(name: str, /, *children: Any, **attributes: Any) -> Html:
    """Build an element, for example `tag("td", "1 < 2", class_="number")`.

    Args:
        name: name of the element.
        children: text (which is escaped), `Html`, numbers or lists of these. None is omitted.
        attributes: attributes by name. A trailing `_` is dropped, and any other `_` becomes `-`.
            None and False omit the attribute. True writes the name without a value.
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
    """Join the children of an element. Text is escaped."""
    if children is None:
        return Html()
    if isinstance(children, list | tuple):
        return Html("".join(map(join, children)))
    return children if isinstance(children, Html) else Html(html.escape(str(children)))


def number(value: float | None, form: str = ".2f") -> str:
    """Format a number with a minus sign (U+2212) and thin spaces between thousands.

    None and values that are not finite become an en dash.
    """
    if value is None or not math.isfinite(value):
        return "\u2013"
    return format(value, form).replace(",", "\u202f").replace("-", "\u2212")


def count(value: int | None) -> str:
    """Format an integer in the same way as `number`."""
    return number(value, ",d")


def table(
    head: list[Any], rows: list[list[Any]], caption: str | None = None, text: int = 1
) -> Html:
    """Build a table that scrolls horizontally on narrow pages.

    Args:
        head: column headings.
        rows: cells. The first cell of a row is its heading.
        caption: caption of the table, or None if the text before it says what it shows.
        text: count of leading columns that hold text. The others are right-aligned numbers.
    """

    def kind(column: int) -> str | None:
        return "number" if column >= text else None

    cells = [tag("th", cell, scope="col", class_=kind(k)) for k, cell in enumerate(head)]
    body = []
    for first, *rest in rows:
        row = [tag("td", cell, class_=kind(k)) for k, cell in enumerate(rest, 1)]
        body.append(tag("tr", tag("th", first, scope="row"), row))
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
    """Wrap content that may be wider than the page. script.js makes it scrollable by keyboard."""
    return tag("div", content, class_="scroll", role="group", aria_label=label)


def hint(text: str | None) -> Html | None:
    """Show a line about missing data. Text between backticks is shown as a command."""
    if not text:
        return None
    parts = text.split("`")
    return tag("p", [tag("code", part) if k % 2 else part for k, part in enumerate(parts)],
               class_="hint")  # fmt: skip


def facts(pairs: list[tuple[str, Any]]) -> Html:
    """Show names with their values. Pairs without a value are omitted."""
    return tag(
        "dl", [tag("div", tag("dt", k), tag("dd", v)) for k, v in pairs if v], class_="facts"
    )
