"""Predict seamless class maps of whole sections of any size, window by window.

tiling.py     place the windows that cover a section
reading.py    read the image and the atlas of one window
predictor.py  run the network over sections
planes.py     keep images on disk until a map is complete
maps.py       write and read class and probability maps as OME-TIFF
overlay.py, surface.py        draw class maps, project them to surfaces
section_jobs.py, brain.py     predict all sections of a brain
features.py   compute features of patches with a pre-trained network
evaluate.py   score class maps on annotated sections
"""

import lazy_loader

# __init__.pyi lists the public names. Each is imported on first use.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
