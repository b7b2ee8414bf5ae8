"""Who is paired with whom, and how far apart they are along the cortex."""

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

MAX_ALL = 50_000  # patches whose full matrix is written: 10 GB
# From this size on the oracle, which takes minutes to build, is quicker than other methods.
ORACLE_VERTICES, ORACLE_PAIRS = 40_000, 2000


def make_pairs(
    brain: Brain,
    patches: Patches,
    *,
    num_pairs: int | None = None,
    method: str = "exact",
    seed: int = 0,
    workers: int | None = None,
    all_distances: bool = False,
    even_distances: bool = False,
    within_mm: float | None = None,
    anchors: int = ANCHORS,
    patches_file: str = PATCHES_FILE,
    progress: Progress | None = None,
) -> Pairs:
    """Draws pairs of patches and solves their distances.

    Both patches of a pair lie on one connected surface of one hemisphere and in one split. Every
    patch occurs in at least one pair (one without a partner in none, with a warning).

    Args:
        brain: the brain folder; the patches' file must lie in it.
        patches: its patches, as saved there.
        num_pairs: number of pairs; default: as many as patches.
        method: "exact", "heat" or "oracle", see `geodesics.build`; "auto": the oracle for
            thousands of pairs on a large surface, else heat. Oracles are kept in the brain's
            folder, see `oracle_path`.
        seed: the same seed gives the same pairs, whatever the number of workers.
        workers: processes; default: the processors.
        all_distances: also write patches_distances.npy, float32 [N, N] mm between all patches,
            infinite between hemispheres. But for the oracle it costs one solution per patch, not
            per two patches.
        even_distances: draw pairs evenly over distance; for this, distances of several times as
            many are needed, so it takes the oracle.
        within_mm: draw near pairs only, at most so far apart, evenly over distance (for
            contrastive losses, see `batch_losses.colocation_loss`); fewer if there are no more.
        anchors: of the oracle, see `oracle_build.build_oracle`.
        patches_file: name of the patches' file in the brain's folder.
        progress: called with (sources done, sources), anew for each hemisphere.

    Returns:
        The pairs, not yet saved.

    Raises:
        InputError: if there are too few pairs or patches, or a surface does not suit the method.
    """
    workers = workers or os.cpu_count() or 1
    path = brain.root / patches_file
    if not path.is_file():
        raise InputError(f"{path}: no such file; save the patches there first")
    if all_distances and len(patches) > MAX_ALL:
        raise InputError(
            f"all_distances: a matrix of {len(patches)} patches is too large; at most {MAX_ALL}"
        )
    surfaces = [hemisphere_surface(hemisphere) for hemisphere in brain.hemispheres]
    number = len(patches) if num_pairs is None else num_pairs
    if method == "auto":
        method = _suitable_method(surfaces, number, even_distances)
    if even_distances and within_mm is not None:
        raise InputError("give either even_distances or within_mm")
    first, second = _candidates(surfaces, patches, number, method, seed, even_distances, within_mm)
    solved = _solve(
        brain,
        surfaces,
        patches,
        (first, second),
        all_distances=all_distances,
        method=method,
        anchors=anchors,
        seed=seed,
        workers=workers,
        progress=progress,
    )
    found = first, second, solved.distance_mm
    if within_mm is not None:
        found = _near(*found, len(patches), number, within_mm)
    if even_distances or within_mm is not None:
        chosen = choose_even(*found, number, seed)
        found = tuple(each[chosen] for each in found)
    first, second, distance = found
    if solved.matrix is not None:
        with atomic_write(distances_path(brain.root, patches_file)) as file:
            np.save(file, solved.matrix)
    settings = {
        "method": method,
        "seed": seed,
        "bias": solved.bias,
        "mean_error": solved.mean_error,
        "all_distances": all_distances,
        "even_distances": even_distances,
        "within_mm": within_mm,
    }
    return Pairs(
        first.astype(np.int32),
        second.astype(np.int32),
        distance.astype(np.float32),
        patches_file,
        file_sha256(path),
        settings,
    )


