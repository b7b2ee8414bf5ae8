"""Sizes and positions that follow from the layout of the network: the one place that derives them.

Layout (reconstructed from the parameter count, receptive field and output resolution of Spitzer et
al. 2017): every block is two valid convolutions, 3x3 except the first of all (the stem); a 2x2
max pooling stands between two blocks. The U-Net climbs back by as many steps as there are blocks,
less two, so that it ends on the grid of the second block: block 1's pooling is never undone.

Sides and positions are in px of the input image, one axis at a time. Pixel centers are at whole
numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

_BLOCK_LOSS = 4  # two valid 3x3 convolutions
ATLAS_KERNEL = 5  # first block of the atlas path: one 5x5 convolution, no pooling


class Layout(Protocol):
    """What sizes follow from; networks and `config.ModelConfig` are such."""

    @property
    def stem_kernel(self) -> int: ...

    @property
    def stem_stride(self) -> int: ...

    @property
    def widths(self) -> Sequence[int]: ...


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Derived sizes of one layout.

    Attributes:
        stem_kernel: side of the first convolution, px.
        stem_stride: its stride, px.
        num_blocks: blocks of the contracting path.
    """

    stem_kernel: int = 5
    stem_stride: int = 4
    num_blocks: int = 6

    def __post_init__(self) -> None:
        if self.stem_kernel < 1 or self.stem_stride < 1 or self.num_blocks < 2:
            raise ValueError(f"no network has the layout {self}")

    @classmethod
    def of(cls, layout: Layout) -> Geometry:
        """Sizes of a network, or of the one that a config describes."""
        return cls(layout.stem_kernel, layout.stem_stride, len(layout.widths))

    # ---- contracting path -----------------------------------------------------------------------

    def block_sizes(self, side: int) -> tuple[int, ...]:
        """Sides of the maps that the blocks return (before pooling), with ceil-mode pooling.

        Raises:
            ValueError: if a map would vanish on the way.
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
        """All patch sides that end in a map of exactly 1x1 (1019 px is one of them)."""
        low = high = 1
        for _ in range(self.num_blocks - 1):
            low, high = 2 * (low + _BLOCK_LOSS) - 1, 2 * (high + _BLOCK_LOSS)
        low, high = ((n + 2 - 1) * self.stem_stride + self.stem_kernel for n in (low, high))
        return range(low, high + self.stem_stride)  # a strided stem ignores the last odd pixels

    @property
    def period(self) -> int:
        """Step of the deepest pooling grid, px: tiles at multiples of it join without seam."""
        return self.stem_stride * 2 ** (self.num_blocks - 1)

    # ---- U-Net ----------------------------------------------------------------------------------

    @property
    def num_ups(self) -> int:
        """Steps of the expansive path."""
        return self.num_blocks - 2

    @property
    def output_stride(self) -> int:
        """Distance of neighboring output pixels, px."""
        return 2 * self.stem_stride

    @property
    def receptive_field(self) -> int:
        """Input side = output side * `output_stride` + this."""
        return self._input_for_bottom(0) - self.output_stride * self._output_for_bottom(0)

    @property
    def smallest_valid_size(self) -> int:
        """Smallest input side with an output; valid are this plus multiples of `period`."""
        bottom = 1
        while self._output_for_bottom(bottom) < 1:
            bottom += 1
        return self._input_for_bottom(bottom)

    def is_valid_size(self, side: int) -> bool:
        """Whether every pooling of the U-Net sees an even side and an output is left."""
        return side >= self.smallest_valid_size and self._excess(side) == 0

    def nearest_valid_sizes(self, side: int) -> tuple[int, ...]:
        """The one or two valid sides around `side`; `(side,)` if it is valid itself."""
        if side <= self.smallest_valid_size:
            return (self.smallest_valid_size,)
        excess = self._excess(side)
        return (side - excess, side - excess + self.period) if excess else (side,)

    def output_size(self, side: int) -> int:
        """Output side of the U-Net.

        Raises:
            ValueError: if the input side is not valid; names the nearest ones.
        """
        if not self.is_valid_size(side):
            nearest = " and ".join(f"{size} px" for size in self.nearest_valid_sizes(side))
            raise ValueError(
                f"an image of {side} px does not fit the pooling grid: valid sides are"
                f" {self.smallest_valid_size} + {self.period} n px, the nearest {nearest}"
            )
        return (side - self.receptive_field) // self.output_stride

    def atlas_size(self, side: int) -> int:
        """Side of the atlas patch, in atlas px of `output_stride` image px each."""
        return self.block_sizes(side)[0] // 2 + ATLAS_KERNEL - 1

    # ---- where pixels lie -----------------------------------------------------------------------

    @property
    def output_origin(self) -> float:
        """Position of output pixel 0 in the input; pixel k sits `output_stride` * k further.

        Every layer is symmetric at valid sizes, so input and output share their center; the side
        cancels.
        """
        return (self.receptive_field - 1 + self.output_stride) / 2

    @property
    def atlas_origin(self) -> float:
        """Position of atlas pixel 0 in the input (outside it: negative)."""
        block1 = (self.stem_kernel - 1) / 2 + 1.5 * self.stem_stride  # first pixel after pooling
        return block1 - (ATLAS_KERNEL - 1) / 2 * self.output_stride

    @property
    def label_offset(self) -> int:
        """Image top = `output_stride` * (label row of output row 0) - this.

        Pixel m of a label image covers px [stride * m, stride * (m + 1)), so its center is at
        stride * m + (stride - 1) / 2; where that falls between two px, half a px is left.
        """
        return int((self.output_origin - (self.output_stride - 1) / 2) // 1)

    @property
    def atlas_offset(self) -> int:
        """Atlas row of atlas pixel 0 = label row of output row 0 - this."""
        return round((self.output_origin - self.atlas_origin) / self.output_stride)

    # ---- everything is linear in the side of the last block's map -------------------------------

    def _input_for_bottom(self, bottom: int) -> int:
        for _ in range(self.num_blocks - 1):
            bottom = 2 * (bottom + _BLOCK_LOSS)
        return (bottom + 2 - 1) * self.stem_stride + self.stem_kernel

    def _output_for_bottom(self, bottom: int) -> int:
        for _ in range(self.num_ups):
            bottom = 2 * bottom - _BLOCK_LOSS
        return bottom

    def _excess(self, side: int) -> int:
        return (side - self.smallest_valid_size) % self.period
