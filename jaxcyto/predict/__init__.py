"""Whole sections: class maps of any size, tile by tile and without a seam.

tiling.py     which windows cover a section
reading.py    what the network sees through one window
predictor.py  the network over sections: bands of their maps
planes.py     bands wait on disk
maps.py       class and probability maps as OME-TIFF
overlay.py, surface.py   what is made of class maps
task.py, brain.py        all sections of a brain
"""

import lazy_loader

# What is public stands in __init__.pyi; it is imported on first use.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
