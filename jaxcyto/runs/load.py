"""Load the config, weights and network of a finished run or of an export.

    RUN/config.json            resolved config with the scales and, for segmentation, the classes
    RUN/weights.safetensors    parameters and re-estimated batch statistics of the last step
    RUN/environment.json       software, hardware and brains of each start

An export holds all of this in one file (see `export_file.py`). It is named by the file or by its
folder. Arrays are named by their path, such as `params/encoder/block1/conv1/kernel`.
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
from jaxcyto.config import DECODERS, FEATURES, MAX_POOL, ModelConfig, Scales
from jaxcyto.config_io import scales_from_json
from jaxcyto.errors import InputError
from jaxcyto.models import Geometry, SiameseNet, UNet, build_siamese, build_unet
from jaxcyto.runs.export_file import EXPORT, read_metadata
from jaxcyto.utils.files import atomic_write

WEIGHTS = "weights.safetensors"
COLLECTIONS = ("params", "batch_stats")
TRAINED_ON = ("brain", "name", "licence", "citation", "task")
PRETRAINING = "pre-training"
Leaves = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Place:
    """The paths of a run or an export: its folder, and the files of its weights and config."""

    folder: Path
    weights: Path
    config: Path

    @property
    def exported(self) -> bool:
        """Whether this is an export, in which one file holds weights and config."""
        return self.config == self.weights

    @property
    def remedy(self) -> str:
        """What the user should do if a file is damaged."""
        return "get the file again" if self.exported else "train again in a new folder"


@dataclasses.dataclass(frozen=True, eq=False)
class SegmentRun:
    """A trained segmentation network. `variables` holds `params` and `batch_stats`."""

    path: Path  # folder of the run or export
    weights: Path
    model: UNet
    variables: dict[str, Any]
    classes: tuple[AreaClass, ...]
    um_per_px: float
    image_px: int  # side of the training windows
    atlas_channels: int  # 0 for a network without atlas
    input_mean: float
    input_std: float
    training_sections: dict[str, str | None]  # fingerprints by BRAIN/SECTION, see `seen.py`

    @property
    def out_um(self) -> float:
        """Pixel size of the predicted maps in micrometers."""
        return self.um_per_px * Geometry.of(self.model).output_stride


@dataclasses.dataclass(frozen=True, eq=False)
class PretextRun:
    """A trained Siamese network. `variables` holds `params` and `batch_stats`."""

    path: Path  # folder of the run or export
    model: SiameseNet
    variables: dict[str, Any]
    scales: Scales
    um_per_px: float
    patch_px: int
    absolute_x: bool  # whether the coordinates are (|x|, y, z)
    training_sections: dict[str, str | None]  # fingerprints by BRAIN/SECTION, see `seen.py`
    weights: Path | None = None  # None for a network that was not read from a file


def save_weights(run: Path, variables: Any) -> None:
    """Write `params` and `batch_stats` to RUN/weights.safetensors atomically."""
    leaves = flax.traverse_util.flatten_dict(variables, sep="/")
    with atomic_write(run / WEIGHTS) as file:
        file.write(save({key: np.ascontiguousarray(leaf) for key, leaf in leaves.items()}))


def find(run: str | os.PathLike) -> Place:
    """Find the files of a run or an export.

    Args:
        run: folder of a run, folder of an export, or file of an export with any name.

    Raises:
        InputError: the path is neither a run nor an export.
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
    """Load the weights of a finished run or an export.

    Returns:
        Arrays, float32, by their path in the network.

    Raises:
        InputError: `run` is neither a run nor an export, it is unfinished, or its file is damaged.
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
    """Read the config of a run or an export as a dict.

    Raises:
        InputError: `run` is neither a run nor an export, or its config is damaged.
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
    """Check the fields of a config that are read without building a network.

    Return what is wrong with them, or "" if they are valid.
    """
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
    """Return whether a config is of a segmentation run, which lists its classes."""
    return "classes" in config


