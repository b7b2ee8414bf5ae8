from .geojson import Annotation, read_annotations, write_annotations
from .outlines import trace
from .polygons import annotate_brain
from .surface_labels import carry_labels

__all__ = [
    "Annotation",
    "annotate_brain",
    "carry_labels",
    "read_annotations",
    "trace",
    "write_annotations",
]
