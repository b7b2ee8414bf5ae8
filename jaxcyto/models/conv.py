"""Valid convolution without bias, with a faster weight gradient on the CPU.

The layers here are wide maps of few channels. XLA:CPU turns the gradient of their kernels into a
convolution with a window as large as the map, which was about half of the training step there.
oneDNN has a primitive for it (`models/onednn.py`); where that library is missing, a few matrix
products are faster, if XLA has the flag that `training.host.use_onednn` sets (docs/performance.md).
Other backends keep XLA's own form.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxcyto.models import onednn

KERNEL = 3  # the side for which the products are written, at stride 1
SMALLEST_SIDE = 16  # of maps; below, XLA's own form is as fast
PRODUCT_WIDTH = 64  # columns of a product that use the vector units well
CHUNK_BYTES = 8 << 20  # larger inputs are taken two images at a time, which stay in the cache


class Conv(nn.Module):
    """`nn.Conv` with valid padding and without bias: the same parameters, the same numbers.

    Attributes:
        width: output channels.
        kernel: side of the kernel.
        stride: its stride.
        kernel_init: of the kernel [kernel, kernel, C, width], float32.
        dtype: compute dtype.
    """

    width: int
    kernel: int
    stride: int
    kernel_init: Callable[..., jax.Array]
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        shape = (self.kernel, self.kernel, channels, self.width)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32).astype(self.dtype)
        x = x.astype(self.dtype)
        if min(x.shape[1:3]) >= SMALLEST_SIDE:
            return conv(x, kernel, self.stride)
        return convolve(x, kernel, self.stride)


def convolve(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """[B, H, W, C] with [k, k, C, C'] -> [B, H', W', C'], without padding."""
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """`convolve`, with the faster gradient where there is one."""
    return convolve(x, kernel, stride)


def _forward(
    x: jax.Array, kernel: jax.Array, stride: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return convolve(x, kernel, stride), (x, kernel)


def _backward(
    stride: int, saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    (for_x,) = jax.vjp(lambda x: convolve(x, kernel, stride), x)[1](gradient)

    def usual(x: jax.Array, gradient: jax.Array) -> jax.Array:
        return jax.vjp(lambda kernel: convolve(x, kernel, stride), kernel)[1](gradient)[0]

    on_cpu, side = usual, kernel.shape[0]
    if x.dtype == jnp.float64:
        pass  # the others sum in float32
    elif onednn.available():
        on_cpu = functools.partial(onednn.kernel_gradient, kernel=side, stride=stride)
    elif (side, stride) == (KERNEL, 1) and x.shape[-1] > 1:
        on_cpu = kernel_gradient
    return for_x, jax.lax.platform_dependent(x, gradient, cpu=on_cpu, default=usual)


conv.defvjp(_forward, _backward)


def kernel_gradient(x: jax.Array, gradient: jax.Array) -> jax.Array:
    """Gradient of a 3x3 kernel by matrix products over all pixels.

    A row of the product is a group of neighbouring output pixels: their gradients on one side, the
    input pixels that they see on the other. The larger the group, the better the shape of the
    product, and the more of it is thrown away; 64 columns were the best of those tried.

    Args:
        x: [B, H, W, C], the input.
        gradient: [B, H - 2, W - 2, C'], of the output.

    Returns:
        [3, 3, C, C'] in the dtype of `gradient`, summed in float32.
    """
    batch, _, _, channels = x.shape
    height, columns, width = gradient.shape[1:]
    group = max(1, PRODUCT_WIDTH // width)
    missing = -columns % group  # columns of zeros that make up the last group
    x, gradient = (jnp.pad(y, ((0, 0), (0, 0), (0, missing), (0, 0))) for y in (x, gradient))
    columns += missing
    seen = group + KERNEL - 1  # input columns of a group

    def add_images(total: jax.Array, images: tuple[jax.Array, jax.Array]):
        x, gradient = images
        count = x.shape[0]
        last = columns - group + 1
        inputs = jnp.stack([x[:, :, j : j + last : group] for j in range(seen)], axis=3)
        outputs = gradient.reshape(count, -1, group * width)
        rows = []
        for top in range(KERNEL):
            lines = inputs[:, top : top + height].reshape(count, -1, seen * channels)
            product = jax.lax.dot_general(
                lines, outputs, (((1,), (1,)), ((0,), (0,))), preferred_element_type=jnp.float32
            )
            product = product.sum(0).reshape(seen, channels, group, width)
            # output pixel p of a group sees input pixel p + left through kernel column `left`
            rows.append(
                jnp.stack(
                    [
                        jnp.sum(jnp.stack([product[p + left, :, p] for p in range(group)]), axis=0)
                        for left in range(KERNEL)
                    ]
                )
            )
        return total + jnp.stack(rows), None

    zero = jnp.zeros((KERNEL, KERNEL, channels, width), jnp.float32)
    if x.size * x.dtype.itemsize <= CHUNK_BYTES:
        total, _ = add_images(zero, (x, gradient))
    else:
        size = 2 if batch % 2 == 0 else 1
        x, gradient = (y.reshape(batch // size, size, *y.shape[1:]) for y in (x, gradient))
        total, _ = jax.lax.scan(add_images, zero, (x, gradient))
    return total.astype(gradient.dtype)
