"""Whole sections: class maps of any size, tile by tile and without a seam.

tiling.py     which windows cover a section
reading.py    what the network sees through one window
predictor.py  the network over sections: bands of their maps
planes.py     bands wait on disk
maps.py       class and probability maps as OME-TIFF
overlay.py, surface.py   what is made of class maps
task.py, brain.py        all sections of a brain
"""

from jaxcyto.predict.brain import Outputs, Report, predict_brain
from jaxcyto.predict.maps import NOT_PREDICTED, ClassMap, open_class_map
from jaxcyto.predict.predictor import Band, Failure, Predictor
from jaxcyto.predict.reading import Source, map_shape

__all__ = [
    "NOT_PREDICTED",
    "Band",
    "ClassMap",
    "Failure",
    "Outputs",
    "Predictor",
    "Report",
    "Source",
    "map_shape",
    "open_class_map",
    "predict_brain",
]
