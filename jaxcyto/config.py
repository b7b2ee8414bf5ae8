"""Configuration: plain dataclasses, and the only place where a default lives.

A config file (`configs/*.py`) defines `get_config()`, which returns a `Config` (pre-training) or a
`SegmentConfig` (segmentation). Every field can be overridden on the command line:
`--config.optim.learning_rate=0.02`, `--config.loss.terms[1].weight=0`. "Paper" below is Spitzer et
al., MICCAI 2018 (arXiv 1806.05104). What it leaves open is marked as an assumption.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import optax

from jaxcyto import losses

Array = Any  # numpy or JAX, float

FEATURES = 32  # width of the dense layer (paper, section 2)


@dataclasses.dataclass
class ModelConfig:
    """The network. The defaults are the paper's size; `small()` is the other one."""

    stem_kernel: int = 5  # px; derived from the paper's counts
    stem_stride: int = 4  # px
    widths: tuple[int, ...] = (16, 32, 64, 64, 128, 128)  # channels of each block
    features: int = FEATURES
    dtype: str = "float32"  # of the convolutions: float32 or bfloat16; parameters stay float32
    # Compute the inside of each block again for the gradient instead of keeping it: less memory,
    # more time; for tiles or batches that do not fit otherwise.
    remat: bool = False


def small() -> ModelConfig:
    """The network for quickstart, tests and CPU experiments: 128 px at 16 um/px."""
    return ModelConfig(stem_kernel=3, stem_stride=1, widths=(16, 32, 64, 64, 128))


@dataclasses.dataclass
class DataConfig:
    """Which pairs, read how. Paths are relative to the working directory."""

    brains: tuple[str, ...] = ()  # folders with a brain.toml; in a shell: "('a', 'b')"
    pairs: str = "pairs.npz"  # file in each brain's folder, written by `jaxcyto pair`
    patch_px: int = 1019  # paper, section 2
    um_per_px: float = 2.0  # paper, section 2
    batch_pairs: int = 32  # of the global batch (assumption); below 8, batch norm at 1x1 is noise
    threads: int = 4  # readers, each of a batch; as many batches are read ahead
    # What to do with a training example that cannot be read: "raise", or "skip": take another
    # one, drawn from (seed, step). Validation and test always raise: fewer of them would be others.
    on_error: str = "raise"
    # Keep the training patches in the memory of each device (200,000 of 1019 px: 208 GB) and draw
    # batches there: the same batches, without reading from disk.
    on_device: bool = False
    all_distances: bool = False  # add `all_distances` [2B, 2B] mm to each batch
    absolute_x: bool = False  # |x| as target: mirrored hemispheres look alike


@dataclasses.dataclass
class AugmentConfig:
    """On-device augmentation (all of it an assumption). Zero strength switches a part off.

    Brightness, contrast and blur should cover the differences of staining between sections: a
    section has one staining and one place, so a network can learn places by heart from it.
    """

    flip: bool = True  # up-down and left-right, each with probability 1/2
    rotate: bool = True  # by a random multiple of 90 degrees
    brightness: float = 0.4  # standard deviations of the input, uniform in +- this
    contrast: float = 0.25  # relative, uniform in 1 +- this
    blur_px: float = 0.5  # standard deviation of a blur, uniform in 0 ... this, at most 0.7
    noise: float = 0.0  # standard deviation of white noise, in those of the input


@dataclasses.dataclass
class Term:
    """A loss `function(outputs, batch) -> [B]` and its weight in the total."""

    function: Callable[..., Any]
    weight: float = 1.0

    def __iter__(self) -> Iterator[Any]:
        """Unpacks like a pair, as `losses.total_loss` takes them."""
        return iter((self.function, self.weight))


