from .loop import train
from .pretext import PretextTask
from .segment import SegmentTask
from .step import eval_step, train_step

__all__ = [
    "PretextTask",
    "SegmentTask",
    "eval_step",
    "train",
    "train_step",
]
