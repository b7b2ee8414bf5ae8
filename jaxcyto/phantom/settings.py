"""Define the settings of a phantom brain and the planes of its sections."""

import dataclasses

import numpy as np

from jaxcyto.brain.annotation.prisms import Cut, cut_prisms
from jaxcyto.errors import InputError
from jaxcyto.phantom.acquisition import GRID_UM
from jaxcyto.phantom.cortex import Cortex


@dataclasses.dataclass(frozen=True)
class PhantomSettings:
    """The settings of a phantom brain. They determine the brain completely.

    Attributes:
        seed: seed of all random draws. Each section draws from its own generators.
        individual: another value gives another individual. Individuals share the areas and the
            profiles on the unfolded surface, and differ in folds, stains and annotations.
        long_axis_mm: length of a hemisphere before folding.
        mesh_subdivisions: n subdivisions of an icosahedron give a hemisphere 10 * 4**n + 2
            vertices.
        num_areas: number of areas of each hemisphere. One hemisphere mirrors the other.
        num_other: number of further regions with profiles of their own, which are all labeled
            "other cortex".
        num_sections: number of coronal sections, evenly spaced about the middle of the brain.
        spacing_mm: distance between sections.
        um_per_px: pixel size of the images. It must divide 16 um.
        annotated_fraction: annotated share of each section's label image.
        artifacts: mean number of tears, folds and blobs in a section.
        atlas: whether atlas images are written.
        null: whether all of the cortex has the same profile. All else is equal.
        compression: compression of the images, see `brain.sections.writer.write_section`.
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
        """Seed of everything that differs between individuals."""
        return self.seed + (self.individual << 32)

    def __post_init__(self):
        factor = GRID_UM / self.um_per_px
        if abs(factor - round(factor)) > 1e-9 or factor < 1:
            raise InputError(
                f"um_per_px = {self.um_per_px:g}: label images have {GRID_UM:g} um, which must be "
                "an integer multiple of it; set 1, 2, 4, 8 or 16"
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
    """The plane of one section.

    Attributes:
        number: index of the section.
        affine: affine [3, 4] from grid pixels to mm.
        shape: (height, width) of the grid.
    """

    number: int
    affine: np.ndarray
    shape: tuple[int, int]


def coronal_plans(
    cortex: Cortex, positions_mm: np.ndarray, seed: int, margin_mm: float = 0.6
) -> list[SectionPlan]:
    """Plan coronal sections, which are rotated in their plane by up to 2 degrees.

    Columns run along +x and rows along -z. All images have the same size and contain the whole cut.

    Args:
        cortex: the surfaces.
        positions_mm: y of each section.
        seed: seed of the rotations.
        margin_mm: margin around the cortex.
    """
    y = cortex.pial[:, 1]
    reach = 2.0  # mm, longer than an edge of the mesh, so that all cut faces count
    near = (y > positions_mm.min() - reach) & (y < positions_mm.max() + reach)
    low, high = cortex.pial[near].min(0) - margin_mm, cortex.pial[near].max(0) + margin_mm
    turn = np.deg2rad(2.0)
    center, half = (low + high) / 2, (high - low) / 2
    half_x = half[0] * np.cos(turn) + half[2] * np.sin(turn)
    half_z = half[2] * np.cos(turn) + half[0] * np.sin(turn)
    step = GRID_UM / 1000
    height, width = int(np.ceil(2 * half_z / step)), int(np.ceil(2 * half_x / step))
    plans = []
    for index, y in enumerate(positions_mm):
        angle = np.random.default_rng((seed, 4, index)).uniform(-turn, turn)
        column = step * np.array([np.cos(angle), 0, np.sin(angle)])
        row = step * np.array([np.sin(angle), 0, -np.cos(angle)])
        origin = np.array([center[0], y, center[2]]) - (width - 1) / 2 * column
        origin -= (height - 1) / 2 * row
        plans.append(
            SectionPlan(index, np.stack([column, row, 0 * row, origin], 1), (height, width))
        )
    return plans


def cut_cortex(cortex: Cortex, grid_affine: np.ndarray) -> Cut:
    """Cut the cortex by the plane of a grid.

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
    """Return the affine [3, 4] from image pixels to mm.

    Grid pixel m covers image pixels [m f, (m + 1) f) with f = GRID_UM / um_per_px.
    """
    factor = GRID_UM / um_per_px
    shift = (1 / factor - 1) / 2  # grid coordinate of image pixel 0
    affine = plan.affine.copy()
    affine[:, :2] /= factor
    affine[:, 3] += shift * (plan.affine[:, 0] + plan.affine[:, 1])
    return affine
