"""Define the contracting path that the Siamese network and the U-Net share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxcyto.models.layers import BatchNorm, Kernel, affine_block, conv, max_pool

# Assumptions, because the papers leave both open: He initialization, and the order convolution,
# batch normalization, ReLU.
KERNEL_INIT = nn.initializers.he_normal()
ENCODER = "encoder"  # name of the path that both networks share, among their submodules


class Block(nn.Module):
    """A block of valid convolutions without bias, each followed by batch normalization and ReLU.

    Attributes:
        width: number of output channels.
        kernel: kernel side of the first convolution. All others are 3x3.
        stride: stride of the first convolution. All others have stride 1.
        convs: number of convolutions.
        pool: whether 2x2 max pooling follows the last convolution.
        stored_statistics: whether training normalizes with the stored statistics, too.
        dtype: compute dtype. Parameters and statistics are float32.
        axis_name: device axis over which batch statistics are averaged, None for one device.
    """

    width: int
    kernel: int = 3
    stride: int = 1
    convs: int = 2
    pool: bool = False
    stored_statistics: bool = False
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x, channels, layers = x.astype(self.dtype), x.shape[-1], []
        for index in range(1, self.convs + 1):
            side, stride = (self.kernel, self.stride) if index == 1 else (3, 1)
            kernel = Kernel(side, self.width, KERNEL_INIT, name=f"conv{index}")(channels)
            norm = BatchNorm(self.width, self.dtype, self.axis_name, name=f"bn{index}")
            if train:
                # `Kernel` only creates the parameter, so profiles need the name of the layer here.
                with jax.named_scope(f"conv{index}"):
                    x = conv(x, kernel, stride)
                x = nn.relu(norm(x, self.stored_statistics))
            else:  # with fixed statistics, `affine_block` computes the whole block in one call
                layers.append((kernel, *norm.running()))
            channels = self.width
        if not train:
            return affine_block(x, layers, self.stride, relu=True, pool=self.pool)
        return max_pool(x) if self.pool else x


def block_type(remat: bool) -> Any:
    """Return `Block`, or with `remat` a `Block` that recomputes its activations for the gradient.

    Rematerialization saves memory, because the backward pass recomputes the activations inside of
    the block instead of keeping them.
    """
    return nn.remat(Block, static_argnums=2) if remat else Block  # argument 2 is `train`


class Encoder(nn.Module):
    """A sequence of blocks with 2x2 max pooling between them.

    The submodule names `block1`, `block2`, ... are also the names of the weights in checkpoints.

    The defaults describe the paper's texture path. The atlas path of the U-Net is an encoder, too.
    Its first block is one 5x5 convolution without pooling after it.

    Attributes:
        stem_kernel: kernel side of the first convolution of the network.
        stem_stride: stride of the first convolution.
        widths: output channels of each block.
        stem_convs: number of convolutions in the first block.
        stem_pool: whether pooling follows the first block.
        stored_statistics: whether training normalizes with the stored statistics, too.
        dtype: compute dtype. Parameters and statistics are float32.
        axis_name: device axis over which batch statistics are averaged, None for one device.
        remat: whether blocks recompute their activations for the gradient (see `block_type`).
    """

    stem_kernel: int = 5
    stem_stride: int = 4
    widths: Sequence[int] = (16, 32, 64, 64, 128, 128)
    stem_convs: int = 2
    stem_pool: bool = True
    stored_statistics: bool = False
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> tuple[jax.Array, ...]:
        """Run all blocks.

        Args:
            x: normalized image [B, H, W, C].
            train: whether batch normalization uses the statistics of this batch and updates the
                running ones.

        Returns:
            The output [B, h, w, width] of every block. The last output is the result of the path.
            The first output is already pooled if `stem_pool` is set. All others are taken before
            the pooling and serve as skip connections.
        """
        outputs: list[jax.Array] = []
        for index, width in enumerate(self.widths, start=1):
            if index > 2:  # the first block pools its own output
                x = max_pool(x)
            first = index == 1
            x = block_type(self.remat)(
                width,
                kernel=self.stem_kernel if first else 3,
                stride=self.stem_stride if first else 1,
                convs=self.stem_convs if first else 2,
                pool=self.stem_pool and first,
                stored_statistics=self.stored_statistics,
                dtype=self.dtype,
                axis_name=self.axis_name,
                name=f"block{index}",
            )(x, train)
            outputs.append(x)
        return tuple(outputs)
