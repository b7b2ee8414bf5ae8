"""Self-supervised Siamese pre-training on cytoarchitectonic sections, in JAX.

After Spitzer et al., MICCAI 2018 (arXiv 1806.05104). Start with README.md; from Python, with
docs/python.md:

    net = jaxcyto.load("runs/quickstart")        # a run, or an export
    features, coordinates = net.embed(patches)   # of a pre-trained network
    classes, _ = net.segment(image)              # of a segmentation network

What needs JAX is imported on first use.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from jaxcyto.errors import InputError

if TYPE_CHECKING:
    from jaxcyto.api import Network, Segmentation, load
    from jaxcyto.export import export_run
    from jaxcyto.features import Embedding

__all__ = [
    "Embedding",
    "InputError",
    "Network",
    "Segmentation",
    "__version__",
    "export_run",
    "load",
]

_MODULES = {
    "Embedding": "jaxcyto.features",
    "Network": "jaxcyto.api",
    "Segmentation": "jaxcyto.api",
    "export_run": "jaxcyto.export",
    "load": "jaxcyto.api",
}

try:
    __version__ = version("jaxcyto")
except PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "unknown"


def __getattr__(name: str) -> Any:
    """Imports a public name on first use."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
