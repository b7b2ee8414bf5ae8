"""Define the configuration as plain dataclasses, which hold all default values.

A config file (`configs/*.py`) defines `get_config()`, which returns a `Config` (pre-training) or a
`SegmentConfig` (segmentation). Every field can be overridden on the command line, for example with
`--config.optim.learning_rate=0.02` or `--config.loss.terms[1].weight=0`. "Paper" below refers to
Spitzer et al., MICCAI 2018 (arXiv 1806.05104). What it leaves open is marked as an assumption.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import optax

from jaxcyto import losses

Array = Any  # NumPy or JAX array of floats

FEATURES = 32  # width of the dense layer (paper, section 2)
DECODERS = ("unet", "scores", "both")  # ways from the maps to the logits
MAX_POOL = 99  # px of the last map, which is 25 mm of cortex in both sizes


@dataclasses.dataclass
class ModelConfig:
    """The network. The defaults are the paper's network, and `small()` is a smaller one."""

    stem_kernel: int = 5  # px, derived from the paper's counts
    stem_stride: int = 4  # px
    widths: tuple[int, ...] = (16, 32, 64, 64, 128, 128)  # channels of each block
    features: int = FEATURES
    dtype: str = "float32"  # of convolutions, or "bfloat16". Parameters are always float32.
    # Recompute the activations inside each block for the gradient instead of storing them. This
    # needs less memory and more time, for tiles or batches that would not fit otherwise.
    remat: bool = False
    # How the segmentation network gets its logits: "unet" by the paper's expansive path, "scores"
    # by score maps (models/scores.py), "both" as the sum of both. The last two are not the paper's.
    decoder: str = "unet"
    pools: tuple[int, ...] = ()  # odd sides of local means for score maps, px of the last map


def small() -> ModelConfig:
    """Return the network of the quickstart, tests and CPU experiments, for 128 px at 16 um/px."""
    return ModelConfig(stem_kernel=3, stem_stride=1, widths=(16, 32, 64, 64, 128))


@dataclasses.dataclass
class DataConfig:
    """Pairs to train on and how to read them. Paths are relative to the working directory."""

    brains: tuple[str, ...] = ()  # folders with a brain.toml, in a shell "('a', 'b')"
    pairs: str = "pairs.npz"  # file in each brain's folder, written by `jaxcyto pair`
    patch_px: int = 1019  # paper, section 2
    um_per_px: float = 2.0  # paper, section 2
    # Size of the global batch (assumption). Below 8, batch normalization at 1x1 px is too noisy.
    batch_pairs: int = 32
    threads: int = 4  # each reads one batch, and as many batches are read ahead
    # What happens if a training example cannot be read: "raise" stops the run, and "skip" draws
    # another example, which depends only on the seed and the position in the training order.
    # Validation and test always raise, because dropping examples would change the metric.
    on_error: str = "raise"
    # Hold all training patches in the memory of each device (208 GB for 200,000 patches of
    # 1019 px) and draw the same batches from there instead of reading them from disk.
    on_device: bool = False
    all_distances: bool = False  # add `all_distances_mm` [2B, 2B] to each batch
    absolute_x: bool = False  # use |x| as target, because mirrored hemispheres look alike


@dataclasses.dataclass
class AugmentConfig:
    """Augmentation on the device, all of which is an assumption. Zero strength disables a part.

    Brightness, contrast and blur should cover the differences in staining between sections.
    Otherwise a network can recognize a section, and thereby the position, from its staining.
    """

    flip: bool = True  # up-down and left-right, each with probability 1/2
    rotate: bool = True  # by a random multiple of 90 degrees
    brightness: float = 0.4  # in standard deviations of the input, uniform in +- this
    contrast: float = 0.25  # factor, uniform in 1 +- this
    blur_px: float = 0.5  # standard deviation in px, uniform in 0 ... this, at most 0.7
    noise: float = 0.0  # standard deviation of white noise, in standard deviations of the input


@dataclasses.dataclass
class Term:
    """A loss `function(outputs, batch) -> [B]` and its weight in the total loss."""

    function: Callable[..., Any]
    weight: float = 1.0

    def __iter__(self) -> Iterator[Any]:
        """Unpack like the pair (function, weight), the form that `losses.total_loss` takes."""
        return iter((self.function, self.weight))


