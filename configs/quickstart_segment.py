"""Configure segmentation on a laptop: six annotated sections of the quickstart's phantom brain.

    uv run train.py --config configs/quickstart_segment.py --workdir runs/segment \
        --config.init_from=runs/quickstart

This fine-tunes the network that configs/quickstart.py has pre-trained. It first fits score maps to
the pre-trained layers, as configs/quick_segment.py does, and then trains all layers. Without
`init_from` it trains from scratch on the same batches, as a baseline.

Cost: about six minutes of one core.

What to expect, from one seed: 8.6 % of the annotated test pixels are wrong and the mean Dice of
the areas is 0.53. From scratch it is 16.7 % and 0.12. A random forest that knows the tissue and
the true depth in the cortex has 7.1 % and 0.63 with the same six sections (docs/segmentation.md).
"""

import dataclasses

import optax

from jaxcyto.config import LossConfig, OptimConfig, SegmentConfig, SegmentData, Term, small
from jaxcyto.losses import cross_entropy

# Six training sections that show every area, chosen by their labels alone:
# python benchmarks/evidence/choose_sections.py brains/quickstart --count 6
SECTIONS = ("0012", "0025", "0026", "0036", "0038", "0053")


def get_config() -> SegmentConfig:
    """Return the config."""
    return SegmentConfig(
        data=SegmentData(
            brains=("brains/quickstart",),
            train_sections=SECTIONS,
            image_px=604,
            um_per_px=16.0,
            batch_images=4,
        ),
        # score maps instead of the paper's expansive path (docs/segmentation.md)
        model=dataclasses.replace(small(), decoder="scores", pools=(5, 9)),
        # the learning rate from scratch. Fine-tuning takes 0.15 of it.
        optim=OptimConfig(optimizer=optax.adam, learning_rate=0.002, warmup_steps=20),
        transfer_rate=0.15,
        encoder_rate=1.0,
        encoder_statistics="stored",
        fit_head=True,
        # The paper's 0.001 would shrink the fitted score maps in the first steps. Their features
        # are small, so their kernels are large.
        loss=LossConfig(terms=(Term(cross_entropy, 1.0),), weight_decay=1e-5),
        steps=400,
        log_every=10,
        eval_every=200,
        eval_images=1000,  # all annotated windows
        batch_stats_steps=20,
        checkpoint_every=200,
    )
