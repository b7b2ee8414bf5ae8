"""Make surfaces that several tests use."""

import numpy as np

from jaxcyto.brain.surfaces.surface import Surface


def sphere(rings: int = 40) -> Surface:
    """Make a unit sphere of latitude rings, closed by one vertex at each pole."""
    theta = np.linspace(0, np.pi, rings + 1)[1:-1]
    around = 2 * rings
    phi = np.arange(around) * 2 * np.pi / around
    grid = np.stack(
        [np.outer(np.sin(theta), np.cos(phi)), np.outer(np.sin(theta), np.sin(phi)),
         np.outer(np.cos(theta), np.ones(around))], axis=-1,
    )  # fmt: skip
    vertices = np.concatenate([[[0, 0, 1.0]], grid.reshape(-1, 3), [[0, 0, -1.0]]])
    faces = []
    at = lambda ring, k: 1 + ring * around + k % around  # noqa: E731
    for k in range(around):
        faces += [[0, at(0, k), at(0, k + 1)]]
        faces += [[len(vertices) - 1, at(rings - 2, k + 1), at(rings - 2, k)]]
        for ring in range(rings - 2):
            faces += [[at(ring, k), at(ring + 1, k), at(ring + 1, k + 1)]]
            faces += [[at(ring, k), at(ring + 1, k + 1), at(ring, k + 1)]]
    return Surface(vertices, np.array(faces, np.int32))
