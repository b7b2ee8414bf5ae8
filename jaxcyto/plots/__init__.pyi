from .common import save_figures
from .pretext import pretext_figures
from .segmentation import section_figure, segment_figures

__all__ = [
    "pretext_figures",
    "save_figures",
    "section_figure",
    "segment_figures",
]
