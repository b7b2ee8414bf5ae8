"""Train the segmentation U-Net on sparse annotations, and score it."""

import dataclasses
import time
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcyto import augment, metrics
from jaxcyto.config import (
    AugmentConfig,
    InputScales,
    LossConfig,
    OptimConfig,
    SegmentConfig,
    SegmentData,
)
from jaxcyto.config_io import to_json
from jaxcyto.data.segment_batches import (
    SegmentSource,
    fit_input_scales,
    segment_eval_batches,
    segment_train_batches,
)
from jaxcyto.data.segment_table import SegmentTable, open_window_tables
from jaxcyto.data.skipping import Skipped
from jaxcyto.errors import InputError
from jaxcyto.models import Geometry, UNet, build_unet
from jaxcyto.models.encoder import ENCODER
from jaxcyto.plots.segmentation import segment_figures
from jaxcyto.runs import record
from jaxcyto.runs.load import PRETRAINING, find, read_config, read_trained_on, training_sections
from jaxcyto.scores import scores, scores_table, sum_sections
from jaxcyto.training.devices import distributed, parallel
from jaxcyto.training.evaluator import Evaluator
from jaxcyto.training.head import AnnotatedImage, fit_scores
from jaxcyto.training.log import logger
from jaxcyto.training.maps import MapReader
from jaxcyto.training.state.optim import make_optimizer
from jaxcyto.training.state.state import State, init_state
from jaxcyto.training.state.transfer import pretraining_scales, transfer
from jaxcyto.training.step import Batch

# Side of the images in evaluation, relative to training. Larger images have relatively less margin:
# with 5097 px instead of 2025 px, an output pixel costs a quarter of the work.
EVALUATION_SIDE = 2.5
FEATURES_FOLDER = "features"  # of a pre-training run, for maps of sections (`maps.py`)


@dataclasses.dataclass(frozen=True)
class SegmentTask:
    """The task (`step.Task`) of segmentation."""

    model: UNet
    loss: LossConfig
    augment: AugmentConfig
    scales: InputScales
    optimizer: optax.GradientTransformation
    seed: int = 0

    modes = ("eval",)

    @property
    def constant_statistics(self) -> tuple[str, ...]:
        """The contracting path, if it keeps the statistics of pre-training."""
        return (ENCODER,) if self.model.stored_statistics else ()

    def inputs(self, batch: Batch, keys: jax.Array | None) -> Batch:
        """Normalize the image, and scale the atlas to 0 ... 1.

        Augmentation moves image, label and atlas of an example in the same way.

        Args:
            batch: a batch from the loader
            keys: [B], one random key for each example, or None for no augmentation
        """
        batch = dict(batch)
        mean, std = self.scales.input_mean, self.scales.input_std
        if keys is None:
            batch["image"] = augment.normalize(batch["image"], mean, std)
        else:
            names = [name for name in ("image", "label", "atlas") if name in batch]
            options = dataclasses.asdict(self.augment)
            images = tuple(batch[name] for name in names)
            moved = augment.augment_windows(keys, images, mean, std, **options)
            batch |= dict(zip(names, moved, strict=True))
        if "atlas" in batch:
            batch["atlas"] = augment.normalize_atlas(batch["atlas"])
        return batch

    def forward(
        self, model: Any, variables: dict[str, Any], batch: Batch, train: bool
    ) -> tuple[Batch, Any]:
        """Return `logits` [B, h, w, C], and the updated batch statistics."""
        logits, updated = model.apply(
            variables, batch["image"], batch.get("atlas"), train=train, mutable=["batch_stats"]
        )
        return {"logits": logits}, updated["batch_stats"]

    def errors(self, outputs: Batch, batch: Batch) -> metrics.Metrics:
        """Compute the confusion matrix [C, C] of a batch, and its count of annotated pixels."""
        matrix = jnp.sum(self.predictions(outputs, batch)["confusion"], axis=0)
        return {"confusion": (matrix, jnp.sum(matrix))}

    def predictions(self, outputs: Batch, batch: Batch) -> Batch:
        """Compute `confusion` [B, C, C], one confusion matrix for each window."""
        predicted = jnp.argmax(outputs["logits"], axis=-1)
        classes = self.model.num_classes
        label, valid = batch["label"], batch["valid"]
        return {"confusion": metrics.confusion_matrices(predicted, label, classes, valid)}


