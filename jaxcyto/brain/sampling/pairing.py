"""Pair patches and solve their distances along the cortex."""

import dataclasses
import os
import re
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxcyto.brain.geodesics import build
from jaxcyto.brain.geodesics.mesh import clean_faces, component_labels
from jaxcyto.brain.geodesics.oracle import ANCHORS
from jaxcyto.brain.geodesics.oracle_build import cached_oracle
from jaxcyto.brain.geodesics.solvers import METHODS
from jaxcyto.brain.manifest import Brain
from jaxcyto.brain.sampling.pair_sampling import (
    ROUNDS,
    choose_even,
    draw_pairs,
    neighbor_pairs,
    pairs_within,
)
from jaxcyto.brain.sampling.pairs import Pairs, distances_path
from jaxcyto.brain.sampling.patches import PATCHES_FILE, Patches
from jaxcyto.brain.surfaces.surface import Surface, hemisphere_surface
from jaxcyto.errors import InputError
from jaxcyto.utils.files import atomic_write, file_sha256
from jaxcyto.utils.progress import Progress

MAX_ALL = 50_000  # most patches whose full matrix is written (10 GB)
# From these sizes on, building an oracle takes less time than solving each pair by heat.
ORACLE_VERTICES, ORACLE_PAIRS = 40_000, 2000


@dataclasses.dataclass(frozen=True)
class PairSettings:
    """The settings of `make_pairs`."""

    num_pairs: int | None = None  # number of pairs; None: as many as patches
    # How distances are solved: "exact", "heat" or "oracle", see `geodesics.build`. "auto" takes
    # the oracle for `even_distances` and for thousands of pairs on a large surface, else heat.
    method: str = "exact"
    seed: int = 0  # the same seed gives the same pairs for any number of workers
    # Also write patches_distances.npy with the distances between all patches, float32 [N, N] mm,
    # infinite between hemispheres. Methods other than the oracle then solve once per patch instead
    # of once per two patches.
    all_distances: bool = False
    # Draw pairs uniformly over distance. This needs the distances of several times as many
    # candidates, so only the oracle does it.
    even_distances: bool = False
    # Draw only pairs at most this far apart, in mm along the surface, uniformly over distance (for
    # contrastive losses, see `batch_losses.colocation_loss`). There may be fewer than `num_pairs`.
    within_mm: float | None = None
    anchors: int = ANCHORS  # of the oracle, see `oracle_build.build_oracle`
    patches_file: str = PATCHES_FILE  # name of the file of the patches, in the brain's folder


