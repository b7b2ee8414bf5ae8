"""Apply a trained network to arrays in memory.

`load` reads a network, and `Network.embed` and `Network.segment` apply it. `Network.fit_head` makes
a segmentation network of a pre-training network and a few annotated images.

For whole brains, use the commands `explore` and `predict`, which read and write files in parts. See
docs/python.md.
"""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxcyto.brain.manifest import AreaClass
from jaxcyto.brain.sections.atlas_image import AtlasImage, array_atlas
from jaxcyto.brain.sections.label_image import LABEL_UM, UNLABELED, expected_shape, same_shape
from jaxcyto.brain.sections.section import Section, array_section
from jaxcyto.config import InputScales
from jaxcyto.data.windows import label_factor
from jaxcyto.errors import InputError
from jaxcyto.models import Geometry
from jaxcyto.models.build import build_scores
from jaxcyto.models.encoder import ENCODER
from jaxcyto.predict import Predictor, SectionSource, map_shape
from jaxcyto.predict.features import BATCH, Embedding, embed
from jaxcyto.predict.predictor import default_tile
from jaxcyto.runs.load import PretextRun, SegmentRun, load_run
from jaxcyto.training.head import POOLS, WINDOW_PX, AnnotatedImage, fit_scores
from jaxcyto.training.maps import MapReader


def load(path: str | os.PathLike) -> "Network":
    """Load a trained network.

    Args:
        path: folder of a finished run of either task, or folder or file of an export (`jaxcyto
            export`).

    Raises:
        InputError: the path is neither a run nor an export, or it is unfinished or damaged.
    """
    return Network(load_run(path))


class Segmentation(NamedTuple):
    """A predicted map of a section, with pixels of `Network.out_um`.

    Attributes:
        classes: indices into `Network.classes`, uint8 [h, w]. Where no tissue is near, the class is
            the one of kind "background", or 255 if there is none.
        probabilities: uint8 [classes, h, w], 255 = probability 1, or None if not requested.
    """

    classes: np.ndarray
    probabilities: np.ndarray | None


