from .geojson import Polygon, read_polygons
from .polygons import annotate_brain
from .surface_labels import carry_labels

__all__ = [
    "Polygon",
    "annotate_brain",
    "carry_labels",
    "read_polygons",
]
