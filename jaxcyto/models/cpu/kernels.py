"""Convolve in oneDNN from within XLA:CPU programs.

All functions take float32 arrays and can be lowered for the CPU only. The FFI calls do not declare
along which mesh axes their results vary, so `jax.shard_map` needs check_vma=False around them.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxcyto.models.cpu import ffi, onednn
from jaxcyto.models.cpu.ffi import Buffer
from jaxcyto.models.cpu.onednn import (
    BIAS,
    DIFF_DST,
    DIFF_SRC,
    DIFF_WEIGHTS,
    DST,
    SRC,
    WEIGHTS,
    Conv,
    Shape,
)

OFF = ("0", "false", "off", "no")  # values of the environment variable
_switched_off = False


def available() -> bool:
    """Return whether convolutions on the CPU use oneDNN.

    oneDNN is a dependency on x86-64 Linux only. The environment variable JAXCYTO_ONEDNN=0 and the
    config's `onednn = False` turn it off. A function that is compiled already keeps what it was
    traced with.
    """
    return not switched_off() and _registered()


def switched_off() -> bool:
    """Return whether the environment or the config turned oneDNN off."""
    return _switched_off or os.environ.get("JAXCYTO_ONEDNN", "1").lower() in OFF


def switch(on: bool) -> None:
    """Turn oneDNN on or off for functions that this process traces from now on."""
    global _switched_off
    _switched_off = not on


@functools.cache
def _registered() -> bool:
    """Load oneDNN and register the functions below with XLA. Return whether it can be loaded."""
    if onednn.library() is None:
        return False
    for function in (_block, _input_gradient, _kernel_gradient):
        ffi.register(f"jaxcyto{function.__name__}", function)
    return True


def convolve(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Convolve x [B, H, W, C] with a kernel [k, k, C, C'] to [B, H', W', C'], without padding."""
    return _block_call(x, [(kernel,)], stride, relu=False)


def input_gradient(gradient: jax.Array, kernel: jax.Array, shape: Shape, stride: int) -> jax.Array:
    """Return the gradient [B, H, W, C] of the input.

    Args:
        gradient: gradient of the output [B, H', W', C'].
        kernel: [k, k, C, C'].
        shape: shape of the input, (B, H, W, C).
        stride: stride of the convolution.
    """
    result = jax.ShapeDtypeStruct(shape, jnp.float32)
    # Attributes must be int64, the only type that `ffi.py` reads.
    call = jax.ffi.ffi_call("jaxcyto_input_gradient", result, vmap_method="sequential")
    return call(gradient, kernel, stride=np.int64(stride))


def kernel_gradient(gradient: jax.Array, x: jax.Array, side: int, stride: int) -> jax.Array:
    """Return the gradient [side, side, C, C'] of the kernel.

    Args:
        gradient: gradient of the output [B, H', W', C'].
        x: input [B, H, W, C].
        side: side of the kernel.
        stride: stride of the convolution.
    """
    result = jax.ShapeDtypeStruct((side, side, x.shape[-1], gradient.shape[-1]), jnp.float32)
    call = jax.ffi.ffi_call("jaxcyto_kernel_gradient", result, vmap_method="sequential")
    return call(gradient, x, stride=np.int64(stride))


def block(
    x: jax.Array, layers: Sequence[tuple[jax.Array, jax.Array]], stride: int, relu: bool
) -> jax.Array:
    """Run convolutions with bias, each followed by ReLU, in one call.

    oneDNN fuses bias and ReLU into the convolution. The maps between the layers lie in buffers that
    all calls share, so that the operating system need not map fresh pages on every call. Cutting
    the maps into strips that fit into the processor's cache was slower, because each call wakes
    oneDNN's threads. See `onednn.SLOPE` for values that are not finite.

    Args:
        x: [B, H, W, C].
        layers: kernel [k, k, C, C'] and bias [C'] of each convolution.
        stride: stride of the first convolution.
        relu: whether ReLU follows each convolution.

    Returns:
        [B, H', W', C'].
    """
    return _block_call(x, layers, stride, relu)


