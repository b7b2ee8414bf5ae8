"""Siamese network: two patches through one branch, a feature vector and a position for each."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxcyto.models.encoder import Encoder
from jaxcyto.models.geometry import Geometry


class SiameseNet(nn.Module):
    """Blocks 1-6 of the paper's network, a dense layer of 32 features, and a head for coordinates.

    Both patches of all pairs go through one call, so that they share one set of batch statistics.
    Defaults are the paper's (1019 px patches); `stem_kernel=3, stem_stride=1,
    widths=(16, 32, 64, 64, 128)` is the small size (128 px patches).

    Attributes:
        stem_kernel: side of the first convolution.
        stem_stride: its stride.
        widths: channels of the blocks.
        features: length of the feature vector.
        dtype: compute dtype of the branch, bfloat16 or float32; parameters are float32, and
            features and coordinates are computed in float32 whatever it is.
        axis_name: device axis over which batch statistics are averaged, None for one device.
        remat: whether the inside of blocks is computed again for the gradient.
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
        """Computes features and coordinates.

        Args:
            patches: [B, 2, H, W, 1] float, normalized.
            train: whether batch norm uses (and updates) the statistics of this batch.

        Returns:
            `features` [B, 2, features] float32; their squared Euclidean distance is the predicted
            distance. `coordinates_scaled` [B, 2, 3] float32. Both in scaled units.

        Raises:
            ValueError: if `patches` has another shape, or a side that does not end in a 1x1 map
                (an assumption: the paper flattens 1x1x128 and says nothing of other sizes).
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
            name="encoder",
        )(patches.reshape(batch * 2, *patches.shape[2:]), train)
        head_dtype = jnp.promote_types(self.dtype, jnp.float32)
        last = maps[-1].reshape(batch, 2, -1)
        # Two patches then start at a squared distance near 1, the mean target (an assumption). With
        # the usual scale they start at 20, and the first steps destroy the features.
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
