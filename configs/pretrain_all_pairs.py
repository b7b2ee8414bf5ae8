"""Configure pre-training at the paper's size with the distances between all patches of a batch.

    jaxcyto sample brains/bigbrain --patches 200000
    jaxcyto pair brains/bigbrain --pairs 200000 --all-distances
    python train.py --config configs/pretrain_all_pairs.py --workdir runs/pretrain_all_pairs

A batch of 32 pairs holds 2,016 distances, of which the paper's loss reads 32. Here a third term
reads all of them. It needs the features that are there already, so a step takes as long. Everything
else is as in configs/pretrain.py.

Cost: as configs/pretrain.py. `--all-distances` writes a table of 160 GB for 200,000 patches. With
20,000 patches it is 1.6 GB.

What to expect: Nobody has run this config on BigBrain yet. On the phantom, with the small network,
docs/segmentation.md says how much the term changes.
"""

from configs.pretrain import get_config as pretrain
from jaxcyto.batch_losses import all_pairs_distance_loss
from jaxcyto.config import Config, Term


def get_config() -> Config:
    """Return the config."""
    config = pretrain()
    config.data.all_distances = True
    config.loss.terms = (*config.loss.terms, Term(all_pairs_distance_loss, 3.0))
    return config
