from .border_contrast import embed_curves, gap_statistics, neighbor_gaps
from .probes import probe_areas, probe_coordinates
from .ribbon_walk import walk_ribbons
from .run import explore_features, explore_nearest, explore_predictions

__all__ = [
    "embed_curves",
    "explore_features",
    "explore_nearest",
    "explore_predictions",
    "gap_statistics",
    "neighbor_gaps",
    "probe_areas",
    "probe_coordinates",
    "walk_ribbons",
]
