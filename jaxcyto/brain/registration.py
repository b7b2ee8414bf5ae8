"""Map (column, row) of a section image, in px at full resolution, to positions in mm and back.

The section table gives a registration in one of two forms:

* `affine` [3, 4]: mm = affine @ [column, row, 0, 1], with pixel centers at integers.
* A coordinate map, for a non-linear registration. It is a float32 (or float64) `.npy` file
  [h, w, 3] of positions in mm. Its nodes cover the image evenly from corner pixel to corner pixel.
  In an image of H x W px, node (i, j) lies at column j (W - 1) / (w - 1) and row
  i (H - 1) / (h - 1). The map is bilinear between the nodes. Outside of the image its outermost
  cells are extrapolated.
"""

import dataclasses
from pathlib import Path

import numpy as np

from jaxcyto.brain.manifest import SectionRow
from jaxcyto.brain.sections.section import open_section
from jaxcyto.errors import InputError
from jaxcyto.utils.files import READ_ERRORS, read_npy

MAX_MAP_NODES = 1 << 24
NEWTON_STEPS = 30  # at most. The iteration ends earlier at steps below 1e-6 px.


@dataclasses.dataclass(frozen=True, eq=False)
class AffineRegistration:
    """The registration of a flat section. `affine` [3, 4] maps [column, row, 0, 1] to mm."""

    affine: np.ndarray

    @property
    def bend_mm(self) -> float:
        """Largest distance of the section from its plane, which is 0 here."""
        return 0.0

    @property
    def normal(self) -> np.ndarray:
        """Unit normal [3] of the plane: the cross product of column and row direction."""
        normal = np.cross(self.affine[:, 0], self.affine[:, 1])
        return normal / np.linalg.norm(normal)

    def to_mm(self, columns, rows) -> np.ndarray:
        """Map columns [N] and rows [N] (level 0 px) to positions [N, 3] in mm."""
        return _columns_rows(columns, rows) @ self.affine[:, :2].T + self.affine[:, 3]

    def to_px(self, points_mm) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Map positions [N, 3] in mm to columns [N], rows [N] (level 0 px) and offsets [N] in mm.

        The offset is the signed distance to the section along its normal.
        """
        frame = np.column_stack([self.affine[:, :2], self.normal])
        centered = np.asarray(points_mm, float) - self.affine[:, 3]
        column, row, offset = np.linalg.solve(frame, centered.T)
        return column, row, offset


@dataclasses.dataclass(frozen=True, eq=False)
class MapRegistration:
    """The registration of a section by a coarse coordinate map.

    Attributes:
        nodes: positions [h, w, 3] in mm.
        step_px: spacing of the nodes along (columns, rows).
        affine: least-squares fit of an affine [3, 4] to the nodes.
        bend_mm: largest distance of a node from the plane of the fitted affine.
    """

    nodes: np.ndarray
    step_px: tuple[float, float]
    affine: np.ndarray
    bend_mm: float

    @property
    def normal(self) -> np.ndarray:
        """Unit normal [3] of the plane of the fitted affine."""
        return AffineRegistration(self.affine).normal

    def to_mm(self, columns, rows) -> np.ndarray:
        """Map columns [N] and rows [N] (level 0 px) to positions [N, 3] in mm."""
        return self._sample(_columns_rows(columns, rows))[0]

    def to_px(self, points_mm) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Map positions [N, 3] in mm to columns [N], rows [N] (level 0 px) and offsets [N] in mm.

        Points are projected along the normal n of the fitted affine: (column, row) solves
        map(column, row) + offset n = point. The offset is therefore zero exactly on the section,
        and it is continuous everywhere. The equation is solved by Newton's method, which starts
        from the fitted affine.
        """
        points = np.asarray(points_mm, float).reshape(-1, 3)
        normal = self.normal
        column, row, _ = AffineRegistration(self.affine).to_px(points)
        pixels = np.stack([column, row], -1)
        for _ in range(NEWTON_STEPS):
            mapped, jacobian = self._sample(pixels)
            frame = np.concatenate([jacobian, np.broadcast_to(normal, mapped.shape)[..., None]], -1)
            step = np.linalg.solve(frame, (points - mapped)[..., None])[:, :2, 0]
            pixels = pixels + step
            if step.size == 0 or np.abs(step).max() < 1e-6:
                break
        offset = (points - self._sample(pixels)[0]) @ normal
        return pixels[:, 0], pixels[:, 1], offset

    def _sample(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Evaluate the bilinear map at pixels [N, 2].

        Returns:
            Positions [N, 3] in mm and their derivatives [N, 3, 2] by column and row.
        """
        height, width = self.nodes.shape[:2]
        grid = pixels / self.step_px
        j, i = np.clip(np.floor(grid).astype(int), 0, [width - 2, height - 2]).T
        x, y = (grid - np.stack([j, i], -1)).T[..., None]
        a, b, c, d = (self.nodes[i + di, j + dj] for di, dj in ((0, 0), (0, 1), (1, 0), (1, 1)))
        position = (1 - y) * ((1 - x) * a + x * b) + y * ((1 - x) * c + x * d)
        by_column = ((1 - y) * (b - a) + y * (d - c)) / self.step_px[0]
        by_row = ((1 - x) * (c - a) + x * (d - b)) / self.step_px[1]
        return position, np.stack([by_column, by_row], -1)


Registration = AffineRegistration | MapRegistration


def registration(row: SectionRow, shape: tuple[int, int] | None = None) -> Registration:
    """Return the registration of one section.

    Args:
        row: the section's row of the section table.
        shape: (height, width) of the image at full resolution. Only a coordinate map needs it. If
            it is not given, it is read from the image.

    Raises:
        InputError: if a coordinate map cannot be read or used.
    """
    if row.affine is not None:
        return AffineRegistration(np.asarray(row.affine, float))
    if row.coordinates is None:
        raise InputError(f"section {row.name}: neither affine nor coordinates is given")
    nodes = _read_map(row.coordinates)
    if shape is None:
        with open_section(row.image, row.pixel_um) as section:
            shape = section.shape
    return map_registration(nodes, shape, row.pixel_um, row.coordinates)


def map_registration(
    nodes: np.ndarray, shape: tuple[int, int], pixel_um: float, path: Path | str = "map"
) -> MapRegistration:
    """Create a registration from map nodes [h, w, 3] in mm.

    Args:
        nodes: positions [h, w, 3] in mm.
        shape: (height, width) of the image in px.
        pixel_um: pixel size of the image in um.
        path: name of the map in error messages.

    Raises:
        InputError: if the map folds, if its pixel size differs from `pixel_um` by more than a
            factor of two, or if the image is smaller than 2 x 2 px.
    """
    height, width = nodes.shape[:2]
    if min(shape) < 2:
        raise InputError(f"{path}: the image has {shape[0]} x {shape[1]} px; a map needs 2 x 2")
    nodes = nodes.astype(float)
    step = ((shape[1] - 1) / (width - 1), (shape[0] - 1) / (height - 1))
    rows, columns = np.mgrid[:height, :width]
    design = np.stack([columns * step[0], rows * step[1], np.ones(columns.shape)], -1)
    fit, _, rank, _ = np.linalg.lstsq(design.reshape(-1, 3), nodes.reshape(-1, 3), rcond=None)
    affine = np.column_stack([fit[0], fit[1], np.zeros(3), fit[2]])
    area = np.cross(affine[:, 0], affine[:, 1])
    size_um = 1000 * np.linalg.norm(affine[:, :2], axis=0)
    if rank < 3 or not np.all((size_um <= 2 * pixel_um) & (size_um >= pixel_um / 2)):
        raise InputError(
            f"{path}: a pixel spans {size_um[0]:.4g} x {size_um[1]:.4g} um, but pixel_um = "
            f"{pixel_um:g}; the map holds mm and must span the image from corner to corner"
        )
    # A bilinear cell is one-to-one if the Jacobian has the same sign at its four corners.
    normal = area / np.linalg.norm(area)
    across, down = np.diff(nodes, axis=1), np.diff(nodes, axis=0)
    corners = [
        np.cross(across[i : height - 1 + i], down[:, j : width - 1 + j]) @ normal
        for i in (0, 1)
        for j in (0, 1)
    ]
    folded = np.min(corners, axis=0) <= 0
    if folded.any():
        i, j = np.argwhere(folded)[0]
        raise InputError(f"{path}: the map folds over at node ({i}, {j}); smooth it there")
    bend = np.abs((nodes - affine[:, 3]) @ normal).max()
    return MapRegistration(nodes, step, affine, float(bend))


def _read_map(path: Path) -> np.ndarray:
    try:
        nodes = read_npy(path)
    except READ_ERRORS as error:
        raise InputError(f"{path}: not a coordinate map (.npy): {error}") from None
    if nodes.dtype not in (np.float32, np.float64) or nodes.ndim != 3 or nodes.shape[2] != 3:
        raise InputError(
            f"{path}: found {nodes.dtype} {list(nodes.shape)}; a coordinate map is float32 "
            "[h, w, 3] in mm"
        )
    if min(nodes.shape[:2]) < 2 or nodes.size // 3 > MAX_MAP_NODES:
        raise InputError(
            f"{path}: {nodes.shape[0]} x {nodes.shape[1]} nodes; at least 2 x 2 and at most "
            f"{MAX_MAP_NODES} (a coarse map; it is interpolated)"
        )
    with np.errstate(invalid="ignore"):  # signaling NaN in the file, which is rejected below
        nodes = np.array(nodes, dtype=float)
    if not np.isfinite(nodes).all():
        raise InputError(f"{path}: holds values that are not finite; fill or extrapolate them")
    if np.abs(nodes).max() > 1e6:  # the limit of the section table's affine
        raise InputError(f"{path}: holds values over 1e6; expected mm")
    return nodes


def in_image(column: np.ndarray, row: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return which points [N] (level 0 px) lie in an image of `shape` (height, width), bool [N]."""
    height, width = shape
    across = np.abs(column - (width - 1) / 2) < width / 2
    return across & (np.abs(row - (height - 1) / 2) < height / 2)


def _columns_rows(columns, rows) -> np.ndarray:
    return np.stack(np.broadcast_arrays(columns, rows), -1).astype(float)
