"""Configure the paper's pre-training: 200,000 patches of 1019 px at 2 um/px, 200,000 pairs.

Prepare the brain once (docs/data.md), then train:

    jaxcyto sample brains/bigbrain --patches 200000
    jaxcyto pair brains/bigbrain --pairs 200000
    python train.py --config configs/pretrain.py --workdir runs/pretrain

Cost, by arithmetic: A pair takes 2 x 0.64 G multiply-adds in the forward pass and about three times
that with the gradient, which is 7.7 GFLOP. 50 epochs of 200,000 pairs take 77 PFLOP and read 21 TB
of uint8 patches.

What to expect: The paper gives no error in millimeters, and nobody has run this config on BigBrain
yet. configs/quickstart.py and benchmarks/evidence/real_section.py give measurements at smaller
sizes.

Batch size, schedule, epochs of the full run and augmentation are assumptions, because the paper
does not state them.
"""

from jaxcyto.config import Config, DataConfig, OptimConfig


def get_config() -> Config:
    """Return the config."""
    return Config(
        data=DataConfig(brains=("brains/bigbrain",), batch_pairs=32, threads=8),
        optim=OptimConfig(learning_rate=0.01, warmup_steps=500),
        epochs=50,
        log_every=50,
        eval_every=2500,
        eval_pairs=2048,
        checkpoint_every=2500,
    )
