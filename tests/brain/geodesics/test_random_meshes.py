"""Test distances on hundreds of small broken meshes. The command tries ten thousand."""

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from benchmarks.robustness import random_meshes
from jaxcyto.brain.surfaces.surface import Surface


@pytest.mark.parametrize("method", random_meshes.METHODS)
def test_distances_are_right_or_refused(method):
    outcomes = [
        random_meshes.check_mesh(random_meshes.random_mesh(number), method) for number in range(150)
    ]
    counts = Counter(outcomes)
    assert set(counts) <= {"solved", "refused"}, counts
    assert counts["solved"] > (40 if method == "exact" else 130)  # exact takes manifolds only


def test_the_check_sees_faults(monkeypatch):
    square = Surface(np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]]), np.array([[0, 1, 2]]))
    right = random_meshes.build(square, "exact").vertex_distances

    class Wrong:
        def __init__(self, change):
            self.change = change

        def vertex_distances(self, first, second):
            got = right(first, second)
            got[1] = self.change(got[1])  # from vertex 0 to 1
            return got

    for change, said in (
        (lambda d: np.nan, "NaN"),
        (lambda d: -d, "negative"),
        (lambda d: 2 * d, "asymmetric"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(random_meshes, "build", lambda *_, change=change: Wrong(change))
            assert random_meshes.check_mesh(square, "exact") == said