class Network:
    """A trained network of one of the two tasks, as returned by `load`.

    The first call with inputs of a new size compiles the network for this size.

    Attributes:
        run: the loaded run. `run.model` and `run.variables` are the Flax module and its variables,
            for use without this class.
    """

    def __init__(self, run: PretextRun | SegmentRun):
        """Wrap a network.

        Args:
            run: result of `runs.load_run`.
        """
        self.run = run
        self._predictors: dict[tuple[int, bool], Predictor] = {}
        self._maps: MapReader | None = None  # of the first `fit_head`, for the next ones

    def __repr__(self) -> str:
        return f"<{self.task} network of {self.run.path}, {self.um_per_px:g} um/px>"

    @property
    def task(self) -> str:
        """Task of the network: "pre-training" (use `embed`) or "segmentation" (use `segment`)."""
        return "segmentation" if isinstance(self.run, SegmentRun) else "pre-training"

    @property
    def um_per_px(self) -> float:
        """Resolution of the input in micrometers per pixel."""
        return self.run.um_per_px

    @property
    def patch_px(self) -> int:
        """Side of the patches that `embed` takes, in pixels.

        Raises:
            InputError: this is a segmentation network.
        """
        return self._pretext().patch_px

    @property
    def classes(self) -> tuple[AreaClass, ...]:
        """Name, color and kind of each class, in the order of the indices in class maps.

        Raises:
            InputError: this is a pre-training network.
        """
        return self._segment().classes

    @property
    def out_um(self) -> float:
        """Pixel size of the class maps of `segment` in micrometers.

        Raises:
            InputError: this is a pre-training network.
        """
        return self._segment().out_um

    def embed(self, patches: np.ndarray) -> Embedding:
        """Compute features and predicted positions of patches, on all local devices.

        Args:
            patches: gray values, uint8 [N, s, s], with s = `patch_px` and at `um_per_px`.

        Returns:
            `features` float32 [N, F] and `coordinates_mm` float32 [N, 3]. The squared Euclidean
            distance of two feature vectors times `run.scales.distance_mm` predicts the distance
            along the surface in mm. The first coordinate is |x| if `run.absolute_x` is true.

        Raises:
            InputError: this is a segmentation network, or the patches have another dtype or size.
        """
        run = self._pretext()
        patches = _gray("patches", patches, "[N, s, s]", 3)
        if patches.shape[1:] != (run.patch_px, run.patch_px):
            raise InputError(
                f"patches: {patches.shape[1]} x {patches.shape[2]} px, but this network takes "
                f"{run.patch_px} x {run.patch_px} px at {run.um_per_px:g} um/px"
            )
        # The batch size is a power of two, because each size is compiled once.
        return embed(run, patches, batch=min(BATCH, 1 << (len(patches) - 1).bit_length()))

    def segment(
        self,
        image: np.ndarray,
        *,
        atlas: np.ndarray | None = None,
        pixel_um: float | None = None,
        background: int = 255,
        probabilities: bool = False,
    ) -> Segmentation:
        """Segment a section in tiles, as `jaxcyto predict` does.

        Args:
            image: gray values, uint8 [H, W].
            atlas: for a network that was trained with an atlas, the probability of each area, uint8
                [A, h, w] with 255 = probability 1, as in an atlas image. The A areas are the
                `classes` of kind "area" in their order. Pixels have 16 um, whatever the pixel size
                of the image, and begin at the same corner.
            pixel_um: pixel size of the image in micrometers. By default, it is `um_per_px`.
            background: gray value outside of the image and where there is no tissue.
            probabilities: whether to also return the probability of each class.

        Returns:
            The class map with pixels of `out_um`. The last row and column may extend beyond the
            image.

        Raises:
            InputError: this is a pre-training network, the image has another dtype or number of
                dimensions, an argument is out of range, or the atlas is missing, not taken by this
                network, or does not fit the image or the classes.
        """
        run = self._segment()
        pixel_um = run.um_per_px if pixel_um is None else pixel_um
        section = _section("image", image, pixel_um, background)
        opened = _atlas(run, atlas, section)
        source = SectionSource("image", section, map_shape(section, run.out_um), opened)
        key = default_tile(run, max(source.shape)), probabilities
        if key not in self._predictors:
            self._predictors[key] = Predictor(run, *key)
        bands = list(self._predictors[key].section(source))
        maps = [band.probabilities for band in bands if band.probabilities is not None]
        return Segmentation(
            np.concatenate([band.classes for band in bands]),
            np.concatenate(maps, axis=1) if probabilities else None,
        )

    def fit_head(
        self,
        images: Sequence[np.ndarray],
        labels: Sequence[np.ndarray],
        classes: Sequence[AreaClass],
        *,
        pixel_um: float | None = None,
        background: int = 255,
    ) -> "Network":
        """Make a segmentation network of this pre-training network, in seconds.

        Score maps are fitted to the annotated pixels, and the pre-trained layers stay as they are.
        The maps of the layers are kept in memory (some 140 MB for each section of the quickstart),
        so fitting again with other labels of the same images is faster.

        Args:
            images: gray values of some sections, uint8 [H, W] each.
            labels: the class of each pixel of 16 um, uint8 [h, w] for each image, 255 where nothing
                is annotated. They begin at the same corner as the image.
            classes: name, color and kind of each class, such as `read_brain(folder).classes`.
            pixel_um: pixel size of the images in micrometers. By default, it is `um_per_px`.
            background: gray value outside of the images and where there is no tissue.

        Returns:
            The segmentation network.

        Raises:
            InputError: this is a segmentation network, an image or its labels have another dtype or
                size, or fewer than two classes are annotated.
        """
        run = self._pretext()
        if not len(images) or len(images) != len(labels):
            raise InputError(
                f"fit_head: {len(images)} images and {len(labels)} label images; give a label "
                "image for each image"
            )
        pixel_um = run.um_per_px if pixel_um is None else pixel_um
        sections = [
            _annotated(f"images[{k}]", image, label, pixel_um, background)
            for k, (image, label) in enumerate(zip(images, labels, strict=True))
        ]
        model = build_scores(run.model, len(classes), POOLS)
        geometry = Geometry.of(model)
        window = geometry.nearest_valid_sizes(WINDOW_PX)[-1]
        scales = InputScales(run.scales.input_mean, run.scales.input_std)
        if self._maps is None:
            side = geometry.output_size(window)
            self._maps = MapReader(model, run.variables, scales, run.um_per_px, side, folder=None)
        factor = label_factor(run.um_per_px, geometry)
        options: Any = {"factor": factor, "num_classes": len(classes), "pools": model.pools}
        scores, _ = fit_scores(sections, self._maps, **options)
        variables = {key: {ENCODER: run.variables[key][ENCODER]} for key in run.variables}
        variables["params"]["scores"] = scores
        return Network(
            SegmentRun(
                path=run.path,
                weights=run.weights or run.path,
                model=model,
                variables=variables,
                classes=tuple(classes),
                um_per_px=run.um_per_px,
                image_px=window,
                atlas_channels=0,
                input_mean=scales.input_mean,
                input_std=scales.input_std,
                training_sections=run.training_sections,
            )
        )

    def _pretext(self) -> PretextRun:
        if isinstance(self.run, PretextRun):
            return self.run
        raise InputError(
            f"{self.run.path}: this is a segmentation network. Only pre-training networks embed "
            "patches"
        )

    def _segment(self) -> SegmentRun:
        if isinstance(self.run, SegmentRun):
            return self.run
        raise InputError(
            f"{self.run.path}: this is a pre-training network. Fine-tune it first (train.py "
            f"--config configs/segment.py --config.init_from={self.run.path})"
        )


