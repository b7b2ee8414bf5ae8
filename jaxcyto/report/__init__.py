"""`jaxcyto report`: a run as one HTML page that needs no network, or its figures as JSON.

gather.py     what the run's folder says, as plain values
files.py      its JSON files, or what is damaged
brains.py     the data: what the brain folders say
pictures.py   pairs of patches, sections with their classes: images as data URIs
html.py       elements that escape what they hold
charts.py     curves and points as SVG
tables.py     scores as tables
page.py       the page; style.css and script.js are put into it
"""

import lazy_loader

# What is public stands in __init__.pyi; it is imported on first use.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
