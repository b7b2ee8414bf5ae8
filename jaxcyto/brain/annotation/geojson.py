"""Polygons with a class, read from GeoJSON as QuPath exports it."""

import dataclasses
import json
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxcyto.brain.manifest import AreaClass
from jaxcyto.brain.surfaces.formats import load_bytes
from jaxcyto.errors import InputError

NO_AREA = ("Point", "MultiPoint", "LineString", "MultiLineString")
MAX_COORDINATE = 1e9  # px or um; beyond any section


@dataclasses.dataclass(frozen=True, eq=False)
class Polygon:
    """An outline and its holes.

    Attributes:
        number: the class.
        rings: each float64 [N, 2] (x, y), closed or not.
        where: its place in the file, for messages.
    """

    number: int
    rings: list[np.ndarray]
    where: str


def read_polygons(path: Path, classes: Sequence[AreaClass]) -> list[Polygon]:
    """The polygons of a GeoJSON file that have a class, in the file's order.

    A FeatureCollection, a list of features or one feature. The class stands in
    `properties.classification`: `name`, `names` (from parent to child) or the text itself. Of
    "Parent: Child" the whole is looked up first, then the child. Left out, with a warning, are
    features without a class or with one that QuPath calls ignored (its name ends in *), and points
    and lines.

    Raises:
        InputError: not such a file, an unknown class, or a faulty polygon.
    """
    numbers = {item.name: number for number, item in enumerate(classes)}
    polygons: list[Polygon] = []
    left_out: Counter[str] = Counter()
    for index, feature in enumerate(_features(path)):
        where = f"{path}: features[{index}]"
        properties = feature.get("properties")
        name = _class_name(where, properties if isinstance(properties, dict) else {})
        if name is None or name.endswith("*"):
            left_out["without a class" if name is None else f"of the ignored class {name}"] += 1
            continue
        geometry = feature.get("geometry")
        if not isinstance(geometry, dict):
            raise InputError(f"{where}: geometry: expected an object; export the file again")
        kind, parts = geometry.get("type"), geometry.get("coordinates")
        if kind in NO_AREA:
            left_out["that are points or lines"] += 1
            continue
        number = numbers.get(name, numbers.get(name.rpartition(": ")[2]))
        if number is None:
            raise InputError(
                f"{where}: class {name!r} is not in brain.toml, which lists "
                f"{class_names(classes)}; add it there, or rename or remove it in the annotation"
            )
        if kind not in ("Polygon", "MultiPolygon"):
            raise InputError(f"{where}: geometry {kind!r}; expected Polygon or MultiPolygon")
        parts = [parts] if kind == "Polygon" else parts
        if not isinstance(parts, list) or not parts:
            raise InputError(f"{where}: coordinates: expected a list of rings")
        for part in parts:
            if not isinstance(part, list) or not part:
                raise InputError(f"{where}: coordinates: expected a list of rings")
            polygons.append(Polygon(number, [_ring(where, ring) for ring in part], where))
    for reason, count in left_out.items():
        warnings.warn(f"{path}: {count} feature(s) {reason}; left out", stacklevel=2)
    return polygons


def class_names(classes: Sequence[AreaClass]) -> str:
    """Their names, for messages."""
    return ", ".join(item.name for item in classes)


def _features(path: Path) -> list[dict]:
    try:
        content = json.loads(load_bytes(path).decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error}); export it as UTF-8") from None
    except (ValueError, RecursionError) as error:  # also for numbers of endless digits
        raise InputError(f"{path}: not valid JSON: {error}; export it again as GeoJSON") from None
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


def _class_name(where: str, properties: dict) -> str | None:
    found = properties.get("classification")
    if isinstance(found, dict):
        found = found.get("name", found.get("names"))
    if isinstance(found, list) and found and all(isinstance(name, str) for name in found):
        found = ": ".join(found)
    if found is None:
        return None
    if not isinstance(found, str) or not found:
        raise InputError(f"{where}: properties.classification: expected a name, found {found!r}")
    return found


def _ring(where: str, ring: object) -> np.ndarray:
    try:
        points: np.ndarray = np.asarray(ring)
    except (ValueError, OverflowError):  # positions of different lengths, endless nesting
        points = np.empty(0)
    if points.ndim != 2 or points.shape[1] not in (2, 3) or points.dtype.kind not in "iuf":
        raise InputError(f"{where}: coordinates: a ring is not a list of positions [x, y]")
    points = points[:, :2].astype(float)
    if not (np.isfinite(points).all() and np.abs(points).max() <= MAX_COORDINATE):
        raise InputError(f"{where}: coordinates: not finite or over {MAX_COORDINATE:g}")
    if len(np.unique(points, axis=0)) < 3:
        raise InputError(f"{where}: coordinates: a ring with fewer than 3 different points")
    return points
