"""The optax chain of a config."""

from collections.abc import Callable, Collection

import numpy as np
import optax

from jaxcyto.config import OptimConfig
from jaxcyto.errors import InputError


def schedule(config: OptimConfig, steps: int) -> optax.Schedule:
    """Learning rate by step: linear warm-up to the peak, then cosine to zero or constant."""
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
        config: the optimizer.
        steps: steps of the whole run.

    Returns:
        A function of the step (from 1) and, optionally, of the number of steps skipped so far,
        which do not advance the schedule.
    """
    rates = schedule(config, steps // config.accumulate)

    def rate(step: int, skipped: int = 0) -> float:
        return np.asarray(rates(max(0, step - 1 - skipped) // config.accumulate)).item()

    return rate


def make_optimizer(
    config: OptimConfig, steps: int, encoder_rate: float = 1.0
) -> optax.GradientTransformation:
    """Clipping (if asked for), then the optimizer with its schedule, by update.

    With `accumulate` the mean over so many steps is what is clipped and applied; with
    `skip_nonfinite` all is wrapped in `optax.apply_if_finite`, whose counters the step reads.

    Weight decay is no part of it: the paper's lambda * ||w||^2 is a term of the loss.

    Args:
        config: the optimizer.
        steps: of the whole run.
        encoder_rate: learning rate of the parameters under `encoder`, relative to the others'; 0
            freezes them (their batch norm still sees the statistics of the batch).

    Raises:
        InputError: `accumulate` does not divide `steps`.
    """
    if steps % config.accumulate:
        raise InputError(
            f"optim.accumulate = {config.accumulate} does not divide the {steps} steps of the run: "
            "the last ones would change nothing; change it or `steps`"
        )
    updates = steps // config.accumulate
    optimizer = config.optimizer(learning_rate=schedule(config, updates))
    if encoder_rate != 1.0:
        slower = optax.chain(optimizer, optax.scale(encoder_rate))
        optimizer = optax.multi_transform(
            {"encoder": slower if encoder_rate else optax.set_to_zero(), "rest": optimizer},
            lambda params: {key: "encoder" if key == "encoder" else "rest" for key in params},
        )
    if config.clip_norm is not None:
        optimizer = optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)
    if config.accumulate > 1:
        optimizer = optax.MultiSteps(optimizer, config.accumulate).gradient_transformation()
    if config.skip_nonfinite:
        optimizer = optax.apply_if_finite(optimizer, config.skip_nonfinite)
    return optimizer


def match_skipping(leaves: dict[str, np.ndarray], wanted: Collection[str]) -> dict[str, np.ndarray]:
    """Adds or removes the counters of `skip_nonfinite`, which a run may turn on once it needs it.

    Args:
        leaves: of a checkpoint, by path.
        wanted: paths that the state of the config has.
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
