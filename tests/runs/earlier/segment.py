"""Segmentation of the small brain beside this file, from the run of pretext.py."""

from jaxcyto.config import ModelConfig, SegmentConfig, SegmentData


def get_config():
    return SegmentConfig(
        data=SegmentData(("brain",), image_px=60, um_per_px=64.0, batch_images=8, threads=2),
        model=ModelConfig(stem_kernel=3, stem_stride=1, widths=(4, 4, 8)),
        init_from="pretext",
        steps=4,
        log_every=1,
        eval_every=2,
        checkpoint_every=2,
        eval_images=2,
        batch_stats_steps=2,
    )
