"""Build the optimizer of a config from optax."""

from collections.abc import Callable, Collection

import numpy as np
import optax

from jaxcyto.config import OptimConfig
from jaxcyto.errors import InputError
from jaxcyto.models.encoder import ENCODER


def schedule(config: OptimConfig, steps: int) -> optax.Schedule:
    """Return the schedule of the learning rate by update.

    It rises linearly from zero to the peak in `warmup_steps`. Then it decays to zero as a cosine
    or stays constant.

    Args:
        config: the optimizer
        steps: updates of the whole run

    Raises:
        InputError: `decay` has another value.
    """
    if config.decay == "cosine":
        after = optax.cosine_decay_schedule(
            config.learning_rate, max(1, steps - config.warmup_steps)
        )
    elif config.decay == "constant":
        after = optax.constant_schedule(config.learning_rate)
    else:
        raise InputError(f"optim.decay = {config.decay!r}; expected 'cosine' or 'constant'")
    if not config.warmup_steps:
        return after
    warmup = optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps)
    return optax.join_schedules([warmup, after], [config.warmup_steps])


def learning_rate(config: OptimConfig, steps: int) -> Callable[..., float]:
    """Return a function that gives the learning rate of a training step.

    Args:
        config: the optimizer
        steps: steps of the whole run

    Returns:
        A function of the step (from 1) and, optionally, of the count of steps skipped so far,
        which do not advance the schedule.
    """
    rates = schedule(config, steps // config.accumulate)

    def rate(step: int, skipped: int = 0) -> float:
        return np.asarray(rates(max(0, step - 1 - skipped) // config.accumulate)).item()

    return rate


def make_optimizer(
    config: OptimConfig, steps: int, encoder_rate: float = 1.0
) -> optax.GradientTransformation:
    """Build the optimizer: optional clipping, then `config.optimizer` with its schedule.

    * `accumulate`: the mean gradient over so many steps is clipped and applied as one update.
    * `skip_nonfinite`: everything is wrapped in `optax.apply_if_finite`, whose counters
      `step.train_step` reads.

    Weight decay is not a part of the optimizer, because the paper's lambda * ||w||^2 is a term of
    the loss.

    Args:
        config: the optimizer
        steps: steps of the whole run
        encoder_rate: learning rate of the parameters under `encoder`, relative to the others. 0
            freezes them, but their running batch statistics are still updated.

    Raises:
        InputError: `accumulate` does not divide `steps`, or `decay` has an unknown value.
    """
    if steps % config.accumulate:
        raise InputError(
            f"optim.accumulate = {config.accumulate} does not divide the {steps} steps of the run, "
            "so the last steps would not be applied; change it or `steps`"
        )
    updates = steps // config.accumulate
    optimizer = config.optimizer(learning_rate=schedule(config, updates))
    if encoder_rate != 1.0:
        slower = optax.chain(optimizer, optax.scale(encoder_rate))
        optimizer = optax.multi_transform(
            {ENCODER: slower if encoder_rate else optax.set_to_zero(), "rest": optimizer},
            lambda params: {key: key if key == ENCODER else "rest" for key in params},
        )
    if config.clip_norm is not None:
        optimizer = optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)
    if config.accumulate > 1:
        optimizer = optax.MultiSteps(optimizer, config.accumulate).gradient_transformation()
    if config.skip_nonfinite:
        optimizer = optax.apply_if_finite(optimizer, config.skip_nonfinite)
    return optimizer


def match_skipping(leaves: dict[str, np.ndarray], wanted: Collection[str]) -> dict[str, np.ndarray]:
    """Match the leaves of a checkpoint to a config that switches `skip_nonfinite` on or off.

    A run that stopped at a step that is not finite may continue with `skip_nonfinite`. The option
    wraps the optimizer state and adds counters. This function does the same to the saved leaves, or
    reverses it.

    Args:
        leaves: leaves of a checkpoint, by path
        wanted: paths of the leaves that the config's state has

    Returns:
        The leaves with the paths of the config's state.
    """
    counters = {
        "opt_state/notfinite_count": np.zeros((), np.int32),
        "opt_state/last_finite": np.ones((), bool),
        "opt_state/total_notfinite": np.zeros((), np.int32),
    }
    bare, wrapped = "opt_state", "opt_state/inner_state"
    skips, skipped = (counters.keys() <= set(names) for names in (wanted, leaves))
    if skips and not skipped:
        renamed = {
            name.replace(bare, wrapped, 1) if name.startswith(bare) else name: leaf
            for name, leaf in leaves.items()
        }
        return renamed | counters
    if skipped and not skips:
        return {
            name.replace(wrapped, bare, 1) if name.startswith(wrapped) else name: leaf
            for name, leaf in leaves.items()
            if name not in counters
        }
    return leaves
