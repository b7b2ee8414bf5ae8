"""Place windows of one size so that they cover a section, and choose their size.

A window reads `tile_px` image px and yields `output` map px per side. Windows start at multiples of
the period of the pooling grid, so that neighbors join without a seam. All windows have the same
size, so that the network is compiled once. The last windows extend beyond the section and read
background there.
"""

import dataclasses
import math

from jaxcyto.errors import InputError
from jaxcyto.models import Geometry

# Image px read for each px that the output covers, in the largest default window. Larger windows
# save little. For the paper's network, this window has 5097 px, of which 3616 are kept. This needs
# four times less work per map px than windows of 2025 px.
MARGIN_WORK = 2.0


@dataclasses.dataclass(frozen=True)
class Tiling:
    """Windows of `tile_px` image px for one network.

    Raises:
        InputError: the network does not take windows of this size.
    """

    geometry: Geometry
    tile_px: int

    def __post_init__(self) -> None:
        if not self.geometry.is_valid_size(self.tile_px) or not self.step:
            sizes = valid_sizes(self.geometry, self.tile_px)
            raise InputError(
                f"tiles of {self.tile_px} px do not fit the network's pooling grid: take "
                f"{' or '.join(map(str, sizes))}"
            )

    @property
    def output(self) -> int:
        """Side of the output of a window in map px."""
        return self.geometry.output_size(self.tile_px)

    @property
    def step(self) -> int:
        """Distance of neighboring windows in map px, the whole periods of the output."""
        return self.output // _period(self.geometry) * _period(self.geometry)

    def origins(self, shape: tuple[int, int]) -> list[tuple[int, int]]:
        """List the (row, column) of the first map px of each window, row by row, for a map."""
        height, width = shape
        return [
            (row, column)
            for row in range(0, height, self.step)
            for column in range(0, width, self.step)
        ]


def valid_sizes(geometry: Geometry, side: int) -> list[int]:
    """Return the one or two valid sides of windows nearest to `side`, in image px."""
    smallest = _side(geometry, 1)
    return [size for size in geometry.nearest_valid_sizes(side) if size >= smallest] or [smallest]


def choose_tile(
    geometry: Geometry, longest: int, at_least: int, memory_bytes: float, bytes_per_px: float
) -> int:
    """Choose the side of the windows in image px.

    Windows are as large as the memory allows, up to the size at which larger ones save little
    (`MARGIN_WORK`). The side is then reduced as far as the map can be covered by the same count of
    windows.

    Args:
        geometry: geometry of the network.
        longest: longest side of a map in map px.
        at_least: smallest side in image px, that of training.
        memory_bytes: available memory of a device.
        bytes_per_px: memory that a window needs for each of its px.
    """
    period = _period(geometry)
    low = high = max(1, Tiling(geometry, valid_sizes(geometry, at_least)[-1]).step // period)
    while _margin_work(geometry, high) > MARGIN_WORK:
        if _side(geometry, high + 1) ** 2 * bytes_per_px > memory_bytes:
            break
        high += 1
    windows = math.ceil(longest / (high * period))
    return _side(geometry, max(low, math.ceil(longest / windows / period)))


def _margin_work(geometry: Geometry, periods: int) -> float:
    """Compute the image px read for each image px that the output covers."""
    side = _side(geometry, periods)
    return (side / (geometry.output_size(side) * geometry.output_stride)) ** 2


def _period(geometry: Geometry) -> int:
    """Return the period of the pooling grid in map px."""
    return geometry.period // geometry.output_stride


def _side(geometry: Geometry, periods: int) -> int:
    """Compute the smallest valid side in image px with an output of at least `periods`."""
    side = geometry.smallest_valid_size
    missing = periods * _period(geometry) - geometry.output_size(side)
    return side + max(0, math.ceil(missing / _period(geometry))) * geometry.period
