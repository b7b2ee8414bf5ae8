"""Segmentation on a laptop: six annotated sections of the quickstart's phantom brain.

    uv run train.py --config configs/quickstart_segment.py --workdir runs/segment \
        --config.init_from=runs/quickstart

Fine-tunes what configs/quickstart.py has pre-trained; without `init_from` it is the random
baseline, on the same batches. Cost: about six minutes each on two cores. What to expect, one seed:
13.7 % of the test's annotated pixels wrong and a mean Dice of the areas of 0.31; from scratch
16.3 % and 0.18. The areas are hard, the annotations few and the steps not enough.
"""

import optax

from jaxcyto.config import OptimConfig, SegmentConfig, SegmentData, small


def get_config() -> SegmentConfig:
    return SegmentConfig(
        data=SegmentData(
            brains=("brains/quickstart",),
            train_sections=("0012", "0022", "0026", "0037", "0041", "0050"),
            image_px=300,
            um_per_px=16.0,
            batch_images=8,
        ),
        model=small(),
        optim=OptimConfig(optimizer=optax.adam, learning_rate=0.002, warmup_steps=20),
        steps=900,
        log_every=10,
        eval_every=150,
        eval_images=8,
        batch_stats_steps=20,
        checkpoint_every=150,
    )
