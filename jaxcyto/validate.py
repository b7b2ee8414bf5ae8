"""Check a config and report all its mistakes at once, before any work depends on it."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxcyto.augment import MAX_BLUR_PX
from jaxcyto.config import DECODERS, MAX_POOL, Config, SegmentConfig
from jaxcyto.errors import InputError
from jaxcyto.models import Geometry

# (name of the field, its value, predicate of valid values, description of valid values)
Rule = tuple[str, Any, Callable[[Any], bool], str]


def validate(config: Config | SegmentConfig) -> None:
    """Check every field that has a range.

    Raises:
        InputError: fields are out of range. The message has one line for each of them.
    """
    segments = isinstance(config, SegmentConfig)
    rules = _common_rules(config) + (_segment_rules if segments else _pretext_rules)(config)
    faults = [
        f"{field} = {value!r}; expected {expected}"
        for field, value, holds, expected in rules
        if not _safely(holds, value)
    ]
    if not faults:  # the checks of sizes need a valid `config.model`
        faults = (_segment_fields if segments else _patch_size)(config)
    if faults:
        raise InputError("config: " + "\nconfig: ".join(faults))


def batch_size(config: Config | SegmentConfig) -> tuple[str, int]:
    """Return the name and the value of the field that holds the size of the global batch."""
    if isinstance(config, SegmentConfig):
        return "data.batch_images", config.data.batch_images
    return "data.batch_pairs", config.data.batch_pairs


def _safely(holds: Callable[[Any], bool], value: Any) -> bool:
    """Return whether a value is valid. A value of the wrong type is not."""
    try:
        return holds(value)
    except TypeError:
        return False


def _positive(value: Any) -> bool:
    return math.isfinite(value) and value > 0


def _not_negative(value: Any) -> bool:
    return math.isfinite(value) and value >= 0


def _whole(least: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and value >= least


def _common_rules(config: Config | SegmentConfig) -> list[Rule]:
    data, model, augment, optim = config.data, config.model, config.augment, config.optim
    rules: list[Rule] = [
        ("seed", config.seed, lambda v: type(v) is int and 0 <= v < 2**32, "0 ... 2**32 - 1"),
        ("data.brains", data.brains, _names, "folders with a brain.toml, as ('a', 'b')"),
        ("data.um_per_px", data.um_per_px, _positive, "micrometers above 0"),
        ("data.threads", data.threads, _whole(1), "at least 1"),
        ("onednn", config.onednn, lambda v: type(v) is bool, "True or False"),
        ("weights", config.weights, ("last", "best").__contains__, "last or best"),
        ("data.on_error", data.on_error, ("raise", "skip").__contains__, "raise or skip"),
        ("model.widths", model.widths, _widths, "a tuple of whole numbers, at least one"),
        ("model.decoder", model.decoder, DECODERS.__contains__, " or ".join(DECODERS)),
        ("model.pools", model.pools, _odd, f"different odd numbers 3 ... {MAX_POOL}, as (3, 7)"),
        ("model.dtype", model.dtype, ("float32", "bfloat16").__contains__, "float32 or bfloat16"),
        ("augment.blur_px", augment.blur_px, lambda v: 0 <= v <= MAX_BLUR_PX, "0 ... 0.7"),
        ("augment.contrast", augment.contrast, lambda v: 0 <= v < 1, "0 or more, below 1"),
        ("optim.decay", optim.decay, ("cosine", "constant").__contains__, "cosine or constant"),
        ("optim.warmup_steps", optim.warmup_steps, _whole(0), "0 or more"),
        ("optim.learning_rate", optim.learning_rate, _positive, "a number above 0"),
        ("optim.clip_norm", optim.clip_norm, _none_or(_positive), "None or a number above 0"),
        ("optim.accumulate", optim.accumulate, _whole(1), "at least 1"),
        ("optim.skip_nonfinite", optim.skip_nonfinite, _whole(0), "0 or more"),
        ("loss.terms", config.loss.terms, lambda v: len(v) > 0, "at least one term"),
        ("loss.weight_decay", config.loss.weight_decay, _not_negative, "0 or more"),
    ]
    names = ("log_every", "eval_every", "batch_stats_steps", "checkpoint_every", "keep")
    rules += [(name, getattr(config, name), _whole(1), "at least 1") for name in names]
    for name in ("stem_kernel", "stem_stride", "features"):
        rules.append((f"model.{name}", getattr(model, name), _whole(1), "at least 1"))
    for name in ("brightness", "noise"):
        rules.append((f"augment.{name}", getattr(augment, name), _not_negative, "0 or more"))
    for index, term in enumerate(config.loss.terms):
        field = f"loss.terms[{index}]"
        rules.append((f"{field}.function", term.function, callable, "a function"))
        rules.append((f"{field}.weight", term.weight, math.isfinite, "a finite number"))
    if config.scales is not None:
        value = config.scales.input_std
        rules.append(("scales.input_std", value, _positive, "a number above 0"))
    return rules


def _pretext_rules(config: Any) -> list[Rule]:
    data, scales = config.data, config.scales
    rules: list[Rule] = [
        ("epochs", config.epochs, _positive, "a number above 0"),
        ("steps", config.steps, _none_or(_whole(1)), "None or at least 1"),
        ("eval_pairs", config.eval_pairs, _whole(1), "at least 1"),
        ("data.pairs", data.pairs, lambda v: Path(v).name == v != "", "a file name, not a path"),
        ("data.patch_px", data.patch_px, _whole(1), "at least 1"),
        ("data.batch_pairs", data.batch_pairs, _whole(1), "at least 1"),
        (
            "data.on_error",
            data.on_error,
            lambda v: not (data.on_device and v == "skip"),
            "raise with data.on_device, which reads everything before the first step",
        ),
    ]
    if scales is not None:
        rules.append(("scales.distance_mm", scales.distance_mm, _positive, "a number above 0"))
    return rules


def _segment_rules(config: Any) -> list[Rule]:
    data = config.data
    return [
        (
            "steps",
            config.steps,
            _whole(0 if config.fit_head else 1),
            "at least 1, or 0 with fit_head = True",
        ),
        ("transfer_rate", config.transfer_rate, _positive, "a number above 0"),
        ("fit_head", config.fit_head, lambda v: type(v) is bool, "True or False"),
        (
            "encoder_statistics",
            config.encoder_statistics,
            ("batch", "stored").__contains__,
            "batch or stored",
        ),
        ("eval_images", config.eval_images, _whole(1), "at least 1"),
        ("data.image_px", data.image_px, _whole(1), "at least 1"),
        ("data.batch_images", data.batch_images, _whole(1), "at least 1"),
        ("data.train_sections", data.train_sections, _texts, "names of sections, as ('a', 'b')"),
        ("encoder_rate", config.encoder_rate, _not_negative, "0 (frozen) or more"),
        ("init_from", config.init_from, _none_or(bool), "the folder of a pre-training run"),
    ]


def _none_or(holds: Callable[[Any], Any]) -> Callable[[Any], bool]:
    return lambda value: value is None or bool(holds(value))


def _texts(value: Any) -> bool:
    return isinstance(value, tuple | list) and all(isinstance(v, str) for v in value)


def _names(value: Any) -> bool:
    return isinstance(value, tuple | list) and len(value) > 0 and all(map(str, value))


def _widths(value: Any) -> bool:
    return isinstance(value, tuple | list) and len(value) > 0 and all(map(_whole(1), value))


def _odd(value: Any) -> bool:
    whole = isinstance(value, tuple | list) and all(map(_whole(3), value))
    odd = whole and all(side % 2 and side <= MAX_POOL for side in value)
    return odd and len(set(value)) == len(value)


def _patch_size(config: Any) -> list[str]:
    sizes = Geometry.of(config.model).siamese_sizes
    if config.data.patch_px in sizes:
        return []
    return [
        f"data.patch_px = {config.data.patch_px}; this network takes {sizes[0]} ... {sizes[-1]} px"
    ]


def _segment_fields(config: Any) -> list[str]:
    try:
        Geometry.of(config.model).output_size(config.data.image_px)
    except ValueError as error:
        return [f"data.image_px = {config.data.image_px}: {error}"]
    faults = []
    if config.init_from is not None and config.scales is not None:
        faults.append("scales: those of init_from are taken, so leave the field out")
    if config.fit_head and config.model.decoder != "scores":
        faults.append("fit_head = True: needs model.decoder = 'scores'")
    if config.fit_head and config.data.atlas:
        faults.append("fit_head = True: not with data.atlas, whose path is not pre-trained")
    if not config.steps and config.init_from is None:
        faults.append("steps = 0: fits the head to pre-trained layers; give --config.init_from=RUN")
    return faults