@dataclasses.dataclass
class LossConfig:
    """The total loss, sum of weight * mean(term) + weight_decay * ||kernels||^2 (paper, section 2).

    The weights 1, alpha = 10 and lambda = 0.001 are the paper's. It is an assumption that the outer
    form is l1, that targets are scaled, and that only kernels decay.
    """

    terms: tuple[Term, ...] = dataclasses.field(
        default_factory=lambda: (
            Term(losses.distance_loss, 1.0),
            Term(losses.coordinate_loss, 10.0),
        )
    )
    weight_decay: float = 0.001


@dataclasses.dataclass
class OptimConfig:
    """The optimizer. The default is SGD with Nesterov momentum 0.9 (assumption).

    The first author's later tutorial uses it. For short runs of the small network, use Adam with a
    learning rate of 0.002 as in the quickstart. After 850 steps on a phantom, its errors in
    distance and position are 6.3 and 4.7 mm, and those of SGD are 7.0 and 5.4 mm. Four times this
    learning rate makes little difference, and a quarter of it learns more slowly (docs/results.md,
    one seed).
    """

    # any optax optimizer, which is called with the learning rate
    optimizer: Callable[..., optax.GradientTransformation] = dataclasses.field(
        default=functools.partial(optax.sgd, momentum=0.9, nesterov=True)
    )
    learning_rate: float = 0.01  # peak
    warmup_steps: int = 0
    decay: str = "cosine"  # to zero at the last step, or "constant"
    clip_norm: float | None = None  # global norm of the gradient
    # Number of steps whose gradients are averaged for one update (`optax.MultiSteps`). Warm-up
    # counts updates. This differs from larger batches, because batch normalization uses the
    # statistics of each step's batch.
    accumulate: int = 1
    # Number of consecutive steps that may be skipped because the loss or the gradient is not
    # finite, which is usually an overflow. One more such step stops the run.
    skip_nonfinite: int = 0


