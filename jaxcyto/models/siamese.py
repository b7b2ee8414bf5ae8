"""Define the Siamese network, which maps two patches to a feature vector and a position each."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxcyto.models.encoder import ENCODER, Encoder
from jaxcyto.models.geometry import Geometry


class SiameseNet(nn.Module):
    """Blocks 1-6 of the paper's network, a dense layer of 32 features, and a head for coordinates.

    Both patches of all pairs go through the encoder in one call, so that they share one set of
    batch statistics. The defaults are those of the paper (1019 px patches). The small size
    (128 px patches) is `stem_kernel=3, stem_stride=1, widths=(16, 32, 64, 64, 128)`.

    Attributes:
        stem_kernel: kernel side of the first convolution.
        stem_stride: stride of the first convolution.
        widths: output channels of each block.
        features: length of the feature vector.
        dtype: compute dtype of the encoder, bfloat16 or float32. Parameters are float32, and
            features and coordinates are always computed in float32.
        axis_name: device axis over which batch statistics are averaged, None for one device.
        remat: whether blocks recompute their activations for the gradient.
    """

    stem_kernel: int = 5
    stem_stride: int = 4
    widths: Sequence[int] = (16, 32, 64, 64, 128, 128)
    features: int = 32
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None
    remat: bool = False

    @nn.compact
    def __call__(self, patches: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        """Compute features and coordinates.

        Args:
            patches: normalized patches [B, 2, H, W, 1], float.
            train: whether batch normalization uses the statistics of this batch and updates the
                running ones.

        Returns:
            `features` [B, 2, features] float32. Their squared Euclidean distance is the predicted
            distance. `coordinates_scaled` [B, 2, 3] float32. Both are in scaled units.

        Raises:
            ValueError: if `patches` has another shape, or a side that does not end in a 1x1 map.
                That other sides are not allowed is an assumption: the paper flattens a map of
                1x1x128 and leaves other sizes open.
        """
        self._check(patches)
        batch = patches.shape[0]
        maps = Encoder(
            self.stem_kernel,
            self.stem_stride,
            tuple(self.widths),
            dtype=self.dtype,
            axis_name=self.axis_name,
            remat=self.remat,
            name=ENCODER,
        )(patches.reshape(batch * 2, *patches.shape[2:]), train)
        head_dtype = jnp.promote_types(self.dtype, jnp.float32)
        last = maps[-1].reshape(batch, 2, -1)
        # Assumption: this scale gives two patches a squared distance near 1, the mean target, at
        # the start of training. With the usual scale the distance is about 20, and the first
        # training steps destroy the features.
        start = nn.initializers.variance_scaling(1.5 / self.features, "fan_in", "normal")
        dense = nn.Dense(self.features, dtype=head_dtype, kernel_init=start, name="features")
        features = dense(last)
        coordinates = nn.Dense(3, dtype=head_dtype, name="coordinates")(features)
        return {"features": features, "coordinates_scaled": coordinates}

    def _check(self, patches: jax.Array) -> None:
        if patches.ndim != 5 or patches.shape[1] != 2 or patches.shape[4] != 1:
            raise ValueError(f"patches have shape {patches.shape}, expected [B, 2, H, W, 1]")
        sizes = Geometry.of(self).siamese_sizes
        for side in patches.shape[2:4]:
            if side not in sizes:
                nearest = sizes[0] if side < sizes[0] else sizes[-1]
                raise ValueError(
                    f"patches of {side} px do not end in a 1x1 map: this network takes sides from"
                    f" {sizes[0]} to {sizes[-1]} px, the nearest is {nearest} px"
                )
