"""What a run carries from step to step."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn


@flax.struct.dataclass
class State:
    """All that a checkpoint holds: randomness and data order follow from `step`."""

    step: jax.Array  # int32 scalar, steps taken
    params: Any
    batch_stats: Any
    opt_state: Any


def init_state(
    model: nn.Module, example: tuple[Any, ...], optimizer: optax.GradientTransformation, seed: int
) -> State:
    """A fresh state; `example` holds the model's arguments, of batch size 1."""
    variables = jax.jit(model.init)(jax.random.key(seed), *example)
    params = variables["params"]
    return State(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables["batch_stats"],
        opt_state=optimizer.init(params),
    )


def parameter_count(params: Any) -> int:
    """Number of scalars in a tree of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
