"""Read and write annotations with a class as GeoJSON, as QuPath exports and imports it."""

import dataclasses
import json
import math
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxcyto.brain.annotation.outlines import area
from jaxcyto.brain.manifest import AreaClass
from jaxcyto.brain.surfaces.formats import load_bytes
from jaxcyto.errors import InputError
from jaxcyto.utils.files import atomic_write

POLYGONS = ("Polygon", "MultiPolygon")
STROKES = ("Point", "MultiPoint", "LineString", "MultiLineString")
MAX_COORDINATE = 1e9  # px or um, beyond any section
DECIMALS = 4  # of written coordinates. The tolerance of outlines.py leaves room for this


@dataclasses.dataclass(frozen=True, eq=False)
class Annotation:
    """A feature that has a class. It consists of polygons, or of lines and points.

    Attributes:
        number: index of the class.
        polygons: each an outline followed by its holes. These are float64 [N, 2] (x, y), closed or
            not.
        lines: each float64 [N, 2] (x, y). A point is a line with N = 1.
        where: file and feature, for messages.
    """

    number: int
    polygons: list[list[np.ndarray]]
    lines: list[np.ndarray]
    where: str

    def area(self, stroke: float) -> float:
        """Return the area, with lines of the width `stroke`. Overlaps count more than once."""
        total = sum(area(outline) - sum(map(area, holes)) for outline, *holes in self.polygons)
        for line in self.lines:
            length = np.hypot(*np.diff(line, axis=0).T).sum()
            total += stroke * length + math.pi / 4 * stroke**2
        return float(total)


def read_annotations(
    path: Path, classes: Sequence[AreaClass], strokes: bool = False
) -> list[Annotation]:
    """Read the annotations of a GeoJSON file that have a class, in the order of the file.

    The file holds a FeatureCollection, a list of features or one feature. The class is read from
    `properties.classification`, which is a text or has a `name` or `names` (from parent to child).
    A class "Parent: Child" is looked up as a whole first, then by its child. Some features are left
    out with a warning: empty ones, features without a class, features whose class QuPath ignores
    (its name ends in *), and, by default, lines and points.

    Args:
        path: the file.
        classes: the classes of the brain.
        strokes: whether lines and points are read, too.

    Raises:
        InputError: if the file is not such GeoJSON, a class is unknown, or a geometry is faulty.
    """
    indices = {item.name: index for index, item in enumerate(classes)}
    annotations: list[Annotation] = []
    left_out: Counter[str] = Counter()
    for index, feature in enumerate(_features(path)):
        where = f"{path}: features[{index}]"
        properties = feature.get("properties")
        name = _class_name(where, properties if isinstance(properties, dict) else {})
        if name is None or name.endswith("*"):
            left_out["without a class" if name is None else f"of the ignored class {name}"] += 1
            continue
        geometry = feature.get("geometry")
        if geometry is None:  # RFC 7946, 3.2
            left_out["without a geometry"] += 1
            continue
        if not isinstance(geometry, dict):
            raise InputError(f"{where}: geometry: expected an object; export the file again")
        kind, content = geometry.get("type"), geometry.get("coordinates")
        kind = kind if isinstance(kind, str) else repr(kind)
        if kind in POLYGONS or kind in STROKES:
            if _is_empty(content):
                left_out["with an empty geometry"] += 1
                continue
            if kind in STROKES and not strokes:
                left_out["that are points or lines (--stroke-um paints them with a width)"] += 1
                continue
        class_index = indices.get(name, indices.get(name.rpartition(": ")[2]))
        if class_index is None:
            raise InputError(
                f"{where}: class {name!r} is not in brain.toml, which lists "
                f"{class_names(classes)}; add it there, or rename or remove it in the annotation"
            )
        if kind in POLYGONS:
            parts = [content] if kind == "Polygon" else content
            polygons, lines = _polygons(where, parts), []
        elif kind in STROKES:
            polygons, lines = [], _lines(where, kind, content)
        else:
            known = ", ".join((*POLYGONS, *STROKES))
            raise InputError(f"{where}: geometry {kind!r}; expected one of {known}")
        annotations.append(Annotation(class_index, polygons, lines, where))
    for reason, count in left_out.items():
        warnings.warn(f"{path}: {count} feature(s) {reason}; left out", stacklevel=2)
    return annotations


def write_annotations(
    path: Path, polygons: Mapping[int, list[list[np.ndarray]]], classes: Sequence[AreaClass]
) -> None:
    """Write one feature for each class that has polygons, as QuPath imports it.

    Args:
        path: the file.
        polygons: the polygons of each class, as `outlines.trace` returns them.
        classes: names and colors of the classes.
    """
    features = [
        {
            "type": "Feature",
            "geometry": {
                "type": "MultiPolygon",
                "coordinates": [[_closed(ring) for ring in rings] for rings in polygons[number]],
            },
            "properties": {
                "objectType": "annotation",
                "classification": {
                    "name": classes[number].name,
                    "color": list(bytes.fromhex(classes[number].color[1:])),
                },
            },
        }
        for number in sorted(polygons)
    ]
    with atomic_write(path) as file:
        text = json.dumps({"type": "FeatureCollection", "features": features})
        file.write(text.encode())


