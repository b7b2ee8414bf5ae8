"""Define the segmentation network.

It consists of the shared contracting path, an optional second contracting path for the atlas, and
an expansive path (the paper's U-Net), score maps (`scores.py`), or both, whose logits are added.
Sizes and positions are derived in `geometry.py`.

The layout of the U-Net is the one that reproduces the 1,479,728 parameters, the receptive field and
the output resolution of Spitzer et al. 2017 together. The parameter count implies that the
transposed convolutions and the classifier have batch normalization. Two things are assumptions:
batch normalization comes before ReLU, and the logits have no ReLU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxcyto.models.encoder import ENCODER, KERNEL_INIT, Encoder, block_type
from jaxcyto.models.geometry import ATLAS_KERNEL, Geometry
from jaxcyto.models.layers import BatchNorm, Kernel, affine_block, conv
from jaxcyto.models.scores import Scores, center

# He initialization with fan-in C instead of 4 C. With a stride of 2, each output pixel depends on
# only one tap of the 2x2 kernel, so the two spatial axes must not count.
_UP_INIT = nn.initializers.he_normal(batch_axis=(0, 1))


class Up(nn.Module):
    """A 2x2 transposed convolution with stride 2 and without bias, which doubles height and width.

    The 2x2 output squares of two input pixels do not overlap. The layer is therefore computed as a
    1x1 convolution to 2 * 2 * width channels, followed by a depth-to-space rearrangement. It has
    the same kernel parameter as `nn.ConvTranspose`, and its gradient is about ten times faster on
    the CPU. Do not replace the 1x1 convolution by a matrix product. XLA:CPU sums the terms of a
    matrix product in an order that depends on the size of the map, so that overlapping tiles would
    no longer agree bit for bit.

    Attributes:
        width: number of output channels.
        dtype: compute dtype. The kernel is float32.
    """

    width: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, affine: tuple[jax.Array, jax.Array] | None = None
    ) -> jax.Array:
        """Enlarge x [B, H, W, C] to [B, 2 H, 2 W, width].

        Args:
            x: [B, H, W, C].
            affine: factors a [width] and offsets b [width]. If given, the result is
                relu(y * a + b) of the upsampled map y.
        """
        batch, height, width, channels = x.shape
        kernel = self.param("kernel", _UP_INIT, (2, 2, channels, self.width))
        # [2, 2, C, width] -> [1, 1, C, 2 * 2 * width]. `nn.ConvTranspose` applies its kernel
        # rotated by 180 degrees, so we reverse both spatial axes to use the same parameter.
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
    """The segmentation network, with or without an atlas.

    The defaults are those of the paper (2025 px at 2 um/px -> 68 px at 16 um/px). The small size is
    `stem_kernel=3, stem_stride=1, widths=(16, 32, 64, 64, 128)`. The submodule `encoder` has the
    same parameters as the encoder of `SiameseNet`, so that weights can be copied leaf by leaf. An
    atlas adds the submodule `atlas_encoder` and more input channels to the kernels of the expansive
    path.

    Attributes:
        num_classes: channels of the logits.
        stem_kernel: kernel side of the first convolution.
        stem_stride: stride of the first convolution.
        widths: output channels of each block of the contracting path. The expansive path uses them
            in reverse order, without the first and the last.
        decoder: "unet" for the paper's expansive path, "scores" for score maps, or "both" for the
            sum of their logits.
        pools: sides of the local means from which score maps are computed, px of the last map.
        stored_statistics: whether the contracting path of the image normalizes with stored batch
            statistics in training, too. They are then constants.
        dtype: compute dtype, bfloat16 or float32. Parameters are float32, and the logits are
            always computed in float32.
        axis_name: device axis over which batch statistics are averaged, None for one device.
        remat: whether blocks recompute their activations for the gradient.
    """

    num_classes: int
    stem_kernel: int = 5
    stem_stride: int = 4
    widths: Sequence[int] = (16, 32, 64, 64, 128, 128)
    decoder: str = "unet"
    pools: Sequence[int] = ()
    stored_statistics: bool = False
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None
    remat: bool = False

    @nn.compact
    def __call__(
        self, image: jax.Array, atlas: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """Compute the logits on the output grid, whose pixels are `Geometry.output_stride` px wide.

        Args:
            image: normalized image [B, H, W, 1], float. `Geometry.is_valid_size` must hold for both
                sides.
            atlas: probabilities [B, h, w, A] in 0 ... 1, float, one channel per area, at the
                resolution of the output. The sides are `Geometry.atlas_size` of the image's sides.
                None selects the base network.
            train: whether batch normalization uses the statistics of this batch and updates the
                running ones.

        Returns:
            Logits [B, H', W', num_classes], float32. The sides are `Geometry.output_size` of the
            image's sides.

        Raises:
            ValueError: if a shape is not valid. The message lists the valid sizes.
        """
        self._check(image, atlas)
        common: Any = {"dtype": self.dtype, "axis_name": self.axis_name}
        widths = tuple(self.widths)

        path: Any = common | {"remat": self.remat}
        own: Any = path | {"stored_statistics": self.stored_statistics}
        encoder = Encoder(self.stem_kernel, self.stem_stride, widths, **own, name=ENCODER)
        paths = [encoder(image, train)]
        if atlas is not None:
            encoder = Encoder(
                ATLAS_KERNEL, 1, widths, 1, stem_pool=False, **path, name="atlas_encoder"
            )
            paths.append(encoder(atlas, train))
        # From the second block on, both paths are on the same grid.
        maps = [
            jnp.concatenate(each, axis=-1)
            for each in zip(*(path[1:] for path in paths), strict=True)
        ]
        logits = []
        if self.decoder != "unet":
            logits.append(Scores(self.num_classes, self.pools, self.dtype, name="scores")(maps))
        if self.decoder != "scores":
            reach = Geometry.of(self).reach
            *skips, last = maps
            logits.append(self._expand([*skips, _without_margin(last, reach)], train))
        return logits[0] if len(logits) == 1 else logits[0] + logits[1]

    def _expand(self, maps: list[jax.Array], train: bool) -> jax.Array:
        """Compute the logits of the expansive path from the maps of all blocks but the first."""
        common: Any = {"dtype": self.dtype, "axis_name": self.axis_name}
        widths = tuple(self.widths)
        *skips, x = maps
        for number, (width, skip) in enumerate(
            zip(reversed(widths[1:-1]), reversed(skips), strict=True), start=len(widths) + 1
        ):
            up = Up(width, dtype=self.dtype, name=f"up{number}")
            norm = BatchNorm(width, **common, name=f"up{number}_bn")
            x = nn.relu(norm(up(x))) if train else up(x, norm.running())
            x = jnp.concatenate([x, center(skip, *x.shape[1:3])], axis=-1)
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


def _without_margin(x: jax.Array, margin: int) -> jax.Array:
    """Remove a margin of some px from all sides of a map [B, H, W, C]."""
    return center(x, x.shape[1] - 2 * margin, x.shape[2] - 2 * margin)
