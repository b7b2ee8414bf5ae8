"""Build the sections of the page that show images."""

from pathlib import Path

from jaxcyto.errors import InputError
from jaxcyto.report.gather import Gathered
from jaxcyto.report.html import Content, Html, hint, number, tag
from jaxcyto.report.pictures import PairPicture, SectionPicture, pair_pictures, section_pictures
from jaxcyto.report.tables import swatch
from jaxcyto.runs.pair_predictions import read_predictions

NAME_SHARE = 62  # width of a section divided by the font size of the names of its areas


def pairs(gathered: Gathered) -> Content:
    """Show pairs of patches with their distances."""
    if gathered.task != "pretraining":
        return None
    if "pairs" in gathered.missing:
        return hint(gathered.missing.get("pairs"))
    try:
        pictures = pair_pictures(gathered, read_predictions(Path(gathered.path)))
    except (InputError, OSError, TypeError, ValueError) as error:  # show the rest of the page
        return hint(f"Pairs cannot be shown: {error}")
    note = "Pairs from near to far, with their distance along the cortical surface"
    note += " and the predicted distance." if pictures[0].predicted_mm is not None else "."
    return [
        tag("p", note, class_="note"),
        tag("ol", [_pair(each) for each in pictures], class_="pairs"),
    ]


def _pair(picture: PairPicture) -> Html:
    true = number(picture.distance_mm, ".1f")
    names = "first", "second"
    images = [
        tag("img", src=image, alt=f"{name} patch of a pair {true} mm apart")
        for name, image in zip(names, picture.images, strict=True)
    ]
    predicted = None
    if picture.predicted_mm is not None:
        predicted = tag(
            "span", f"predicted {number(picture.predicted_mm, '.1f')}", class_="predicted"
        )
    caption = tag("figcaption", tag("b", f"{true} mm"), predicted)
    return tag("li", tag("figure", tag("div", images, class_="two"), caption))


def sections(gathered: Gathered) -> Content:
    """Show sections with a slider from tissue to annotation to prediction."""
    if gathered.task != "segmentation":
        return None
    pictures, faults = section_pictures(gathered)
    hints = [hint(line) for line in (gathered.missing.get("sections"), *faults)]
    if not pictures:
        return hints if any(hints) else hint("No predicted section is in the section table.")
    seen = sorted(frozenset().union(*(picture.classes for picture in pictures)))
    shown = [k for k in seen if gathered.classes[k].kind != "background"]
    legend = tag("ul", [tag("li", swatch(gathered.classes[k])) for k in shown], class_="classes")
    note = (
        "The slider fades from the tissue to the annotation to the prediction. The arrow keys, "
        "Home and End move it."
    )
    panes = [_section(gathered, k, picture) for k, picture in enumerate(pictures)]
    return [hints, tag("p", note, class_="note screen"), legend, panes]


def _section(gathered: Gathered, k: int, picture: SectionPicture) -> Html:
    size = {"width": picture.width, "height": picture.height}
    frame = {"viewBox": f"0 0 {picture.width} {picture.height}", "role": "img"}
    layers = [
        ("tissue", None),
        ("annotation", picture.annotation),
        ("prediction", picture.prediction),
    ]
    layers = [(name, layer) for name, layer in layers if name == "tissue" or layer is not None]
    panes = []
    for stop, (name, layer) in enumerate(layers):
        if layer is None:
            drawn: list[Content] = [tag("image", id=f"tissue{k}", href=picture.tissue, **size)]
        else:
            texts = [tag("text", text, x=x, y=y, class_="area") for x, y, text in layer.names]
            drawn = [tag("use", href=f"#tissue{k}"), tag("image", href=layer.image, **size), texts]
        description = f"Section {picture.name}: {name}" + (" on the tissue" if layer else "")
        label = tag("span", name, class_="pane-name")
        svg = tag("svg", drawn, aria_label=description, **frame)
        panes.append(tag("div", svg, label, class_="pane", style=f"--stop:{stop}"))
    wrong = next(
        (
            scores.sections[picture.name]["err_seg_percent"]
            for scores in gathered.scores
            if scores.brain == picture.brain and picture.name in scores.sections
        ),
        None,
    )
    facts = [picture.brain, picture.split] + (
        [] if wrong is None else [f"{number(wrong, '.1f')} % wrong"]
    )
    names = [name for name, _ in layers]
    slider = tag(
        "input", type="range", min=0, max=len(layers) - 1, step=0.25, value=len(layers) - 1,
        aria_label=f"Section {picture.name}: from {' to '.join(names)}",
        aria_valuetext=names[-1], data_stops=" ".join(names),
    )  # fmt: skip
    stops = [
        tag("button", name, type="button", tabindex=-1, value=stop)
        for stop, name in enumerate(names)
    ]
    return tag(
        "figure",
        tag(
            "figcaption",
            tag("b", f"Section {picture.name}"),
            tag("span", " · ".join(filter(None, facts))),
        ),
        tag("div", panes, class_="panes"),
        tag("div", slider, tag("div", stops, class_="stops"), class_="slide"),
        class_="overlay",
        style=f"--at:{len(layers) - 1};--ratio:{picture.width}/{picture.height};"
        f"--type:{picture.width / NAME_SHARE:.1f}px",
    )
