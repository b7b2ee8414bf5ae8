"""What a phantom brain is to be: its settings, and where its sections lie."""

import dataclasses

import numpy as np

from jaxcyto.brain.annotation.prisms import Cut, cut_prisms
from jaxcyto.errors import InputError
from jaxcyto.phantom.acquisition import GRID_UM
from jaxcyto.phantom.cortex import Cortex


@dataclasses.dataclass(frozen=True)
class PhantomSettings:
    """What is made; everything follows from these fields.

    Attributes:
        seed: of everything random. Each section draws from generators of its own.
        individual: another number is another brain of the same kind: the same areas and profiles
            on the unfolded surface, but other folds, stains and annotations.
        long_axis_mm: length of a hemisphere before folding.
        mesh_subdivisions: of the icosphere; a hemisphere has 10 * 4**n + 2 vertices.
        num_areas: areas of each hemisphere (the mirror image of the other one's).
        num_other: further regions with profiles of their own, labeled "other cortex" together.
        num_sections: coronal sections, evenly spaced about the middle of the brain.
        spacing_mm: between sections.
        um_per_px: of the images; 16 is a whole multiple of it.
        annotated_fraction: of each section's label image.
        artifacts: mean number of tears, folds and blobs in a section.
        atlas: whether atlas images are written.
        null: one profile everywhere, all else equal.
        compression: of the images; see `section_writer.write_section`.
    """

    seed: int = 0
    individual: int = 0
    long_axis_mm: float = 40.0
    mesh_subdivisions: int = 5
    num_areas: int = 12
    num_other: int = 3
    num_sections: int = 64
    spacing_mm: float = 0.7
    um_per_px: float = 16.0
    annotated_fraction: float = 0.5
    artifacts: float = 6.0
    atlas: bool = True
    null: bool = False
    compression: str | None = None

    @property
    def own_seed(self) -> int:
        """Of all that differs between individuals."""
        return self.seed + (self.individual << 32)

    def __post_init__(self):
        factor = GRID_UM / self.um_per_px
        if abs(factor - round(factor)) > 1e-9 or factor < 1:
            raise InputError(
                f"um_per_px = {self.um_per_px:g}: label images have {GRID_UM:g} um, which must be "
                "a whole multiple of it; give 1, 2, 4, 8 or 16"
            )


PRESETS = {
    "tiny": PhantomSettings(
        long_axis_mm=18, mesh_subdivisions=4, num_areas=6, num_other=2, num_sections=24,
        spacing_mm=0.8,
    ),
    "quickstart": PhantomSettings(),
    "full": PhantomSettings(
        long_axis_mm=21, num_sections=36, spacing_mm=0.6, um_per_px=2, compression="zstd"
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class SectionPlan:
    """One section: number, grid affine [3, 4] (mm of grid pixels) and grid (height, width)."""

    number: int
    affine: np.ndarray
    shape: tuple[int, int]


def coronal_plans(
    cortex: Cortex, positions_mm: np.ndarray, seed: int, margin_mm: float = 0.6
) -> list[SectionPlan]:
    """Sections at y = `positions_mm`, columns +x, rows -z, turned in plane by up to 2 degrees.

    Every image holds the whole cut; its size is the same for all.
    """
    y = cortex.pial[:, 1]
    reach = 2.0  # mm, more than an edge
    near = (y > positions_mm.min() - reach) & (y < positions_mm.max() + reach)
    low, high = cortex.pial[near].min(0) - margin_mm, cortex.pial[near].max(0) + margin_mm
    turn = np.deg2rad(2.0)
    center, half = (low + high) / 2, (high - low) / 2
    half_x = half[0] * np.cos(turn) + half[2] * np.sin(turn)
    half_z = half[2] * np.cos(turn) + half[0] * np.sin(turn)
    step = GRID_UM / 1000
    height, width = int(np.ceil(2 * half_z / step)), int(np.ceil(2 * half_x / step))
    plans = []
    for number, y in enumerate(positions_mm):
        angle = np.random.default_rng((seed, 4, number)).uniform(-turn, turn)
        column = step * np.array([np.cos(angle), 0, np.sin(angle)])
        row = step * np.array([np.sin(angle), 0, -np.cos(angle)])
        origin = np.array([center[0], y, center[2]]) - (width - 1) / 2 * column
        origin -= (height - 1) / 2 * row
        plans.append(
            SectionPlan(number, np.stack([column, row, 0 * row, origin], 1), (height, width))
        )
    return plans


def cut_cortex(cortex: Cortex, grid_affine: np.ndarray) -> Cut:
    """Cuts the cortex by the plane of a grid.

    Args:
        cortex: the surfaces.
        grid_affine: [3, 4], mm = affine @ [column, row, 0, 1] for grid pixels.
    """
    column, row = grid_affine[:, 0], grid_affine[:, 1]
    normal = np.cross(column, row)
    to_grid = np.linalg.inv(np.stack([column, row, normal / np.linalg.norm(normal)], axis=1))

    def project(vertices):
        return (vertices - grid_affine[:, 3]) @ to_grid.T

    return cut_prisms(project(cortex.pial), project(cortex.white), cortex.faces)


def image_affine(plan: SectionPlan, um_per_px: float) -> np.ndarray:
    """mm of image pixels [3, 4]: grid pixel m covers image pixels [m f, (m + 1) f)."""
    factor = GRID_UM / um_per_px
    shift = (1 / factor - 1) / 2  # grid coordinate of image pixel 0
    affine = plan.affine.copy()
    affine[:, :2] /= factor
    affine[:, 3] += shift * (plan.affine[:, 0] + plan.affine[:, 1])
    return affine
