"""The experiment of evidence.py: its sizes, brains and rows, and the config of each run.

A row is a way to pre-train; a study is a brain that rows are pre-trained on, and one that they
segment. All rows of a study and seed see the same patches (row 5: ten times as many), the same
annotated sections and the same fine-tuning batches, and train for the same number of steps.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import optax

from jaxcyto.batch_losses import all_pairs_distance_loss, colocation_loss
from jaxcyto.brain.manifest import read_brain
from jaxcyto.brain.prepare import pair_brain, sample_brain
from jaxcyto.config import (
    Config,
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    SegmentConfig,
    SegmentData,
    Term,
    small,
)
from jaxcyto.errors import InputError
from jaxcyto.losses import coordinate_loss, distance_loss, is_batchwise
from jaxcyto.phantom.given_surfaces import GivenHemisphere, paint_surfaces
from jaxcyto.phantom.make import make_phantom
from jaxcyto.phantom.settings import PRESETS, PhantomSettings
from jaxcyto.utils.progress import StderrProgress

NEAR_MM = 2.0  # up to which two patches are at the same place, row 7: the loss's default
METHOD = "heat"  # of distances: 2,000 solutions; the oracle takes 15,000 on BigBrain's surface
MORE = 10  # times the patches and pairs, row 5
PHANTOM_SEED = 1  # the phantom and the quickstart were designed on seed 0
SURFACE = "bigbrain/surf/tpl-bigbrain_hemi-L_desc-{}.surf.gii"
LABELS = "bigbrain/labels/tpl-bigbrain_hemi-L_desc-vcatlas_hOc.label.gii"
THICKNESS = "bigbrain/maps/layer_thickness_L_um_uint16.npz"

DISTANCE, COORDINATES = Term(distance_loss, 1.0), Term(coordinate_loss, 10.0)
ALL_PAIRS = Term(all_pairs_distance_loss, 1.0)


@dataclasses.dataclass(frozen=True)
class Row:
    """A way to pre-train: loss terms (none: no pre-training), pairs, and what else is changed."""

    title: str
    terms: tuple[Term, ...] = ()
    pairs: str = "pairs.npz"
    optim: dict[str, float] = dataclasses.field(default_factory=dict)  # times those of the size
    optimizer: Callable[..., optax.GradientTransformation] | None = None  # None: that of the size
    encoder_rate: float | None = None  # of fine-tuning; None: that of the size
    shares: str | None = None  # the row whose pre-training it uses
    steps: int = 1  # times those of the size, of the pre-training
    rate: float = 1.0  # times that of the size, of the fine-tuning
    distance_scale: float = 1.0  # unit of the predicted distance, in mean training distances


def both(form: str) -> tuple[Term, ...]:
    """Rows 4's terms with another outer form."""
    return (
        Term(functools.partial(distance_loss, form=form), 1.0),
        Term(functools.partial(coordinate_loss, form=form), 10.0),
    )


ROWS = {
    "1": Row("none"),
    "2": Row("distance", (DISTANCE,)),
    "3": Row("coordinates", (COORDINATES,)),
    "4": Row("distance + coordinates", (DISTANCE, COORDINATES)),
    "5": Row("the same, ten times the pairs", (DISTANCE, COORDINATES), "pairs_more.npz"),
    "6": Row("all pairs of a batch + coordinates", (ALL_PAIRS, COORDINATES)),
    "7": Row(
        "contrastive, by co-location",
        (Term(functools.partial(colocation_loss, near_mm=NEAR_MM), 1.0),),
        "pairs_near.npz",
    ),
}
# Row 4, and what it is held against, with one of the choices made otherwise.
ABLATIONS = {
    "4 l2": Row("outer form l2", both("l2")),
    "4 huber": Row("outer form huber", both("huber")),
    "2 l2": Row("distance, outer form l2", both("l2")[:1]),
    "4 scale 4": Row("distances in units 4 times as large", ROWS["4"].terms, distance_scale=4.0),
    "4 scale 1/4": Row("in units a quarter as large", ROWS["4"].terms, distance_scale=0.25),
    "4 rate x4": Row("learning rate x 4", ROWS["4"].terms, optim={"learning_rate": 4.0}),
    "4 rate /4": Row("learning rate / 4", ROWS["4"].terms, optim={"learning_rate": 0.25}),
    "4 sgd": Row("SGD at 0.01, as configs/pretrain.py", ROWS["4"].terms,
                 optim={"learning_rate": 5.0}, optimizer=OptimConfig().optimizer),
    "4 encoder 1": Row("fine-tuned with the encoder at the full rate", ROWS["4"].terms,
                       encoder_rate=1.0, shares="4"),
    "1 rate x4": Row("none; fine-tuning rate x 4", rate=4.0, shares="1"),
    "1 rate /4": Row("none; fine-tuning rate / 4", rate=0.25, shares="1"),
    "2 steps x4": Row("distance, 4 times the steps", (DISTANCE,), steps=4),
    "4 steps x4": Row("both, 4 times the steps", ROWS["4"].terms, steps=4),
}  # fmt: skip
# All annotated sections and ten times the steps, from scratch: what could be had.
CEILING = {"ceiling": Row("none; all sections annotated, ten times the steps")}
ALL_ROWS = ROWS | ABLATIONS | CEILING


