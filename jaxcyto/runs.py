"""A finished run on disk, as others use it: its weights, and a segmentation network ready to go.

    RUN/config.json            the resolved config, with scales and, of a segmentation, classes
    RUN/weights.safetensors    parameters and re-estimated batch statistics of the last step

Leaves are named by their path, such as `params/encoder/block1/conv1/kernel`.
"""

import dataclasses
import json
import math
import os
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
from jaxcyto.errors import InputError
from jaxcyto.models import Geometry, UNet

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
    leaves = load_weights(run)
    variables = flax.traverse_util.unflatten_dict(leaves, sep="/")
    try:
        data, table = config["data"], config["model"]
        faults: list[str] = []
        classes = read_classes(run / "config.json", config["classes"], faults)
        sections = config.get("training_sections", [])
        if not math.isfinite(config["scales"]["input_mean"]):
            raise ValueError("input_mean")
        if faults or not classes or table["dtype"] not in ("float32", "bfloat16"):
            raise ValueError(faults[0] if faults else "classes, model.dtype")
        if not isinstance(sections, list) or not all(isinstance(name, str) for name in sections):
            raise ValueError("training_sections")
        channels = sum(entry.kind == "area" for entry in classes) if data["atlas"] else 0
        model = UNet(
            num_classes=len(classes),
            stem_kernel=table["stem_kernel"],
            stem_stride=table["stem_stride"],
            widths=tuple(table["widths"]),
            dtype=jnp.dtype(table["dtype"]),
        )
        _check_leaves(run, model, variables, int(data["image_px"]), channels)
        return SegmentRun(
            path=run,
            model=model,
            variables=variables,
            classes=classes,
            um_per_px=_positive("um_per_px", data["um_per_px"]),
            image_px=int(data["image_px"]),
            atlas_channels=channels,
            input_mean=float(config["scales"]["input_mean"]),
            input_std=_positive("input_std", config["scales"]["input_std"]),
            training_sections=tuple(sections),
        )
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"{run}/config.json: damaged ({type(error).__name__}: {error}); train again"
        ) from None


def _positive(name: str, value: Any) -> float:
    if not 0 < float(value) < math.inf:
        raise ValueError(f"{name} = {value}")
    return float(value)


def _check_leaves(run: Path, model: UNet, variables: Any, side: int, channels: int) -> None:
    """Compares weights with the network that config.json describes.

    Raises:
        InputError: they do not belong together.
    """
    example = [jax.ShapeDtypeStruct((1, side, side, 1), jnp.float32)]
    if channels:
        geometry = Geometry(model.stem_kernel, model.stem_stride, len(model.widths))
        size = geometry.atlas_size(side)
        example.append(jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32))
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