@dataclasses.dataclass(frozen=True, eq=False)
class SegmentExperiment:
    """The experiment (`experiment.Experiment`) of segmentation. `open_segmentation` makes it."""

    config: SegmentConfig
    table: SegmentTable  # windows of training images
    eval_table: SegmentTable  # windows of the larger images of evaluation
    task: SegmentTask
    skipped: Skipped | None

    unit = "images"
    selects = "val/err_seg_percent"

    @property
    def steps(self) -> int:
        return self.config.steps

    @property
    def optim(self) -> OptimConfig:
        return _optim(self.config)

    @property
    def examples_per_step(self) -> int:
        return self.config.data.batch_images

    @property
    def identity(self) -> dict[str, Any]:
        return {
            "classes": to_json(self.table.classes),
            "annotation_sha256": list(self.table.keys),
            "training_sections": self.table.training_sections,
            "init_from": self.config.init_from,  # which is read only before the first step
        }

    @property
    def trained_on(self) -> list[dict[str, str]]:
        own = record.trained_on(self.table.brains, "segmentation")
        try:
            taken = read_trained_on(self.config.init_from) if self.config.init_from else []
        except InputError:  # removed since the first start, which has recorded its brains
            taken = []
        return [*taken, *own]

    def training_fingerprints(self) -> dict[str, str | None]:
        own = self.table.fingerprints(trained=True)
        if self.config.init_from is None:
            return own
        taken = training_sections(read_config(self.config.init_from))
        return own | {f"{PRETRAINING}/{name}": content for name, content in taken.items()}

    @property
    def can_validate(self) -> bool:
        return bool(len(self.eval_table.of_split("val")))

    def describe(self) -> str:
        return self.table.describe()

    def init_state(self, fresh: bool) -> State:
        data = self.config.data
        example = [jnp.zeros((1, data.image_px, data.image_px, 1))]
        if data.atlas:
            side = self.table.geometry.atlas_size(data.image_px)
            example.append(jnp.zeros((1, side, side, self.table.atlas_channels)))
        state = init_state(self.task.model, tuple(example), self.task.optimizer, self.config.seed)
        if fresh and self.config.init_from is not None:
            state, report = transfer(state, self.config.init_from)
            logger.info("weights of %s:\n%s", self.config.init_from, report)
            if self.config.fit_head and distributed.is_first():  # the others get its state
                state = self._fit_head(state, self.config.init_from)
        return state

    def _fit_head(self, state: State, run: str) -> State:
        """Return the state with score maps that are fitted to the training sections."""
        start, folder = time.monotonic(), find(run).folder / FEATURES_FOLDER
        table = self.eval_table
        maps = MapReader(
            self.task.model,
            {"params": state.params, "batch_stats": state.batch_stats},
            self.task.scales,
            table.um_per_px,
            table.side,
            folder,
        )
        sections = [
            AnnotatedImage(each.name_in_brain, each.image, each.label)
            for each in table.sections
            if each.row.split == "train"
        ]
        options: Any = {"factor": table.factor, "num_classes": len(table.classes)}
        pools, seed = self.config.model.pools, self.config.seed
        scores, pixels = fit_scores(sections, maps, **options, pools=pools, seed=seed)
        logger.info(
            "head: fitted to %d pixels of %d sections in %.1f s; their maps are kept in %s",
            pixels,
            len(sections),
            time.monotonic() - start,
            folder,
        )
        return dataclasses.replace(state, params=state.params | {"scores": scores})

    @property
    def resident(self) -> Batch:
        return {}

    def train_batches(self, seed: int, for_steps: bool = False, **share: Any) -> grain.MapDataset:
        source, data = SegmentSource(self.table), self.config.data
        options: Any = {"skipped": self.skipped, "for_steps": for_steps}
        return segment_train_batches(source, self.table, data, seed, **options, **share)

    def name_examples(self, index: np.ndarray) -> str:
        source = SegmentSource(self.table)
        seed, skipped = self.config.seed, self.skipped
        return "; ".join(source.describe(seed, int(i), skipped) for i in index)

    def summary(self, errors: metrics.Metrics) -> dict[str, float]:
        """Return the scalar scores. Undefined scores (None) are left out."""
        scores = self._scores(np.asarray(errors["confusion"][0]))
        keys = ("err_seg_percent", "dice_macro", "dice_macro_areas")
        return {key: scores[key] for key in keys if scores[key] is not None}

    def headline(self, values: dict[str, float]) -> str:
        return f"wrong {values.get('err_seg_percent', float('nan')):.1f} %"

    def validate(self, evaluator: Evaluator, state: State) -> dict[str, float] | None:
        """Compute and log the scores on up to `eval_images` windows of the validation sections.

        Returns:
            The scores by name, or None without validation windows.
        """
        windows = self.eval_table.of_split("val")
        if not len(windows):
            return None
        # Take evenly spaced windows, because they are sorted by section.
        chosen = np.linspace(0, len(windows) - 1, min(self.config.eval_images, len(windows)))
        errors, _ = evaluator.run(state, self._eval_batches(windows[chosen.astype(int)]))
        values = {f"val/{key}": value for key, value in self.summary(errors["eval"]).items()}
        logger.info(
            "validation: wrong %.1f %%, Dice %.3f",
            values["val/err_seg_percent"],
            values["val/dice_macro"],
        )
        return values

    def finish(self, evaluator: Evaluator, state: State, workdir: Path) -> dict[str, Any]:
        """Score every annotated pixel of the test sections, print a table, and draw the figures.

        With `test = False` only the figures are drawn.
        """
        windows = self.eval_table.of_split("test")
        if not self.config.test:
            if distributed.is_first():
                logger.info("no test, because test = False")
                segment_figures(workdir, self.table.classes, None)
            return {}
        if len(windows):
            logger.info("test: %d images of %d px", len(windows), self._eval_data.image_px)
        kept = evaluator.run(state, self._eval_batches(windows))[1] if len(windows) else None
        if not distributed.is_first():
            return {}
        if kept is None:
            logger.warning("no annotated test section: results.json has no test scores")
            segment_figures(workdir, self.table.classes, None)
            return {}
        names = np.array([self.eval_table.section_name(index) for index in kept["index"]])
        matrices = kept["confusion"].astype(np.int64)
        by_section = {name: matrices[names == name].sum(axis=0) for name in np.unique(names)}
        results = sum_sections(by_section, self.table.classes)
        print(scores_table(results), flush=True)
        total = np.array(results["confusion"])
        segment_figures(workdir, self.table.classes, total)
        return results

    def _scores(self, confusion: np.ndarray) -> dict[str, Any]:
        return scores(confusion, self.table.classes)

    @property
    def _eval_data(self) -> SegmentData:
        return evaluation_data(self.config.data, self.table.geometry)

    def _eval_batches(self, windows: np.ndarray) -> grain.MapDataset:
        table = self.eval_table
        share = parallel.share()
        return segment_eval_batches(SegmentSource(table), table, self._eval_data, windows, **share)