@dataclasses.dataclass
class LossConfig:
    """total = sum of weight * mean(term) + weight_decay * ||kernels||^2 (paper, section 2).

    The weights 1, alpha = 10 and lambda = 0.001 are the paper's. The outer form (here l1), the
    scaled units and decaying kernels only are assumptions.
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
    """SGD with Nesterov momentum 0.9 as in the first author's later tutorial (assumption).

    For short runs of the small network take Adam at 0.002, as the quickstart does: after 850 steps
    on a phantom its errors are 6.3 and 4.7 mm (distance, position), SGD's 7.0 and 5.4; four times
    that rate makes little difference, a quarter learns slower (docs/results.md, one seed).
    """

    # any optax optimizer; it is called with the learning rate
    optimizer: Callable[..., optax.GradientTransformation] = dataclasses.field(
        default=functools.partial(optax.sgd, momentum=0.9, nesterov=True)
    )
    learning_rate: float = 0.01  # peak
    warmup_steps: int = 0
    decay: str = "cosine"  # to zero at the last step, or "constant"
    clip_norm: float | None = None  # global norm of the gradient
    # Steps whose gradients are averaged for one update (`optax.MultiSteps`); warm-up counts
    # updates. Batch norm sees the batch of a step, so this is not the same as larger batches.
    accumulate: int = 1
    # Steps in a row that may be left out because loss or gradient is not finite (as a rule an
    # overflow); one more stops the run.
    skip_nonfinite: int = 0


@dataclasses.dataclass
class Scales:
    """Units of the outputs and the inputs, fitted once on training data.

    Predicted distance is in units of `distance_mm`, the mean training distance; coordinates
    are mapped to [-1, 1] on each axis by the training range (an assumption, after a later public
    script of the paper's circle); the input is standardized. Both units weigh the two terms, too.
    On a phantom, distances in units four times as large were hardly learned, and a quarter as large
    took from the coordinates what it gave to the distance (docs/results.md, one seed).
    """

    distance_mm: float = 1.0
    coordinate_low_mm: tuple[float, float, float] = (-1.0, -1.0, -1.0)
    coordinate_high_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    distance_median_mm: float = 1.0  # of training pairs: the best constant prediction
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
    """Standardization of the input, fitted on training data or taken over from pre-training."""

    input_mean: float = 0.0  # gray value
    input_std: float = 1.0


@dataclasses.dataclass
class SegmentData:
    """Which annotated sections, read how. Paths are relative to the working directory."""

    brains: tuple[str, ...] = ()  # folders with a brain.toml and equal classes; ('a', 'b')
    train_sections: tuple[str, ...] = ()  # only these of the split "train"; (): all annotated
    image_px: int = 2025  # side of a training image (Spitzer et al. 2017)
    um_per_px: float = 2.0  # paper, section 2
    atlas: bool = False  # the second contracting path, fed by the sections' atlas images
    batch_images: int = 8  # of the global batch (assumption)
    threads: int = 4  # readers, each of a batch; as many batches are read ahead
    on_error: str = "raise"  # or "skip", as `DataConfig.on_error`


@dataclasses.dataclass
class Config:
    """A pre-training run. `prepare(config)`, if given, makes the data once, before it is read."""

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
    eval_pairs: int = 512  # validation pairs looked at each time; the test uses all
    batch_stats_steps: int = 100  # batches for re-estimated BN statistics (assumption)
    checkpoint_every: int = 1000  # steps; also before each validation
    keep: int = 2  # newest checkpoints kept, beside the one with the lowest validation error
    # Which weights are written, tested and exported: those of the last step, or those of the
    # checkpoint with the lowest validation error ("best"). results.json states the step.
    weights: str = "last"
    # On the CPU, convolve in oneDNN where it is installed (x86-64 Linux). False uses XLA, as does
    # JAXCYTO_ONEDNN=0 in the environment. The results agree up to rounding.
    onednn: bool = True
    prepare: Callable[..., None] | None = None


@dataclasses.dataclass
class SegmentConfig:
    """Fine-tuning of a segmentation network; without `init_from` the random baseline.

    Batches do not depend on `init_from`, so that both are compared on the same ones.
    """

    seed: int = 0
    data: SegmentData = dataclasses.field(default_factory=SegmentData)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)  # its `features` are unused
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    loss: LossConfig = dataclasses.field(
        default_factory=lambda: LossConfig(terms=(Term(losses.cross_entropy, 1.0),))
    )
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    scales: InputScales | None = None  # None: those of `init_from`, else fitted
    init_from: str | None = None  # folder of a finished pre-training run, or an export of one
    # Learning rate of what was taken over, relative to the rest's; 0: frozen. A tenth, since on a
    # phantom's test sections the full rate gave a Dice of 0.13 instead of 0.23 after 300 steps,
    # of 0.26 instead of 0.32 after 900 (docs/results.md, row "4 encoder 1", one seed).
    encoder_rate: float = 0.1
    steps: int = 10_000  # assumption
    log_every: int = 50  # steps
    eval_every: int = 1000  # steps
    eval_images: int = 16  # validation images, 2.5 times as wide, each time; the test uses all
    batch_stats_steps: int = 50  # batches for re-estimated BN statistics (assumption)
    checkpoint_every: int = 1000  # steps; also before each validation
    keep: int = 2  # newest checkpoints kept, beside the one with the lowest validation error
    # Which weights are written, tested and exported: those of the last step, or those of the
    # checkpoint with the lowest validation error ("best"). results.json states the step.
    weights: str = "last"
    # On the CPU, convolve in oneDNN where it is installed (x86-64 Linux). False uses XLA, as does
    # JAXCYTO_ONEDNN=0 in the environment. The results agree up to rounding.
    onednn: bool = True
    prepare: Callable[..., None] | None = None


def total_steps(config: Config, train_pairs: int) -> int:
    """Steps of the whole run: `steps`, else `epochs` over the training pairs."""
    if config.steps is not None:
        return config.steps
    return max(1, math.ceil(config.epochs * train_pairs / config.data.batch_pairs))
