"""Draw how one section comes out of the laboratory: its stain, optics, tears, folds and dirt."""

import dataclasses

import numpy as np

GRID_UM = 16.0  # pixel size of the grid on which tissue is laid out, that of the label images


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A stroke along an arc of a parabola.

    Attributes:
        kind: "tear" (no tissue), "fold" (tissue lies double) or "blob" (dirt on and off tissue).
        column, row: center, grid px.
        angle: direction of the stroke, radians.
        reach_px: half of its length, grid px.
        half_width_px: half of its width in the middle, grid px. The width tapers off to the ends.
        bend: how far the ends are displaced sideways, in half widths.
    """

    kind: str
    column: float
    row: float
    angle: float
    reach_px: float
    half_width_px: float
    bend: float

    def mask(self, top: int, height: int, width: int) -> tuple[tuple[slice, slice], np.ndarray]:
        """Rasterize the stroke on the rows [top, top + height) of the grid.

        Returns:
            The (rows, columns) of the window that the stroke may touch, and a bool mask of the
            window.
        """
        reach = self.reach_px + self.half_width_px + 2
        rows = slice(
            int(np.clip(self.row - reach - top, 0, height)),
            int(np.clip(self.row + reach - top, 0, height)),
        )
        columns = slice(
            int(np.clip(self.column - reach, 0, width)), int(np.clip(self.column + reach, 0, width))
        )
        y = np.arange(rows.start, rows.stop)[:, None] + top - self.row
        x = np.arange(columns.start, columns.stop)[None] - self.column
        along = (x * np.cos(self.angle) + y * np.sin(self.angle)) / self.reach_px
        across = (y * np.cos(self.angle) - x * np.sin(self.angle)) / self.half_width_px
        taper = np.sqrt(np.clip(1 - along**2, 0, 1))
        return (rows, columns), np.abs(across - self.bend * along**2) < taper


@dataclasses.dataclass(frozen=True)
class Look:
    """The acquisition of one section. It is drawn independently of the section's position.

    Attributes:
        gain: factor of the darkness of tissue.
        offset: gray value that is added to tissue.
        blur_um: width of the optical blur, um.
        background: gray value of the background.
        noise: standard deviation of the noise, gray values.
        artifacts: tears, folds and blobs.
    """

    gain: float
    offset: float
    blur_um: float
    background: float
    noise: float
    artifacts: tuple[Artifact, ...]


def draw_look(shape: tuple[int, int], artifacts: float, rng: np.random.Generator) -> Look:
    """Draw stain, optics and artifacts at random.

    Args:
        shape: (height, width) of the section's grid.
        artifacts: mean number of artifacts.
        rng: generator.
    """
    strokes = []
    for _ in range(rng.poisson(artifacts)):
        kind = str(rng.choice(["tear", "fold", "blob"], p=[0.4, 0.25, 0.35]))
        reach_mm, width_mm, bend = {
            "tear": (rng.uniform(0.3, 3), rng.uniform(0.03, 0.15), rng.uniform(-4, 4)),
            "fold": (rng.uniform(1, 5), rng.uniform(0.1, 0.3), rng.uniform(-3, 3)),
            "blob": (rng.uniform(0.05, 0.5), rng.uniform(0.05, 0.4), 0.0),
        }[kind]
        strokes.append(
            Artifact(
                kind=kind,
                column=rng.uniform(0, shape[1]),
                row=rng.uniform(0, shape[0]),
                angle=rng.uniform(0, np.pi),
                reach_px=reach_mm * 1000 / GRID_UM,
                half_width_px=width_mm * 1000 / GRID_UM,
                bend=bend,
            )
        )
    return Look(
        gain=rng.uniform(0.85, 1.15),
        offset=rng.uniform(-8, 8),
        blur_um=rng.uniform(0.3, 2.0),
        background=rng.uniform(238, 252),
        noise=rng.uniform(1.5, 4),
        artifacts=tuple(strokes),
    )
