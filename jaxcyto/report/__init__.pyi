from .gather import Gathered, gather
from .page import write_page

__all__ = [
    "Gathered",
    "gather",
    "write_page",
]
