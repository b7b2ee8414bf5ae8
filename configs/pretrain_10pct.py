"""Configure the paper's ablation on 10 % of the data: 20,000 patches and pairs, 50 epochs.

    jaxcyto sample brains/bigbrain --patches 20000 --out patches_10pct.npz
    jaxcyto pair brains/bigbrain --pairs 20000 --patches-file patches_10pct.npz \
        --out pairs_10pct.npz
    python train.py --config configs/pretrain_10pct.py --workdir runs/pretrain_10pct

To train with one loss alone, add "--config.loss.terms[1].weight=0" (distance only) or
"--config.loss.terms[0].weight=0" (coordinates only).

Cost: 7.7 PFLOP, a tenth of configs/pretrain.py.

What to expect: The paper says that adding coordinates halves the distance error. Nobody has run
this config on BigBrain yet.
"""

from jaxcyto.config import Config, DataConfig, OptimConfig


def get_config() -> Config:
    """Return the config."""
    return Config(
        data=DataConfig(
            brains=("brains/bigbrain",), pairs="pairs_10pct.npz", batch_pairs=32, threads=8
        ),
        optim=OptimConfig(learning_rate=0.01, warmup_steps=500),
        epochs=50,
        log_every=50,
        eval_every=2500,
        eval_pairs=2048,
        checkpoint_every=2500,
    )
