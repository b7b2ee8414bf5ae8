from .smoothing import inflate, smooth
from .surface import Surface, hemisphere_surface, read_surface, write_surface
from .vertex_labels import read_label_names, read_labels
from .vertex_maps import vertex_means, write_maps

__all__ = [
    "Surface",
    "hemisphere_surface",
    "inflate",
    "read_label_names",
    "read_labels",
    "read_surface",
    "smooth",
    "vertex_means",
    "write_maps",
    "write_surface",
]
