"""Draw cells as stamps: soft ellipses whose position is rounded to a quarter of a pixel."""

import numpy as np

SIZES_UM = np.geomspace(4, 26, 10)  # diameters of the stamps. A cell takes the nearest.
PHASES, ANGLES = 4, 8  # sub-pixel positions per axis, and orientations of the stamps
ELONGATION = 1.35  # ratio of long to short axis. Long axes lie across the layers.


class Stamps:
    """Stamps of each size, sub-pixel position and orientation.

    The sum of a stamp is exactly the area of its ellipse.

    Args:
        um_per_px: pixel size of the image.
        blur_um: width of the optical blur.
    """

    def __init__(self, um_per_px: float, blur_um: float):
        self.um_per_px = um_per_px
        angles = ANGLES if um_per_px < 8 else 1  # orientation is not visible in coarser images
        self.num_angles = angles
        # Each pixel is the mean of fine x fine samples of about 0.5 um. `soft` is the width of the
        # ellipses' edges in um.
        fine = max(1, round(um_per_px / 0.5)) if um_per_px >= 1 else 1
        soft = 0.4 + blur_um / 2
        turn = np.arange(angles) * np.pi / angles
        phase = (np.arange(PHASES) + 0.5) / PHASES - 0.5
        self.bank = []
        for size in SIZES_UM:
            reach = int(np.ceil((size / 2 * ELONGATION**0.5 + 3 * soft) / um_per_px + 0.5))
            side = 2 * reach + 1
            at = ((np.arange(side * fine) + 0.5) / fine - 0.5 - reach).astype(np.float32)
            y = (at[None] - phase[:, None])[:, None, None, :, None] * um_per_px
            x = (at[None] - phase[:, None])[None, :, None, None, :] * um_per_px
            c, s = np.cos(turn)[:, None, None], np.sin(turn)[:, None, None]
            along = (x * c + y * s) / ELONGATION**0.5
            across = (y * c - x * s) * ELONGATION**0.5
            inside = 1 / (1 + np.exp(np.clip((np.hypot(along, across) - size / 2) / soft, -30, 30)))
            stamp = inside.reshape(PHASES, PHASES, angles, side, fine, side, fine).mean((4, 6))
            area_px = np.pi / 4 * size**2 / um_per_px**2
            stamp *= area_px / stamp.sum((3, 4), keepdims=True)
            self.bank.append(stamp.reshape(-1, side * side).astype(np.float32))
        self.margin = max(int(bank.shape[1] ** 0.5) // 2 for bank in self.bank) + 1

    def draw(self, shape: tuple[int, int], top: int, lists) -> np.ndarray:
        """Draw cells on the rows [top, top + height) of the image.

        Args:
            shape: (height, width) of the block in image px.
            top: first row of the block.
            lists: several lists of cells, each (row, column, diameter_um, angle).

        Returns:
            float32 [height, width], the share of each pixel that cells cover. Overlaps add up.
        """
        # The canvas has margins on all sides, so that no stamp needs to be clipped.
        margin = self.margin
        width = shape[1] + 2 * margin
        canvas = np.zeros((shape[0] + 4 * margin) * width, np.float32)
        edges = np.log(SIZES_UM[:-1] * SIZES_UM[1:]) / 2
        for row, column, diameter, angle in lists:
            near = (row > top - margin) & (row < top + shape[0] + margin)
            row, column = row[near] - top, column[near]
            y, x = np.rint(row), np.rint(column)
            phase_y = np.clip(((row - y + 0.5) * PHASES).astype(np.int64), 0, PHASES - 1)
            phase_x = np.clip(((column - x + 0.5) * PHASES).astype(np.int64), 0, PHASES - 1)
            turn = np.rint(angle[near] * self.num_angles / np.pi).astype(np.int64) % self.num_angles
            stamp = (phase_y * PHASES + phase_x) * self.num_angles + turn
            center = (y.astype(np.int64) + 2 * margin) * width + x.astype(np.int64) + margin
            size = np.searchsorted(edges, np.log(diameter[near]))
            order = np.argsort(size.astype(np.uint8), kind="stable")
            ends = np.cumsum(np.bincount(size, minlength=len(self.bank)))
            for bank, end, count in zip(self.bank, ends, np.diff(ends, prepend=0), strict=True):
                chosen = order[end - count : end]
                reach = int(bank.shape[1] ** 0.5) // 2
                step = np.arange(-reach, reach + 1)
                offset = (step[:, None] * width + step).ravel()
                for start in range(0, len(chosen), 1 << 14):
                    part = chosen[start : start + (1 << 14)]
                    index = center[part][:, None] + offset
                    np.add.at(canvas, index.ravel(), bank[stamp[part]].ravel())
        return canvas.reshape(-1, width)[2 * margin : -2 * margin, margin:-margin]
