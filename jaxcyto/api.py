"""A trained network for arrays in memory: `jaxcyto.load`, `Network.embed`, `Network.segment`.

Whole brains are for the commands `explore` and `predict`, which read and write files piece by
piece. See docs/python.md.
"""

import os
from typing import NamedTuple

import numpy as np

from jaxcyto.brain.manifest import AreaClass
from jaxcyto.brain.sections.section import array_section
from jaxcyto.errors import InputError
from jaxcyto.predict import Predictor, SectionSource, map_shape
from jaxcyto.predict.features import BATCH, Embedding, embed
from jaxcyto.predict.predictor import default_tile
from jaxcyto.runs.load import PretextRun, SegmentRun, load_run


def load(path: str | os.PathLike) -> "Network":
    """Loads a trained network.

    Args:
        path: the folder of a finished run, of either task; or an export (`jaxcyto export`), its
            folder or its file.

    Raises:
        InputError: neither of them, not finished, or damaged.
    """
    return Network(load_run(path))


class Segmentation(NamedTuple):
    """What the network says of a section of H x W px, on pixels of `Network.out_um`.

    Attributes:
        classes: uint8 [h, w], indices into `Network.classes`; where no tissue is near, the class of
            kind "background", or 255 if there is none.
        probabilities: uint8 [classes, h, w], 255 = probability 1; None if not asked for.
    """

    classes: np.ndarray
    probabilities: np.ndarray | None


class Network:
    """A trained network, made by `load`; of one of two tasks.

    It is compiled once for inputs of one size.

    Attributes:
        run: all that is known of it; `run.model` and `run.variables` are the Flax module and its
            parameters, for use without this class.
    """

    def __init__(self, run: PretextRun | SegmentRun):
        """Wraps a network.

        Args:
            run: as `runs.load_run` gives it.
        """
        self.run = run
        self._predictors: dict[tuple[int, bool], Predictor] = {}

    def __repr__(self) -> str:
        return f"<{self.task} network of {self.run.path}, {self.um_per_px:g} um/px>"

    @property
    def task(self) -> str:
        """Which it was trained for: "pre-training" (`embed`) or "segmentation" (`segment`)."""
        return "segmentation" if isinstance(self.run, SegmentRun) else "pre-training"

    @property
    def um_per_px(self) -> float:
        """Resolution of the input, micrometers per pixel."""
        return self.run.um_per_px

    @property
    def patch_px(self) -> int:
        """Side of the patches that `embed` takes.

        Raises:
            InputError: a segmentation network.
        """
        return self._pretext().patch_px

    @property
    def classes(self) -> tuple[AreaClass, ...]:
        """Name, color and kind of each class of `segment`; its index is the class number.

        Raises:
            InputError: a pre-training network.
        """
        return self._segment().classes

    @property
    def out_um(self) -> float:
        """Side of a pixel of what `segment` gives, micrometers.

        Raises:
            InputError: a pre-training network.
        """
        return self._segment().out_um

    def embed(self, patches: np.ndarray) -> Embedding:
        """Features and predicted positions of patches, computed on all local devices.

        Args:
            patches: uint8 [N, s, s], gray, s = `patch_px`, at `um_per_px`.

        Returns:
            `features` float32 [N, F]: the squared Euclidean distance of two of them, times
            `run.scales.distance_mm`, predicts the distance along the surface in mm. `coordinates`
            float32 [N, 3] in mm, the first one |x| if `run.absolute_x`.

        Raises:
            InputError: a segmentation network, or patches of another kind or size.
        """
        run = self._pretext()
        patches = _gray("patches", patches, "[N, s, s]", 3)
        if patches.shape[1:] != (run.patch_px, run.patch_px):
            raise InputError(
                f"patches: {patches.shape[1]} x {patches.shape[2]} px, but this network takes "
                f"{run.patch_px} x {run.patch_px} px at {run.um_per_px:g} um/px; cut them so"
            )
        # few sizes, since each is compiled
        return embed(run, patches, batch=min(BATCH, 1 << (len(patches) - 1).bit_length()))

    def segment(
        self,
        image: np.ndarray,
        *,
        pixel_um: float | None = None,
        background: int = 255,
        probabilities: bool = False,
    ) -> Segmentation:
        """Segments a section, tile by tile as `jaxcyto predict` does.

        Args:
            image: uint8 [H, W], gray.
            pixel_um: size of its pixels, micrometers; None: `um_per_px`.
            background: gray value outside of the image and where there is no tissue.
            probabilities: whether to return the probability of each class, too.

        Returns:
            The class map, on pixels of `out_um`; the last ones may overhang.

        Raises:
            InputError: a pre-training network, one that needs an atlas, or an image of another
                kind.
        """
        run = self._segment()
        if run.atlas_channels:
            raise InputError(
                f"{run.path}: this network needs atlas images; segment by `jaxcyto predict`, which "
                "reads those of the section table"
            )
        image = _gray("image", image, "[H, W]", 2)
        if not 0 <= background <= 255:
            raise InputError(f"background = {background}; give a gray value 0 ... 255")
        pixel_um = run.um_per_px if pixel_um is None else pixel_um
        section = array_section(image, pixel_um, background)
        source = SectionSource("image", section, map_shape(section, run.out_um))
        key = default_tile(run, max(source.shape)), probabilities
        if key not in self._predictors:
            self._predictors[key] = Predictor(run, *key)
        bands = list(self._predictors[key].section(source))
        found = [band.probabilities for band in bands if band.probabilities is not None]
        return Segmentation(
            np.concatenate([band.classes for band in bands]),
            np.concatenate(found, axis=1) if probabilities else None,
        )

    def _pretext(self) -> PretextRun:
        if isinstance(self.run, PretextRun):
            return self.run
        raise InputError(
            f"{self.run.path}: a segmentation network; patches are embedded by a pre-training one"
        )

    def _segment(self) -> SegmentRun:
        if isinstance(self.run, SegmentRun):
            return self.run
        raise InputError(
            f"{self.run.path}: a pre-training network; fine-tune it for segmentation (train.py "
            f"--config configs/segment.py --config.init_from={self.run.path})"
        )


def _gray(name: str, images: np.ndarray, shape: str, dimensions: int) -> np.ndarray:
    """The images as an array, if they are gray values of so many dimensions."""
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != dimensions or not all(images.shape[-2:]):
        raise InputError(
            f"{name}: {images.dtype} {list(images.shape)}, expected uint8 {shape}: gray values 0 "
            "... 255, one channel"
        )
    return images
