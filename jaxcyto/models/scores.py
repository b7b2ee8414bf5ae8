"""Define the score maps: class scores that are linear in the maps of the contracting path.

Long et al. (CVPR 2015, section 4) predict class scores from several maps of a network by 1x1
convolutions, enlarge those of the coarse maps and add them up. The score maps here do the same for
the last three blocks. The last map also gives scores from its local means over squares of several
sides (pyramid pooling, Zhao et al. CVPR 2017, section 3.2). An area is recognized more surely from
some millimeters of cortex than from a single patch.

The scores have neither hidden layers nor batch normalization. Fitting them to fixed features is
therefore a multinomial logistic regression, whose optimum takes seconds (`training/head.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxcyto.models.layers import Kernel, conv

SCORED = 3  # last blocks whose maps give scores


class Scores(nn.Module):
    """Class scores of the last `SCORED` blocks on the output grid.

    Attributes:
        num_classes: channels of the scores.
        pools: odd sides of the squares of local means, in px of the last map. The map itself always
            gives scores, too.
        dtype: compute dtype. Parameters are float32.
    """

    num_classes: int
    pools: Sequence[int] = ()
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, maps: Sequence[jax.Array]) -> jax.Array:
        """Compute the scores.

        Args:
            maps: maps [B, h, w, C] of all blocks but the first, as the expansive path gets them.

        Returns:
            Scores [B, H', W', num_classes], float32, on the grid of the first of the maps, without
            the margin that bilinear enlargement and local means need.
        """
        *skips, last = maps
        x: jax.Array | None = None
        for side, pooled in zip((1, *self.pools), local_means(last, self.pools), strict=True):
            scores = self._linear(f"pool{side}", pooled)
            x = scores if x is None else x + scores
        assert x is not None
        for back, skip in enumerate(reversed(skips), start=2):
            x = enlarge(x)
            if back <= SCORED:
                x = x + self._linear(f"skip{back - 1}", center(skip, *x.shape[1:3]))
        bias = self.param("bias", nn.initializers.zeros, (self.num_classes,), jnp.float32)
        return x + bias.reshape(1, 1, 1, -1)

    def _linear(self, name: str, x: jax.Array) -> jax.Array:
        """Apply a 1x1 convolution that starts at zero."""
        kernel = Kernel(1, self.num_classes, nn.initializers.zeros, name=name)(x.shape[-1])
        return conv(x.astype(self.dtype), kernel).astype(jnp.float32)


def local_means(x: jax.Array, sides: Sequence[int]) -> list[jax.Array]:
    """Return x [B, h, w, C] and its means over squares, all cropped to where they are complete.

    Args:
        x: a map.
        sides: odd sides of the squares, in px.

    Returns:
        1 + len(sides) maps [B, h - m + 1, w - m + 1, C], where m is the longest side.
    """
    longest = max(sides, default=1)
    height, width = (side - longest + 1 for side in x.shape[1:3])
    return [center(_mean(_mean(x, side, 1), side, 2), height, width) for side in (1, *sides)]


def _mean(x: jax.Array, side: int, axis: int) -> jax.Array:
    """Return the means of `side` neighbors along an axis.

    The neighbors are added one by one. A cumulative sum would make the rounding depend on the
    position in the map, so that overlapping tiles would no longer agree.
    """
    length = x.shape[axis] - side + 1
    total = jax.lax.slice_in_dim(x, 0, length, axis=axis)
    for start in range(1, side):
        total = total + jax.lax.slice_in_dim(x, start, start + length, axis=axis)
    return total / side


def enlarge(x: jax.Array) -> jax.Array:
    """Return a map of twice the height and width, by bilinear interpolation inside of it.

    A pixel of x covers 2x2 pixels of the result. Like a block of the expansive path, this loses one
    px of x on each side.

    Args:
        x: [B, h, w, C].

    Returns:
        [B, 2 h - 4, 2 w - 4, C].
    """
    return _double(_double(x, 1), 2)


def _double(x: jax.Array, axis: int) -> jax.Array:
    length = x.shape[axis] - 2
    before, own, after = (
        jax.lax.slice_in_dim(x, start, start + length, axis=axis) for start in range(3)
    )
    pair = jnp.stack([0.25 * before + 0.75 * own, 0.75 * own + 0.25 * after], axis=axis + 1)
    return pair.reshape(*x.shape[:axis], 2 * length, *x.shape[axis + 1 :])


def center(x: jax.Array, height: int, width: int) -> jax.Array:
    """Crop a map [B, H, W, C] to its central height x width. Margins are even at valid sizes."""
    top, left = (x.shape[1] - height) // 2, (x.shape[2] - width) // 2
    return x[:, top : top + height, left : left + width]
