"""Configure configs/quickstart_segment.py with the atlas, the paper's own setting.

    uv run train.py --config configs/quickstart_segment_atlas.py --workdir runs/segment_atlas \
        --config.init_from=runs/quickstart

The network has a second path, which reads the phantom's displaced and blurred atlas
(docs/phantom.md). The training images are the same. The second path is not pre-trained, so the
score maps start at zero and learn at the full rate. What the atlas reaches without a network is
printed by

    python benchmarks/evidence/atlas_alone.py --config configs/quickstart_segment_atlas.py

Cost: about ten minutes of one core.

What to expect, from one seed: 8.4 % of the annotated test pixels are wrong and the mean Dice of
the areas is 0.62. From scratch it is 10.4 % and 0.58, and the atlas alone has 0.37.
"""

from configs.quickstart_segment import get_config as without_atlas
from jaxcyto.config import SegmentConfig


def get_config() -> SegmentConfig:
    """Return the config."""
    config = without_atlas()
    config.data.atlas = True
    config.fit_head = False
    config.transfer_rate, config.encoder_rate = 1.0, 0.15
    return config