def _atlas(run: SegmentRun, atlas: np.ndarray | None, section: Section) -> AtlasImage | None:
    """Return the atlas of a section after checking that the network takes it and that it fits."""
    areas = run.atlas_channels
    if atlas is None and not areas:
        return None
    if not areas:
        raise InputError(f"atlas: {run.path} was trained without an atlas. Leave `atlas` out")
    assert section.pixel_um is not None
    shape = expected_shape(section.shape, section.pixel_um)
    needed = (
        f"uint8 [{areas}, {shape[0]}, {shape[1]}]: the probability of each of the {areas} areas "
        f"(255 = 1), in pixels of {LABEL_UM:g} um"
    )
    if atlas is None:
        raise InputError(f"atlas: missing, but {run.path} was trained with one. Give {needed}")
    atlas = np.asarray(atlas)
    fits = atlas.ndim == 3 and len(atlas) == areas and same_shape(atlas.shape[1:], shape)
    if atlas.dtype != np.uint8 or not fits:
        raise InputError(f"atlas: {atlas.dtype} {list(atlas.shape)}, expected {needed}")
    return array_atlas(atlas, label_factor(run.um_per_px, Geometry.of(run.model)))


def _section(name: str, image: np.ndarray, pixel_um: float, background: int) -> Section:
    """Return an image as a section, after checking it."""
    image = _gray(name, image, "[H, W]", 2)
    if not 0 <= background <= 255:
        raise InputError(f"background = {background}; give a gray value 0 ... 255")
    return array_section(image, pixel_um, background)


def _annotated(
    name: str, image: np.ndarray, label: np.ndarray, pixel_um: float, background: int
) -> AnnotatedImage:
    """Return an image and its labels as sections, after checking that they fit each other."""
    section = _section(name, image, pixel_um, background)
    label = np.asarray(label)
    height, width = expected_shape(section.shape, pixel_um)
    if label.dtype != np.uint8 or label.ndim != 2 or not same_shape(label.shape, (height, width)):
        raise InputError(
            f"labels of {name}: {label.dtype} {list(label.shape)}, but the image needs uint8 "
            f"[{height}, {width}], a class for each pixel of {LABEL_UM:g} um"
        )
    return AnnotatedImage(name, section, array_section(label, LABEL_UM, UNLABELED))


def _gray(name: str, images: np.ndarray, shape: str, dimensions: int) -> np.ndarray:
    """Return the images as an array after checking dtype, number of dimensions and size."""
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != dimensions or not all(images.shape[-2:]):
        raise InputError(
            f"{name}: {images.dtype} {list(images.shape)}, expected uint8 {shape}: gray values 0 "
            "... 255, one channel"
        )
    return images
