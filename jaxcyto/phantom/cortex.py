"""Make the phantom's geometry: folded hemispheres, areas, and a laminar profile per vertex."""

import dataclasses

import numpy as np

NUM_LAYERS = 6
HALF_AXES = (0.37, 1.0, 0.62)  # of one hemisphere (x, y, z), in units of half the long axis
GAP_MM = 1.5  # between the hemispheres at the midline
THICKNESS_MM = 1.8  # between pial and white, before a smooth variation by +-10 %
FOLD_WAVELENGTH_MM = 7.6  # distance between crowns, or longer
FOLD_AMPLITUDE_MM = 2.6

# A generic isocortex with layers I to VI. The values are assumptions of the order of magnitude of
# human isocortex. Coverage is the share of the section's area that cells cover, which is number
# density times cell area.
LAYER_SHARE = np.array([0.11, 0.10, 0.27, 0.13, 0.18, 0.21])
LAYER_COVERAGE = np.array([0.03, 0.26, 0.17, 0.32, 0.10, 0.20])
LAYER_DIAMETER_UM = np.array([6.0, 8.5, 10.5, 7.5, 12.0, 9.5])
# Change of the logarithm of cell size from the middle to the end of an axis: z for layers I-III,
# lateral x for layers IV-VI.
SIZE_GRADIENT = 0.95
SHARE_GRADIENT = 0.85  # change of the logarithm of the thickness of layer I along y
COLUMN_CONTRAST, COLUMN_GRADIENT = 0.15, 0.95  # contrast of radial columns, its change along y
# Mean over the depth of every profile. It is the same for all areas, so that the mean darkness does
# not reveal the area.
MEAN_COVERAGE = 0.17


@dataclasses.dataclass(frozen=True, eq=False)
class Profiles:
    """The laminar profile at each vertex, float32.

    Attributes:
        bounds: depth (0 pial ... 1 white) of the borders I/II ... V/VI, [V, 5].
        coverage: share of the area that cells cover in each layer, [V, 6].
        diameter_um: median cell diameter in each layer, [V, 6].
        columns: contrast of radial columns, [V].
    """

    bounds: np.ndarray
    coverage: np.ndarray
    diameter_um: np.ndarray
    columns: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Cortex:
    """All hemispheres in one mesh.

    Attributes:
        pial, white: vertex-matched vertices in mm, float64 [V, 3].
        faces: vertex indices, int64 [F, 3].
        area: class of each vertex, an index into the brain's classes, int32 [V].
        profiles: laminar profiles.
        skew: see `volume_skew`, float32 [V].
        starts: index of the first vertex of each hemisphere, and the number of all vertices.
    """

    pial: np.ndarray
    white: np.ndarray
    faces: np.ndarray
    area: np.ndarray
    profiles: Profiles
    skew: np.ndarray
    starts: tuple[int, ...]


def icosphere(subdivisions: int) -> tuple[np.ndarray, np.ndarray]:
    """Split each face of an icosahedron into four, n times.

    Returns:
        Unit vertices [10 * 4**n + 2, 3] and outward faces [20 * 4**n, 3].
    """
    g = (1 + 5**0.5) / 2
    v = [[-1, g, 0], [1, g, 0], [-1, -g, 0], [1, -g, 0], [0, -1, g], [0, 1, g]]
    v += [[0, -1, -g], [0, 1, -g], [g, 0, -1], [g, 0, 1], [-g, 0, -1], [-g, 0, 1]]
    f = [[0, 11, 5], [0, 5, 1], [0, 1, 7], [0, 7, 10], [0, 10, 11], [1, 5, 9], [5, 11, 4]]
    f += [[11, 10, 2], [10, 7, 6], [7, 1, 8], [3, 9, 4], [3, 4, 2], [3, 2, 6], [3, 6, 8]]
    f += [[3, 8, 9], [4, 9, 5], [2, 4, 11], [6, 2, 10], [8, 6, 7], [9, 8, 1]]
    vertices, faces = np.array(v, float), np.array(f)
    for _ in range(subdivisions):
        edges = np.sort(faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), axis=1)
        edges, inverse = np.unique(edges, axis=0, return_inverse=True)
        middle = inverse.reshape(-1, 3) + len(vertices)
        vertices = np.concatenate([vertices, vertices[edges].mean(1)])
        a, b, c, ab, bc, ca = *faces.T, *middle.T
        faces = np.stack([a, ab, ca, b, bc, ab, c, ca, bc, ab, bc, ca], 1).reshape(-1, 3)
    return vertices / np.linalg.norm(vertices, axis=1, keepdims=True), faces