def read_trained_on(run: str | os.PathLike) -> list[dict[str, str]]:
    """Read the brains that a run or an export was trained on.

    Returns:
        A dict for each brain with `brain` (name of its folder), `name`, `licence`, `citation` and
        `task`. The task says what the brain was used for, because a segmentation network may be
        pre-trained on another brain. The list is empty if the brains were not recorded.

    Raises:
        InputError: `run` is neither a run nor an export, or the export is damaged.
    """
    place = find(run)
    if place.exported:
        entries = read_metadata(place.weights)["trained_on"]
    else:
        try:
            starts = json.loads((place.folder / "environment.json").read_text())
            entries = [entry for start in starts for entry in start.get("trained_on", [])]
        except (OSError, ValueError, AttributeError, TypeError, RecursionError):
            return []  # written by an older version, or damaged, which is not serious
    tables = [entry for entry in entries if isinstance(entry, dict)]
    brains = [{key: str(entry.get(key, "")) for key in TRAINED_ON} for entry in tables]
    # each start of a run records its brains again
    return [brain for k, brain in enumerate(brains) if brain not in brains[:k]]


def load_run(run: str | os.PathLike) -> PretextRun | SegmentRun:
    """Load the network of a finished run or of an export, of either task.

    Raises:
        InputError: as `load_segment_run` and `load_pretext_run`.
    """
    return load_segment_run(run) if is_segmentation(read_config(run)) else load_pretext_run(run)


def load_segment_run(run: str | os.PathLike) -> SegmentRun:
    """Load the network of a finished segmentation run, or of its export.

    Raises:
        InputError: `run` is neither a run nor an export, it is unfinished, of the other task or
            damaged.
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
            training_sections=training_sections(config),
        )


def load_pretext_run(run: str | os.PathLike) -> PretextRun:
    """Load the network of a finished pre-training run, or of its export.

    Raises:
        InputError: `run` is neither a run nor an export, it is unfinished, of the other task or
            damaged.
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
            training_sections=training_sections(config),
            weights=place.weights,
        )


@contextlib.contextmanager
def _damage(place: Place) -> Iterator[None]:
    """Report errors in parsing a config as one InputError about damage."""
    try:
        yield
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise InputError(
            f"{place.config}: config: damaged ({type(error).__name__}: {error}); {place.remedy}"
        ) from None


def _model_config(config: dict[str, Any]) -> ModelConfig:
    """Return the `model` of a config.json."""
    table = config["model"]
    if table["dtype"] not in ("float32", "bfloat16"):
        raise ValueError("model.dtype")
    decoder, pools = table.get("decoder", "unet"), table.get("pools", [])  # older runs lack both
    sides = range(3, MAX_POOL + 1, 2)
    if decoder not in DECODERS or not all(type(side) is int and side in sides for side in pools):
        raise ValueError("model.decoder, model.pools")
    return ModelConfig(
        decoder=decoder,
        pools=tuple(pools),
        stem_kernel=table["stem_kernel"],
        stem_stride=table["stem_stride"],
        widths=tuple(table["widths"]),
        features=int(_positive("features", table.get("features", FEATURES))),
        dtype=table["dtype"],
    )


def training_sections(config: dict[str, Any]) -> dict[str, str | None]:
    """Return the fingerprints of the training sections of a run by BRAIN/SECTION (see `seen.py`).

    They are None for a run of an earlier version. The names of the sections that a fine-tuned run's
    pre-training has seen begin with PRETRAINING.

    Raises:
        ValueError: the config is damaged.
    """
    names, known = config.get("training_sections", []), config.get("training_fingerprints", {})
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("training_sections")
    if not isinstance(known, dict) or not all(isinstance(x, str | None) for x in known.values()):
        raise ValueError("training_fingerprints")
    taken = {name: x for name, x in known.items() if name.startswith(f"{PRETRAINING}/")}
    return {name: known.get(name) for name in names} | taken


def _positive(name: str, value: Any) -> float:
    if not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{name} = {value!r}")
    return float(value)


def _check_leaves(
    place: Place, model: UNet | SiameseNet, variables: Any, shapes: Sequence[tuple[int, ...]]
) -> None:
    """Check that the weights have the shapes that the network of the config needs.

    Args:
        place: paths of the run, for messages.
        model: network of the config.
        variables: weights.
        shapes: shapes of the inputs of the network.

    Raises:
        InputError: the weights do not belong to the config.
    """
    example = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    expected = jax.eval_shape(model.init, jax.random.key(0), *example)
    found, needed = (
        flax.traverse_util.flatten_dict(jax.tree.map(np.shape, dict(tree)), sep="/")
        for tree in (variables, expected)
    )
    for name in sorted(found.keys() | needed.keys()):
        if found.get(name) != needed.get(name):
            raise InputError(
                f"{place.weights}: weights and config do not belong together: {name} has the shape "
                f"{found.get(name)}, but the network of the config needs {needed.get(name)}; "
                + (place.remedy if place.exported else "bring back the config.json of this run")
            )