def class_names(classes: Sequence[AreaClass]) -> str:
    """Join the names of classes, for messages."""
    return ", ".join(item.name for item in classes)


def _closed(ring: np.ndarray) -> list[list[float]]:
    return np.concatenate([ring, ring[:1]]).round(DECIMALS).tolist()


def _features(path: Path) -> list[dict]:
    try:
        content = json.loads(load_bytes(path).decode("utf-8-sig"), object_hook=_packed)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error}); export it as UTF-8") from None
    # RecursionError: deeply nested arrays. ValueError: also integers with thousands of digits.
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON: {error}; export it again as GeoJSON") from None
    except MemoryError:
        raise InputError(
            f"{path}: too large for the memory; export fewer annotations, or simplify them"
        ) from None
    if isinstance(content, dict):
        kind = content.get("type")
        content = content.get("features") if kind == "FeatureCollection" else [content]
    if not isinstance(content, list) or not all(
        isinstance(item, dict) and item.get("type") == "Feature" for item in content
    ):
        raise InputError(
            f"{path}: not GeoJSON features; expected a FeatureCollection, a list of features, or "
            "one feature"
        )
    return content


def _packed(item: dict[str, Any]) -> dict[str, Any]:
    """Convert lists of positions of a JSON object to arrays at once.

    As lists, the positions of a file of 500 MB would take several GB.
    """
    if "coordinates" in item:
        item["coordinates"] = _pack(item["coordinates"])
    return item


def _pack(value: Any) -> Any:
    if not isinstance(value, list) or not value or not isinstance(value[0], list):
        return value
    if value[0] and isinstance(value[0][0], list):
        return [_pack(each) for each in value]
    points = _positions(value)
    return value if points is None else points


def _positions(value: Any) -> np.ndarray | None:
    """Return positions as float64 [N, 2], or None if they are no list of [x, y]."""
    if isinstance(value, np.ndarray):
        return value
    try:
        points: np.ndarray = np.asarray(value)
    except (ValueError, OverflowError):  # positions of different lengths, or too deep nesting
        return None
    if points.ndim != 2 or points.shape[1] not in (2, 3) or points.dtype.kind not in "iuf":
        return None
    return points[:, :2].astype(float)


def _is_empty(content: Any) -> bool:
    """Return whether nested lists hold nothing at all, as geometries without positions do."""
    return isinstance(content, list) and all(map(_is_empty, content))


def _class_name(where: str, properties: dict) -> str | None:
    name = properties.get("classification")
    if isinstance(name, dict):
        single, parts = name.get("name"), _joined(name.get("names"))
        if single is not None and parts is not None and single != parts:
            raise InputError(
                f"{where}: properties.classification: two classes, name {single!r} and names "
                f"{parts!r}; set one of them in QuPath and export again"
            )
        name = parts if single is None else single
    name = _joined(name)
    if name is None:
        return None
    if not isinstance(name, str) or not name:
        raise InputError(f"{where}: properties.classification: expected a name, found {name!r}")
    return name


def _joined(name: Any) -> Any:
    """Join the names of parent and child as QuPath does, and return anything else unchanged."""
    if isinstance(name, list) and name and all(isinstance(part, str) for part in name):
        return ": ".join(name)
    return name


def _polygons(where: str, parts: Any) -> list[list[np.ndarray]]:
    if not isinstance(parts, list) or not all(isinstance(part, list) and part for part in parts):
        raise InputError(f"{where}: coordinates: expected a list of rings")
    return [[_ring(where, ring) for ring in part] for part in parts]


def _lines(where: str, kind: str, content: Any) -> list[np.ndarray]:
    if kind == "MultiLineString":
        if not isinstance(content, list):
            raise InputError(f"{where}: coordinates: expected a list of lines")
        return [_finite(where, "a line", line) for line in content]
    if kind == "LineString":
        return [_finite(where, "a line", content)]
    points = _finite(where, "the points", [content] if kind == "Point" else content)
    return list(points[:, None])


def _ring(where: str, ring: Any) -> np.ndarray:
    points = _finite(where, "a ring", ring)
    if len(np.unique(points, axis=0)) < 3:
        raise InputError(f"{where}: coordinates: a ring with fewer than 3 different points")
    return points


def _finite(where: str, what: str, value: Any) -> np.ndarray:
    points = _positions(value)
    if points is None:
        raise InputError(f"{where}: coordinates: {what}: not a list of positions [x, y]")
    if not (np.isfinite(points).all() and np.abs(points).max() <= MAX_COORDINATE):
        raise InputError(f"{where}: coordinates: not finite or over {MAX_COORDINATE:g}")
    return points