def smooth_field(
    points_mm: np.ndarray, wavelength_mm: float, rng: np.random.Generator, waves: int = 48
) -> np.ndarray:
    """Draw a random field of unit variance at points [N, 3], a sum of plane waves of one length."""
    direction = rng.standard_normal((waves, 3))
    direction *= 2 * np.pi / wavelength_mm / np.linalg.norm(direction, axis=1, keepdims=True)
    phase = rng.uniform(0, 2 * np.pi, waves)
    return np.cos(points_mm @ direction.T + phase).sum(1) * (2 / waves) ** 0.5


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Compute unit normals [V, 3], as area-weighted means over the faces of each vertex."""
    a, b, c = vertices[faces].swapaxes(0, 1)
    normal = np.cross(b - a, c - a)
    total = np.zeros_like(vertices)
    for corner in range(3):
        np.add.at(total, faces[:, corner], normal)
    return total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12)


def neighbor_mean(values: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Average values [V, ...] over the neighbors of each vertex."""
    total, count = np.zeros_like(values), np.zeros(len(values))
    for first, second in ((0, 1), (1, 2), (2, 0)):
        np.add.at(total, faces[:, first], values[faces[:, second]])
        np.add.at(total, faces[:, second], values[faces[:, first]])
        np.add.at(count, faces[:, first], 1)
        np.add.at(count, faces[:, second], 1)
    return total / np.maximum(count, 1).reshape(-1, *[1] * (values.ndim - 1))


