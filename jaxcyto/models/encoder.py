"""The contracting path that Siamese network and U-Net share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxcyto.models.layers import BatchNorm, Kernel, affine_block, conv, max_pool

# Assumptions, the sources are silent: the order convolution, batch norm, ReLU; He initialization.
KERNEL_INIT = nn.initializers.he_normal()


class Block(nn.Module):
    """Valid convolutions without bias, each followed by batch norm and ReLU.

    Attributes:
        width: output channels.
        kernel: side of the first convolution (further ones are 3x3).
        stride: stride of the first convolution.
        convs: number of convolutions.
        pool: whether 2x2 pooling follows.
        dtype: compute dtype; parameters and statistics are float32.
        axis_name: device axis over which batch statistics are averaged, None for one device.
    """

    width: int
    kernel: int = 3
    stride: int = 1
    convs: int = 2
    pool: bool = False
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x, channels, layers = x.astype(self.dtype), x.shape[-1], []
        for number in range(1, self.convs + 1):
            side, stride = (self.kernel, self.stride) if number == 1 else (3, 1)
            kernel = Kernel(side, self.width, KERNEL_INIT, name=f"conv{number}")(channels)
            norm = BatchNorm(self.width, self.dtype, self.axis_name, name=f"bn{number}")
            if train:
                with jax.named_scope(f"conv{number}"):  # as profiles show it
                    x = conv(x, kernel, stride)
                x = nn.relu(norm(x))
            else:
                layers.append((kernel, *norm.running()))
            channels = self.width
        if not train:
            return affine_block(x, layers, self.stride, relu=True, pool=self.pool)
        return max_pool(x) if self.pool else x


def block_type(remat: bool) -> Any:
    """`Block`, or one whose inside is computed again for the gradient instead of being kept."""
    return nn.remat(Block, static_argnums=2) if remat else Block  # 2: `train`


class Encoder(nn.Module):
    """Blocks with 2x2 pooling between them; the names `block1`, ... are those of checkpoints.

    The defaults are the paper's texture path. The atlas path of the U-Net is an encoder, too, whose
    first block is one 5x5 convolution without pooling after it.

    Attributes:
        stem_kernel: side of the very first convolution.
        stem_stride: its stride.
        widths: channels of the blocks.
        stem_convs: convolutions of the first block.
        stem_pool: whether pooling follows the first block.
        dtype: compute dtype; parameters and statistics are float32.
        axis_name: device axis over which batch statistics are averaged, None for one device.
        remat: whether the inside of blocks is computed again for the gradient.
    """

    stem_kernel: int = 5
    stem_stride: int = 4
    widths: Sequence[int] = (16, 32, 64, 64, 128, 128)
    stem_convs: int = 2
    stem_pool: bool = True
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> tuple[jax.Array, ...]:
        """Runs all blocks.

        Args:
            x: [B, H, W, C] normalized image.
            train: whether batch norm uses (and updates) the statistics of this batch.

        Returns:
            The output [B, h, w, width] of every block: the last one is the branch's result, the
            others, but for the first, are skips, before pooling. That of the first is pooled.
        """
        outputs: list[jax.Array] = []
        for number, width in enumerate(self.widths, start=1):
            if number > 2:
                x = max_pool(x)
            first = number == 1
            x = block_type(self.remat)(
                width,
                kernel=self.stem_kernel if first else 3,
                stride=self.stem_stride if first else 1,
                convs=self.stem_convs if first else 2,
                pool=self.stem_pool and first,
                dtype=self.dtype,
                axis_name=self.axis_name,
                name=f"block{number}",
            )(x, train)
            outputs.append(x)
        return tuple(outputs)
