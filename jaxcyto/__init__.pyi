from .api import Network, Segmentation, load
from .errors import InputError
from .predict.features import Embedding
from .runs.export import export_run

__all__ = [
    "Embedding",
    "InputError",
    "Network",
    "Segmentation",
    "export_run",
    "load",
]
__version__: str
