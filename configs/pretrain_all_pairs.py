"""Configure pre-training at the paper's size with the distances between all patches of a batch.

    jaxcyto sample brains/bigbrain --patches 50000 --out patches_all.npz
    jaxcyto pair brains/bigbrain --pairs 200000 --all-distances --patches-file patches_all.npz \
        --out pairs_all.npz
    python train.py --config configs/pretrain_all_pairs.py --workdir runs/pretrain_all_pairs

A batch of 32 pairs holds 2,016 distances, of which the paper's loss reads 32. Here a third term
reads all of them. It needs the features that are there already, so a step takes as long. Everything
else is as in configs/pretrain.py, but there are a quarter of the patches, because a table of the
distances between all patches is at most 50,000 x 50,000 (10 GB).

Cost: as configs/pretrain.py.

What to expect: Nobody has run this config on BigBrain yet. docs/pretraining.md says how much the
term changes on the phantom, with the small network.
"""

from configs.pretrain import get_config as pretrain
from jaxcyto.batch_losses import all_pairs_distance_loss
from jaxcyto.config import Config, Term


def get_config() -> Config:
    """Return the config."""
    config = pretrain()
    config.data.pairs = "pairs_all.npz"
    config.data.all_distances = True
    config.loss.terms = (*config.loss.terms, Term(all_pairs_distance_loss, 3.0))
    return config
