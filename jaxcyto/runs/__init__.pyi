from .export import export_run
from .load import PretextRun, SegmentRun, load_pretext_run, load_run, load_segment_run
from .metrics_file import read_metrics
from .pair_predictions import read_predictions

__all__ = [
    "PretextRun",
    "SegmentRun",
    "export_run",
    "load_pretext_run",
    "load_run",
    "load_segment_run",
    "read_metrics",
    "read_predictions",
]
