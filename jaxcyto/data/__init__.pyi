from .pair_batches import PairSource, fit_scales
from .pair_table import PairTable, open_pairs
from .segment_batches import SegmentSource, fit_input_scales
from .segment_table import SegmentTable, open_windows

__all__ = [
    "PairSource",
    "PairTable",
    "SegmentSource",
    "SegmentTable",
    "fit_input_scales",
    "fit_scales",
    "open_pairs",
    "open_windows",
]
