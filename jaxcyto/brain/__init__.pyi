from .check import check_brain
from .manifest import AreaClass, Brain, Hemisphere, SectionRow, read_brain
from .prepare import pair_brain, sample_brain

__all__ = [
    "AreaClass",
    "Brain",
    "Hemisphere",
    "SectionRow",
    "check_brain",
    "pair_brain",
    "read_brain",
    "sample_brain",
]
