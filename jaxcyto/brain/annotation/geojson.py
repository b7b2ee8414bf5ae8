"""Read polygons with a class from GeoJSON, as QuPath exports it."""

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

NO_AREA = ("Point", "MultiPoint", "LineString", "MultiLineString")  # geometries without an area
MAX_COORDINATE = 1e9  # px or um, beyond any section


@dataclasses.dataclass(frozen=True, eq=False)
class Polygon:
    """An outline with its holes.

    Attributes:
        number: index of the class.
        rings: outline and holes, each float64 [N, 2] (x, y), closed or not.
        where: file and feature, for error messages.
    """

    number: int
    rings: list[np.ndarray]
    where: str


def read_polygons(path: Path, classes: Sequence[AreaClass]) -> list[Polygon]:
    """Read the polygons of a GeoJSON file that have a class, in the order of the file.

    The file holds a FeatureCollection, a list of features or one feature. The class is read from
    `properties.classification`, which is a text or has a `name` or `names` (from parent to child).
    A class "Parent: Child" is looked up as a whole first, then by its child. Some features are left
    out with a warning: points and lines, features without a class, and features whose class QuPath
    ignores (its name ends in *).

    Args:
        path: the file.
        classes: the classes of the brain.

    Raises:
        InputError: if the file is not such GeoJSON, a class is unknown, or a polygon is faulty.
    """
    indices = {item.name: index for index, item in enumerate(classes)}
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
        class_index = indices.get(name, indices.get(name.rpartition(": ")[2]))
        if class_index is None:
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
            polygons.append(Polygon(class_index, [_ring(where, ring) for ring in part], where))
    for reason, count in left_out.items():
        warnings.warn(f"{path}: {count} feature(s) {reason}; left out", stacklevel=2)
    return polygons


def class_names(classes: Sequence[AreaClass]) -> str:
    """Join the names of classes, for messages."""
    return ", ".join(item.name for item in classes)


def _features(path: Path) -> list[dict]:
    try:
        content = json.loads(load_bytes(path).decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error}); export it as UTF-8") from None
    # RecursionError: deeply nested arrays. ValueError: also integers with thousands of digits.
    except (ValueError, RecursionError) as error:
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
    name = properties.get("classification")
    if isinstance(name, dict):
        name = name.get("name", name.get("names"))
    if isinstance(name, list) and name and all(isinstance(part, str) for part in name):
        name = ": ".join(name)
    if name is None:
        return None
    if not isinstance(name, str) or not name:
        raise InputError(f"{where}: properties.classification: expected a name, found {name!r}")
    return name


def _ring(where: str, ring: object) -> np.ndarray:
    try:
        points: np.ndarray = np.asarray(ring)
    except (ValueError, OverflowError):  # positions of different lengths, or too deep nesting
        points = np.empty(0)
    if points.ndim != 2 or points.shape[1] not in (2, 3) or points.dtype.kind not in "iuf":
        raise InputError(f"{where}: coordinates: a ring is not a list of positions [x, y]")
    points = points[:, :2].astype(float)
    if not (np.isfinite(points).all() and np.abs(points).max() <= MAX_COORDINATE):
        raise InputError(f"{where}: coordinates: not finite or over {MAX_COORDINATE:g}")
    if len(np.unique(points, axis=0)) < 3:
        raise InputError(f"{where}: coordinates: a ring with fewer than 3 different points")
    return points
