"""Fine-tuning as in the paper: 2025 px at 2 um/px -> 68 px at 16 um, on annotated sections.

Annotate sections first (docs/data.md), then train from a finished pre-training run, or without
`init_from` from scratch, on the same batches:

    python train.py --config configs/segment.py --workdir runs/segment \
        --config.init_from=runs/pretrain
    python train.py --config configs/segment.py --workdir runs/random

Cost, by arithmetic: an image takes 3.2 G multiply-adds forward, 19 GFLOP with the gradient;
10,000 steps of 8 images are 1.5 PFLOP and read 330 GB of uint8.
What to expect: the paper reports 21.2 % wrongly classified pixels from scratch and 14.4 % after
pre-training, with a Dice of 0.80. Nobody has run this config on BigBrain yet.
Batch size, steps, schedule and augmentation are assumptions; so is the encoder's rate, a tenth of
the others' (`encoder_rate`).
"""

from jaxcyto.config import OptimConfig, SegmentConfig, SegmentData


def get_config() -> SegmentConfig:
    return SegmentConfig(
        data=SegmentData(brains=("brains/bigbrain",), batch_images=8, threads=8),
        optim=OptimConfig(learning_rate=0.01, warmup_steps=200),
        steps=10_000,
        log_every=50,
        eval_every=1000,
        checkpoint_every=1000,
    )
