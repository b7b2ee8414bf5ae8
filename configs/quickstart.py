"""Configure the whole chain on a laptop: a phantom brain, patches, pairs, training, test.

    uv run train.py --config configs/quickstart.py --workdir runs/quickstart

This makes brains/quickstart if it is missing, and trains the small network on the CPU.

Cost: six to ten minutes on two cores.

What to expect: The distance error on held-out sections is 3.65 mm, where always predicting the
training median gives 7.99 mm. This is one run, and the phantom was designed on this seed
(docs/phantom.md).
"""

from pathlib import Path

import optax

from jaxcyto.batch_losses import all_pairs_distance_loss
from jaxcyto.brain.prepare import describe_pairs, describe_patches, pair_brain, sample_brain
from jaxcyto.config import Config, DataConfig, LossConfig, OptimConfig, Term, small
from jaxcyto.losses import coordinate_loss, distance_loss
from jaxcyto.phantom import PRESETS, make_phantom
from jaxcyto.utils.progress import StderrProgress

PATCHES = 4000
PAIRS = 12_000
PHANTOM = "brains/quickstart"  # only this brain is made if it is missing


def get_config() -> Config:
    """Return the config."""
    return Config(
        data=DataConfig(
            brains=(PHANTOM,),
            patch_px=128,
            um_per_px=16.0,
            batch_pairs=8,  # 16 with half the steps learn as much (docs/pretraining.md)
            absolute_x=True,  # because the phantom's hemispheres mirror each other
            all_distances=True,
        ),
        model=small(),
        # the paper's two terms and weights, and one over all pairs that reuses their features
        loss=LossConfig(
            terms=(
                Term(distance_loss, 1.0),
                Term(coordinate_loss, 10.0),
                Term(all_pairs_distance_loss, 3.0),
            )
        ),
        # Adam instead of the SGD of the full configs, because it learns faster in few steps
        optim=OptimConfig(optimizer=optax.adam, learning_rate=0.002, warmup_steps=60),
        steps=3400,
        log_every=20,
        eval_every=850,
        eval_pairs=256,
        batch_stats_steps=50,
        checkpoint_every=850,
        prepare=prepare,
    )


def prepare(config: Config) -> None:
    """Make the brain, its patches and its pairs, as far as they are missing."""
    data = config.data
    root = Path(data.brains[0])
    if data.brains[0] == PHANTOM and not (root / "brain.toml").exists():
        make_phantom(root, PRESETS["quickstart"], StderrProgress("phantom", "sections"))
    if not (root / "patches.npz").exists():
        patches = sample_brain(
            root, num_patches=PATCHES, patch_px=data.patch_px, um_per_px=data.um_per_px
        )
        print(describe_patches(patches), flush=True)
    if not (root / data.pairs).exists():
        pairs = pair_brain(root, num_pairs=PAIRS, method="heat", all_distances=True)
        print(describe_pairs(pairs), flush=True)