@dataclasses.dataclass(frozen=True)
class Study:
    """`rows` pre-trained on one brain, fine-tuned and tested on one."""

    title: str
    pretrained_on: str
    segmented: str
    rows: tuple[str, ...]
    longer: int = 1  # times the size's steps of fine-tuning


STUDIES = {
    "phantom": Study("phantom", "phantom", "phantom", tuple(ROWS)),
    "longer": Study(
        "phantom, three times the fine-tuning", "phantom", "phantom", ("1", "4", "4 encoder 1"), 3
    ),
    "longest": Study("phantom, ten times the fine-tuning", "phantom", "phantom", ("1", "4"), 10),
    "ceiling": Study("phantom", "phantom", "phantom", tuple(CEILING), 10),
    "other": Study("another individual", "phantom", "other", ("1", "4", "6", "7")),
    "null": Study("null phantom", "null", "null", ("1", "4", "6")),
    "painted": Study("painted BigBrain", "painted", "painted", ("1", "2", "3", "4", "6", "7")),
    "ablation": Study("phantom", "phantom", "phantom", tuple(ABLATIONS)),
}


@dataclasses.dataclass(frozen=True)
class Size:
    """How large everything is."""

    phantom: PhantomSettings
    model: ModelConfig
    patch_px: int
    um_per_px: float
    patches: int
    batch_pairs: int
    pretext_steps: int
    pretext_optim: OptimConfig
    image_px: int
    batch_images: int
    annotated: int  # training sections
    segment_steps: int
    segment_optim: OptimConfig
    encoder_rate: float
    painted_y_mm: tuple[float, float] = (-68.0, -5.0)  # of the visual areas
    evaluations: int = 5  # on the way
    threads: int = 4


SIZES = {
    # the test of the whole chain
    "tiny": Size(
        phantom=PRESETS["tiny"], model=ModelConfig(3, 1, (4, 4, 8)), patch_px=32, um_per_px=64.0,
        patches=120, batch_pairs=8, pretext_steps=6,
        pretext_optim=OptimConfig(optimizer=optax.adam, learning_rate=0.002),
        image_px=60, batch_images=8, annotated=4, segment_steps=6,
        segment_optim=OptimConfig(optimizer=optax.adam, learning_rate=0.002),
        encoder_rate=0.1, evaluations=2,
    ),
    # two cores: about ten minutes a run
    "small": Size(
        phantom=PRESETS["quickstart"], model=small(), patch_px=128, um_per_px=16.0,
        patches=2000, batch_pairs=16, pretext_steps=850,
        pretext_optim=OptimConfig(optimizer=optax.adam, learning_rate=0.002, warmup_steps=30),
        image_px=300, batch_images=8, annotated=6, segment_steps=300,
        segment_optim=OptimConfig(optimizer=optax.adam, learning_rate=0.002, warmup_steps=20),
        encoder_rate=0.1,
    ),
    # the paper's sizes, for a GPU; brains of 2 um/px are made
    "paper": Size(
        phantom=PRESETS["full"], model=ModelConfig(), patch_px=1019, um_per_px=2.0,
        patches=20_000, batch_pairs=32, pretext_steps=10_000,
        pretext_optim=OptimConfig(optimizer=optax.adam, learning_rate=0.002, warmup_steps=200),
        image_px=2025, batch_images=8, annotated=6, segment_steps=3000,
        segment_optim=OptimConfig(optimizer=optax.adam, learning_rate=0.002, warmup_steps=100),
        encoder_rate=0.1, threads=12,
    ),
}  # fmt: skip


# ---- brains -------------------------------------------------------------------------------------


