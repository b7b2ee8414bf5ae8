"""A finished run on disk, as others use it: its weights, and its network ready to go.

    RUN/config.json            the resolved config, with scales and, of a segmentation, classes
    RUN/weights.safetensors    parameters and re-estimated batch statistics of the last step

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

from jaxcyto.brain.files import atomic_write
from jaxcyto.brain.manifest import AreaClass, read_classes
from jaxcyto.config import Scales, scales_from_json
from jaxcyto.errors import InputError
from jaxcyto.models import Geometry, SiameseNet, UNet

WEIGHTS = "weights.safetensors"
COLLECTIONS = ("params", "batch_stats")
Leaves = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class SegmentRun:
    """A trained segmentation network; `variables` holds `params` and `batch_stats`."""

    path: Path
    model: UNet
    variables: dict[str, Any]
    classes: tuple[AreaClass, ...]
    um_per_px: float
    image_px: int  # of its training
    atlas_channels: int  # 0: no atlas
    input_mean: float
    input_std: float
    training_sections: tuple[str, ...]  # BRAIN/SECTION, with the name of the brain's folder


@dataclasses.dataclass(frozen=True, eq=False)
class PretextRun:
    """A trained Siamese network; `variables` holds `params` and `batch_stats`."""

    path: Path
    model: SiameseNet
    variables: dict[str, Any]
    scales: Scales
    um_per_px: float
    patch_px: int
    absolute_x: bool  # its coordinates are (|x|, y, z)
    training_sections: tuple[str, ...]  # BRAIN/SECTION, with the name of the brain's folder


def save_weights(run: Path, variables: Any) -> None:
    """Writes `params` and `batch_stats` under a temporary name, then renames it into place."""
    leaves = flax.traverse_util.flatten_dict(variables, sep="/")
    with atomic_write(run / WEIGHTS) as file:
        file.write(save({key: np.ascontiguousarray(leaf) for key, leaf in leaves.items()}))


def load_weights(run: str | os.PathLike) -> Leaves:
    """The leaves of a finished run, by path.

    Raises:
        InputError: not a run, not finished, or its file is damaged.
    """
    run = Path(run)
    if not (run / "config.json").is_file():
        raise InputError(f"{run}: not the folder of a run: it holds no config.json")
    path = run / WEIGHTS
    if not path.is_file():
        raise InputError(
            f"{run}: not finished: it holds no {WEIGHTS} yet; let it train to its last step (the "
            "same command continues it)"
        )
    try:
        leaves = load_file(path)
        for name, leaf in leaves.items():
            if name.count("/") < 2 or name.split("/")[0] not in COLLECTIONS:
                raise ValueError(f"a leaf named {name[:80]!r}")
            if leaf.dtype != np.float32 or not np.isfinite(leaf).all():
                raise ValueError(f"{name} holds {leaf.dtype} numbers, or some that are not finite")
        return leaves
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: damaged ({error}); run the training command again") from None


def read_config(run: str | os.PathLike) -> dict[str, Any]:
    """config.json of a run, as a dict.

    Raises:
        InputError: it is missing or damaged.
    """
    path = Path(run) / "config.json"
    if not path.is_file():
        raise InputError(f"{run}: not the folder of a run: it holds no config.json")
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: damaged ({error}); train again in a new folder") from None
    if not isinstance(config, dict):
        raise InputError(f"{path}: damaged (not a table); train again in a new folder")
    return config


def load_segment_run(run: str | os.PathLike) -> SegmentRun:
    """The network of a finished segmentation run.

    Raises:
        InputError: not such a run, not finished, of the other task, or damaged.
    """
    run = Path(run)
    config = read_config(run)
    if "classes" not in config:
        raise InputError(
            f"{run}: a pre-training run; segmentation needs one of a segmentation config "
            f"(train.py --config configs/segment.py --config.init_from={run})"
        )
    variables = flax.traverse_util.unflatten_dict(load_weights(run), sep="/")
    with _damage(run):
        data = config["data"]
        faults: list[str] = []
        classes = read_classes(run / "config.json", config["classes"], faults)
        if not math.isfinite(config["scales"]["input_mean"]):
            raise ValueError("input_mean")
        if faults or not classes:
            raise ValueError(faults[0] if faults else "classes")
        channels = sum(entry.kind == "area" for entry in classes) if data["atlas"] else 0
        model = UNet(num_classes=len(classes), **_layout(config))
        side = int(data["image_px"])
        shapes: list[tuple[int, ...]] = [(1, side, side, 1)]
        if channels:
            geometry = Geometry(model.stem_kernel, model.stem_stride, len(model.widths))
            shapes.append((1, *2 * [geometry.atlas_size(side)], channels))
        _check_leaves(run, model, variables, shapes)
        return SegmentRun(
            path=run,
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
    """The network of a finished pre-training run.

    Raises:
        InputError: not such a run, not finished, of the other task, or damaged.
    """
    run = Path(run)
    config = read_config(run)
    if "classes" in config:
        raise InputError(
            f"{run}: a segmentation run; features are those of a pre-training run (train.py "
            "--config configs/pretrain.py)"
        )
    variables = flax.traverse_util.unflatten_dict(load_weights(run), sep="/")
    with _damage(run):
        data, scales = config["data"], scales_from_json(config["scales"])
        low, high = scales.coordinate_low_mm, scales.coordinate_high_mm
        if len(low) != 3 or len(high) != 3 or not np.isfinite([*low, *high]).all():
            raise ValueError("coordinate_low_mm, coordinate_high_mm")
        if not math.isfinite(scales.input_mean):
            raise ValueError("input_mean")
        for name in ("distance_mm", "input_std"):
            _positive(name, getattr(scales, name))
        model = SiameseNet(features=int(config["model"]["features"]), **_layout(config))
        side = int(data["patch_px"])
        _check_leaves(run, model, variables, [(1, 2, side, side, 1)])
        return PretextRun(
            path=run,
            model=model,
            variables=variables,
            scales=scales,
            um_per_px=_positive("um_per_px", data["um_per_px"]),
            patch_px=side,
            absolute_x=bool(data.get("absolute_x", False)),
            training_sections=_training_sections(config),
        )


@contextlib.contextmanager
def _damage(run: Path) -> Iterator[None]:
    """What goes wrong while config.json is taken apart is damage, in one message."""
    try:
        yield
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise InputError(
            f"{run}/config.json: damaged ({type(error).__name__}: {error}); train again"
        ) from None


def _layout(config: dict[str, Any]) -> dict[str, Any]:
    """What both networks are made from."""
    table = config["model"]
    if table["dtype"] not in ("float32", "bfloat16"):
        raise ValueError("model.dtype")
    return {
        "stem_kernel": table["stem_kernel"],
        "stem_stride": table["stem_stride"],
        "widths": tuple(table["widths"]),
        "dtype": jnp.dtype(table["dtype"]),
    }


def _training_sections(config: dict[str, Any]) -> tuple[str, ...]:
    sections = config.get("training_sections", [])
    if not isinstance(sections, list) or not all(isinstance(name, str) for name in sections):
        raise ValueError("training_sections")
    return tuple(sections)


def _positive(name: str, value: Any) -> float:
    if not 0 < float(value) < math.inf:
        raise ValueError(f"{name} = {value}")
    return float(value)


def _check_leaves(
    run: Path, model: UNet | SiameseNet, variables: Any, shapes: Sequence[tuple[int, ...]]
) -> None:
    """Compares weights with the network that config.json describes; `shapes` are of its inputs.

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
                f"{run}: config.json and {WEIGHTS} do not belong together: {name} has the shape "
                f"{found.get(name)}, but the network of config.json needs {needed.get(name)}; "
                "bring back the config.json of this run"
            )
