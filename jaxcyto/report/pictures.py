"""Render pairs of patches and sections with their classes as data URIs."""

import base64
import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb
from PIL import Image
from scipy.ndimage import distance_transform_cdt, label

from jaxcyto.brain.manifest import AreaClass, Brain, SectionRow, read_brain
from jaxcyto.brain.sections.label_image import section_label
from jaxcyto.brain.sections.section import open_section
from jaxcyto.config import DataConfig
from jaxcyto.data.pair_batches import PairSource
from jaxcyto.data.pair_table import PairTable, open_pairs
from jaxcyto.errors import InputError
from jaxcyto.plots.segmentation import borders
from jaxcyto.predict.evaluate import section_images
from jaxcyto.predict.maps import ClassMap, open_class_map
from jaxcyto.report.gather import Gathered

PAIRS = 12
PATCH_PX = 160  # side of a patch
SECTIONS = 8
SECTION_PX = 1500  # maximum length of the longest side of a section
TINT = 0.45  # opacity of the inside of a class, whose border is opaque
NAMED = 0.0004  # smallest region that gets a name, as a fraction of the picture's pixels
APART = 0.08, 0.03  # smallest distance between names, across and down, in widths of the picture


@dataclasses.dataclass(frozen=True)
class PairPicture:
    """Two patches and their distance along the surface in mm."""

    images: tuple[str, str]  # data URIs
    distance_mm: float
    predicted_mm: float | None  # None: not predicted yet


@dataclasses.dataclass(frozen=True)
class Layer:
    """An overlay of classes, with the positions of the names of the areas."""

    image: str  # data URI
    names: list[tuple[float, float, str]]  # (x px, y px, name)


@dataclasses.dataclass(frozen=True)
class SectionPicture:
    """A section with its annotation and its prediction."""

    brain: str
    name: str
    split: str
    height: int
    width: int
    tissue: str  # data URI
    annotation: Layer | None  # None: the section has no label image
    prediction: Layer
    classes: frozenset[int]  # indices of the visible classes


def uri(image: Image.Image, lossy: bool) -> str:
    """Return an image as a data URI.

    The format is PNG. If `lossy` is true, it is the smaller one of PNG and JPEG.
    """
    candidates = []
    for kind in ("png", "jpeg")[: 1 + lossy]:
        file = io.BytesIO()
        image.save(file, kind, optimize=True, **({"quality": 80} if kind == "jpeg" else {}))
        candidates.append((file.tell(), kind, file.getvalue()))
    _, kind, data = min(candidates)
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


# ---- pre-training -------------------------------------------------------------------------------


def open_table(gathered: Gathered) -> tuple[PairTable, PairSource]:
    """Open the pairs of a pre-training run.

    Raises:
        InputError: the pairs cannot be read, or they have changed since the run.
    """
    faults = [f"{brain.path}: {brain.fault}" for brain in gathered.data if brain.fault]
    if faults:
        raise InputError("\n".join(faults))
    known = {field.name for field in dataclasses.fields(DataConfig)}
    values: dict[str, Any] = {
        key: value for key, value in gathered.config["data"].items() if key in known
    }
    values["brains"] = tuple(brain.path for brain in gathered.data if brain.pairs is not None)
    values["all_distances"] = False
    config = DataConfig(**values)
    table = open_pairs(config)
    return table, PairSource(table, config)


def pair_pictures(
    gathered: Gathered, predictions: dict[str, np.ndarray] | None
) -> list[PairPicture]:
    """Render test pairs from near to far, evenly spaced in the ranking by distance.

    Training pairs are shown if there are no test pairs.

    Args:
        gathered: figures of the run.
        predictions: arrays of `pair_predictions.read_predictions`, or None before the test.

    Raises:
        InputError: the pairs cannot be read, or they have changed since the run.
    """
    table, source = open_table(gathered)
    pairs = next((p for p in map(table.of_split, ("test", "train")) if len(p)), np.zeros(0, int))
    pairs = pairs[np.argsort(table.distance_mm[pairs], kind="stable")]
    pairs = pairs[np.linspace(0, len(pairs) - 1, min(PAIRS, len(pairs))).astype(int)]
    predicted = {}
    if predictions is not None:
        columns = predictions["pair"], predictions["predicted_distance_mm"]
        predicted = dict(zip(*(values.tolist() for values in columns), strict=True))
    return [
        PairPicture(
            images=(
                _patch(source.read_patch(int(table.first[pair]))),
                _patch(source.read_patch(int(table.second[pair]))),
            ),
            distance_mm=float(table.distance_mm[pair]),
            predicted_mm=predicted.get(int(pair)),
        )
        for pair in pairs
    ]


def _patch(pixels: np.ndarray) -> str:
    image = Image.fromarray(pixels)
    image.thumbnail((PATCH_PX, PATCH_PX), Image.Resampling.BOX)
    return uri(image, lossy=True)