def evaluation_data(data: SegmentData, geometry: Geometry) -> SegmentData:
    """Return the data config of evaluation: larger images (`EVALUATION_SIDE`), one per device."""
    side = geometry.nearest_valid_sizes(round(EVALUATION_SIDE * data.image_px))[-1]
    return dataclasses.replace(data, image_px=side, batch_images=jax.device_count())


def _optim(config: SegmentConfig) -> OptimConfig:
    """Return the optimizer's config, whose learning rate depends on `init_from`."""
    if config.init_from is None:
        return config.optim
    rate = config.transfer_rate * config.optim.learning_rate
    return dataclasses.replace(config.optim, learning_rate=rate)


def open_segmentation(config: SegmentConfig, saved: dict[str, Any] | None) -> SegmentExperiment:
    """Open the data of a segmentation config.

    Args:
        config: the run
        saved: `scales` from the config.json of a run that continues, or None

    Raises:
        InputError: the data or `init_from` cannot be used.
    """
    larger = evaluation_data(config.data, Geometry.of(config.model))
    sizes = config.data.image_px, larger.image_px
    table, eval_table = open_window_tables(config.data, config.model, sizes)
    skipped = Skipped() if config.data.on_error == "skip" else None
    if saved is None:
        _check_apart(table)
    if saved is not None:
        scales = InputScales(**saved)
    elif config.init_from is not None:
        held_out = table.fingerprints(trained=False)
        scales = pretraining_scales(config.init_from, config.data.um_per_px, held_out)
    else:
        scales = config.scales or fit_input_scales(SegmentSource(table), skipped)
    stored = config.encoder_statistics == "stored" and config.init_from is not None
    net = build_unet(config.model, len(table.classes)).clone(stored_statistics=stored)
    rate = config.encoder_rate if config.init_from is not None else 1.0
    optimizer = make_optimizer(_optim(config), config.steps, rate)
    task = SegmentTask(net, config.loss, config.augment, scales, optimizer, config.seed)
    return SegmentExperiment(config, table, eval_table, task, skipped)


def _check_apart(table: SegmentTable) -> None:
    """Check that no held-out section is a copy of a training section.

    Raises:
        InputError: a section of validation or test has the content of a training section.
    """
    trained = {content: name for name, content in table.fingerprints(trained=True).items()}
    trained.pop(None, None)  # sections without a fingerprint, which have other names
    held_out = table.fingerprints(trained=False).items()
    if same := [(name, trained[content]) for name, content in held_out if content in trained]:
        named = ", ".join(f"{name} is {other}" for name, other in same[:5])
        raise InputError(
            f"data.brains: {len(same)} sections of val or test have the content of a training "
            f"section ({named}). Remove one of the two, or give both the same split"
        )
