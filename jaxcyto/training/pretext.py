"""Pre-train on pairs of patches: predict their distance along the cortex and their positions."""

import dataclasses
from functools import cached_property
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcyto import augment, metrics
from jaxcyto.config import AugmentConfig, Config, LossConfig, OptimConfig, Scales, total_steps
from jaxcyto.config_io import scales_from_json
from jaxcyto.data.pair_batches import PairSource, fit_scales, pair_eval_batches, pair_train_batches
from jaxcyto.data.pair_table import PairTable, open_pairs
from jaxcyto.data.skipping import Skipped
from jaxcyto.losses import predicted_distance
from jaxcyto.models import SiameseNet, build_siamese
from jaxcyto.pretext_scores import calibration, constant_errors, results_table
from jaxcyto.runs import record
from jaxcyto.runs.pair_predictions import save_predictions
from jaxcyto.training.devices import distributed, parallel
from jaxcyto.training.devices.on_device import ResidentSource, take_patches
from jaxcyto.training.evaluator import Evaluator
from jaxcyto.training.log import logger
from jaxcyto.training.state.optim import make_optimizer
from jaxcyto.training.state.state import State, init_state
from jaxcyto.training.step import Batch


@dataclasses.dataclass(frozen=True)
class PretextTask:
    """The task (`step.Task`) of pre-training."""

    model: SiameseNet
    loss: LossConfig
    augment: AugmentConfig
    scales: Scales
    optimizer: optax.GradientTransformation
    seed: int = 0

    # The last batch normalization sees maps of a single pixel, so its running statistics are
    # unreliable. "train_mode" shows the error without them.
    modes = ("eval", "train_mode")
    constant_statistics = ()

    def inputs(self, batch: Batch, keys: jax.Array | None) -> Batch:
        """Add scaled targets to a batch, and convert its patches to normalized float.

        Args:
            batch: a batch from the loader, with uint8 patches [B, 2, s, s, 1], and distances and
                coordinates in millimeters
            keys: [B], one random key for each example, or None for no augmentation
        """
        scales = self.scales
        batch = dict(take_patches(batch))
        batch["distance_scaled"] = scales.distance_from_mm(batch["distance_mm"])
        batch["coordinates_scaled"] = scales.coordinates_from_mm(batch["coordinates_mm"])
        if "all_distances_mm" in batch:
            batch["all_distances_scaled"] = scales.distance_from_mm(batch["all_distances_mm"])
        mean, std = scales.input_mean, scales.input_std
        if keys is None:
            patches = augment.normalize(batch["patches"], mean, std)
        else:
            options = dataclasses.asdict(self.augment)
            patches = augment.augment_patches(keys, batch["patches"], mean, std, **options)
        batch["patches"] = patches
        return batch

    def forward(
        self, model: Any, variables: dict[str, Any], batch: Batch, train: bool
    ) -> tuple[Batch, Any]:
        """Return `features` and `coordinates_scaled`, and the updated batch statistics."""
        outputs, updated = model.apply(
            variables, batch["patches"], train=train, mutable=["batch_stats"]
        )
        return outputs, updated["batch_stats"]

    def errors(self, outputs: Batch, batch: Batch) -> metrics.Metrics:
        """Compute `metrics.pretext_metrics`, in millimeters."""
        return metrics.pretext_metrics(self.predictions(outputs, batch), batch)

    def predictions(self, outputs: Batch, batch: Batch) -> Batch:
        """Return the predicted `distance_mm` [B] and `coordinates_mm` [B, 2, 3]."""
        return {
            "distance_mm": self.scales.distance_to_mm(predicted_distance(outputs["features"])),
            "coordinates_mm": self.scales.coordinates_to_mm(outputs["coordinates_scaled"]),
        }


