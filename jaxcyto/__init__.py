"""Self-supervised Siamese pre-training on cytoarchitectonic sections, in JAX.

The method is that of Spitzer et al., MICCAI 2018 (arXiv 1806.05104). Start with README.md, or with
docs/python.md if you use the package from Python:

    net = jaxcyto.load("runs/quickstart")        # a run or an export
    features, coordinates = net.embed(patches)   # with a pre-training network
    classes, _ = net.segment(image)              # with a segmentation network

Modules that need JAX are imported on first use.
"""

from importlib.metadata import PackageNotFoundError, version

import lazy_loader

try:
    __version__ = version("jaxcyto")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "unknown"

# __init__.pyi lists the public names. Each is imported on first use.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