def _candidates(
    surfaces: list[Surface],
    patches: Patches,
    number: int,
    method: str,
    seed: int,
    even: bool,
    within_mm: float | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Patches [P], [P] of the pairs whose distances are to be solved; for an even draw many more.

    Raises:
        InputError: the settings do not fit each other, or there are too few pairs or patches.
    """
    if within_mm is not None:
        group = _groups(surfaces, patches)
        return pairs_within(group, patches.position_mm, within_mm, number * ROUNDS, seed)
    if number < 1:
        raise InputError(f"num_pairs = {number}; at least 1")
    if even and method != "oracle":
        raise InputError(f"even_distances takes method oracle, not {method}")
    if even and number < len(patches):
        raise InputError(f"even_distances takes at least one pair per patch: {len(patches)}")
    group = _groups(surfaces, patches)
    first, second = draw_pairs(group, number * (ROUNDS if even else 1), seed)
    if not even:
        return first, second
    near = neighbor_pairs(group, patches.position_mm, seed)
    return np.concatenate([first, near[0]]), np.concatenate([second, near[1]])


class _Solved(NamedTuple):
    """Distances of P pairs and, if asked for, between all N patches; and how good they are."""

    distance_mm: np.ndarray  # float64 [P]
    matrix: np.ndarray | None  # float32 [N, N]
    bias: dict[str, float]  # by hemisphere: removed from the distances
    mean_error: dict[str, float]  # by hemisphere, of oracles


def _solve(
    brain: Brain,
    surfaces: list[Surface],
    patches: Patches,
    pairs: tuple[np.ndarray, np.ndarray],
    *,
    all_distances: bool,
    method: str,
    anchors: int,
    seed: int,
    workers: int,
    progress: Progress | None,
) -> _Solved:
    """Solves the distances of pairs, hemisphere by hemisphere; arguments as of `make_pairs`."""
    first, second = pairs
    distance = np.empty(len(first))
    matrix = np.full((len(patches),) * 2, np.inf, np.float32) if all_distances else None
    biases, errors = {}, {}
    face, bary = patches.face, patches.bary
    for index in np.unique(patches.hemisphere).tolist():
        surface, name = surfaces[index], brain.hemispheres[index].name
        if method == "oracle":
            kept = oracle_path(brain, index)
            oracle = cached_oracle(
                kept, surface, anchors=anchors, workers=workers, progress=progress
            )
            errors[name] = oracle.mean_error
        else:
            oracle = build(surface, method, seed=seed, workers=workers)
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
    patches: int,
    number: int,
    within_mm: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pairs that are near along the surface, too; says so where they are few.

    Raises:
        InputError: there is none.
    """
    near = distance <= within_mm
    first, second, distance = first[near], second[near], distance[near]
    if not len(first):
        raise InputError(
            f"within_mm = {within_mm:g}: no two patches are so near; sample more, or give more mm"
        )
    alone = patches - len(np.union1d(first, second))
    if alone or len(first) < number:
        warnings.warn(
            f"within {within_mm:g} mm there are {len(first)} pairs (asked for: {number}); "
            f"{alone} of {patches} patches have none",
            stacklevel=3,
        )
    return first, second, distance


def oracle_path(brain: Brain, hemisphere: int) -> Path:
    """Where the oracle of a hemisphere's distances is kept, beside brain.toml."""
    name = re.sub(r"\W", "_", brain.hemispheres[hemisphere].name)
    return brain.root / f"oracle_{hemisphere}_{name}.npz"


def _suitable_method(surfaces: list[Surface], num_pairs: int, even_distances: bool) -> str:
    large = max((len(surface.vertices) for surface in surfaces), default=0) >= ORACLE_VERTICES
    return "oracle" if even_distances or (large and num_pairs >= ORACLE_PAIRS) else "heat"


def _groups(surfaces: list[Surface], patches: Patches) -> np.ndarray:
    """A number [N] for each combination of hemisphere, component of its surface and split."""
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