@dataclasses.dataclass(frozen=True, eq=False)
class PretextExperiment:
    """The experiment (`experiment.Experiment`) of pre-training. `open_pretraining` makes it."""

    config: Config
    table: PairTable
    source: PairSource
    task: PretextTask
    steps: int
    skipped: Skipped | None
    stored: ResidentSource | None = None

    unit = "patches"
    selects = "val/distance_mae_mm"

    @property
    def optim(self) -> OptimConfig:
        return self.config.optim

    @property
    def examples_per_step(self) -> int:
        return 2 * self.config.data.batch_pairs

    @property
    def identity(self) -> dict[str, Any]:
        return {
            "pairs_sha256": dict(zip(self.table.brain_names, self.table.keys, strict=True)),
            "training_sections": self.table.training_sections,
        }

    @cached_property
    def counts(self) -> dict[str, int]:
        """Pairs of each split."""
        return {split: len(self.table.of_split(split)) for split in ("train", "val", "test")}

    @property
    def trained_on(self) -> list[dict[str, str]]:
        return record.trained_on(self.table.brains, "pre-training")

    def training_fingerprints(self) -> dict[str, str | None]:
        return self.source.training_fingerprints(self.config.data.threads)

    @property
    def can_validate(self) -> bool:
        return bool(self.counts["val"])

    def describe(self) -> str:
        return "pairs: {}; brains: {}; {:.3g} epochs".format(
            ", ".join(f"{count} {split}" for split, count in self.counts.items()),
            ", ".join(brain.name for brain in self.table.brains),
            self.steps * self.config.data.batch_pairs / max(1, self.counts["train"]),
        )

    def init_state(self, fresh: bool) -> State:
        del fresh
        side = self.config.data.patch_px
        example = jnp.zeros((1, 2, side, side, 1))
        return init_state(self.task.model, (example,), self.task.optimizer, self.config.seed)

    @property
    def resident(self) -> Batch:
        return {} if self.stored is None else self.stored.arrays

    def train_batches(self, seed: int, for_steps: bool = False, **share: Any) -> grain.MapDataset:
        source = self.stored if for_steps and self.stored is not None else self.source
        options: Any = {"skipped": self.skipped, "for_steps": for_steps}
        return pair_train_batches(source, self.table, self.config.data, seed, **options, **share)

    def name_examples(self, index: np.ndarray) -> str:
        patches = np.stack([self.table.first[index], self.table.second[index]], axis=1).ravel()
        by_image: dict[str, list[str]] = {}
        for brain, patch in map(self.table.locate, patches):
            row = self.table.brains[brain].sections[self.table.patches[brain].section[patch]]
            by_image.setdefault(f"section {row.name} ({row.image})", []).append(str(patch))
        named = (f"{', '.join(own)} of {image}" for image, own in by_image.items())
        return f"pairs {index.tolist()}: patches {'; '.join(named)}"

    def summary(self, errors: metrics.Metrics) -> dict[str, float]:
        """Convert (sum, count) states to scalars. Errors per axis become three scalars."""
        values = {}
        for key, value in metrics.compute(errors).items():
            if isinstance(value, list):
                values |= {f"{key}/{axis}": v for axis, v in zip("xyz", value, strict=True)}
            else:
                values[key] = value
        return values

    def headline(self, values: dict[str, float]) -> str:
        return f"distance error {values['distance_mae_mm']:.2f} mm"

    def validate(self, evaluator: Evaluator, state: State) -> dict[str, float] | None:
        """Compute and log the errors on up to `eval_pairs` validation pairs, None without any."""
        pairs = self.table.of_split("val")
        if not len(pairs):
            return None
        # Take evenly spaced pairs, because they are sorted by brain.
        chosen = np.linspace(0, len(pairs) - 1, min(self.config.eval_pairs, len(pairs)))
        errors, _ = evaluator.run(state, self._eval_batches(pairs[chosen.astype(int)]))
        modes = {mode: self.summary(errors[mode]) for mode in errors}
        values = {f"val/{key}": value for key, value in modes["eval"].items()}
        values |= {f"val_train_mode/{key}": value for key, value in modes["train_mode"].items()}
        logger.info(
            "validation: distance error %.2f mm (batch statistics: %.2f), coordinate error %.2f mm",
            values["val/distance_mae_mm"],
            values["val_train_mode/distance_mae_mm"],
            values["val/coordinate_mae_mm"],
        )
        return values

    def finish(self, evaluator: Evaluator, state: State, workdir: Path) -> dict[str, Any]:
        """Evaluate on the test pairs, print a table, and draw the figures.

        The table compares the errors with those of constants (`pretext_scores`).
        """
        from jaxcyto.plots.pretext import pretext_figures

        pairs = self.table.of_split("test")
        evaluated = evaluator.run(state, self._eval_batches(pairs)) if len(pairs) else None
        if not distributed.is_first():
            return {}
        absolute_x = self.config.data.absolute_x
        results: dict[str, Any] = {"absolute_x": absolute_x, "pairs": self.counts}
        predictions = None
        if evaluated is not None:
            errors, predictions = evaluated
            means = {mode: metrics.compute(errors[mode]) for mode in errors}
            scales, found = self.task.scales, self._with_truth(predictions)
            results["test"] = {
                **means["eval"],
                **constant_errors(found, scales.distance_median_mm, scales.coordinate_median_mm),
                **calibration(found, _predicted(found)),
            }
            results["test_train_mode"] = means["train_mode"]
            print(results_table(results["test"], absolute_x), flush=True)
            save_predictions(workdir, found)
        else:
            logger.warning("no test pairs: results.json has no test errors")
        pretext_figures(workdir, self.table, self.source, predictions)
        return results

    def _with_truth(self, predictions: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Join predictions of pairs with their targets, as `pair_predictions.SCHEMA` names them."""
        table, pair = self.table, predictions["index"].astype(np.int64)
        return {
            "pair": pair,
            "distance_mm": table.distance_mm[pair],
            "predicted_distance_mm": predictions["distance_mm"],
            "coordinates_mm": table.coordinates_mm[
                np.stack([table.first[pair], table.second[pair]], axis=1)
            ],
            "predicted_coordinates_mm": predictions["coordinates_mm"],
        }

    def _eval_batches(self, pairs: np.ndarray) -> grain.MapDataset:
        share = parallel.share()
        return pair_eval_batches(self.source, self.table, self.config.data, pairs, **share)


def open_pretraining(config: Config, saved: dict[str, Any] | None) -> PretextExperiment:
    """Open the data of a pre-training config.

    Args:
        config: the run
        saved: `scales` from the config.json of a run that continues, or None

    Raises:
        InputError: the data cannot be used.
    """
    table = open_pairs(config.data)
    source = PairSource(table, config.data)
    skipped = Skipped() if config.data.on_error == "skip" else None
    source.open_sections(config.data.threads, skipped)
    if saved is not None:
        scales = scales_from_json(saved)
    else:
        scales = config.scales or fit_scales(source, table, skipped)
    steps = total_steps(config, len(table.of_split("train")))
    net = build_siamese(config.model)
    optimizer = make_optimizer(config.optim, steps)
    task = PretextTask(net, config.loss, config.augment, scales, optimizer, config.seed)
    stored = None
    if config.data.on_device:
        stored = ResidentSource(source, table, config.data.threads)
    return PretextExperiment(config, table, source, task, steps, skipped, stored)


def _predicted(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the predictions under the names of their targets."""
    return {name: found[f"predicted_{name}"] for name in ("distance_mm", "coordinates_mm")}
