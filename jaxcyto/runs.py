"""A finished run on disk, as others use it: its weights, and a segmentation network ready to go.

    RUN/config.json            the resolved config, with scales and, of a segmentation, classes
    RUN/weights.safetensors    parameters and re-estimated batch statistics of the last step

Leaves are named by their path, such as `params/encoder/block1/conv1/kernel`.
"""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from jaxcyto.brain.manifest import AreaClass
from jaxcyto.errors import InputError
from jaxcyto.models import UNet

WEIGHTS = "weights.safetensors"
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


def save_weights(run: Path, variables: Any) -> None:
    """Writes `params` and `batch_stats` under a temporary name, then renames it into place."""
    leaves = flax.traverse_util.flatten_dict(variables, sep="/")
    temporary = run / f".{WEIGHTS}.tmp"
    temporary.write_bytes(save({key: np.ascontiguousarray(x) for key, x in leaves.items()}))
    temporary.replace(run / WEIGHTS)


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
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: damaged ({error}); run the training command again") from None


def read_config(run: str | os.PathLike) -> dict[str, Any]:
    """config.json of a run, as a dict.

    Raises:
        InputError: it is missing or damaged.
    """
    path = Path(run) / "config.json"
    try:
        config = json.loads(path.read_text())
    except OSError:
        raise InputError(f"{run}: not the folder of a run: it holds no config.json") from None
    except ValueError as error:
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
    try:
        data, table = config["data"], config["model"]
        classes = tuple(AreaClass(**entry) for entry in config["classes"])
        channels = sum(entry.kind == "area" for entry in classes) if data["atlas"] else 0
        model = UNet(
            num_classes=len(classes),
            stem_kernel=table["stem_kernel"],
            stem_stride=table["stem_stride"],
            widths=tuple(table["widths"]),
            dtype=jnp.dtype(table["dtype"]),
        )
        return SegmentRun(
            path=run,
            model=model,
            variables=flax.traverse_util.unflatten_dict(leaves, sep="/"),
            classes=classes,
            um_per_px=float(data["um_per_px"]),
            image_px=int(data["image_px"]),
            atlas_channels=channels,
            input_mean=float(config["scales"]["input_mean"]),
            input_std=float(config["scales"]["input_std"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{run}/config.json: damaged ({type(error).__name__}: {error}); train again"
        ) from None
