"""All mistakes of a config at once, before any work depends on it."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxcyto.augment import MAX_BLUR_PX
from jaxcyto.config import Config
from jaxcyto.errors import InputError
from jaxcyto.models import Geometry

Rule = tuple[str, Any, Callable[[Any], bool], str]


def validate(config: Config) -> None:
    """Checks every field that has a range.

    Raises:
        InputError: with one line for each field out of range.
    """
    faults = [
        f"{field} = {value!r}; expected {expected}"
        for field, value, holds, expected in _rules(config)
        if not _safely(holds, value)
    ]
    if not faults:
        faults = _patch_size(config)
    if faults:
        raise InputError("config: " + "\nconfig: ".join(faults))


def _safely(holds: Callable[[Any], bool], value: Any) -> bool:
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


def _rules(config: Config) -> list[Rule]:
    data, model, augment, optim = config.data, config.model, config.augment, config.optim
    rules: list[Rule] = [
        ("seed", config.seed, lambda v: type(v) is int and 0 <= v < 2**32, "0 ... 2**32 - 1"),
        ("epochs", config.epochs, _positive, "a number above 0"),
        ("steps", config.steps, lambda v: v is None or _whole(1)(v), "None or at least 1"),
        ("batch_stats_steps", config.batch_stats_steps, _whole(1), "at least 1"),
        ("data.brains", data.brains, _names, "folders with a brain.toml; of several: ('a', 'b')"),
        ("data.pairs", data.pairs, lambda v: Path(v).name == v != "", "a file name, not a path"),
        ("data.um_per_px", data.um_per_px, _positive, "micrometres above 0"),
        ("model.widths", model.widths, _widths, "a tuple of whole numbers, at least one"),
        ("model.dtype", model.dtype, ("float32", "bfloat16").__contains__, "float32 or bfloat16"),
        ("augment.blur_px", augment.blur_px, lambda v: 0 <= v <= MAX_BLUR_PX, "0 ... 0.7"),
        ("augment.contrast", augment.contrast, lambda v: 0 <= v < 1, "0 or more, below 1"),
        ("optim.decay", optim.decay, ("cosine", "constant").__contains__, "cosine or constant"),
        ("optim.warmup_steps", optim.warmup_steps, _whole(0), "0 or more"),
        ("optim.learning_rate", optim.learning_rate, _positive, "a number above 0"),
        (
            "optim.clip_norm",
            optim.clip_norm,
            lambda v: v is None or _positive(v),
            "None or a number above 0",
        ),
        ("loss.terms", config.loss.terms, lambda v: len(v) > 0, "at least one term"),
        ("loss.weight_decay", config.loss.weight_decay, _not_negative, "0 or more"),
    ]
    for name in ("log_every", "eval_every", "eval_pairs", "checkpoint_every", "keep"):
        rules.append((name, getattr(config, name), _whole(1), "at least 1"))
    for name in ("patch_px", "batch_pairs", "threads"):
        rules.append((f"data.{name}", getattr(data, name), _whole(1), "at least 1"))
    for name in ("stem_kernel", "stem_stride", "features"):
        rules.append((f"model.{name}", getattr(model, name), _whole(1), "at least 1"))
    for name in ("brightness", "noise"):
        rules.append((f"augment.{name}", getattr(augment, name), _not_negative, "0 or more"))
    for number, term in enumerate(config.loss.terms):
        field = f"loss.terms[{number}]"
        rules.append((f"{field}.function", term.function, callable, "a function"))
        rules.append((f"{field}.weight", term.weight, math.isfinite, "a finite number"))
    if config.scales is not None:
        for name in ("distance_mm", "input_std"):
            value = getattr(config.scales, name)
            rules.append((f"scales.{name}", value, _positive, "a number above 0"))
    return rules


def _names(value: Any) -> bool:
    return isinstance(value, tuple | list) and len(value) > 0 and all(map(str, value))


def _widths(value: Any) -> bool:
    return isinstance(value, tuple | list) and len(value) > 0 and all(map(_whole(1), value))


def _patch_size(config: Config) -> list[str]:
    model = config.model
    sizes = Geometry(model.stem_kernel, model.stem_stride, len(model.widths)).siamese_sizes
    if config.data.patch_px in sizes:
        return []
    return [
        f"data.patch_px = {config.data.patch_px}; this network takes {sizes[0]} ... {sizes[-1]} px"
    ]
