"""Configure fine-tuning as in the paper: 2025 px at 2 um/px -> 68 px at 16 um/px.

Annotate sections first (docs/data.md). Then train from a finished pre-training run, or from scratch
without `init_from`, on the same batches:

    python train.py --config configs/segment.py --workdir runs/segment \
        --config.init_from=runs/pretrain
    python train.py --config configs/segment.py --workdir runs/random

Cost, by arithmetic: An image takes 3.2 G multiply-adds in the forward pass, and 19 GFLOP with the
gradient. 10,000 steps of 8 images take 1.5 PFLOP and read 330 GB of uint8 images.

What to expect: The paper reports 21.2 % wrong pixels from scratch and 14.4 % after pre-training,
with a Dice of 0.80. Nobody has run this config on BigBrain yet.

Batch size, steps, schedule and augmentation are assumptions, because the paper does not state them.
The encoder's learning rate, a tenth of the others' (`encoder_rate`), is also an assumption.
"""

from jaxcyto.config import OptimConfig, SegmentConfig, SegmentData


def get_config() -> SegmentConfig:
    """Return the config."""
    return SegmentConfig(
        data=SegmentData(brains=("brains/bigbrain",), batch_images=8, threads=8),
        optim=OptimConfig(learning_rate=0.01, warmup_steps=200),
        steps=10_000,
        log_every=50,
        eval_every=1000,
        checkpoint_every=1000,
    )
