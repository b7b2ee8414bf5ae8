"""Cut the cortical surface by section planes.

The result is the ribbon of a section, as segments that each lie in one triangle of the surface.
"""

import dataclasses

import numpy as np

from jaxcyto.brain.manifest import Brain, Hemisphere
from jaxcyto.brain.registration import Registration
from jaxcyto.brain.surfaces.surface import Surface, hemisphere_surface, read_surface, vertex_matched
from jaxcyto.errors import InputError

# Distance of pial and white surface. The medial wall is thinner than this, and cortex is not.
MIN_THICKNESS_MM = 0.75

TRAP = (
    "do the surfaces and the sections share one space, in mm? In BigBrain's histological space "
    "section s lies at y = -70.01 + 0.02 s mm, but its 100 ... 1000 um volumes have another "
    "origin (-72.5): coordinates taken from them are off by 2.5 mm in y"
)


@dataclasses.dataclass(frozen=True, eq=False)
class Segments:
    """The M straight segments in which one section cuts one surface, one curve after the other.

    Attributes:
        face: index of the triangle that holds each segment [M].
        bary: barycentric coordinates of both ends in this triangle [M, 2, 3].
        points_mm: positions of both ends [M, 2, 3].
        length_mm: lengths [M].
    """

    face: np.ndarray
    bary: np.ndarray
    points_mm: np.ndarray
    length_mm: np.ndarray

    @property
    def middle_mm(self) -> np.ndarray:
        """The midpoints [M, 3] in mm."""
        return self.points_mm.mean(1)

    def select(self, keep: np.ndarray) -> "Segments":
        """Return the segments for which `keep` [M] is true."""
        return Segments(
            self.face[keep], self.bary[keep], self.points_mm[keep], self.length_mm[keep]
        )

    def at(self, arc_mm: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Locate points by their arc length [n] in mm along all segments, one after the other.

        Returns:
            Indices of the segments [n], positions [n, 3] in mm and barycentric coordinates [n, 3].
        """
        ends = np.cumsum(self.length_mm)
        segment = np.minimum(np.searchsorted(ends, arc_mm, "right"), len(ends) - 1)
        length = self.length_mm[segment]
        ratio = np.clip((arc_mm - ends[segment] + length) / np.where(length > 0, length, 1), 0, 1)
        mix = np.stack([1 - ratio, ratio], -1)[:, :, None]
        return segment, (self.points_mm[segment] * mix).sum(1), (self.bary[segment] * mix).sum(1)

    @staticmethod
    def joined(parts: list["Segments"]) -> "Segments":
        """Join the segments of several surfaces, one surface after the other."""
        return Segments(
            np.concatenate([part.face for part in parts]),
            np.concatenate([part.bary for part in parts]),
            np.concatenate([part.points_mm for part in parts]),
            np.concatenate([part.length_mm for part in parts]),
        )


class CutSurface:
    """A surface that is cut by many sections.

    Triangles are sorted along one axis (the mean section normal), so that a section tests only
    those near its plane. The cost is then proportional to the ribbon and not to the mesh.

    Args:
        surface: the mesh.
        cortex: which of its triangles are cut, bool [F].
        axis: the unit vector [3] along which triangles are sorted.
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
        """Return the segments in which a section cuts this surface. There may be none.

        The signed offset of the vertices from the section changes sign along exactly two edges of
        a cut triangle. The ends of its segment lie where the offset, taken as linear along an
        edge, is zero.
        """
        plane, normal = registration.affine[:, 3], registration.normal
        flip = np.sign(normal @ self.axis) or 1.0
        # A point of the tilted and bent section is at most `reach` away from a plane across `axis`.
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
        # The corner that is alone on its side of the section. Both crossed edges start there.
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
    """Order segments so that each begins where the one before ends.

    Args:
        edge: keys of the mesh edges [M, 2] on which the ends of the segments lie.

    Returns:
        The order [M] of the segments, one curve after the other, and which of them [M], in this
        order, must be reversed.
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
    # Follow open curves from a loose end first, then closed ones from anywhere.
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
    """Return the surface to cut, and which of its triangles [F] are cortex.

    It is the surface that carries the distances (depth None), or pial + depth * (white - pial).
    The latter has the same triangles with corresponding vertices, so that a triangle and
    barycentric coordinates name corresponding points of both.

    Closed surfaces continue across the medial wall, where there is no cortex and pial and white
    nearly touch. So triangles thinner than `min_thickness_mm` are left out if both surfaces are
    given and vertex-matched.

    Args:
        hemisphere: the hemisphere.
        depth: 0 (pial) ... 1 (white), or None.
        min_thickness_mm: smallest thickness of cortex. 0 keeps all triangles.

    Raises:
        InputError: if a depth is given and the surfaces are not vertex-matched.
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
    """Return the mean unit normal [3] of the sections.

    The sign of each normal depends on how its image is turned. So the mean is the principal
    direction of the normals, with its largest component positive.
    """
    normals = np.stack([registration.normal for registration in registrations])
    axis = np.linalg.svd(normals, full_matrices=False)[2][0]
    return axis * np.sign(axis[np.argmax(np.abs(axis))])


def no_overlap(brain: Brain, surfaces: list[Surface], registrations: list[Registration]) -> str:
    """Describe by how much the nearest section misses each surface."""
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