# ---- segmentation -------------------------------------------------------------------------------


def section_pictures(gathered: Gathered) -> tuple[list[SectionPicture], list[str]]:
    """Render predicted sections, evenly spaced in the section table.

    Annotated test sections are chosen. All predicted sections are candidates if there are none.

    Returns:
        The pictures, and one message for each section that cannot be read.
    """
    predicted, faults = [], []
    for data in gathered.data:
        if not data.fault:
            predicted += _predicted(Path(gathered.path), data.path)
    test = [entry for entry in predicted if entry[1].split == "test" and entry[1].label is not None]
    candidates = test or predicted
    chosen = np.linspace(0, len(candidates) - 1, min(SECTIONS, len(candidates))).astype(int)
    pictures = []
    for brain, row, path in (candidates[k] for k in chosen):
        try:
            picture = _section(brain, row, open_class_map(path), gathered.classes)
        except (InputError, OSError) as error:
            faults.append(str(error))
        else:
            pictures.append(picture)
    return pictures, faults


def _predicted(run: Path, brain_path: str) -> list[tuple[Brain, SectionRow, Path]]:
    """List (brain, section, class map) for each predicted section of a brain."""
    brain = read_brain(brain_path)
    folder = run / "predictions" / brain.root.name
    paths = ((row, folder / f"{row.name}.ome.tif") for row in brain.sections)
    return [(brain, row, path) for row, path in paths if path.is_file()]


def _section(
    brain: Brain,
    row: SectionRow,
    predicted: ClassMap,
    classes: tuple[AreaClass, ...],
) -> SectionPicture:
    with open_section(row.image, row.pixel_um, brain.background, brain.bits) as image:
        if row.label is None:
            tissue, truth, numbers = section_images(image, None, predicted, SECTION_PX)
        else:
            with section_label(row, image.shape) as annotation:
                tissue, truth, numbers = section_images(image, annotation, predicted, SECTION_PX)
    seen = np.unique(numbers) if truth is None else np.union1d(truth, numbers)
    return SectionPicture(
        brain=brain.root.name,
        name=row.name,
        split=row.split,
        height=tissue.shape[0],
        width=tissue.shape[1],
        tissue=uri(Image.fromarray(tissue), lossy=True),
        annotation=None if truth is None else _layer(truth, classes),
        prediction=_layer(numbers, classes),
        classes=frozenset(seen[seen < len(classes)].tolist()),
    )


def _layer(numbers: np.ndarray, classes: tuple[AreaClass, ...]) -> Layer:
    """Render classes as tints with opaque borders.

    Pixels without a class and pixels of the background are transparent.
    """
    # 0 is transparent, and 1 + 2k and 2 + 2k are the inside and the border of class k
    shown = np.array([entry.kind != "background" for entry in classes])
    visible = np.append(shown, np.zeros(256 - len(shown), bool))[numbers]
    codes = np.where(visible, 1 + 2 * numbers.astype(int) + borders(numbers), 0)
    present, indices = np.unique(codes, return_inverse=True)
    rgba = np.zeros((len(present), 4), np.uint8)
    for k, code in enumerate(present):
        if code:
            color = np.array(to_rgb(classes[(code - 1) // 2].color))
            rgba[k] = 255 * np.append(color, 1 if code % 2 == 0 else TINT)
    image = Image.fromarray(rgba[indices.reshape(numbers.shape)])
    if len(present) <= 256:  # a palette PNG has a fifth of the size
        image = Image.fromarray(indices.reshape(numbers.shape).astype(np.uint8), "P")
        image.putpalette(rgba.tobytes(), "RGBA")
    return Layer(uri(image, lossy=False), _names(numbers, classes))


def _names(numbers: np.ndarray, classes: tuple[AreaClass, ...]) -> list[tuple[float, float, str]]:
    """List (x, y, name) of the areas, at the center of the largest region of each.

    Where two names would overlap, only the name of the larger area is kept. The legend lists all
    classes.
    """
    candidates = []
    for index in np.unique(numbers):
        if index >= len(classes) or classes[index].kind != "area":
            continue
        parts: Any = label(np.pad(numbers == index, 1))[0]  # type: ignore[index]
        sizes = np.bincount(parts.ravel())[1:]
        if sizes.max() < NAMED * numbers.size:
            continue
        depth: Any = distance_transform_cdt(parts == 1 + sizes.argmax())
        y, x = np.unravel_index(depth.argmax(), depth.shape)
        candidates.append((int(sizes.max()), float(x) - 1, float(y) - 1, classes[index].name))
    names: list[tuple[float, float, str]] = []
    across, down = (share * numbers.shape[1] for share in APART)
    for _, x, y, name in sorted(candidates, reverse=True):
        if all(abs(x - a) > across or abs(y - b) > down for a, b, _ in names):
            names.append((x, y, name))
    return names
