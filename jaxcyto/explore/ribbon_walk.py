"""The cortical ribbon of sections as curves: evenly spaced positions, in order, and their geometry.

Where a section cuts a hemisphere, the cut falls into curves: an open one from the edge of the
cortex to another, or a closed one, which is opened where the walk starts. Neighbors on a curve are
neighbors in the cortical sheet.
"""

import dataclasses
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import potpourri3d as pp3d

from jaxcyto.brain.manifest import SPLITS, Brain, need_hemispheres
from jaxcyto.brain.registration import Registration, in_image, registration
from jaxcyto.brain.sampling.patches import DTYPES, Patches, sections_sha256
from jaxcyto.brain.sampling.ribbon import (
    MIN_THICKNESS_MM,
    CutSurface,
    Segments,
    cut_surface,
    mean_normal,
)
from jaxcyto.brain.sections.section import open_section
from jaxcyto.brain.surfaces.smoothing import smooth, vertex_normals
from jaxcyto.brain.surfaces.surface import Surface
from jaxcyto.errors import InputError

STEP_MM = 0.5
JOINED_MM = 1e-6  # segments whose ends are this close go on: rounding moves them by 1e-14
CURVATURE_FWHM_MM = 2.0  # the side of a patch: it does not see finer bends as such


@dataclasses.dataclass(frozen=True, eq=False)
class Curves:
    """Positions along curves, N of them, curve by curve.

    Attributes:
        patches: the positions, as patches centered there.
        curve: number of the curve, int32 [N], rising.
        arc_mm: length along it, float64 [N].
        curvature: signed mean curvature of the surface, 1/mm, float32 [N] (`mean_curvature`).
        obliqueness: of the cut, degrees, float32 [N]: 0 where the section is perpendicular to the
            surface, 90 where it is tangent to it; arcsin |section normal . surface normal|.
    """

    patches: Patches
    curve: np.ndarray
    arc_mm: np.ndarray
    curvature: np.ndarray
    obliqueness: np.ndarray

    def __len__(self) -> int:
        return len(self.curve)


def walk_ribbons(
    brain: Brain,
    sections: Sequence[int],
    *,
    patch_px: int,
    um_per_px: float,
    step_mm: float = STEP_MM,
    depth: float | None = None,
    min_thickness_mm: float = MIN_THICKNESS_MM,
) -> Curves:
    """Positions every `step_mm` along the ribbons of sections, as far as their images reach.

    Args:
        brain: with hemispheres.
        sections: rows of its section table.
        patch_px: side of the patches.
        um_per_px: their resolution.
        step_mm: spacing along a curve; shorter curves are left out.
        depth: as for `sample_patches`.
        min_thickness_mm: as for `sample_patches`.

    Raises:
        InputError: no hemisphere, a file cannot be read, or the sections do not meet the cortex.
    """
    need_hemispheres(brain, "walking along the cortex")
    found = [cut_surface(each, depth, min_thickness_mm) for each in brain.hemispheres]
    shapes, places = [], []
    for index in sections:
        row = brain.sections[index]
        with open_section(row.image, row.pixel_um, brain.background) as section:
            shapes.append(section.shape)
        places.append(registration(row, shapes[-1]))
    axis = mean_normal(places) if places else np.array([0.0, 1.0, 0.0])
    cutters = [CutSurface(surface, cortex, axis) for surface, cortex in found]
    geometry = [(mean_curvature(surface), vertex_normals(surface)) for surface, _ in found]
    parts: list[dict[str, np.ndarray]] = []
    for index, shape, place in zip(sections, shapes, places, strict=True):
        for number, cutter in enumerate(cutters):
            curvature, normals = geometry[number]
            for segments in _curves(cutter.cut(place), place, shape):
                length = segments.length_mm.sum()
                count = int(length / step_mm)
                if count < 2:
                    continue
                arc = (np.arange(count) - (count - 1) / 2) * step_mm + length / 2
                part = _positions(segments, arc, place, cutter.faces, curvature, normals)
                part |= {
                    "section": np.full(count, index),
                    "hemisphere": np.full(count, number),
                    "split": np.full(count, _split(brain, index)),
                    "curve": np.full(count, len(parts)),
                }
                parts.append(part)
    if not parts:
        names = ", ".join(brain.sections[index].name for index in sections) or "none given"
        raise InputError(
            f"{brain.root}: sections {names}: no ribbon of {2 * step_mm:g} mm; give sections that "
            "cut the cortex (`jaxcyto check` tells where surfaces and sections lie)"
        )
    merged = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    arrays = {name: merged[name].astype(dtype) for name, (dtype, _) in DTYPES.items()}
    settings = {
        "patch_px": patch_px,
        "um_per_px": um_per_px,
        "depth": depth,
        "sections_sha256": sections_sha256(brain),
    }
    return Curves(
        patches=Patches(**arrays, settings=settings),
        curve=merged["curve"].astype(np.int32),
        arc_mm=merged["arc_mm"],
        curvature=merged["curvature"].astype(np.float32),
        obliqueness=merged["obliqueness"].astype(np.float32),
    )


