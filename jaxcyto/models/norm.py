"""Batch norm that passes over the maps as rarely as can be."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

# Assumptions, the sources are silent: a running average of 0.9 old + 0.1 new; an epsilon of 1e-5.
BN_MOMENTUM = 0.9
BN_EPSILON = 1e-5


class BatchNorm(nn.Module):
    """`nn.BatchNorm` over all axes but the last: the same variables, the same numbers to rounding.

    Written as x * a + b, where a and b [C] hold everything of mean, variance, scale and bias. Of
    (x - mean) * scale + bias, as Flax has it, XLA:CPU keeps x - mean for the gradient: one more map
    written and read for each layer, in a step that waits for memory.

    Attributes:
        dtype: of the result; statistics, scale and bias are float32.
        axis_name: device axis over which batch statistics are averaged, None for one device.
    """

    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        width = x.shape[-1]
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (width,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (width,), jnp.float32)
        scale = self.param("scale", nn.initializers.ones, (width,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (width,), jnp.float32)
        mean, var = running_mean.value, running_var.value
        if train:
            wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
            axes = tuple(range(x.ndim - 1))
            mean, second = jnp.mean(wide, axes), jnp.mean(jnp.square(wide), axes)
            if self.axis_name is not None and not self.is_initializing():
                mean, second = jax.lax.pmean((mean, second), self.axis_name)
            var = jnp.maximum(second - jnp.square(mean), 0.0)
            if not self.is_initializing():
                for running, new in ((running_mean, mean), (running_var, var)):
                    running.value = BN_MOMENTUM * running.value + (1 - BN_MOMENTUM) * new
        a = scale * jax.lax.rsqrt(var + BN_EPSILON)
        b = bias - mean * a
        a, b = (each.reshape((1,) * (x.ndim - 1) + (width,)) for each in (a, b))
        return (x * a + b).astype(self.dtype)
