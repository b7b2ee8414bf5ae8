"""How windows of one size cover a section, and which size.

A window reads `tile_px` image px and gives `output` map px. Windows start at multiples of the
period of the pooling grid, so that neighbors join without a seam; all have one size, so that the
network is compiled once: the last ones overhang the section and see background there.
"""

import dataclasses
import math

from jaxcyto.errors import InputError
from jaxcyto.models import Geometry

# Largest window by default: beyond it, the margins cost less than what is computed (at the paper's
# size 5097 px, of which 3616 are kept: four times less work for a map px than at 2025).
MARGIN_WORK = 2.0


@dataclasses.dataclass(frozen=True)
class Tiling:
    """Windows of `tile_px` image px for one network.

    Raises:
        InputError: the network takes no window of that size.
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
        """Side of what one window gives, map px."""
        return self.geometry.output_size(self.tile_px)

    @property
    def step(self) -> int:
        """Distance of neighboring windows, map px: all of the output that is whole periods."""
        return self.output // _period(self.geometry) * _period(self.geometry)

    def origins(self, shape: tuple[int, int]) -> list[tuple[int, int]]:
        """(row, column) of the first map px of each window, row by row, for a map of `shape`."""
        height, width = shape
        return [
            (row, column)
            for row in range(0, height, self.step)
            for column in range(0, width, self.step)
        ]


def valid_sizes(geometry: Geometry, side: int) -> list[int]:
    """The one or two sides around `side` that windows of a tiling can have."""
    smallest = _side(geometry, 1)
    return [size for size in geometry.nearest_valid_sizes(side) if size >= smallest] or [smallest]


def choose_tile(
    geometry: Geometry, longest: int, at_least: int, memory_bytes: float, bytes_per_px: float
) -> int:
    """The side of the windows, image px.

    As large as memory allows and pays (`MARGIN_WORK`), no larger than the map needs for the number
    of windows it then takes.

    Args:
        geometry: of the network.
        longest: longest side of a map, map px.
        at_least: smallest side, image px: that of training.
        memory_bytes: what the device can give.
        bytes_per_px: what a window takes for each of its px.
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
    """Image px read for each that the output covers."""
    side = _side(geometry, periods)
    return (side / (geometry.output_size(side) * geometry.output_stride)) ** 2


def _period(geometry: Geometry) -> int:
    """Of the pooling grid, map px."""
    return geometry.period // geometry.output_stride


def _side(geometry: Geometry, periods: int) -> int:
    """Smallest valid side whose output is at least so many periods."""
    side = geometry.smallest_valid_size
    missing = periods * _period(geometry) - geometry.output_size(side)
    return side + max(0, math.ceil(missing / _period(geometry))) * geometry.period
