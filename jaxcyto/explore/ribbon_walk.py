"""Walk along the cortical ribbon of sections and compute its geometry at evenly spaced positions.

A section cuts a hemisphere in one or several curves. An open curve runs from one edge of the cortex
to another. A closed curve is opened at its first position. Neighbors on a curve are neighbors in
the cortical sheet.
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

STEP_MM = 0.5  # assumption, the paper does not give the spacing
JOINED_MM = 1e-6  # segments with ends this close are joined. Rounding errors are about 1e-14 mm
CURVATURE_FWHM_MM = 2.0  # the side of a patch, which does not resolve finer curvature


@dataclasses.dataclass(frozen=True, eq=False)
class Curves:
    """N positions along curves, in order.

    Attributes:
        patches: patches centered at the positions.
        curve: index of the curve, int32 [N], in ascending order.
        arc_mm: arc length along the curve in mm, float64 [N].
        curvature: signed mean curvature of the surface in 1/mm, float32 [N]. See `mean_curvature`.
        obliqueness: angle between the section and the normal of the surface in degrees,
            float32 [N], computed as arcsin |section normal . surface normal|. It is 0 where the
            section is perpendicular to the surface and 90 where it is tangent.
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
    """Place positions every `step_mm` along the cortical ribbons of sections, within their images.

    Args:
        brain: brain with hemispheres.
        sections: rows of its section table.
        patch_px: side of the patches in pixels.
        um_per_px: resolution of the patches in micrometers per pixel.
        step_mm: spacing along a curve in mm. Curves shorter than 2 * `step_mm` are omitted.
        depth: as in `sample_patches`.
        min_thickness_mm: as in `sample_patches`.

    Raises:
        InputError: the brain has no hemisphere, a file cannot be read, or the sections do not cut
            the cortex.
    """
    need_hemispheres(brain, "walking along the cortex")
    cut_surfaces = [cut_surface(each, depth, min_thickness_mm) for each in brain.hemispheres]
    shapes, planes = [], []
    for index in sections:
        row = brain.sections[index]
        with open_section(row.image, row.pixel_um, brain.background, brain.bits) as section:
            shapes.append(section.shape)
        planes.append(registration(row, shapes[-1]))
    axis = mean_normal(planes) if planes else np.array([0.0, 1.0, 0.0])
    cutters = [CutSurface(surface, cortex, axis) for surface, cortex in cut_surfaces]
    geometry = [(mean_curvature(surface), vertex_normals(surface)) for surface, _ in cut_surfaces]
    parts: list[dict[str, np.ndarray]] = []
    for index, shape, plane in zip(sections, shapes, planes, strict=True):
        for hemisphere, cutter in enumerate(cutters):
            curvature, normals = geometry[hemisphere]
            for segments in _curves(cutter.cut(plane), plane, shape):
                length = segments.length_mm.sum()
                count = int(length / step_mm)
                if count < 2:
                    continue
                # equal margins at both ends
                arc = (np.arange(count) - (count - 1) / 2) * step_mm + length / 2
                part = _positions(segments, arc, plane, cutter.faces, curvature, normals)
                part |= {
                    "section": np.full(count, index),
                    "hemisphere": np.full(count, hemisphere),
                    "split": np.full(count, _split(brain, index)),
                    "curve": np.full(count, len(parts)),
                }
                parts.append(part)
    if not parts:
        names = ", ".join(brain.sections[index].name for index in sections) or "none given"
        raise InputError(
            f"{brain.root}: sections {names}: no ribbon of {2 * step_mm:g} mm; give sections that "
            "cut the cortex (`jaxcyto check` prints where surfaces and sections lie)"
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
    plane: Registration,
    faces: np.ndarray,
    curvature: np.ndarray,
    normals: np.ndarray,
) -> dict[str, np.ndarray]:
    """Compute the columns of `Curves` and its patches at arc lengths [N] of one curve."""
    segment, points, bary = segments.at(arc_mm)
    face = segments.face[segment]
    corners = faces[face]
    normal = (normals[corners] * bary[:, :, None]).sum(1)
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
    column, row, _ = plane.to_px(points)
    return {
        "center_px": np.stack([column, row], -1),
        "position_mm": points,
        "face": face,
        "bary": bary,
        "arc_mm": arc_mm,
        "curvature": (curvature[corners] * bary).sum(1),
        "obliqueness": np.rad2deg(np.arcsin(np.abs(normal @ plane.normal).clip(0, 1))),
    }


def mean_curvature(surface: Surface, fwhm_mm: float = CURVATURE_FWHM_MM) -> np.ndarray:
    """Compute the signed mean curvature H [V] in 1/mm, smoothed along the surface.

    We use 2 H n = L x / A with the normal n, the cotangent Laplacian L, the vertex positions x and
    the vertex areas A (Meyer et al. 2003, "Discrete differential-geometry operators for
    triangulated 2-manifolds", equation 8). As area of a vertex we take a third of the area of its
    triangles. H is positive where a closed surface is convex, as on a gyral crown, and 1 / r on a
    sphere of radius r. It is not defined at the border of an open surface and set to 0 there. The
    value at a single vertex has an error of about 20 %, because the vertex area does. The errors
    average out over a few vertices.

    Args:
        surface: the surface, in mm.
        fwhm_mm: width (FWHM) of the smoothing in mm, or 0 for none.
    """
    vertices, faces = surface.vertices, surface.faces
    area = pp3d.vertex_areas(vertices, faces)
    flow = pp3d.cotan_laplacian(vertices, faces, denom_eps=1e-10) @ vertices
    # the sign of the enclosed volume says whether the faces are oriented outward
    first, second, third = (vertices[faces[:, k]] - vertices.mean(axis=0) for k in range(3))
    volume = (first * np.cross(second, third)).sum()
    normal = vertex_normals(surface) * (np.sign(volume) or 1.0)
    curvature = (flow * normal).sum(axis=1) / 2 / np.maximum(area, 1e-9 * area.mean())
    curvature[_border(faces)] = 0.0
    if fwhm_mm:
        return smooth(surface, curvature[:, None], fwhm_mm)[:, 0]
    return curvature


def _border(faces: np.ndarray) -> np.ndarray:
    """Find the vertices on an edge that has one triangle only."""
    edges = np.stack([faces, np.roll(faces, -1, axis=1)], -1).reshape(-1, 2)
    edges, count = np.unique(np.sort(edges, axis=1), axis=0, return_counts=True)
    return np.unique(edges[count == 1])


def _curves(segments: Segments, plane: Registration, shape: tuple[int, int]) -> list[Segments]:
    """Split the ordered segments (see `ribbon.chain`) within the image into curves."""
    column, row, _ = plane.to_px(segments.middle_mm)
    segments = segments.select(in_image(column, row, shape))
    step = np.linalg.norm(segments.points_mm[1:, 0] - segments.points_mm[:-1, 1], axis=1)
    bounds = [0, *(np.flatnonzero(step > JOINED_MM) + 1).tolist(), len(segments.face)]
    ranges = [np.arange(a, b) for a, b in pairwise(bounds)]
    return [segments.select(own) for own in ranges if len(own)]


def _split(brain: Brain, index: int) -> int:
    split = brain.sections[index].split
    return SPLITS.index(split) if split else SPLITS.index("exclude")
