"""The optax chain of a config."""

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


def make_optimizer(
    config: OptimConfig, steps: int, encoder_rate: float = 1.0
) -> optax.GradientTransformation:
    """Clipping (if asked for), then the optimizer with its schedule.

    Weight decay is no part of it: the paper's lambda * ||w||^2 is a term of the loss.

    Args:
        config: the optimizer.
        steps: of the whole run.
        encoder_rate: learning rate of the parameters under `encoder`, relative to the others'; 0
            freezes them (their batch norm still sees the statistics of the batch).
    """
    optimizer = config.optimizer(learning_rate=schedule(config, steps))
    if encoder_rate != 1.0:
        slower = optax.chain(optimizer, optax.scale(encoder_rate))
        optimizer = optax.multi_transform(
            {"encoder": slower if encoder_rate else optax.set_to_zero(), "rest": optimizer},
            lambda params: {key: "encoder" if key == "encoder" else "rest" for key in params},
        )
    if config.clip_norm is None:
        return optimizer
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)
