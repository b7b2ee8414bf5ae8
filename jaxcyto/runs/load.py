"""A finished run on disk, as others use it: its weights, and its network ready to go.

    RUN/config.json            the resolved config, with scales and, of a segmentation, classes
    RUN/weights.safetensors    parameters and re-estimated batch statistics of the last step
    RUN/environment.json       what it ran on, and the brains it was trained on

or all of it in the one file of an export (`export_file.py`), named itself or by its folder.

Leaves are named by their path, such as `params/encoder/block1/conv1/kernel`.
"""

import contextlib
import dataclasses
import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from jaxcyto.brain.manifest import AreaClass, read_classes
from jaxcyto.config import FEATURES, ModelConfig, Scales
from jaxcyto.config_io import scales_from_json
from jaxcyto.errors import InputError
from jaxcyto.models import Geometry, SiameseNet, UNet, build_siamese, build_unet
from jaxcyto.runs.export_file import EXPORT, read_metadata
from jaxcyto.utils.files import atomic_write

WEIGHTS = "weights.safetensors"
COLLECTIONS = ("params", "batch_stats")
TRAINED_ON = ("brain", "name", "licence", "citation", "task")
Leaves = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a run or an export is: `folder`, and the files of its weights and its config."""

    folder: Path
    weights: Path
    config: Path

    @property
    def exported(self) -> bool:
        return self.config == self.weights

    @property
    def remedy(self) -> str:
        """What to do about damage."""
        return "get the file again" if self.exported else "train again in a new folder"


@dataclasses.dataclass(frozen=True, eq=False)
class SegmentRun:
    """A trained segmentation network; `variables` holds `params` and `batch_stats`."""

    path: Path  # its folder
    weights: Path
    model: UNet
    variables: dict[str, Any]
    classes: tuple[AreaClass, ...]
    um_per_px: float
    image_px: int  # of its training
    atlas_channels: int  # 0: no atlas
    input_mean: float
    input_std: float
    training_sections: tuple[str, ...]  # BRAIN/SECTION, with the name of the brain's folder

    @property
    def out_um(self) -> float:
        """Side of a pixel of what the network predicts."""
        return self.um_per_px * Geometry.of(self.model).output_stride


@dataclasses.dataclass(frozen=True, eq=False)
class PretextRun:
    """A trained Siamese network; `variables` holds `params` and `batch_stats`."""

    path: Path  # its folder
    model: SiameseNet
    variables: dict[str, Any]
    scales: Scales
    um_per_px: float
    patch_px: int
    absolute_x: bool  # its coordinates are (|x|, y, z)
    training_sections: tuple[str, ...]  # BRAIN/SECTION, with the name of the brain's folder
    weights: Path | None = None  # None: of a network that was not read from a file


def save_weights(run: Path, variables: Any) -> None:
    """Writes `params` and `batch_stats` under a temporary name, then renames it into place."""
    leaves = flax.traverse_util.flatten_dict(variables, sep="/")
    with atomic_write(run / WEIGHTS) as file:
        file.write(save({key: np.ascontiguousarray(leaf) for key, leaf in leaves.items()}))


def find(run: str | os.PathLike) -> Place:
    """The folder of a run, or an export: its folder or its file, whatever that is named.

    Raises:
        InputError: it is neither.
    """
    run = Path(run)
    if run.is_file():
        return Place(run.parent, run, run)
    config, weights, export = run / "config.json", run / WEIGHTS, run / EXPORT
    if export.is_file() and not weights.is_file():
        return Place(run, export, export)
    if not run.exists():
        raise InputError(f"{run}: no such run; name the --workdir of a training or an export of it")
    if (run / "brain.toml").is_file():
        raise InputError(f"{run}: a brain, not a run; the run comes first, then the brain")
    if not config.is_file():
        raise InputError(
            f"{run}: not the folder of a run or an export: it holds no config.json and no {EXPORT}"
        )
    return Place(run, weights, config)


def load_weights(run: str | os.PathLike) -> Leaves:
    """The leaves of a finished run or an export, by path.

    Raises:
        InputError: neither of them, not finished, or its file is damaged.
    """
    place = find(run)
    if not place.weights.is_file():
        raise InputError(
            f"{run}: not finished: it holds no {WEIGHTS} yet; let it train to its last step (the "
            "same command continues it)"
        )
    try:
        leaves = load_file(place.weights)
        for name, leaf in leaves.items():
            if name.count("/") < 2 or name.split("/")[0] not in COLLECTIONS:
                raise ValueError(f"a leaf named {name[:80]!r}")
            if leaf.dtype != np.float32 or not np.isfinite(leaf).all():
                raise ValueError(f"{name} holds {leaf.dtype} numbers, or some that are not finite")
        return leaves
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        remedy = place.remedy if place.exported else "run the training command again"
        raise InputError(f"{place.weights}: damaged ({error}); {remedy}") from None


def read_config(run: str | os.PathLike) -> dict[str, Any]:
    """The config of a run or an export, as a dict.

    Raises:
        InputError: neither of them, or damaged.
    """
    place = find(run)
    if place.exported:
        config = read_metadata(place.weights)["config"]
    else:
        try:
            config = json.loads(place.config.read_text())
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"{place.config}: damaged ({error}); {place.remedy}") from None
    if fault := _fault(config):
        raise InputError(f"{place.config}: damaged ({fault}); {place.remedy}")
    return config


def _fault(config: Any) -> str:
    """What no config is without, and what is read of it before a network is made; "": nothing."""
    if not isinstance(config, dict):
        return "not a table"
    data, first = config.get("data"), config.get("init_from")
    if not isinstance(data, dict):
        return "data: no table"
    brains = data.get("brains", [])
    if not isinstance(brains, list) or not all(isinstance(path, str) for path in brains):
        return "data.brains: no list of folders"
    return "" if first is None or isinstance(first, str) else "init_from: no folder"


def is_segmentation(config: dict[str, Any]) -> bool:
    """Whether a config as `read_config` gives it is of a segmentation: it lists the classes."""
    return "classes" in config


def read_trained_on(run: str | os.PathLike) -> list[dict[str, str]]:
    """The brains that a run or an export was trained on; empty where that is not recorded.

    Returns:
        Of each `brain` (its folder's name), `name`, `licence`, `citation`, and `task`, for which
        it was used: a segmentation network may come from pre-training on another.

    Raises:
        InputError: neither run nor export, or a damaged export.
    """
    place = find(run)
    if place.exported:
        found = read_metadata(place.weights)["trained_on"]
    else:
        try:
            starts = json.loads((place.folder / "environment.json").read_text())
            found = [entry for start in starts for entry in start.get("trained_on", [])]
        except (OSError, ValueError, AttributeError, TypeError, RecursionError):
            return []  # of an older version, or damaged, and no loss
    tables = [entry for entry in found if isinstance(entry, dict)]
    told = [{key: str(entry.get(key, "")) for key in TRAINED_ON} for entry in tables]
    return [entry for number, entry in enumerate(told) if entry not in told[:number]]


def load_run(run: str | os.PathLike) -> PretextRun | SegmentRun:
    """The network of a finished run or of an export, of either task; raises as these two do."""
    return load_segment_run(run) if is_segmentation(read_config(run)) else load_pretext_run(run)


def load_segment_run(run: str | os.PathLike) -> SegmentRun:
    """The network of a finished segmentation run, or of an export of one.

    Raises:
        InputError: not such a run, not finished, of the other task, or damaged.
    """
    place, config = find(run), read_config(run)
    if not is_segmentation(config):
        raise InputError(
            f"{run}: a pre-training run; segmentation needs one of a segmentation config "
            f"(train.py --config configs/segment.py --config.init_from={run})"
        )
    variables = flax.traverse_util.unflatten_dict(load_weights(run), sep="/")
    with _damage(place):
        data = config["data"]
        faults: list[str] = []
        classes = read_classes(place.config, config["classes"], faults)
        if not math.isfinite(config["scales"]["input_mean"]):
            raise ValueError("input_mean")
        if faults or not classes:
            raise ValueError(faults[0] if faults else "classes")
        channels = sum(entry.kind == "area" for entry in classes) if data["atlas"] else 0
        model = build_unet(_model_config(config), len(classes))
        side = int(data["image_px"])
        shapes: list[tuple[int, ...]] = [(1, side, side, 1)]
        if channels:
            shapes.append((1, *2 * [Geometry.of(model).atlas_size(side)], channels))
        _check_leaves(place, model, variables, shapes)
        return SegmentRun(
            path=place.folder,
            weights=place.weights,
            model=model,
            variables=variables,
            classes=classes,
            um_per_px=_positive("um_per_px", data["um_per_px"]),
            image_px=side,
            atlas_channels=channels,
            input_mean=float(config["scales"]["input_mean"]),
            input_std=_positive("input_std", config["scales"]["input_std"]),
            training_sections=_training_sections(config),
        )


def load_pretext_run(run: str | os.PathLike) -> PretextRun:
    """The network of a finished pre-training run, or of an export of one.

    Raises:
        InputError: not such a run, not finished, of the other task, or damaged.
    """
    place, config = find(run), read_config(run)
    if is_segmentation(config):
        raise InputError(
            f"{run}: a segmentation run; features are those of a pre-training run (train.py "
            "--config configs/pretrain.py)"
        )
    variables = flax.traverse_util.unflatten_dict(load_weights(run), sep="/")
    with _damage(place):
        data, scales = config["data"], scales_from_json(config["scales"])
        low, high = scales.coordinate_low_mm, scales.coordinate_high_mm
        if len(low) != 3 or len(high) != 3 or not np.isfinite([*low, *high]).all():
            raise ValueError("coordinate_low_mm, coordinate_high_mm")
        if not math.isfinite(scales.input_mean):
            raise ValueError("input_mean")
        for name in ("distance_mm", "input_std"):
            _positive(name, getattr(scales, name))
        model = build_siamese(_model_config(config))
        side = int(data["patch_px"])
        _check_leaves(place, model, variables, [(1, 2, side, side, 1)])
        return PretextRun(
            path=place.folder,
            model=model,
            variables=variables,
            scales=scales,
            um_per_px=_positive("um_per_px", data["um_per_px"]),
            patch_px=side,
            absolute_x=bool(data.get("absolute_x", False)),
            training_sections=_training_sections(config),
            weights=place.weights,
        )


@contextlib.contextmanager
def _damage(place: Place) -> Iterator[None]:
    """What goes wrong while a config is taken apart is damage, in one message."""
    try:
        yield
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise InputError(
            f"{place.config}: config: damaged ({type(error).__name__}: {error}); {place.remedy}"
        ) from None


def _model_config(config: dict[str, Any]) -> ModelConfig:
    """The `model` of a config.json."""
    table = config["model"]
    if table["dtype"] not in ("float32", "bfloat16"):
        raise ValueError("model.dtype")
    return ModelConfig(
        stem_kernel=table["stem_kernel"],
        stem_stride=table["stem_stride"],
        widths=tuple(table["widths"]),
        features=int(_positive("features", table.get("features", FEATURES))),
        dtype=table["dtype"],
    )


def _training_sections(config: dict[str, Any]) -> tuple[str, ...]:
    sections = config.get("training_sections", [])
    if not isinstance(sections, list) or not all(isinstance(name, str) for name in sections):
        raise ValueError("training_sections")
    return tuple(sections)


def _positive(name: str, value: Any) -> float:
    if not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{name} = {value!r}")
    return float(value)


def _check_leaves(
    place: Place, model: UNet | SiameseNet, variables: Any, shapes: Sequence[tuple[int, ...]]
) -> None:
    """Compares weights with the network that the config describes; `shapes` are of its inputs.

    Raises:
        InputError: they do not belong together.
    """
    example = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    wanted = jax.eval_shape(model.init, jax.random.key(0), *example)
    found, needed = (
        flax.traverse_util.flatten_dict(jax.tree.map(np.shape, dict(tree)), sep="/")
        for tree in (variables, wanted)
    )
    for name in sorted(found.keys() | needed.keys()):
        if found.get(name) != needed.get(name):
            raise InputError(
                f"{place.weights}: weights and config do not belong together: {name} has the shape "
                f"{found.get(name)}, but the network of the config needs {needed.get(name)}; "
                + (place.remedy if place.exported else "bring back the config.json of this run")
            )
