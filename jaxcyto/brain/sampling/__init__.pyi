from .pairing import PairSettings, make_pairs
from .pairs import Pairs, load_pairs, open_distances
from .patches import Patches, load_patches
from .sampling import PatchSettings, sample_patches
from .splits import assign_splits

__all__ = [
    "PairSettings",
    "Pairs",
    "PatchSettings",
    "Patches",
    "assign_splits",
    "load_pairs",
    "load_patches",
    "make_pairs",
    "open_distances",
    "sample_patches",
]
