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
        width: channels, C.
        dtype: of the result; statistics, scale and bias are float32.
        axis_name: device axis over which batch statistics are averaged, None for one device.
    """

    width: int
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    def setup(self) -> None:
        shape = (self.width,)
        self.mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        self.var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        self.scale = self.param("scale", nn.initializers.ones, shape, jnp.float32)
        self.bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises [..., C] with the statistics of this batch, and updates the running ones."""
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        axes = tuple(range(x.ndim - 1))
        mean, second = jnp.mean(wide, axes), jnp.mean(jnp.square(wide), axes)
        if self.axis_name is not None and not self.is_initializing():
            mean, second = jax.lax.pmean((mean, second), self.axis_name)
        var = jnp.maximum(second - jnp.square(mean), 0.0)
        if not self.is_initializing():
            for running, new in ((self.mean, mean), (self.var, var)):
                running.value = BN_MOMENTUM * running.value + (1 - BN_MOMENTUM) * new
        shape = (1,) * (x.ndim - 1) + (self.width,)
        a, b = (each.reshape(shape) for each in self._affine(mean, var))
        return (x * a + b).astype(self.dtype)

    def running(self) -> tuple[jax.Array, jax.Array]:
        """Factors a and offsets b [C], float32, of the running statistics: x * a + b."""
        return self._affine(self.mean.value, self.var.value)

    def _affine(self, mean: jax.Array, var: jax.Array) -> tuple[jax.Array, jax.Array]:
        a = self.scale * jax.lax.rsqrt(var + BN_EPSILON)
        return a, self.bias - mean * a
