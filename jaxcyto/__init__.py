"""Self-supervised Siamese pre-training on cytoarchitectonic sections, in JAX.

After Spitzer et al., MICCAI 2018 (arXiv 1806.05104). Start with README.md; from Python, with
docs/python.md:

    net = jaxcyto.load("runs/quickstart")        # a run, or an export
    features, coordinates = net.embed(patches)   # of a pre-trained network
    classes, _ = net.segment(image)              # of a segmentation network

What needs JAX is imported on first use.
"""

from importlib.metadata import PackageNotFoundError, version

import lazy_loader

try:
    __version__ = version("jaxcyto")
except PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "unknown"

# What is public stands in __init__.pyi; it is imported on first use.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