@dataclasses.dataclass
class Scales:
    """Scales of the outputs and the input, fitted once on training data.

    Distances are divided by `distance_mm`, the mean training distance. Coordinates are mapped from
    the training range to [-1, 1] on each axis, which is an assumption based on a later public
    script from the paper's group. The input is standardized. The scales also weight the two loss
    terms. On a phantom, a distance unit four times as large left distances almost unlearned. A unit
    a quarter as large improved distances at the expense of coordinates (docs/results.md, one seed).
    """

    distance_mm: float = 1.0
    coordinate_low_mm: tuple[float, float, float] = (-1.0, -1.0, -1.0)
    coordinate_high_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    distance_median_mm: float = 1.0  # of training pairs: the best constant prediction
    # of training patches, the geometric median: the point with the least mean distance from them
    coordinate_median_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    input_mean: float = 0.0  # gray value
    input_std: float = 1.0

    def distance_to_mm(self, scaled: Array) -> Array:
        """Convert distances of any shape from scaled units to millimeters."""
        return scaled * self.distance_mm

    def distance_from_mm(self, mm: Array) -> Array:
        """Convert distances of any shape from millimeters to scaled units."""
        return mm / self.distance_mm

    def coordinates_to_mm(self, scaled: Array) -> Array:
        """Convert coordinates [..., 3] from scaled units to millimeters."""
        low, high = self._range_mm(scaled.ndim)
        return low + (scaled + 1) / 2 * (high - low)

    def coordinates_from_mm(self, mm: Array) -> Array:
        """Convert coordinates [..., 3] from millimeters to scaled units."""
        low, high = self._range_mm(mm.ndim)
        return 2 * (mm - low) / (high - low) - 1

    def _range_mm(self, ndim: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the range of the training coordinates, float32, shaped to broadcast over [..., 3].

        The rank is explicit because jaxcyto runs with JAX's rank promotion forbidden.
        """
        shape = (1,) * (ndim - 1) + (3,)
        low = np.array(self.coordinate_low_mm, np.float32).reshape(shape)
        return low, np.array(self.coordinate_high_mm, np.float32).reshape(shape)


@dataclasses.dataclass
class InputScales:
    """Scales that standardize the input, fitted on training data or taken from pre-training."""

    input_mean: float = 0.0  # gray value
    input_std: float = 1.0


@dataclasses.dataclass
class SegmentData:
    """Annotated sections and how to read them. Paths are relative to the working directory."""

    brains: tuple[str, ...] = ()  # folders with a brain.toml and equal classes, as ('a', 'b')
    # Annotated sections of the split "train", or () for all. With several brains, BRAIN/SECTION by
    # the name of the brain's folder, such as "left/0012".
    train_sections: tuple[str, ...] = ()
    image_px: int = 2025  # side of a training image (Spitzer et al. 2017)
    um_per_px: float = 2.0  # paper, section 2
    atlas: bool = False  # whether a second contracting path reads the sections' atlas images
    batch_images: int = 8  # size of the global batch (assumption)
    threads: int = 4  # each reads one batch, and as many batches are read ahead
    on_error: str = "raise"  # or "skip", see `DataConfig.on_error`


@dataclasses.dataclass
class Config:
    """A pre-training run. If given, `prepare(config)` makes the data before it is read."""

    seed: int = 0
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    scales: Scales | None = None  # None: fitted on the training pairs
    epochs: float = 50.0  # paper, section 2 (of its 10 % run)
    steps: int | None = None  # overrides epochs
    log_every: int = 50  # steps
    eval_every: int = 1000  # steps
    eval_pairs: int = 512  # pairs per validation, while the test uses all
    batch_stats_steps: int = 100  # batches that re-estimate BN statistics (assumption)
    checkpoint_every: int = 1000  # steps, and before each validation
    keep: int = 2  # newest checkpoints kept, plus the one with the lowest validation error
    # Weights that are written, tested and exported: "last" takes those of the last step, and "best"
    # those of the checkpoint with the lowest validation error. results.json states the step.
    weights: str = "last"
    # On the CPU, convolve in oneDNN where it is installed (x86-64 Linux). False uses XLA, as does
    # JAXCYTO_ONEDNN=0 in the environment. The results agree up to rounding.
    onednn: bool = True
    prepare: Callable[..., None] | None = None


@dataclasses.dataclass
class SegmentConfig:
    """The training of a segmentation network, from pre-trained weights if `init_from` is given.

    Batches do not depend on `init_from`, so fine-tuning and training from scratch see the same
    batches.
    """

    seed: int = 0
    data: SegmentData = dataclasses.field(default_factory=SegmentData)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)  # its `features` are unused
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    loss: LossConfig = dataclasses.field(
        default_factory=lambda: LossConfig(terms=(Term(losses.cross_entropy, 1.0),))
    )
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    scales: InputScales | None = None  # None: taken from `init_from`, else fitted
    init_from: str | None = None  # a finished pre-training run, or an export
    # Learning rate of the pre-trained layers relative to the others. 0 freezes them. The default
    # is 0.1 because at 1 the Dice score on a phantom's test sections was 0.13 instead of 0.23
    # after 300 steps, and 0.26 instead of 0.32 after 900 (docs/results.md, row "4 encoder 1",
    # one seed).
    encoder_rate: float = 0.1
    # Learning rate of a run with `init_from`, relative to that of the same run without it. Layers
    # that are trained already need smaller steps.
    transfer_rate: float = 1.0
    # Batch statistics of the pre-trained layers in training: "batch" takes each batch's, "stored"
    # those that pre-training has estimated, as constants. Without `init_from`, it is "batch".
    encoder_statistics: str = "batch"
    # With `init_from`, fit the score maps to the pre-trained layers before the first step
    # (training/head.py). With steps = 0 nothing else is trained.
    fit_head: bool = False
    steps: int = 10_000  # assumption
    log_every: int = 50  # steps
    eval_every: int = 1000  # steps
    # Images per validation, while the test uses all. They are 2.5 times as wide as in training.
    eval_images: int = 16
    batch_stats_steps: int = 50  # batches that re-estimate BN statistics (assumption)
    checkpoint_every: int = 1000  # steps, and before each validation
    keep: int = 2  # newest checkpoints kept, plus the one with the lowest validation error
    # Weights that are written, tested and exported: "last" takes those of the last step, and "best"
    # those of the checkpoint with the lowest validation error. results.json states the step.
    weights: str = "last"
    # Score the test sections at the end. Without it a refit takes seconds, and `jaxcyto predict`
    # and `jaxcyto evaluate` score them later.
    test: bool = True
    # On the CPU, convolve in oneDNN where it is installed (x86-64 Linux). False uses XLA, as does
    # JAXCYTO_ONEDNN=0 in the environment. The results agree up to rounding.
    onednn: bool = True
    prepare: Callable[..., None] | None = None


def total_steps(config: Config, train_pairs: int) -> int:
    """Return the number of steps of a run: `steps` if given, else `epochs` over the pairs."""
    if config.steps is not None:
        return config.steps
    return max(1, math.ceil(config.epochs * train_pairs / config.data.batch_pairs))