def _positions(
    segments: Segments,
    arc_mm: np.ndarray,
    place: Registration,
    faces: np.ndarray,
    curvature: np.ndarray,
    normals: np.ndarray,
) -> dict[str, np.ndarray]:
    """What there is to know of positions [N] along a curve, by the names of `Curves`."""
    segment, points, bary = segments.at(arc_mm)
    face = segments.face[segment]
    corners = faces[face]
    normal = (normals[corners] * bary[:, :, None]).sum(1)
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
    column, row, _ = place.to_px(points)
    return {
        "center_px": np.stack([column, row], -1),
        "position_mm": points,
        "face": face,
        "bary": bary,
        "arc_mm": arc_mm,
        "curvature": (curvature[corners] * bary).sum(1),
        "obliqueness": np.rad2deg(np.arcsin(np.abs(normal @ place.normal).clip(0, 1))),
    }


def mean_curvature(surface: Surface, fwhm_mm: float = CURVATURE_FWHM_MM) -> np.ndarray:
    """Signed mean curvature H [V] in 1/mm, smoothed along the surface.

    2 H n = L x / A with the cotangent Laplacian L and the area A of a vertex (Meyer et al. 2003,
    "Discrete differential-geometry operators for triangulated 2-manifolds", equation 8, with a
    third of the triangles as area). Positive where a closed surface bulges outwards, as on a gyral
    crown; 1 / r on a sphere. At the border of an open surface it is not defined and counts as 0.
    Single vertices are off by some 20 % (their share of the area is), means over a few are not.
    """
    vertices, faces = surface.vertices, surface.faces
    area = pp3d.vertex_areas(vertices, faces)
    flow = pp3d.cotan_laplacian(vertices, faces, denom_eps=1e-10) @ vertices
    first, second, third = (vertices[faces[:, k]] - vertices.mean(axis=0) for k in range(3))
    volume = (first * np.cross(second, third)).sum()
    normal = vertex_normals(surface) * (np.sign(volume) or 1.0)
    curvature = (flow * normal).sum(axis=1) / 2 / np.maximum(area, 1e-9 * area.mean())
    curvature[_border(faces)] = 0.0
    if fwhm_mm:
        return smooth(surface, curvature[:, None], fwhm_mm)[:, 0]
    return curvature


def _border(faces: np.ndarray) -> np.ndarray:
    """Vertices on an edge with one triangle."""
    edges = np.stack([faces, np.roll(faces, -1, axis=1)], -1).reshape(-1, 2)
    edges, count = np.unique(np.sort(edges, axis=1), axis=0, return_counts=True)
    return np.unique(edges[count == 1])


def _curves(segments: Segments, place: Registration, shape: tuple[int, int]) -> list[Segments]:
    """The curves that segments (in order, see `ribbon.chain`) form within the image."""
    column, row, _ = place.to_px(segments.middle_mm)
    segments = segments.select(in_image(column, row, shape))
    step = np.linalg.norm(segments.points_mm[1:, 0] - segments.points_mm[:-1, 1], axis=1)
    bounds = [0, *(np.flatnonzero(step > JOINED_MM) + 1).tolist(), len(segments.face)]
    ranges = [np.arange(a, b) for a, b in pairwise(bounds)]
    return [segments.select(own) for own in ranges if len(own)]


def _split(brain: Brain, index: int) -> int:
    split = brain.sections[index].split
    return SPLITS.index(split) if split else SPLITS.index("exclude")
