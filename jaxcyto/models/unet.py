"""U-Net for areas: the shared contracting path, optionally a second one for the atlas, and a climb.

Sizes and positions are derived in `geometry.py`. The layout is the one that meets the 1,479,728
parameters, the receptive field and the output resolution of Spitzer et al. 2017 together. That
transposed convolutions and the classifier have batch norm follows from the count; that batch norm
comes before ReLU, and that the logits have no ReLU, are assumptions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxcyto.models.encoder import KERNEL_INIT, Encoder, block_type
from jaxcyto.models.geometry import ATLAS_KERNEL, Geometry
from jaxcyto.models.layers import BatchNorm, Kernel, affine_block, conv

# He initialization, too: with a stride of 2, an output pixel sees one tap of a 2x2 kernel only.
_UP_INIT = nn.initializers.he_normal(batch_axis=(0, 1))


class Up(nn.Module):
    """2x2 transposed convolution with stride 2, without bias: doubles height and width.

    The 2x2 squares that two input pixels reach do not overlap, so it is a 1x1 convolution to
    2 * 2 * width channels that are then spread over the square (depth to space). The kernel is that
    of `nn.ConvTranspose`, the gradient about ten times faster on the CPU. A matrix product would be
    shorter, but XLA:CPU adds up its terms in an order that depends on the size of the map, and
    tiles would no longer agree bit for bit.

    Attributes:
        width: output channels.
        dtype: compute dtype; the kernel is float32.
    """

    width: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, affine: tuple[jax.Array, jax.Array] | None = None
    ) -> jax.Array:
        """[B, H, W, C] -> [B, 2 H, 2 W, width]; then, if given, x * a + b and ReLU."""
        batch, height, width, channels = x.shape
        kernel = self.param("kernel", _UP_INIT, (2, 2, channels, self.width))
        # [2, 2, C, width] -> [1, 1, C, 2 * 2 * width]
        flat = kernel[::-1, ::-1].transpose(2, 0, 1, 3).reshape(1, 1, channels, 4 * self.width)
        x = x.astype(self.dtype)
        if affine is None:
            x = conv(x, flat)
        else:
            a, b = (jnp.tile(each, 4) for each in affine)
            x = affine_block(x, [(flat, a, b)], 1, relu=True, pool=False)
        x = x.reshape(batch, height, width, 2, 2, self.width).transpose(0, 1, 3, 2, 4, 5)
        return x.reshape(batch, 2 * height, 2 * width, self.width)


class UNet(nn.Module):
    """The segmentation network, with an atlas or without.

    Defaults are the paper's (2025 px at 2 um/px -> 68 px at 16 um); `stem_kernel=3, stem_stride=1,
    widths=(16, 32, 64, 64, 128)` is the small size. The submodule `encoder` is that of
    `SiameseNet`, leaf by leaf; what an atlas adds is in `atlas_encoder` and in more input channels
    of the kernels of the climb.

    Attributes:
        num_classes: channels of the logits.
        stem_kernel: side of the first convolution.
        stem_stride: its stride.
        widths: channels of the blocks of the contracting path; the climb returns through them.
        dtype: compute dtype, bfloat16 or float32; parameters are float32, and the logits are
            computed in float32 whatever it is.
        axis_name: device axis over which batch statistics are averaged, None for one device.
        remat: whether the inside of blocks is computed again for the gradient.
    """

    num_classes: int
    stem_kernel: int = 5
    stem_stride: int = 4
    widths: Sequence[int] = (16, 32, 64, 64, 128, 128)
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None
    remat: bool = False

    @nn.compact
    def __call__(
        self, image: jax.Array, atlas: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """Computes the logits of the output grid, `Geometry.output_stride` image px a pixel.

        Args:
            image: [B, H, W, 1] float, normalized; sides as `Geometry.is_valid_size` wants them.
            atlas: [B, h, w, A] float in 0 ... 1, one channel per area, on the output grid; sides
                are `Geometry.atlas_size` of the image's. None: the base network.
            train: whether batch norm uses (and updates) the statistics of this batch.

        Returns:
            [B, H', W', num_classes] float32, sides `Geometry.output_size` of the image's.

        Raises:
            ValueError: if a shape does not fit, with the sizes that do.
        """
        self._check(image, atlas)
        common: Any = {"dtype": self.dtype, "axis_name": self.axis_name}
        widths = tuple(self.widths)

        path = common | {"remat": self.remat}
        encoder = Encoder(self.stem_kernel, self.stem_stride, widths, **path, name="encoder")
        paths = [encoder(image, train)]
        if atlas is not None:
            encoder = Encoder(
                ATLAS_KERNEL, 1, widths, 1, stem_pool=False, **path, name="atlas_encoder"
            )
            paths.append(encoder(atlas, train))
        # From the second block on the paths are on one grid.
        *skips, x = (
            jnp.concatenate(maps, axis=-1)
            for maps in zip(*(path[1:] for path in paths), strict=True)
        )

        for number, (width, skip) in enumerate(
            zip(reversed(widths[1:-1]), reversed(skips), strict=True), start=len(widths) + 1
        ):
            up = Up(width, dtype=self.dtype, name=f"up{number}")
            norm = BatchNorm(width, **common, name=f"up{number}_bn")
            x = nn.relu(norm(up(x))) if train else up(x, norm.running())
            x = jnp.concatenate([x, _center(skip, *x.shape[1:3])], axis=-1)
            x = block_type(self.remat)(width, **common, name=f"block{number}")(x, train)

        dtype = jnp.promote_types(self.dtype, jnp.float32)
        x, channels = x.astype(dtype), x.shape[-1]
        kernel = Kernel(1, self.num_classes, KERNEL_INIT, name="classifier")(channels)
        norm = BatchNorm(self.num_classes, dtype, self.axis_name, name="classifier_bn")
        if train:
            return norm(conv(x, kernel))
        return affine_block(x, [(kernel, *norm.running())], 1, relu=False, pool=False)

    def _check(self, image: jax.Array, atlas: jax.Array | None) -> None:
        if not self.is_initializing():
            made_with = self.has_variable("params", "atlas_encoder")
            if made_with != (atlas is not None):
                has, call = ("an", "without") if made_with else ("no", "with")
                raise ValueError(f"the network has {has} atlas path, but is called {call} an atlas")
        if image.ndim != 4 or image.shape[3] != 1:
            raise ValueError(f"the image has shape {image.shape}, expected [B, H, W, 1]")
        geometry = Geometry.of(self)
        for side in image.shape[1:3]:
            geometry.output_size(side)  # raises
        if atlas is None:
            return
        needed = (image.shape[0], *map(geometry.atlas_size, image.shape[1:3]))
        if atlas.ndim != 4 or atlas.shape[:3] != needed:
            shape = ", ".join(map(str, needed))
            raise ValueError(
                f"the atlas has shape {atlas.shape}, but an image of {image.shape[1]} x"
                f" {image.shape[2]} px needs [{shape}, A]"
            )


def _center(x: jax.Array, height: int, width: int) -> jax.Array:
    """The middle of a map; at valid sizes the margins are even."""
    top, left = (x.shape[1] - height) // 2, (x.shape[2] - width) // 2
    return x[:, top : top + height, left : left + width]
