"""Convolutions without padding: by oneDNN on the CPU, elsewhere by XLA; the same numbers."""

from __future__ import annotations

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcyto.models import cpu
from jaxcyto.models.pool import max_pool

Layers = list[tuple[jax.Array, jax.Array, jax.Array]]


class Kernel(nn.Module):
    """The kernel of a convolution without bias, named as that of `nn.Conv`.

    Attributes:
        side: of the kernel.
        width: output channels.
        init: initializer.
    """

    side: int
    width: int
    init: Callable[..., jax.Array]

    @nn.compact
    def __call__(self, channels: int) -> jax.Array:
        """[side, side, channels, width], float32."""
        shape = (self.side, self.side, channels, self.width)
        return self.param("kernel", self.init, shape, jnp.float32)


def conv(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """[B, H, W, C] with [k, k, C, C'] -> [B, H', W', C'] in the dtype of `x`."""
    return _conv(x, kernel.astype(x.dtype), stride)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    by_xla = functools.partial(_by_xla, stride=stride)
    by_onednn = functools.partial(cpu.convolve, stride=stride)
    return _on_backend(by_xla, by_onednn, x, kernel)


def _forward(
    x: jax.Array, kernel: jax.Array, stride: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _conv(x, kernel, stride), (x, kernel)


def _backward(
    stride: int, saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved

    def x_by_xla(gradient: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.vjp(lambda x: _by_xla(x, kernel, stride), x)[1](gradient)[0]

    def kernel_by_xla(gradient: jax.Array, x: jax.Array) -> jax.Array:
        return jax.vjp(lambda kernel: _by_xla(x, kernel, stride), kernel)[1](gradient)[0]

    x_by_onednn = functools.partial(cpu.input_gradient, shape=x.shape, stride=stride)
    kernel_by_onednn = functools.partial(cpu.kernel_gradient, side=kernel.shape[0], stride=stride)
    return (
        _on_backend(x_by_xla, x_by_onednn, gradient, kernel),
        _on_backend(kernel_by_xla, kernel_by_onednn, gradient, x),
    )


_conv.defvjp(_forward, _backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def affine_block(x: jax.Array, layers: Layers, stride: int, relu: bool, pool: bool) -> jax.Array:
    """Convolutions, each followed by a multiply-add and ReLU, then pooling: a block at inference.

    The factors, known before, go into the kernels.

    Args:
        x: [B, H, W, C].
        layers: of each convolution kernel [k, k, C, C'], factors a [C'] and offsets b [C'].
        stride: of the first convolution.
        relu: whether ReLU follows each.
        pool: whether 2x2 max pooling follows the last.

    Returns:
        [B, H', W', C'] in the dtype of `x`.
    """
    folded = [
        ((kernel * _spread(a, 4)).astype(x.dtype), b.astype(x.dtype)) for kernel, a, b in layers
    ]

    def by_xla(x: jax.Array, folded: list[tuple[jax.Array, jax.Array]]) -> jax.Array:
        for number, (kernel, b) in enumerate(folded):
            x = _by_xla(x, kernel, stride if number == 0 else 1) + _spread(b, 4)
            x = nn.relu(x) if relu else x
        return max_pool(x) if pool else x

    by_onednn = functools.partial(cpu.block, stride=stride, relu=relu, pool=pool)
    return _on_backend(by_xla, by_onednn, x, folded)


def _affine_forward(x: jax.Array, layers: Layers, stride: int, relu: bool, pool: bool):
    return affine_block(x, layers, stride, relu, pool), (x, layers)


def _affine_backward(stride: int, relu: bool, pool: bool, saved, gradient: jax.Array):
    def unfolded(x: jax.Array, layers: Layers) -> jax.Array:
        for number, (kernel, a, b) in enumerate(layers):
            x = conv(x, kernel, stride if number == 0 else 1)
            x = (x * _spread(a, 4) + _spread(b, 4)).astype(x.dtype)
            x = nn.relu(x) if relu else x
        return max_pool(x) if pool else x

    return jax.vjp(unfolded, *saved)[1](gradient)


affine_block.defvjp(_affine_forward, _affine_backward)


def _by_xla(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _on_backend(by_xla: Callable, by_onednn: Callable, x: jax.Array, y: object) -> jax.Array:
    """oneDNN's form on the CPU, for float32; XLA's otherwise, and for empty arrays."""
    if x.dtype == jnp.float32 and x.size and cpu.available():
        return jax.lax.platform_dependent(x, y, cpu=by_onednn, default=by_xla)
    return by_xla(x, y)


def _spread(channels: jax.Array, dimensions: int) -> jax.Array:
    return channels.reshape((1,) * (dimensions - 1) + channels.shape)
