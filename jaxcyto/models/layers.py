"""Define the layers of the networks: valid convolution, batch normalization and 2x2 max pooling.

Convolutions run in oneDNN on the CPU and in XLA elsewhere. The results agree up to rounding.

The layers have derivatives of any order in reverse mode (`jax.grad`, `jax.vjp`). Forward mode
(`jax.jvp`) works once oneDNN is switched off, because JAX cannot derive it from custom gradients.

`max_pool` has the values and the gradient of `nn.max_pool`, in which the first of equal pixels
receives the gradient. Its backward pass is a broadcast and a select instead of XLA's
select-and-scatter, which made a training step of the small network 1.3 times faster on the CPU. The
forward pass saves only the index of each window's maximum, one byte per output value.

Do not write `max_pool` as a reshape and `max` with JAX's automatic gradient. That gradient finds
the maximum by the comparison x == max(x). Under `jit`, XLA may compute x twice with different
rounding, once for each side of the comparison. The comparison then misses the maximum, and the
gradient is wrong without an error. This happens in the paper's network at 1019 px, but not in
small networks.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.typing import DTypeLike

from jaxcyto.models.cpu import kernels

Layers = list[tuple[jax.Array, jax.Array, jax.Array]]  # (kernel, factors, offsets) of each layer
# Assumptions, because the papers leave both open: a running average of 0.9 old + 0.1 new, and an
# epsilon of 1e-5.
BN_MOMENTUM = 0.9
BN_EPSILON = 1e-5


class Kernel(nn.Module):
    """The kernel of a convolution without bias, with the parameter name that `nn.Conv` uses.

    Attributes:
        side: side of the square kernel.
        width: number of output channels.
        init: initializer.
    """

    side: int
    width: int
    init: Callable[..., jax.Array]

    @nn.compact
    def __call__(self, channels: int) -> jax.Array:
        """Create or read the kernel [side, side, channels, width], float32."""
        shape = (self.side, self.side, channels, self.width)
        return self.param("kernel", self.init, shape, jnp.float32)


def conv(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """Convolve x [B, H, W, C] with a kernel [k, k, C, C'], without padding.

    Returns:
        [B, H', W', C'] in the dtype of `x`.

    Raises:
        ValueError: the shapes do not fit each other.
    """
    _check_shapes(x, kernel)
    # The cast stays outside of the custom gradient, so that JAX differentiates it and the gradient
    # of the kernel has the kernel's own dtype.
    kernel = kernel.astype(x.dtype)
    if kernels.switched_off():
        return _by_xla(x, kernel, stride)
    with _forward_mode_explained():
        return _conv(x, kernel, stride)


@contextlib.contextmanager
def _forward_mode_explained() -> Iterator[None]:
    """Raise an error that says what to switch if JAX refuses forward mode.

    JAX's own error names only its decorator.
    """
    try:
        yield
    except TypeError as error:
        if "forward-mode" not in str(error) or "oneDNN" in str(error):  # explained already
            raise
        raise TypeError(
            f"{error} Forward mode through this network needs oneDNN switched off: set "
            "JAXCYTO_ONEDNN=0 in the environment, or onednn = False in the config"
        ) from error


# JAX cannot differentiate the calls into oneDNN, so each pass chooses its library explicitly. A
# convolution is linear in its input x and in its kernel k, and its gradients are linear, too:
#
#     _conv(x, k) -> y        _input_gradient(y, k) -> x        _kernel_gradient(y, x) -> k
#
# The gradient of each of the three is made of the other two, so derivatives exist to any order.
@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    by_xla = functools.partial(_by_xla, stride=stride)
    by_onednn = functools.partial(kernels.convolve, stride=stride)
    return _on_backend(by_xla, by_onednn, x, kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _input_gradient(
    gradient: jax.Array, kernel: jax.Array, shape: tuple[int, ...], stride: int
) -> jax.Array:
    def by_xla(gradient: jax.Array, kernel: jax.Array) -> jax.Array:
        x = jnp.zeros(shape, gradient.dtype)
        return jax.vjp(lambda x: _by_xla(x, kernel, stride), x)[1](gradient)[0]

    by_onednn = functools.partial(kernels.input_gradient, shape=shape, stride=stride)
    return _on_backend(by_xla, by_onednn, gradient, kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _kernel_gradient(gradient: jax.Array, x: jax.Array, side: int, stride: int) -> jax.Array:
    def by_xla(gradient: jax.Array, x: jax.Array) -> jax.Array:
        kernel = jnp.zeros((side, side, x.shape[-1], gradient.shape[-1]), x.dtype)
        return jax.vjp(lambda kernel: _by_xla(x, kernel, stride), kernel)[1](gradient)[0]

    by_onednn = functools.partial(kernels.kernel_gradient, side=side, stride=stride)
    return _on_backend(by_xla, by_onednn, gradient, x)


def _conv_backward(stride, saved, gradient):
    x, kernel = saved
    return (
        _input_gradient(gradient, kernel, x.shape, stride),
        _kernel_gradient(gradient, x, kernel.shape[0], stride),
    )


def _input_gradient_backward(shape, stride, saved, x):
    del shape  # that of x, the cotangent
    gradient, kernel = saved
    return _conv(x, kernel, stride), _kernel_gradient(gradient, x, kernel.shape[0], stride)


def _kernel_gradient_backward(side, stride, saved, kernel):
    del side  # that of kernel, the cotangent
    gradient, x = saved
    return _conv(x, kernel, stride), _input_gradient(gradient, kernel, x.shape, stride)


_conv.defvjp(lambda x, kernel, stride: (_conv(x, kernel, stride), (x, kernel)), _conv_backward)
_input_gradient.defvjp(
    lambda gradient, kernel, shape, stride: (
        _input_gradient(gradient, kernel, shape, stride),
        (gradient, kernel),
    ),
    _input_gradient_backward,
)
_kernel_gradient.defvjp(
    lambda gradient, x, side, stride: (_kernel_gradient(gradient, x, side, stride), (gradient, x)),
    _kernel_gradient_backward,
)


def affine_block(x: jax.Array, layers: Layers, stride: int, relu: bool, pool: bool) -> jax.Array:
    """Run a block at inference: convolutions, each followed by x * a + b and ReLU, then pooling.

    At inference the factors a of batch normalization do not depend on the batch, so they are
    multiplied into the kernels. The offsets b become biases.

    Args:
        x: [B, H, W, C].
        layers: kernel [k, k, C, C'], factors a [C'] and offsets b [C'] of each convolution.
        stride: stride of the first convolution.
        relu: whether ReLU follows each convolution.
        pool: whether 2x2 max pooling follows the last convolution.

    Returns:
        [B, H', W', C'] in the dtype of `x`.

    Raises:
        ValueError: the shapes do not fit each other.
    """
    if kernels.switched_off():
        return _affine(x, layers, stride, relu, pool)
    with _forward_mode_explained():
        return _affine_with_gradient(x, layers, stride, relu, pool)


def _affine(x: jax.Array, layers: Layers, stride: int, relu: bool, pool: bool) -> jax.Array:
    channels = x.shape[-1]
    for kernel, a, b in layers:
        _check_shapes(jax.ShapeDtypeStruct((*x.shape[:-1], channels), x.dtype), kernel)
        channels = kernel.shape[3]
        if a.shape != (channels,) or b.shape != (channels,):
            raise ValueError(
                f"factors {a.shape} and offsets {b.shape} of a kernel {kernel.shape}; expected "
                f"({channels},)"
            )
    folded = [
        ((kernel * _spread(a, 4)).astype(x.dtype), b.astype(x.dtype)) for kernel, a, b in layers
    ]

    def by_xla(x: jax.Array, folded: list[tuple[jax.Array, jax.Array]]) -> jax.Array:
        for index, (kernel, b) in enumerate(folded):
            x = _by_xla(x, kernel, stride if index == 0 else 1) + _spread(b, 4)
            x = nn.relu(x) if relu else x
        return max_pool(x) if pool else x

    def by_onednn(x: jax.Array, folded: list[tuple[jax.Array, jax.Array]]) -> jax.Array:
        x = kernels.block(x, folded, stride, relu)
        return max_pool(x) if pool else x  # oneDNN's pooling drops NaN, and is no faster

    return _on_backend(by_xla, by_onednn, x, folded)


_affine_with_gradient = jax.custom_vjp(_affine, nondiff_argnums=(2, 3, 4))


def _affine_forward(x: jax.Array, layers: Layers, stride: int, relu: bool, pool: bool):
    return affine_block(x, layers, stride, relu, pool), (x, layers)


def _affine_backward(stride: int, relu: bool, pool: bool, saved, gradient: jax.Array):
    # oneDNN's block keeps no activations. The rare gradient at inference, for example of frozen
    # statistics or of a saliency map, recomputes the block from layers that have gradients.
    def unfolded(x: jax.Array, layers: Layers) -> jax.Array:
        for index, (kernel, a, b) in enumerate(layers):
            x = conv(x, kernel, stride if index == 0 else 1)
            x = (x * _spread(a, 4) + _spread(b, 4)).astype(x.dtype)
            x = nn.relu(x) if relu else x
        return max_pool(x) if pool else x

    return jax.vjp(unfolded, *saved)[1](gradient)


_affine_with_gradient.defvjp(_affine_forward, _affine_backward)


def _by_xla(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _on_backend(by_xla: Callable, by_onednn: Callable, x: jax.Array, y: object) -> jax.Array:
    """Return by_onednn(x, y) for float32 in compiled programs on the CPU, else by_xla(x, y).

    Empty arrays always go to XLA. So do calls outside of `jax.jit`, because XLA runs a program of
    few operations in the thread that calls it. If that is the main thread, Ctrl-C at the very entry
    of a Python handler ends the process (see `cpu/ffi.py`).
    """
    traced = isinstance(x, Tracer)
    if traced and x.dtype == jnp.float32 and x.size and kernels.available():
        # The platform is unknown while JAX traces. It picks the branch when it lowers the program.
        return jax.lax.platform_dependent(x, y, cpu=by_onednn, default=by_xla)
    return by_xla(x, y)


def _check_shapes(x: Any, kernel: jax.Array) -> None:
    """Raise ValueError unless a kernel fits its input. A library would read beyond its memory."""
    if x.ndim != 4 or kernel.ndim != 4:
        raise ValueError(
            f"input {x.shape} and kernel {kernel.shape}; expected [B, H, W, C] and [k, k, C, C']"
        )
    if kernel.shape[0] != kernel.shape[1] or kernel.shape[2] != x.shape[3]:
        raise ValueError(
            f"a kernel {kernel.shape} does not fit an input {x.shape}; expected [k, k, C, C'] "
            f"with C = {x.shape[3]}"
        )


def _spread(channels: jax.Array, dimensions: int) -> jax.Array:
    return channels.reshape((1,) * (dimensions - 1) + channels.shape)


class BatchNorm(nn.Module):
    """Batch normalization over all axes but the last, like `nn.BatchNorm`.

    It has the variables of `nn.BatchNorm` and the same results up to rounding. The difference is
    the form x * a + b, where a and b [C] combine mean, variance, scale and bias. Flax computes
    (x - mean) * scale + bias, and XLA:CPU keeps x - mean for the gradient. That is one more map per
    layer to write and read, in a training step that is bound by memory bandwidth.

    Attributes:
        width: number of channels C.
        dtype: dtype of the result. Statistics, scale and bias are float32.
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

    def __call__(self, x: jax.Array, stored: bool = False) -> jax.Array:
        """Normalize a batch for training.

        Args:
            x: [..., C].
            stored: whether to normalize with the running statistics, as constants. Otherwise, those
                of this batch are used, and the running ones are updated.
        """
        shape = (1,) * (x.ndim - 1) + (self.width,)
        if stored:
            a, b = (each.reshape(shape) for each in self.running())
            return (x * a + b).astype(self.dtype)
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        axes = tuple(range(x.ndim - 1))
        mean, second = jnp.mean(wide, axes), jnp.mean(jnp.square(wide), axes)
        # Like Flax, `init` neither uses the device axis, which does not exist outside of the
        # training step, nor updates the running statistics.
        if self.axis_name is not None and not self.is_initializing():
            mean, second = jax.lax.pmean((mean, second), self.axis_name)
        # Rounding can make the difference slightly negative where a channel is nearly constant.
        var = jnp.maximum(second - jnp.square(mean), 0.0)
        if not self.is_initializing():
            for running, new in ((self.mean, mean), (self.var, var)):
                running.value = BN_MOMENTUM * running.value + (1 - BN_MOMENTUM) * new
        a, b = (each.reshape(shape) for each in self._affine(mean, var))
        return (x * a + b).astype(self.dtype)

    def running(self) -> tuple[jax.Array, jax.Array]:
        """Return a and b [C], float32, such that x * a + b normalizes with running statistics."""
        return self._affine(self.mean.value, self.var.value)

    def _affine(self, mean: jax.Array, var: jax.Array) -> tuple[jax.Array, jax.Array]:
        a = self.scale * jax.lax.rsqrt(var + BN_EPSILON)
        return a, self.bias - mean * a


# The index of each window's maximum, and two empty arrays [H, 0] and [W, 0]. JAX turns saved
# integers into traced arrays, so the height and the width of the input travel as shapes.
Saved = tuple[jax.Array, jax.Array, jax.Array]


def max_pool(x: jax.Array) -> jax.Array:
    """Pool the maximum of 2x2 windows with stride 2, in ceil mode.

    Odd edges are padded with -inf, so that no pixel is dropped. With ceil mode the paper's 1019 px
    end in a map of exactly 1x1. It makes no difference for even sides.

    Args:
        x: [B, H, W, C].

    Returns:
        [B, ceil(H / 2), ceil(W / 2), C].
    """
    if kernels.switched_off():
        return _max_pool_in_both_modes(x)
    with _forward_mode_explained():
        return _max_pool(x)


@jax.custom_vjp
def _max_pool(x: jax.Array) -> jax.Array:
    a, b, c, d = _corners(x)
    return jnp.maximum(jnp.maximum(a, b), jnp.maximum(c, d))


def _corners(x: jax.Array, outside: float = -jnp.inf) -> list[jax.Array]:
    """Return the four pixels of all 2x2 windows, row by row, each [B, H', W', C].

    Args:
        x: [B, H, W, C].
        outside: value of the pixels beyond odd edges.
    """
    height, width = x.shape[1:3]
    padding = ((0, 0), (0, height % 2), (0, width % 2), (0, 0))
    x = jnp.pad(x, padding, constant_values=outside)
    return [x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]


def _pool_forward(x: jax.Array) -> tuple[jax.Array, Saved]:
    height, width = x.shape[1:3]
    shape = jnp.zeros((height, 0)), jnp.zeros((width, 0))
    # Not the maximum that `_winner` computes: a second derivative must use the gradient of
    # `_max_pool`, too. The compiler computes the common subexpressions once.
    return _max_pool(x), (_winner(x).astype(jnp.uint8), *shape)


def _winner(x: jax.Array) -> jax.Array:
    """Return which pixel of each window is its maximum, 0 to 3. It has no gradient."""
    a, b, c, d = _corners(jax.lax.stop_gradient(x))
    top, bottom = jnp.maximum(a, b), jnp.maximum(c, d)
    # Greater or equal in each comparison: the first of equal pixels wins, as in `nn.max_pool`.
    return jnp.where(top >= bottom, jnp.where(a >= b, 0, 1), jnp.where(c >= d, 2, 3))


def _pool_backward(saved: Saved, gradient: jax.Array) -> tuple[jax.Array]:
    winner, height, width = saved
    batch, rows, columns, channels = winner.shape
    own = jnp.arange(4, dtype=jnp.uint8).reshape(1, 1, 2, 1, 2, 1)
    spread = (batch, rows, 1, columns, 1, channels)
    x = jnp.where(winner.reshape(spread) == own, gradient.reshape(spread), 0)
    x = x.reshape(batch, 2 * rows, 2 * columns, channels)
    return (x[:, : height.shape[0], : width.shape[0]],)  # without the padding of odd edges


_max_pool.defvjp(_pool_forward, _pool_backward)


@jax.custom_jvp
def _max_pool_in_both_modes(x: jax.Array) -> jax.Array:
    """Pool like `_max_pool`. Forward mode works, but the backward pass is slower."""
    a, b, c, d = _corners(x)
    return jnp.maximum(jnp.maximum(a, b), jnp.maximum(c, d))


@_max_pool_in_both_modes.defjvp
def _pool_derivative(x: tuple[jax.Array], tangent: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    winner, corners = _winner(*x), _corners(*tangent, outside=0.0)
    return _max_pool_in_both_modes(*x), jax.lax.select_n(winner, *corners)
