"""The whole chain on a laptop: a phantom brain, patches, pairs, training, test.

    uv run train.py --config configs/quickstart.py --workdir runs/quickstart

Makes brains/quickstart if it is not there, and trains the small network on the CPU.
"""

from pathlib import Path

import optax

from jaxcyto.brain.phantom import PRESETS, make_phantom
from jaxcyto.brain.prepare import describe_pairs, describe_patches, pair_brain, sample_brain
from jaxcyto.brain.progress import StderrProgress
from jaxcyto.config import Config, DataConfig, OptimConfig, small

PATCHES = 4000
PAIRS = 12_000


def get_config() -> Config:
    return Config(
        data=DataConfig(
            brains=("brains/quickstart",),
            patch_px=128,
            um_per_px=16.0,
            batch_pairs=16,
            absolute_x=True,  # the phantom's hemispheres mirror each other
        ),
        model=small(),
        # Adam, where the paper's circle uses SGD: it learns faster in so few steps
        optim=OptimConfig(optimizer=optax.adam, learning_rate=0.002, warmup_steps=30),
        steps=849,
        log_every=10,
        eval_every=283,
        eval_pairs=256,
        batch_stats_steps=50,
        checkpoint_every=283,
        prepare=prepare,
    )


def prepare(config: Config) -> None:
    """Makes what is missing of the brain, its patches and its pairs."""
    data = config.data
    root = Path(data.brains[0])
    if not (root / "brain.toml").exists():
        make_phantom(root, PRESETS["quickstart"], StderrProgress("phantom", "sections"))
    if not (root / "patches.npz").exists():
        patches = sample_brain(
            root, num_patches=PATCHES, patch_px=data.patch_px, um_per_px=data.um_per_px
        )
        print(describe_patches(patches), flush=True)
    if not (root / data.pairs).exists():
        print(describe_pairs(pair_brain(root, num_pairs=PAIRS, method="heat")), flush=True)