def make_pairs(
    brain: Brain,
    patches: Patches,
    settings: PairSettings,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Pairs:
    """Draw pairs of patches and solve their distances along the cortex.

    Both patches of a pair lie on one connected surface of one hemisphere and in one split. Every
    patch is in at least one pair, except for those without a possible partner (with a warning).
    Oracles are cached in the brain's folder, see `oracle_path`.

    Args:
        brain: the brain whose folder holds the file of the patches.
        patches: its patches, as saved there.
        settings: how many pairs, drawn and solved how.
        workers: number of processes. The default is one per processor.
        progress: called with (sources done, sources), anew for each hemisphere.

    Returns:
        The pairs. They are not saved yet.

    Raises:
        InputError: if a setting is out of range, there are too few pairs or patches, or a surface
            does not suit the method.
    """
    path = brain.root / settings.patches_file
    if not path.is_file():
        raise InputError(f"{path}: no such file; save the patches there first")
    num_pairs = len(patches) if settings.num_pairs is None else settings.num_pairs
    _check_settings(settings, num_pairs, len(patches))
    surfaces = [hemisphere_surface(hemisphere) for hemisphere in brain.hemispheres]
    if settings.method == "auto":
        method = _suitable_method(surfaces, num_pairs, settings.even_distances)
        settings = dataclasses.replace(settings, method=method)
    first, second = _candidates(surfaces, patches, num_pairs, settings)
    solved = _solve(
        brain,
        surfaces,
        patches,
        (first, second),
        settings,
        workers or os.cpu_count() or 1,
        progress,
    )
    drawn = first, second, solved.distance_mm
    if settings.within_mm is not None:
        drawn = _near(*drawn, len(patches), num_pairs, settings.within_mm)
    if settings.even_distances or settings.within_mm is not None:
        chosen = choose_even(*drawn, num_pairs, settings.seed)
        drawn = tuple(each[chosen] for each in drawn)
    first, second, distance = drawn
    if solved.matrix is not None:
        with atomic_write(distances_path(brain.root, settings.patches_file)) as file:
            np.save(file, solved.matrix)
    stored = {
        "method": settings.method,
        "seed": settings.seed,
        "bias": solved.bias,
        "mean_error": solved.mean_error,
        "all_distances": settings.all_distances,
        "even_distances": settings.even_distances,
        "within_mm": settings.within_mm,
    }
    return Pairs(
        first.astype(np.int32),
        second.astype(np.int32),
        distance.astype(np.float32),
        settings.patches_file,
        file_sha256(path),
        stored,
    )


def _check_settings(settings: PairSettings, num_pairs: int, num_patches: int) -> None:
    """Raise InputError if settings are out of range or do not fit each other or the patches.

    Whether `num_pairs` is enough for every patch depends on the groups, see `draw_pairs`.
    """
    s = settings
    if s.method not in ("auto", "oracle", *METHODS):
        raise InputError(f"method = {s.method!r}; auto, oracle, {' or '.join(METHODS)}")
    if num_pairs < 1:
        raise InputError(f"num_pairs = {num_pairs}; at least 1")
    if s.all_distances and num_patches > MAX_ALL:
        raise InputError(
            f"all_distances: a matrix of {num_patches} patches is too large; at most {MAX_ALL}"
        )
    if s.within_mm is not None and not s.within_mm > 0:
        raise InputError(f"within_mm = {s.within_mm}; a length above 0")
    if s.even_distances and s.within_mm is not None:
        raise InputError("give either even_distances or within_mm")
    if s.even_distances and s.method not in ("auto", "oracle"):
        raise InputError(f"even_distances takes method oracle, not {s.method}")
    if s.even_distances and num_pairs < num_patches:
        raise InputError(f"even_distances takes at least one pair per patch: {num_patches}")


def _suitable_method(surfaces: list[Surface], num_pairs: int, even_distances: bool) -> str:
    """Return the method that "auto" stands for."""
    large = max((len(surface.vertices) for surface in surfaces), default=0) >= ORACLE_VERTICES
    return "oracle" if even_distances or (large and num_pairs >= ORACLE_PAIRS) else "heat"


def _candidates(
    surfaces: list[Surface], patches: Patches, num_pairs: int, settings: PairSettings
) -> tuple[np.ndarray, np.ndarray]:
    """Draw the patches [P], [P] of the pairs to solve, several times as many for an even draw.

    Raises:
        InputError: if there are too few pairs or patches.
    """
    group, seed = _groups(surfaces, patches), settings.seed
    if settings.within_mm is not None:
        most = num_pairs * ROUNDS
        return pairs_within(group, patches.position_mm, settings.within_mm, most, seed)
    if not settings.even_distances:
        return draw_pairs(group, num_pairs, seed)
    first, second = draw_pairs(group, num_pairs * ROUNDS, seed)
    # Random patches are rarely near each other, so near candidates are added.
    near = neighbor_pairs(group, patches.position_mm, seed)
    return np.concatenate([first, near[0]]), np.concatenate([second, near[1]])


class _Solved(NamedTuple):
    """The distances of P pairs and, on request, between all N patches, with their accuracy."""

    distance_mm: np.ndarray  # float64 [P]
    matrix: np.ndarray | None  # float32 [N, N] mm
    bias: dict[str, float]  # by hemisphere; distances were divided by it
    mean_error: dict[str, float]  # by hemisphere, relative; of oracles only


def _solve(
    brain: Brain,
    surfaces: list[Surface],
    patches: Patches,
    pairs: tuple[np.ndarray, np.ndarray],
    settings: PairSettings,
    workers: int,
    progress: Progress | None,
) -> _Solved:
    """Solve the distances of pairs, one hemisphere after the other."""
    first, second = pairs
    distance = np.empty(len(first))
    matrix = None
    if settings.all_distances:
        matrix = np.full((len(patches), len(patches)), np.inf, np.float32)
    biases, errors = {}, {}
    face, bary = patches.face, patches.bary
    for index in np.unique(patches.hemisphere).tolist():
        surface, name = surfaces[index], brain.hemispheres[index].name
        if settings.method == "oracle":
            oracle = cached_oracle(
                oracle_path(brain, index),
                surface,
                anchors=settings.anchors,
                workers=workers,
                progress=progress,
            )
            errors[name] = oracle.mean_error
        else:
            oracle = build(
                surface, settings.method, seed=settings.seed, workers=workers, progress=progress
            )
        own = patches.hemisphere[first] == index
        if matrix is not None:
            members = np.flatnonzero(patches.hemisphere == index)
            block = oracle.matrix(face[members], bary[members], workers, progress)
            matrix[np.ix_(members, members)] = block
            distance[own] = matrix[first[own], second[own]]
        else:
            a, b = first[own], second[own]
            distance[own] = oracle.distances(face[a], bary[a], face[b], bary[b], workers, progress)
        biases[name] = oracle.refined_bias
    assert np.isfinite(distance).all()
    return _Solved(distance, matrix, biases, errors)


def _near(
    first: np.ndarray,
    second: np.ndarray,
    distance: np.ndarray,
    num_patches: int,
    num_pairs: int,
    within_mm: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keep the candidates that are also near along the surface, and warn if they are few.

    Raises:
        InputError: if there are none.
    """
    near = distance <= within_mm
    first, second, distance = first[near], second[near], distance[near]
    if not len(first):
        raise InputError(
            f"within_mm = {within_mm:g}: no two patches are so near; sample more, or give more mm"
        )
    alone = num_patches - len(np.union1d(first, second))
    if alone or len(first) < num_pairs:
        warnings.warn(
            f"within {within_mm:g} mm there are {len(first)} pairs (requested: {num_pairs}); "
            f"{alone} of {num_patches} patches have none",
            stacklevel=3,
        )
    return first, second, distance


def oracle_path(brain: Brain, hemisphere: int) -> Path:
    """Return where the oracle of a hemisphere's distances is cached, beside brain.toml."""
    name = re.sub(r"\W", "_", brain.hemispheres[hemisphere].name)
    return brain.root / f"oracle_{hemisphere}_{name}.npz"


def _groups(surfaces: list[Surface], patches: Patches) -> np.ndarray:
    """Return an index [N] for each combination of hemisphere, surface component and split.

    Raises:
        InputError: if a patch names a triangle that its surface does not have.
    """
    component = np.zeros(len(patches), int)
    for index, surface in enumerate(surfaces):
        members = patches.hemisphere == index
        if members.any():
            if patches.face[members].max() >= len(surface.faces):
                raise InputError(
                    "the patches name triangles that their surface does not have; "
                    "run `jaxcyto sample` again"
                )
            labels = component_labels(len(surface.vertices), clean_faces(surface.faces))
            component[members] = labels[surface.faces[patches.face[members], 0]]
    key = np.stack([patches.hemisphere, component, patches.split], -1)
    return np.unique(key, axis=0, return_inverse=True)[1].reshape(-1)