def hemisphere(
    long_axis_mm: float, subdivisions: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Make the right hemisphere.

    The unfolded surface is an ellipsoid. Folding moves it along its normals by a smooth random
    field. The pial and the white surface lie half the thickness to either side of the folded
    surface.

    Returns:
        (unfolded, pial, white) vertices [V, 3] in mm, and faces [F, 3].
    """
    sphere, faces = icosphere(subdivisions)
    half = np.array(HALF_AXES) * long_axis_mm / 2
    smooth = sphere * half
    normals = vertex_normals(smooth, faces)
    wave = smooth_field(smooth, FOLD_WAVELENGTH_MM, rng)
    mid = smooth + normals * (FOLD_AMPLITUDE_MM * np.tanh(1.1 * wave))[:, None]
    thickness = THICKNESS_MM * (1 + 0.05 * smooth_field(smooth, 30.0, rng))
    pial, white = (_offset(mid, faces, sign * thickness / 2) for sign in (1, -1))
    shift = np.array([GAP_MM / 2 - pial[:, 0].min(), 0, 0])
    return smooth, pial + shift, white + shift, faces


def _offset(vertices: np.ndarray, faces: np.ndarray, distance_mm: np.ndarray) -> np.ndarray:
    """Move vertices along smoothed normals, in small steps that keep folds from crossing."""
    steps = 8
    for _ in range(steps):
        normals = vertex_normals(vertices, faces)
        for _ in range(2):
            normals = (normals + neighbor_mean(normals, faces)) / 2
        normals /= np.linalg.norm(normals, axis=1, keepdims=True)
        vertices = vertices + normals * (distance_mm / steps)[:, None]
        # Even out the spacing of the vertices: move each toward its neighbors, within the surface.
        relaxed = neighbor_mean(vertices, faces) - vertices
        relaxed -= (relaxed * normals).sum(1, keepdims=True) * normals
        vertices = vertices + 0.2 * relaxed
    return vertices


def regions(unfolded: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Split a surface into `count` compact regions of similar size.

    The regions are the clusters of k-means on the unfolded surface. A smooth displacement then
    bends their borders.

    Returns:
        The region of each vertex, int32 [V].
    """
    centers = unfolded[rng.choice(len(unfolded), count, replace=False)]
    for _ in range(30):
        nearest = np.linalg.norm(unfolded[:, None] - centers, axis=2).argmin(1)
        for k in range(count):
            if (nearest == k).any():
                centers[k] = unfolded[nearest == k].mean(0)
    scale = np.ptp(unfolded[:, 1]) / 40
    bent = unfolded + scale * np.stack(
        [smooth_field(unfolded, 12 * scale, rng) for _ in range(3)], axis=1
    )
    return np.linalg.norm(bent[:, None] - centers, axis=2).argmin(1).astype(np.int32)


def volume_skew(pial: np.ndarray, white: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Compute q [V] of the equivolumetric depth `r + q r (r - 1)`.

    Here r is the linear depth (0 pial, 1 white). If the area of the cortical sheet changes linearly
    from A_p at the pial to A_w at the white surface, the share of volume above r is this polynomial
    with q = (A_w - A_p) / (A_w + A_p) (Waehnert et al., NeuroImage 2014).
    """

    def vertex_area(vertices):
        a, b, c = vertices[faces].swapaxes(0, 1)
        area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
        return sum(np.bincount(faces[:, k], area, len(vertices)) for k in range(3))

    area_pial, area_white = vertex_area(pial), vertex_area(white)
    q = (area_white - area_pial) / np.maximum(area_white + area_pial, 1e-12)
    q = (q + neighbor_mean(q, faces)) / 2  # the areas of single vertices are noisy
    return np.clip(q, -0.8, 0.8).astype(np.float32)


def normalized_profiles(
    share, coverage, diameter_um, columns: float | np.ndarray = COLUMN_CONTRAST
) -> Profiles:
    """Make profiles whose mean coverage over the depth is MEAN_COVERAGE.

    Args:
        share: share of the thickness of each layer [V, 6], up to a factor.
        coverage: coverage of each layer [V, 6], up to a factor.
        diameter_um: cell diameters in each layer [V, 6].
        columns: contrast of radial columns, [V] or one value.
    """
    share = share / share.sum(1, keepdims=True)
    coverage = coverage * (MEAN_COVERAGE / (share * coverage).sum(1, keepdims=True))
    return Profiles(
        bounds=np.cumsum(share, axis=1)[:, :-1].astype(np.float32),
        coverage=coverage.astype(np.float32),
        diameter_um=np.asarray(diameter_um, np.float32),
        columns=np.broadcast_to(np.float32(columns), len(share)),
    )


def area_profiles(
    unfolded: np.ndarray, region: np.ndarray, count: int, null: bool, rng: np.random.Generator
) -> Profiles:
    """Make the profiles of regions, which differ in the order of layers II to VI.

    The layers of a region are the generic ones of `LAYER_*` in another order. Share and coverage
    move together. Regions therefore have nearly the same histogram of darkness and differ in its
    arrangement over the depth. Diameters are drawn independently. Within a region, profiles vary
    smoothly.

    Args:
        unfolded: vertices of the unfolded surface [V, 3].
        region: region of each vertex [V].
        count: number of regions.
        null: whether all vertices get the generic profile.
        rng: generator.
    """
    size = len(unfolded)
    if null:
        generic = (LAYER_SHARE, LAYER_COVERAGE, LAYER_DIAMETER_UM)
        return normalized_profiles(*(np.tile(layer, (size, 1)) for layer in generic))
    orders = _distinct_orders(count, rng)
    share = np.exp(rng.uniform(-0.15, 0.15, (count, NUM_LAYERS))) * LAYER_SHARE[orders]
    coverage = np.exp(rng.uniform(-0.1, 0.1, (count, NUM_LAYERS))) * LAYER_COVERAGE[orders]
    diameter = np.exp(rng.uniform(-0.06, 0.06, (count, NUM_LAYERS))) * LAYER_DIAMETER_UM
    wavelength = 1.1 * np.ptp(unfolded[:, 1])  # so long that fields rise or fall over a few areas

    def vary(amount):
        fields = [smooth_field(unfolded, wavelength, rng) for _ in range(NUM_LAYERS)]
        return np.exp(amount * np.stack(fields, axis=1))

    share = share[region] * vary(0.15)
    coverage = coverage[region] * vary(0.08)
    diameter = diameter[region] * vary(0.05)
    # Gradients run across all areas, as cell density does in real isocortex. The strongest ones
    # within a coronal section (x and z) are in cell size, because networks learn texture first.
    half = np.ptp(unfolded, axis=0) / 2
    x, y, z = (
        unfolded[:, k] / half[k] + 0.1 * smooth_field(unfolded, wavelength, rng) for k in range(3)
    )
    diameter[:, :3] *= np.exp(SIZE_GRADIENT * z)[:, None]
    diameter[:, 3:] *= np.exp(SIZE_GRADIENT * x)[:, None]
    share[:, 0] *= np.exp(SHARE_GRADIENT * y)
    columns = COLUMN_CONTRAST * np.clip(1 + COLUMN_GRADIENT * y, 0, 2)
    return normalized_profiles(share, coverage, diameter, columns)


def _distinct_orders(count: int, rng: np.random.Generator) -> np.ndarray:
    """Choose orders of the layers [count, 6] that differ much from each other.

    Layer I always comes first. Orders are chosen greedily by the distance of their coverage curves.
    """
    candidates = np.stack([np.r_[0, 1 + rng.permutation(NUM_LAYERS - 1)] for _ in range(200)])
    depth = np.linspace(0, 1, 64)
    curves = []
    for order in candidates:
        bounds = np.cumsum(LAYER_SHARE[order])
        curves.append(LAYER_COVERAGE[order][np.searchsorted(bounds[:-1], depth)])
    curves = np.array(curves)
    chosen = [0]
    while len(chosen) < count:
        gap = np.abs(curves[:, None] - curves[chosen]).mean(2).min(1)
        chosen.append(int(gap.argmax()))
    return candidates[chosen]
