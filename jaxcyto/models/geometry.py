"""Derive all sizes and positions that follow from the layout of the network.

No other module derives them. The layout is reconstructed from the parameter count, the receptive
field and the output resolution of Spitzer et al. 2017. Every block consists of two valid
convolutions. They are 3x3, except for the very first convolution (the stem). A 2x2 max pooling
lies between two blocks. The expansive path of the U-Net has two steps fewer than there are blocks.
It ends on the grid of the second block, so the pooling after block 1 is never undone.

Sides and positions are in px of the input image, for one axis at a time. Pixel centers are at
integers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

_BLOCK_LOSS = 4  # px that two valid 3x3 convolutions remove from a side
ATLAS_KERNEL = 5  # the first block of the atlas path is one 5x5 convolution without pooling


class Layout(Protocol):
    """The fields from which all sizes follow. Networks and `config.ModelConfig` have them."""

    @property
    def stem_kernel(self) -> int: ...

    @property
    def stem_stride(self) -> int: ...

    @property
    def widths(self) -> Sequence[int]: ...


@dataclasses.dataclass(frozen=True)
class Geometry:
    """The sizes and positions of one layout.

    Attributes:
        stem_kernel: kernel side of the first convolution, px.
        stem_stride: stride of the first convolution, px.
        num_blocks: number of blocks of the contracting path.
        reach: distance in px of the last map that local means (`models/scores.py`) need beyond what
            the expansive path needs.
    """

    stem_kernel: int = 5
    stem_stride: int = 4
    num_blocks: int = 6
    reach: int = 0

    def __post_init__(self) -> None:
        if self.stem_kernel < 1 or self.stem_stride < 1 or self.num_blocks < 2 or self.reach < 0:
            raise ValueError(f"no network has the layout {self}")

    @classmethod
    def of(cls, layout: Layout) -> Geometry:
        """Create the geometry of a network, or of the network that a config describes."""
        pools: Sequence[int] = getattr(layout, "pools", ())  # which the Siamese network lacks
        reach = max(pools, default=1) // 2
        return cls(layout.stem_kernel, layout.stem_stride, len(layout.widths), reach)

    # ---- contracting path -----------------------------------------------------------------------

    def block_sizes(self, side: int) -> tuple[int, ...]:
        """Return the sides of the blocks' outputs before pooling, with ceil-mode pooling.

        Raises:
            ValueError: if the image is so small that one of the maps would be empty.
        """
        size = (side - self.stem_kernel) // self.stem_stride + 1 - 2
        sizes = [size]
        for _ in range(self.num_blocks - 1):
            size = -(-size // 2) - _BLOCK_LOSS
            sizes.append(size)
        if side < self.stem_kernel or min(sizes) < 1:
            raise ValueError(
                f"an image of {side} px is too small for {self.num_blocks} blocks;"
                f" the smallest side is {self.siamese_sizes[0]} px"
            )
        return tuple(sizes)

    @property
    def siamese_sizes(self) -> range:
        """All patch sides whose last map is exactly 1x1. The paper's 1019 px is one of them."""
        low = high = 1
        for _ in range(self.num_blocks - 1):
            low, high = 2 * (low + _BLOCK_LOSS) - 1, 2 * (high + _BLOCK_LOSS)
        low, high = ((n + 2 - 1) * self.stem_stride + self.stem_kernel for n in (low, high))
        # A strided stem ignores up to stride - 1 pixels at the end, so those sides are valid, too.
        return range(low, high + self.stem_stride)

    @property
    def period(self) -> int:
        """Step of the deepest pooling grid, px. Tiles at multiples of it join without a seam."""
        return self.stem_stride * 2 ** (self.num_blocks - 1)

    # ---- U-Net ----------------------------------------------------------------------------------

    @property
    def num_ups(self) -> int:
        """Number of upsampling steps in the expansive path."""
        return self.num_blocks - 2

    @property
    def output_stride(self) -> int:
        """Distance between neighboring output pixels, px."""
        return 2 * self.stem_stride

    @property
    def receptive_field(self) -> int:
        """Offset in: input side = output side * `output_stride` + `receptive_field`, px."""
        return self._input_for_bottom(0) - self.output_stride * self._output_for_bottom(0)

    @property
    def smallest_valid_size(self) -> int:
        """Smallest valid input side. All valid sides are this plus a multiple of `period`."""
        bottom = 1
        while self._output_for_bottom(bottom) < 1:
            bottom += 1
        return self._input_for_bottom(bottom)

    def is_valid_size(self, side: int) -> bool:
        """Return whether every pooling of the U-Net sees an even side and the output has pixels."""
        return side >= self.smallest_valid_size and self._excess(side) == 0

    def nearest_valid_sizes(self, side: int) -> tuple[int, ...]:
        """Return the one or two valid sides around `side`, or `(side,)` if it is valid itself."""
        if side <= self.smallest_valid_size:
            return (self.smallest_valid_size,)
        excess = self._excess(side)
        return (side - excess, side - excess + self.period) if excess else (side,)

    def output_size(self, side: int) -> int:
        """Return the output side of the U-Net for an input side.

        Raises:
            ValueError: if the input side is not valid. The message lists the nearest valid sides.
        """
        if not self.is_valid_size(side):
            nearest = " and ".join(f"{size} px" for size in self.nearest_valid_sizes(side))
            raise ValueError(
                f"an image of {side} px does not fit the pooling grid: valid sides are"
                f" {self.smallest_valid_size} + {self.period} n px, the nearest {nearest}"
            )
        return (side - self.receptive_field) // self.output_stride

    def atlas_size(self, side: int) -> int:
        """Return the side of the atlas patch, in atlas px of `output_stride` image px each."""
        return self.block_sizes(side)[0] // 2 + ATLAS_KERNEL - 1

    # ---- positions ------------------------------------------------------------------------------

    @property
    def output_origin(self) -> float:
        """Position of output pixel 0 in the input, px. Pixel k is `output_stride` * k px further.

        Every layer is symmetric at valid sizes, so the input and the output have the same center.
        The position therefore does not depend on the side.
        """
        return (self.receptive_field - 1 + self.output_stride) / 2

    @property
    def atlas_origin(self) -> float:
        """Position of atlas pixel 0 in the input, px. It lies outside of the image if negative."""
        # Position of pixel 0 after block 1 and its pooling, on whose grid the atlas path joins.
        block1 = (self.stem_kernel - 1) / 2 + 1.5 * self.stem_stride
        return block1 - (ATLAS_KERNEL - 1) / 2 * self.output_stride

    @property
    def label_offset(self) -> int:
        """Offset in: image top = `output_stride` * (label row of output row 0) - `label_offset`.

        Pixel m of a label image covers px [stride * m, stride * (m + 1)), so its center is at
        stride * m + (stride - 1) / 2. If no whole offset makes the centers of label and output
        meet, the image lies half a px off.
        """
        return int((self.output_origin - (self.output_stride - 1) / 2) // 1)

    @property
    def atlas_offset(self) -> int:
        """Offset in: atlas row of atlas pixel 0 = label row of output row 0 - `atlas_offset`."""
        return round((self.output_origin - self.atlas_origin) / self.output_stride)

    # ---- sides as linear functions of the side of the last block's map (`bottom`) ---------------

    def _input_for_bottom(self, bottom: int) -> int:
        for _ in range(self.num_blocks - 1):
            bottom = 2 * (bottom + _BLOCK_LOSS)
        return (bottom + 2 - 1) * self.stem_stride + self.stem_kernel

    def _output_for_bottom(self, bottom: int) -> int:
        bottom -= 2 * self.reach
        for _ in range(self.num_ups):
            bottom = 2 * bottom - _BLOCK_LOSS
        return bottom

    def _excess(self, side: int) -> int:
        return (side - self.smallest_valid_size) % self.period