def _block_call(
    x: jax.Array, layers: Sequence[tuple[jax.Array, ...]], stride: int, relu: bool
) -> jax.Array:
    shapes = _sizes(x.shape, [layer[0].shape for layer in layers], stride)
    flat = [array for layer in layers for array in layer]
    result = jax.ShapeDtypeStruct(shapes[-1], jnp.float32)
    call = jax.ffi.ffi_call("jaxcyto_block", result, vmap_method="sequential")
    bias = np.int64(len(layers[0]) > 1)
    return call(x, *flat, bias=bias, stride=np.int64(stride), relu=np.int64(relu))


def _sizes(x: Shape, kernels: Sequence[Shape], stride: int) -> list[Shape]:
    """Return the shape of the input and the shapes of the outputs of all layers."""
    shapes = [x]
    for kernel in kernels:
        batch, *sides, _ = shapes[-1]
        step = stride if len(shapes) == 1 else 1
        sides = (max(0, (side - kernel[0]) // step + 1) for side in sides)
        shapes.append((batch, *sides, kernel[3]))
    return shapes


class _Block:
    """The oneDNN primitives of a block, for fixed shapes."""

    def __init__(
        self, x: Shape, kernels: tuple[Shape, ...], stride: int, bias: bool, relu: bool
    ) -> None:
        shapes = _sizes(x, kernels, stride)
        self.between = shapes[1:-1]
        self.layers = []
        for n, kernel in enumerate(kernels):
            conv = Conv(shapes[n], kernel, shapes[n + 1], stride if n == 0 else 1)
            self.layers.append(onednn.convolution(conv, bias, relu))

    def __call__(self, x: int, weights: Sequence[int], y: int) -> None:
        maps = [x, *(_between(n % 2, shape) for n, shape in enumerate(self.between)), y]
        parts = len(weights) // len(self.layers)
        for n, layer in enumerate(self.layers):
            given = weights[n * parts : (n + 1) * parts]
            layer.point({SRC: maps[n], DST: maps[n + 1]})
            layer.point(dict(zip((WEIGHTS, BIAS)[:parts], given, strict=True)))
        for layer in self.layers:
            layer.execute()


# oneDNN generates machine code when it creates a primitive, so primitives are cached by shape.
# Neither the caches nor the shared buffers need locks, because `ffi` runs all calls on one thread.
_made_block = functools.cache(_Block)
_kept: dict[int, np.ndarray] = {}


def _between(index: int, shape: Shape) -> int:
    """Return the address of a map between two layers, in one of two buffers that only grow.

    Consecutive maps use buffers 0 and 1 in turn: a layer reads one and writes the other.
    """
    size = math.prod(shape)
    if index not in _kept or _kept[index].size < size:
        _kept[index] = np.empty(size, np.float32)
    return _kept[index].ctypes.data


@functools.cache
def _made_gradient(make, *conv) -> onednn.Primitive:
    return make(Conv(*conv))


def _block(given: list[Buffer], y: Buffer, settings: dict[str, int]) -> None:
    x, *weights = given
    bias, relu = bool(settings["bias"]), bool(settings["relu"])
    kernels = tuple(each.shape for each in weights[:: 1 + bias])
    made = _made_block(x.shape, kernels, settings["stride"], bias, relu)
    made(x.address, [each.address for each in weights], y.address)


def _input_gradient(given: list[Buffer], x: Buffer, settings: dict[str, int]) -> None:
    y, kernel = given
    conv = x.shape, kernel.shape, y.shape, settings["stride"]
    made = _made_gradient(onednn.input_gradient, *conv)
    made.point({DIFF_DST: y.address, WEIGHTS: kernel.address, DIFF_SRC: x.address})
    made.execute()


def _kernel_gradient(given: list[Buffer], kernel: Buffer, settings: dict[str, int]) -> None:
    y, x = given
    conv = x.shape, kernel.shape, y.shape, settings["stride"]
    made = _made_gradient(onednn.kernel_gradient, *conv)
    made.point({SRC: x.address, DIFF_DST: y.address, DIFF_WEIGHTS: kernel.address})
    made.execute()
