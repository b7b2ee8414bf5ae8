"""Convolutions that XLA:CPU has done by oneDNN; for float32, to be traced for the CPU only.

Their results do not say along which device axes they vary: `jax.shard_map` needs check_vma=False.
"""

from __future__ import annotations

import functools
import itertools
import math
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


@functools.cache
def available() -> bool:
    """Whether oneDNN is there (x86-64 Linux: a dependency); its functions are known to XLA then."""
    if onednn.library() is None:
        return False
    for function in (_block, _input_gradient, _kernel_gradient):
        ffi.register(f"jaxcyto{function.__name__}", function)
    return True


def convolve(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """[B, H, W, C] with [k, k, C, C'] -> [B, H', W', C'], without padding."""
    return _block_call(x, [(kernel,)], stride, relu=False, pool=False)


def input_gradient(gradient: jax.Array, kernel: jax.Array, shape: Shape, stride: int) -> jax.Array:
    """Gradient [B, H, W, C] (`shape`) of the input, from that of the output [B, H', W', C']."""
    result = jax.ShapeDtypeStruct(shape, jnp.float32)
    call = jax.ffi.ffi_call("jaxcyto_input_gradient", result, vmap_method="sequential")
    return call(gradient, kernel, stride=np.int64(stride))


def kernel_gradient(gradient: jax.Array, x: jax.Array, side: int, stride: int) -> jax.Array:
    """Gradient [side, side, C, C'] of the kernel, from [B, H', W', C'] and input [B, H, W, C]."""
    result = jax.ShapeDtypeStruct((side, side, x.shape[-1], gradient.shape[-1]), jnp.float32)
    call = jax.ffi.ffi_call("jaxcyto_kernel_gradient", result, vmap_method="sequential")
    return call(gradient, x, stride=np.int64(stride))


def block(
    x: jax.Array,
    layers: Sequence[tuple[jax.Array, jax.Array]],
    stride: int,
    relu: bool,
    pool: bool,
) -> jax.Array:
    """Convolutions with a bias, each followed by ReLU, then 2x2 pooling, in one call.

    Bias and ReLU are done where oneDNN has a pixel at hand anyway. What lies between the layers is
    in memory that all calls share, so that it need not be mapped and faulted in each time. (Strips
    of the map that fit in the cache were slower: every call wakes oneDNN's threads.) ReLU makes
    NaN 0 here; weights that are not finite are refused where they are loaded.

    Args:
        x: [B, H, W, C].
        layers: kernel [k, k, C, C'] and bias [C'] of each.
        stride: of the first convolution.
        relu: whether ReLU follows each of them.
        pool: whether 2x2 max pooling (odd edges padded) follows.

    Returns:
        [B, H', W', C'].
    """
    return _block_call(x, layers, stride, relu, pool)


def _block_call(
    x: jax.Array, layers: Sequence[tuple[jax.Array, ...]], stride: int, relu: bool, pool: bool
) -> jax.Array:
    shapes = _sizes(x.shape, [layer[0].shape for layer in layers], stride, pool)
    flat = [array for layer in layers for array in layer]
    result = jax.ShapeDtypeStruct(shapes[-1], jnp.float32)
    call = jax.ffi.ffi_call("jaxcyto_block", result, vmap_method="sequential")
    bias = np.int64(len(layers[0]) > 1)
    settings = {"stride": np.int64(stride), "relu": np.int64(relu), "pool": np.int64(pool)}
    return call(x, *flat, bias=bias, **settings)


def _sizes(x: Shape, kernels: Sequence[Shape], stride: int, pool: bool) -> list[Shape]:
    """The shapes of the input and of what each layer makes of it."""
    shapes = [x]
    for kernel in kernels:
        batch, *sides, _ = shapes[-1]
        step = stride if len(shapes) == 1 else 1
        sides = (max(0, (side - kernel[0]) // step + 1) for side in sides)
        shapes.append((batch, *sides, kernel[3]))
    if pool:
        batch, height, width, channels = shapes[-1]
        shapes.append((batch, -(-height // 2), -(-width // 2), channels))
    return shapes


class _Block:
    """The primitives of a block."""

    def __init__(
        self, x: Shape, kernels: tuple[Shape, ...], stride: int, bias: bool, relu: bool, pool: bool
    ) -> None:
        shapes = _sizes(x, kernels, stride, pool)
        self.between = shapes[1:-1]
        self.layers = []
        for n, kernel in enumerate(kernels):
            conv = Conv(shapes[n], kernel, shapes[n + 1], stride if n == 0 else 1)
            self.layers.append(onednn.convolution(conv, bias, relu))
        self.primitives = list(self.layers)
        if pool:
            self.primitives.append(onednn.max_pooling(*shapes[-2:]))

    def __call__(self, x: int, weights: Sequence[int], y: int) -> None:
        maps = [x, *(_between(n % 2, shape) for n, shape in enumerate(self.between)), y]
        for primitive, (source, result) in zip(
            self.primitives, itertools.pairwise(maps), strict=True
        ):
            primitive.point({SRC: source, DST: result})
        parts = len(weights) // len(self.layers)
        for n, layer in enumerate(self.layers):
            given = weights[n * parts : (n + 1) * parts]
            layer.point(dict(zip((WEIGHTS, BIAS)[:parts], given, strict=True)))
        for primitive in self.primitives:
            primitive.execute()


_made_block = functools.cache(_Block)
_kept: dict[int, np.ndarray] = {}


def _between(number: int, shape: Shape) -> int:
    """The address of a map between two layers, in one of two pieces of memory that only grow."""
    size = math.prod(shape)
    if number not in _kept or _kept[number].size < size:
        _kept[number] = np.empty(size, np.float32)
    return _kept[number].ctypes.data


@functools.cache
def _made_gradient(make, *conv) -> onednn.Primitive:
    return make(Conv(*conv))


def _block(given: list[Buffer], y: Buffer, settings: dict[str, int]) -> None:
    x, *weights = given
    bias, relu, pool = (bool(settings[name]) for name in ("bias", "relu", "pool"))
    kernels = tuple(each.shape for each in weights[:: 1 + bias])
    made = _made_block(x.shape, kernels, settings["stride"], bias, relu, pool)
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
