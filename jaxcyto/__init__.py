"""Self-supervised Siamese pre-training on cytoarchitectonic sections, in JAX.

After Spitzer et al., MICCAI 2018 (arXiv 1806.05104). Start with README.md.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("jaxcyto")
except PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "unknown"
