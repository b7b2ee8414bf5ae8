"""Configure configs/quickstart_segment.py with the atlas, the paper's own setting.

    uv run train.py --config configs/quickstart_segment_atlas.py --workdir runs/segment_atlas \
        --config.init_from=runs/quickstart

The network has a second path, which reads the phantom's displaced and blurred atlas
(docs/phantom.md). All else is equal, also the training images. This shows what the atlas adds to
the texture. What the atlas reaches without a network is printed by

    python benchmarks/evidence/atlas_alone.py --config configs/quickstart_segment_atlas.py
"""

from configs.quickstart_segment import get_config as without_atlas
from jaxcyto.config import SegmentConfig


def get_config() -> SegmentConfig:
    """Return the config."""
    config = without_atlas()
    config.data.atlas = True
    return config
