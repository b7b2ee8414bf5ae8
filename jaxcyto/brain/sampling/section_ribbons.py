"""Cut all hemispheres by each section, and assign the resulting ribbon to the splits.

A piece of ribbon belongs to the split of its section. In a brain of one or few sections it can
instead belong to the split of its position along an axis.
"""

import dataclasses

import numpy as np

from jaxcyto.brain.manifest import SPLITS, Brain
from jaxcyto.brain.registration import Registration, in_image, registration
from jaxcyto.brain.sampling.ribbon import (
    TRAP,
    CutSurface,
    Segments,
    cut_surface,
    mean_normal,
    no_overlap,
)
from jaxcyto.brain.sampling.splits import EXCLUDE, GAP_MM, TEST, TRAIN, VAL, blocks
from jaxcyto.brain.sections.section import open_section
from jaxcyto.errors import InputError
from jaxcyto.utils.progress import Progress

BIN_MM = 0.05  # resolution of the borders between splits along an axis


@dataclasses.dataclass(frozen=True, eq=False)
class Ribbon:
    """The ribbon of one section over all hemispheres, as M segments."""

    hemisphere: np.ndarray  # index of the hemisphere of each segment [M]
    split: np.ndarray  # index into `manifest.SPLITS` of each segment [M]
    segments: Segments


class Cutter:
    """Cuts all surfaces by a section and keeps the part that the section's image covers.

    Args:
        brain: the brain.
        depth: depth of the surfaces that are cut, see `ribbon.cut_surface`.
        min_thickness_mm: thinner cortex is left out.
        progress: called with (sections opened, sections).
    """

    def __init__(
        self,
        brain: Brain,
        depth: float | None,
        min_thickness_mm: float,
        progress: Progress | None,
    ):
        self.brain = brain
        self.shapes = []
        for row in brain.sections:
            with open_section(row.image, row.pixel_um, brain.background, brain.bits) as section:
                self.shapes.append(section.shape)
            if progress:
                progress(len(self.shapes), len(brain.sections))
        self.registrations: list[Registration] = [
            registration(row, shape) for row, shape in zip(brain.sections, self.shapes, strict=True)
        ]
        surfaces = [cut_surface(each, depth, min_thickness_mm) for each in brain.hemispheres]
        self.surfaces = [surface for surface, _ in surfaces]
        axis = mean_normal(self.registrations)
        self._cut = [CutSurface(surface, cortex, axis) for surface, cortex in surfaces]
        # Set by `split_along`: the axis [3], the lower edges of its bins and the split of each bin.
        self.split_cuts: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None

    def covered(self, index: int) -> tuple[np.ndarray, Segments]:
        """Return the hemisphere [M] and the M segments that one section's image covers."""
        parts = [surface.cut(self.registrations[index]) for surface in self._cut]
        hemisphere = np.repeat(np.arange(len(parts)), [len(part.face) for part in parts])
        segments = Segments.joined(parts)
        column, row, _ = self.registrations[index].to_px(segments.middle_mm)
        keep = in_image(column, row, self.shapes[index])
        return hemisphere[keep], segments.select(keep)

    def ribbon(self, index: int) -> Ribbon:
        """Return the covered ribbon of one section, without pieces that belong to no split."""
        hemisphere, segments = self.covered(index)
        if self.split_cuts is None:
            split = np.full(len(hemisphere), SPLITS.index(self.brain.sections[index].split))
        else:
            axis, edges, kinds = self.split_cuts
            bins = np.searchsorted(edges, segments.middle_mm @ axis, "right") - 1
            split = kinds[np.clip(bins, 0, len(kinds) - 1)]
        keep = split != EXCLUDE
        return Ribbon(hemisphere[keep], split[keep], segments.select(keep))

    def check_overlap(self, ribbon_mm: float) -> None:
        """Raise InputError if there is no ribbon, with the distance of sections and surfaces."""
        if not ribbon_mm > 0:
            raise InputError(
                f"{self.brain.root}: no section cuts the cortex.\n"
                f"{no_overlap(self.brain, self.surfaces, self.registrations)}\n{TRAP}"
            )

    def split_along(
        self, axis: str, fractions: tuple[float, float, float], extent_mm: float
    ) -> float:
        """Divide the ribbons across an axis, so that train, val and test get their shares.

        Args:
            axis: x, y or z.
            fractions: shares of train, val and test.
            extent_mm: side of a window. Windows of two splits do not overlap.

        Returns:
            The gap between splits in mm.

        Raises:
            InputError: if there is no ribbon, or it leaves no room for the splits and their gaps.
        """
        direction = np.eye(3)["xyz".index(axis)]
        # Two square windows whose centers are this far apart along the axis cannot overlap.
        gap, longest = GAP_MM, 0.0
        for each in self.registrations:
            frame = each.affine[:, :2] / np.linalg.norm(each.affine[:, :2], axis=0)
            gap = max(gap, extent_mm * float(np.abs(direction @ frame).sum()))
        along, length = [], []
        for index in range(len(self.registrations)):
            _, segments = self.covered(index)
            along.append(segments.middle_mm @ direction)
            length.append(segments.length_mm)
            longest = max(longest, segments.length_mm.max(initial=0))
        along, length = np.concatenate(along), np.concatenate(length)
        self.check_overlap(length.sum())
        bins = np.floor((along - along.min()) / BIN_MM).astype(int)
        weight = np.bincount(bins, length)
        position = along.min() + BIN_MM * np.arange(len(weight))
        kinds = [kind for kind in (TRAIN, VAL, TEST) if fractions[kind] > 0]
        parts = np.array([fractions[kind] for kind in kinds]) / sum(fractions)
        # Segments are assigned by their midpoint, so they and the bins reach into the gap.
        block = blocks(position, weight, parts, gap + longest + BIN_MM, least=0.2)
        if block is None:
            raise InputError(
                f"{self.brain.root}: {np.ptp(along):.1f} mm of ribbon along {axis} leave no room "
                f"for splits {gap:.2f} mm apart; take another axis or smaller windows"
            )
        self.split_cuts = (direction, position, np.append(kinds, EXCLUDE)[block])
        return gap