def make_brain(name: str, root: Path, size: Size, data: Path | None, row: Row) -> None:
    """Makes what a row needs and a brain folder lacks: sections, patches, pairs.

    Args:
        name: "phantom", "other" (another individual), "null" or "painted" (on BigBrain's surface).
        root: the folder.
        size: of all.
        data: where BigBrain's surfaces, labels and thicknesses lie; for "painted" only.
        row: which pairs are wanted beside those of patches.npz, see `ROWS`.

    Raises:
        InputError: "painted" without `data`.
    """
    if not root.exists():
        progress = StderrProgress(name, "sections")
        changes = {"other": {"individual": 1}, "null": {"null": True}}.get(name, {})
        settings = dataclasses.replace(size.phantom, seed=PHANTOM_SEED, **changes)
        if name != "painted":
            make_phantom(root, settings, progress)
        else:
            left = GivenHemisphere("left", *bigbrain_files(data))
            paint_surfaces(root, [left], size.painted_y_mm, settings, progress)
    patch = {"patch_px": size.patch_px, "um_per_px": size.um_per_px}
    if not (root / "patches.npz").exists():
        sample_brain(root, num_patches=size.patches, **patch)
    if not (root / "pairs.npz").exists():
        pair_brain(root, num_pairs=size.patches, method=METHOD, all_distances=True)
    if (root / row.pairs).exists():
        return
    if row.pairs == "pairs_near.npz":
        settings = {"num_pairs": size.patches, "within_mm": NEAR_MM}
        pair_brain(root, out=row.pairs, method=METHOD, **settings)
    if row.pairs == "pairs_more.npz":
        count = MORE * size.patches
        sample_brain(root, num_patches=count, out="patches_more.npz", **patch)
        pair_brain(
            root, patches_file="patches_more.npz", out=row.pairs, num_pairs=count, method=METHOD
        )


def bigbrain_files(data: Path | None) -> list[Path]:
    """Pial and white surface, labels and thicknesses of BigBrain's left hemisphere.

    Raises:
        InputError: no folder is given, or one of them is not there.
    """
    if data is None:
        raise InputError("the study on BigBrain's surface needs --data; see docs/results.md")
    names = SURFACE.format("pial"), SURFACE.format("white"), LABELS, THICKNESS
    files = [data / name for name in names]
    for path in files:
        if not path.is_file():
            raise InputError(f"--data {data}: no file {path}; see docs/results.md")
    return files


# ---- runs ---------------------------------------------------------------------------------------


def pretext_config(size: Size, root: Path, row: Row, seed: int) -> Config:
    """The pre-training of a row."""
    steps = row.steps * size.pretext_steps
    every = max(1, steps // size.evaluations)
    return Config(
        seed=seed,
        data=DataConfig(
            brains=(str(root),),
            pairs=row.pairs,
            patch_px=size.patch_px,
            um_per_px=size.um_per_px,
            batch_pairs=size.batch_pairs,
            threads=size.threads,
            all_distances=any(is_batchwise(term.function) for term in row.terms),
            absolute_x=True,  # the phantom's hemispheres mirror each other
        ),
        model=size.model,
        loss=LossConfig(terms=row.terms),
        optim=_scaled(size.pretext_optim, row.optim, row.optimizer),
        steps=steps,
        log_every=max(1, steps // 100),
        eval_every=every,
        eval_pairs=256,
        batch_stats_steps=min(50, steps),
        checkpoint_every=every,
    )


def segment_config(
    size: Size, root: Path, row: str, seed: int, init_from: Path | None, longer: int
) -> SegmentConfig:
    """The fine-tuning of a row: equal for all but for `init_from` and the encoder's rate."""
    everything = row in CEILING
    steps = size.segment_steps * longer
    every = max(1, steps // size.evaluations)
    rates = ALL_ROWS[row]
    return SegmentConfig(
        seed=seed,
        data=SegmentData(
            brains=(str(root),),
            train_sections=() if everything else annotated_sections(root, size.annotated, seed),
            image_px=size.image_px,
            um_per_px=size.um_per_px,
            batch_images=size.batch_images,
            threads=size.threads,
        ),
        model=size.model,
        optim=_scaled(size.segment_optim, {"learning_rate": rates.rate}),
        init_from=None if init_from is None else str(init_from),
        encoder_rate=size.encoder_rate if rates.encoder_rate is None else rates.encoder_rate,
        steps=steps,
        log_every=max(1, steps // 100),
        eval_every=every,
        eval_images=8,
        batch_stats_steps=min(20, steps),
        checkpoint_every=every,
    )


def annotated_sections(root: Path, count: int, seed: int) -> tuple[str, ...]:
    """Training sections that count as annotated: one, drawn, of each of `count` equal runs."""
    rows = read_brain(root).sections
    names = [row.name for row in rows if row.split == "train" and row.label is not None]
    rng = np.random.default_rng((seed, 7))
    return tuple(str(rng.choice(part)) for part in np.array_split(names, min(count, len(names))))


def _scaled(
    optim: OptimConfig,
    factors: dict[str, float],
    optimizer: Callable[..., optax.GradientTransformation] | None = None,
) -> OptimConfig:
    values = {name: getattr(optim, name) * factor for name, factor in factors.items()}
    return dataclasses.replace(optim, optimizer=optimizer or optim.optimizer, **values)
