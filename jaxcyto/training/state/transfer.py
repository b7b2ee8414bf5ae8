"""Transfer the encoder of a pre-training run into a segmentation network."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import numpy as np

from jaxcyto.config import InputScales
from jaxcyto.errors import InputError
from jaxcyto.models.encoder import ENCODER
from jaxcyto.runs.load import find, load_weights, read_config, training_sections
from jaxcyto.runs.seen import seen
from jaxcyto.training.state.state import State


def transfer(state: State, run: str | os.PathLike) -> tuple[State, str]:
    """Replace the encoder of a state by the encoder of a finished pre-training run.

    The encoder is the texture path of the network: its convolutions, and its batch normalization
    with the stored statistics.

    Args:
        state: state of the segmentation network before its first step
        run: the pre-training run, or an export of it

    Returns:
        The state, and a table of all leaves as text. Leaves are "taken", "new" (not in the run), or
        "skipped" (not in the network).

    Raises:
        InputError: the run is unfinished or damaged, or its encoder has other leaves, shapes or
            types.
    """
    weights = load_weights(run)
    leaves: dict[str, Any] = flax.traverse_util.flatten_dict(
        {"params": state.params, "batch_stats": state.batch_stats}, sep="/"
    )
    rows = []
    for name, leaf in sorted(leaves.items()):
        if name.split("/")[1] != ENCODER:
            rows.append(("new", name, leaf))
            continue
        if name not in weights:
            raise InputError(f"--config.init_from={run}: has no leaf {name}; {_remedy()}")
        taken = weights[name]
        if taken.shape != leaf.shape or taken.dtype != leaf.dtype:
            raise InputError(
                f"--config.init_from={run}: {name} is {taken.dtype} {list(taken.shape)}, but this "
                f"network has {leaf.dtype} {list(leaf.shape)}; {_remedy()}"
            )
        leaves[name] = taken
        rows.append(("taken", name, taken))
    for name, leaf in sorted(weights.items()):
        if name in leaves:
            continue
        if name.split("/")[1] == ENCODER:
            raise InputError(
                f"--config.init_from={run}: {name} is not in this network; {_remedy()}"
            )
        rows.append(("skipped", name, leaf))
    tree: dict[str, Any] = flax.traverse_util.unflatten_dict(leaves, sep="/")
    state = dataclasses.replace(state, params=tree["params"], batch_stats=tree["batch_stats"])
    return state, _table(rows)


def pretraining_scales(
    run: str | os.PathLike, um_per_px: float, held_out: Mapping[str, str | None]
) -> InputScales:
    """Return the standardization of the input that a pre-training run was trained with.

    Args:
        run: the pre-training run, or an export of it
        um_per_px: resolution of the images to segment, in micrometers per pixel
        held_out: fingerprint of each section of validation and test, by BRAIN/SECTION

    Raises:
        InputError: `run` is not a pre-training run, was trained at another resolution, or was
            trained on sections that are held out.
    """
    config = read_config(run)
    if "pairs_sha256" not in config:
        raise InputError(
            f"--config.init_from={run}: not a pre-training run; give one of a pre-training config "
            "(such as configs/pretrain.py)"
        )
    try:
        scales, trained_um_per_px = config["scales"], float(config["data"]["um_per_px"])
        taken = InputScales(float(scales["input_mean"]), float(scales["input_std"]))
        if not (np.isfinite(taken.input_mean) and 0 < taken.input_std < np.inf):
            raise ValueError("scales")
        trained = training_sections(config)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        files = find(run)
        raise InputError(f"{files.config}: damaged ({error!r}); {files.remedy}") from None
    if not np.isclose(trained_um_per_px, um_per_px):
        raise InputError(
            f"--config.init_from={run}: trained at {trained_um_per_px:g} um/px, but data.um_per_px "
            f"= {um_per_px:g}; texture does not transfer between resolutions, so use the same"
        )
    if same := seen(trained, held_out):
        named = ", ".join(f"{name} ({other} of that run)" for name, other in same[:5])
        raise InputError(
            f"--config.init_from={run}: was trained on {len(same)} sections that are val or test "
            f"here: {named}; pre-train with the current split columns, or give these sections the "
            "split train or exclude"
        )
    return taken


def _remedy() -> str:
    return "give the model (stem_kernel, stem_stride, widths) of that run"


def _table(rows: list[tuple[str, str, Any]]) -> str:
    width = max(len(name) for _, name, _ in rows)
    order = ("taken", "new", "skipped")
    lines = [
        f"{kind:<8} {name:<{width}} {' x '.join(map(str, leaf.shape))}"
        for kind, name, leaf in sorted(rows, key=lambda row: (order.index(row[0]), row[1]))
    ]
    totals = (
        f"{sum(leaf.size for k, _, leaf in rows if k == kind)} values {kind}" for kind in order
    )
    return "\n".join([*lines, ", ".join(totals)])
