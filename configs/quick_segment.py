"""Configure a class map within a minute: score maps on the frozen layers of a pre-training run.

    uv run train.py --config configs/quick_segment.py --workdir runs/quick \
        --config.init_from=runs/quickstart

The maps of the pre-trained layers are computed once for each section and kept in
runs/quickstart/features. Score maps are then fitted to whatever is annotated, in seconds. After a
correction of the annotation, the same command fits them again.
"""

import dataclasses

from jaxcyto.config import SegmentConfig, SegmentData, small


def get_config() -> SegmentConfig:
    """Return the config."""
    return SegmentConfig(
        data=SegmentData(
            brains=("brains/quickstart",),
            # six sections that show all areas (`jaxcyto.data.coverage`)
            train_sections=("0012", "0025", "0026", "0036", "0038", "0053"),
            image_px=428,
            um_per_px=16.0,
        ),
        model=dataclasses.replace(small(), decoder="scores", pools=(5, 9)),
        encoder_statistics="stored",
        fit_head=True,
        steps=0,
    )
