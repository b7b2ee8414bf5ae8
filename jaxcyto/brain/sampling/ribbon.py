"""Where section planes cut the cortical surface: the ribbon, as segments on known triangles."""

import dataclasses

import numpy as np

from jaxcyto.brain.manifest import Brain, Hemisphere
from jaxcyto.brain.registration import Registration
from jaxcyto.brain.surfaces.surface import Surface, hemisphere_surface, read_surface, vertex_matched
from jaxcyto.errors import InputError

MIN_THICKNESS_MM = 0.75  # between pial and white; the medial wall is thinner, cortex is not

TRAP = (
    "do the surfaces and the sections share one space, in mm? In BigBrain's histological space "
    "section s lies at y = -70.01 + 0.02 s mm, but its 100 ... 1000 um volumes have another "
    "origin (-72.5): coordinates taken from them are off by 2.5 mm in y"
)


@dataclasses.dataclass(frozen=True, eq=False)
class Segments:
    """The straight pieces in which one section cuts one surface, M of them, curve by curve.

    Attributes:
        face: triangles [M].
        bary: barycentric coordinates [M, 2, 3] of both ends in that triangle.
        points_mm: positions [M, 2, 3] of both ends.
        length_mm: lengths [M].
    """

    face: np.ndarray
    bary: np.ndarray
    points_mm: np.ndarray
    length_mm: np.ndarray

    @property
    def middle_mm(self) -> np.ndarray:
        """Midpoints [M, 3]."""
        return self.points_mm.mean(1)

    def select(self, keep: np.ndarray) -> "Segments":
        """Those for which `keep` [M] is true."""
        return Segments(
            self.face[keep], self.bary[keep], self.points_mm[keep], self.length_mm[keep]
        )

    def at(self, arc_mm: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What lies at arc lengths [n] along all segments, one after the other.

        Returns:
            Segments [n], positions [n, 3] in mm and barycentric coordinates [n, 3].
        """
        ends = np.cumsum(self.length_mm)
        segment = np.minimum(np.searchsorted(ends, arc_mm, "right"), len(ends) - 1)
        length = self.length_mm[segment]
        ratio = np.clip((arc_mm - ends[segment] + length) / np.where(length > 0, length, 1), 0, 1)
        mix = np.stack([1 - ratio, ratio], -1)[:, :, None]
        return segment, (self.points_mm[segment] * mix).sum(1), (self.bary[segment] * mix).sum(1)

    @staticmethod
    def joined(parts: list["Segments"]) -> "Segments":
        """The segments of several surfaces, one after the other."""
        return Segments(
            np.concatenate([part.face for part in parts]),
            np.concatenate([part.bary for part in parts]),
            np.concatenate([part.points_mm for part in parts]),
            np.concatenate([part.length_mm for part in parts]),
        )


class CutSurface:
    """A surface to be cut by many sections.

    Faces are sorted along one axis (the mean section normal), so that a section looks only at
    those near its plane: the cost is in proportion to the ribbon, not to the mesh.
    """

    def __init__(self, surface: Surface, cortex: np.ndarray, axis: np.ndarray):
        self.vertices, self.faces, self.axis = surface.vertices, surface.faces, axis
        along = (self.vertices @ axis)[self.faces]
        low, high = along.min(1), along.max(1)
        order = np.argsort(low, kind="stable")
        self._order = order[cortex[order]]
        self._low = low[self._order]
        self._extent = float((high - low).max(initial=0))
        used = self.vertices[self.faces.ravel()]
        self.center = (used.min(0) + used.max(0)) / 2
        self.radius = float(np.linalg.norm(used.max(0) - used.min(0))) / 2

    def cut(self, registration: Registration) -> Segments:
        """The segments in which a section cuts this surface (it may be none).

        Marching over triangles: the vertices' signed offsets change sign along exactly two edges
        of a cut triangle; the ends lie where the offset, linear along an edge, is zero.
        """
        plane, normal = registration.affine[:, 3], registration.normal
        flip = np.sign(normal @ self.axis) or 1.0
        # A point of the tilted, bent section lies this close to a plane across `axis`.
        tilt = np.linalg.norm(flip * normal - self.axis)
        origin = self.center - ((self.center - plane) @ normal) * normal
        reach = registration.bend_mm + 2 * tilt * self.radius + 1e-9
        level = origin @ self.axis
        first = np.searchsorted(self._low, level - reach - self._extent, "left")
        last = np.searchsorted(self._low, level + reach, "right")
        near = self._order[first:last]
        corners, local = np.unique(self.faces[near], return_inverse=True)
        local = local.reshape(-1, 3)
        offset = registration.to_px(self.vertices[corners])[2][local]
        above = offset >= 0
        cut = above.any(1) & ~above.all(1)
        near, offset, above = near[cut], offset[cut], above[cut]
        # The lone corner k of each cut triangle; both crossed edges start there.
        lone = np.argmax(above == (above.sum(1) == 1)[:, None], 1)
        rows = np.arange(len(near))
        bary = np.zeros((len(near), 2, 3))
        edge = np.empty((len(near), 2), np.int64)
        for end in (0, 1):
            other = (lone + 1 + end) % 3
            ratio = offset[rows, lone] / (offset[rows, lone] - offset[rows, other])
            bary[rows, end, lone] = 1 - ratio
            bary[rows, end, other] = ratio
            pair = np.sort(self.faces[near[:, None], np.stack([lone, other], -1)], axis=1)
            edge[:, end] = pair[:, 0].astype(np.int64) * len(self.vertices) + pair[:, 1]
        order, turned = chain(edge)
        near, bary = near[order], bary[order]
        bary[turned] = bary[turned, ::-1]
        points = bary @ self.vertices[self.faces[near]]
        length = np.linalg.norm(points[:, 1] - points[:, 0], axis=1)
        return Segments(near, bary, points, length)


def chain(edge: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lines segments up, so that each goes on where the one before ends.

    Args:
        edge: the mesh edges [M, 2] on which the segments' ends lie.

    Returns:
        The order [M] of the segments, curve by curve, and which of them [M] are to be turned.
    """
    keys = edge.ravel()
    by_key = np.argsort(keys, kind="stable")
    same = np.flatnonzero(keys[by_key[1:]] == keys[by_key[:-1]])
    mate = np.full(len(keys), -1)
    mate[by_key[same]] = by_key[same + 1]
    mate[by_key[same + 1]] = by_key[same]
    loose = np.flatnonzero(mate < 0)
    mate, seen = mate.tolist(), [False] * len(edge)
    order, turned = [], []
    # Open curves are followed from a loose end, then closed ones from anywhere.
    for entry in [*loose.tolist(), *range(0, len(keys), 2)]:
        while entry >= 0 and not seen[entry // 2]:
            seen[entry // 2] = True
            order.append(entry // 2)
            turned.append(entry % 2 == 1)
            entry = mate[entry ^ 1]
    return np.array(order, np.int64), np.array(turned, bool)


def cut_surface(
    hemisphere: Hemisphere, depth: float | None, min_thickness_mm: float
) -> tuple[Surface, np.ndarray]:
    """The surface that is cut, and which of its triangles [F] are cortex.

    It is the carrying surface (depth `None`), or pial + depth (white - pial). The latter has the
    carrying surface's vertices and triangles one by one, so that a triangle and barycentric
    coordinates name corresponding points of both.

    Closed surfaces run on across the medial wall, where there is no cortex and pial and white
    all but touch: triangles thinner than `min_thickness_mm` are left out, where both are given
    and vertex-matched.

    Raises:
        InputError: if another depth is wanted and the surfaces are not vertex-matched.
    """
    carrier = hemisphere_surface(hemisphere)
    everything = np.ones(len(carrier.faces), bool)
    problem = "give pial and white"
    if hemisphere.pial is not None and hemisphere.white is not None:
        pial, white = read_surface(hemisphere.pial), read_surface(hemisphere.white)
        problem = "its surfaces are not vertex-matched"
        if vertex_matched(pial, carrier) and vertex_matched(white, carrier):
            thickness = np.linalg.norm(pial.vertices - white.vertices, axis=1)
            cortex = thickness[carrier.faces].mean(1) >= min_thickness_mm
            if depth is None:
                return carrier, cortex
            vertices = pial.vertices + depth * (white.vertices - pial.vertices)
            return Surface(vertices, carrier.faces), cortex
    if depth is not None:
        raise InputError(
            f"hemisphere {hemisphere.name}: depth {depth:g} lies between pial and white: "
            f"{problem}; or leave the depth out to sample on the surface itself"
        )
    return carrier, everything


def mean_normal(registrations: list[Registration]) -> np.ndarray:
    """Mean unit normal [3] of the sections, whichever way each image is turned.

    The principal direction of the normals, its largest component positive.
    """
    normals = np.stack([registration.normal for registration in registrations])
    axis = np.linalg.svd(normals, full_matrices=False)[2][0]
    return axis * np.sign(axis[np.argmax(np.abs(axis))])


def no_overlap(brain: Brain, surfaces: list[Surface], registrations: list[Registration]) -> str:
    """Says, for the nearest section, by how much the sections miss each surface."""
    lines = []
    for hemisphere, surface in zip(brain.hemispheres, surfaces, strict=True):
        used = surface.vertices[np.unique(surface.faces)]
        low, high = used.min(0), used.max(0)
        corners = np.stack(np.meshgrid(*zip(low, high, strict=True)), -1).reshape(-1, 3)
        misses = []
        for registration in registrations:
            offset = registration.to_px(corners)[2]
            misses.append(max(offset.min(), -offset.max(), 0.0))
        nearest = int(np.argmin(misses))
        box = ", ".join(
            f"{axis} {a:.2f} ... {b:.2f}" for axis, a, b in zip("xyz", low, high, strict=True)
        )
        miss = (
            f"the nearest section plane ({brain.sections[nearest].name}) misses it by "
            f"{misses[nearest]:.2f} mm"
            if misses[nearest] > 0
            else "section planes meet its bounding box, but no image covers the cut"
        )
        lines.append(f"hemisphere {hemisphere.name} ({box} mm): {miss}")
    return "\n".join(lines)
