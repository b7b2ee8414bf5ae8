"""Report a run as one self-contained HTML page or as JSON (`jaxcyto report`).

gather.py     read the run folder into plain dataclasses
files.py      read and validate the JSON files of the run
brains.py     summarize the brain folders of the run
pictures.py   render pairs of patches and sections as data URIs
html.py       build HTML elements with escaped content
charts.py     draw curves and scatter plots as SVG
tables.py     build the tables of errors and scores
curves.py, panes.py, facts.py   build the other sections of the page
page.py       assemble the page with style.css and script.js embedded
"""

import lazy_loader

# __init__.pyi lists the public names. Each is imported on first use.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
