"""Pre-training on the small brain beside this file."""

from jaxcyto.config import Config, DataConfig, ModelConfig


def get_config():
    return Config(
        data=DataConfig(("brain",), patch_px=32, um_per_px=64.0, batch_pairs=8, threads=2),
        model=ModelConfig(stem_kernel=3, stem_stride=1, widths=(4, 4, 8)),
        steps=8,
        log_every=1,
        eval_every=4,
        checkpoint_every=4,
        eval_pairs=8,
        batch_stats_steps=2,
    )
