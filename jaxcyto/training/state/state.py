"""The training state, which a run carries from step to step."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn


@flax.struct.dataclass
class State:
    """A training state, which is all that a checkpoint holds.

    Random keys and the order of the data are derived from `step` and the config's seed, so they
    need no fields.
    """

    step: jax.Array  # int32 scalar, steps taken
    params: Any
    batch_stats: Any
    opt_state: Any


def init_state(
    model: nn.Module, example: tuple[Any, ...], optimizer: optax.GradientTransformation, seed: int
) -> State:
    """Return the state before the first step.

    Args:
        model: the network
        example: arguments of the network, with batch size 1. Only their shapes and types matter.
        optimizer: the optimizer
        seed: seed of the random initial parameters
    """
    variables = jax.jit(model.init)(jax.random.key(seed), *example)
    params = variables["params"]
    return State(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables["batch_stats"],
        opt_state=optimizer.init(params),
    )


def parameter_count(params: Any) -> int:
    """Count the scalars in a tree of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
