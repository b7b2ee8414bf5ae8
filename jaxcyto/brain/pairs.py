"""Pairs of patches with their distance along the cortex: the targets of the pretext task."""

import dataclasses
import json
import os
import re
import warnings
from pathlib import Path

import numpy as np

from jaxcyto.brain.even import ROUNDS, choose_even, neighbour_pairs
from jaxcyto.brain.files import READ_ERRORS, atomic_write, file_sha256, read_npz
from jaxcyto.brain.folder import inside
from jaxcyto.brain.geodesics import build
from jaxcyto.brain.manifest import SPLITS, Brain
from jaxcyto.brain.matrix_file import MatrixFile, open_matrix
from jaxcyto.brain.mesh import clean_faces, component_labels
from jaxcyto.brain.oracle import ANCHORS, Oracle
from jaxcyto.brain.oracle_build import cached_oracle
from jaxcyto.brain.patches import PATCHES_FILE, Patches
from jaxcyto.brain.progress import Progress
from jaxcyto.brain.surfaces import Surface, hemisphere_surface
from jaxcyto.errors import InputError

FORMAT = "jaxcyto pairs 1"
PAIRS_FILE = "pairs.npz"
MAX_ALL = 50_000  # patches whose full matrix is written: 10 GB
# From this size on the oracle, which takes minutes to build, is quicker than other methods.
ORACLE_VERTICES, ORACLE_PAIRS = 40_000, 2000


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of patches, P of them.

    Attributes:
        first, second: patches, int32 [P].
        distance_mm: along the surface, float32 [P].
        patches_file: name of the file of patches, in the same folder.
        patches_sha256: its hash.
        settings: method, seed and so on; plain values.
    """

    first: np.ndarray
    second: np.ndarray
    distance_mm: np.ndarray
    patches_file: str
    patches_sha256: str
    settings: dict

    def __len__(self) -> int:
        return len(self.first)

    def save(self, path: str | os.PathLike) -> None:
        """Writes one npz, atomically and without pickle."""
        with atomic_write(path) as file:
            np.savez(
                file,
                format=FORMAT,
                first=self.first,
                second=self.second,
                distance_mm=self.distance_mm,
                patches_file=self.patches_file,
                patches_sha256=self.patches_sha256,
                settings=json.dumps(self.settings, sort_keys=True),
            )


def load_pairs(path: str | os.PathLike) -> Pairs:
    """Reads pairs.npz and checks that its patches are those beside it.

    Raises:
        InputError: if it is missing, damaged or foreign, or its patches have changed.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; run `jaxcyto pair` first")
    try:
        file = read_npz(path, FORMAT)
        pairs = Pairs(
            first=file["first"],
            second=file["second"],
            distance_mm=file["distance_mm"],
            patches_file=str(file["patches_file"]),
            patches_sha256=str(file["patches_sha256"]),
            settings=json.loads(str(file["settings"])),
        )
        shape = pairs.first.shape
        for name, dtype in (("first", np.int32), ("second", np.int32), ("distance_mm", np.float32)):
            array = getattr(pairs, name)
            if array.dtype != dtype or array.shape != shape or array.ndim != 1:
                raise ValueError(f"{name} is {array.dtype} {list(array.shape)}")
        if not (np.isfinite(pairs.distance_mm) & (pairs.distance_mm >= 0)).all():
            raise ValueError("distances that are not finite or below zero")
        if min(pairs.first.min(initial=0), pairs.second.min(initial=0)) < 0:
            raise ValueError("numbers of patches below zero")
        if not isinstance(pairs.settings, dict):
            raise ValueError("its settings are no table")
    except READ_ERRORS as error:
        raise InputError(
            f"{path}: not a readable file of pairs ({error}); run `jaxcyto pair` again"
        ) from None
    if Path(pairs.patches_file).name != pairs.patches_file:
        raise InputError(f"{path}: patches_file = {pairs.patches_file!r} leaves the folder")
    faults: list[str] = []
    root = Path(os.path.realpath(path.parent))
    patches = inside(root, path, "patches_file", pairs.patches_file, faults)
    if patches is None:
        raise InputError(f"{faults[0]}; run `jaxcyto pair` again")
    if file_sha256(patches) != pairs.patches_sha256:
        raise InputError(
            f"{path}: made from another {pairs.patches_file} than the one beside it; "
            "run `jaxcyto pair` again"
        )
    return pairs


def distances_path(root: Path, patches_file: str) -> Path:
    """Where the distances between all patches of a file lie: patches_distances.npy beside it."""
    return root / f"{Path(patches_file).stem}_distances.npy"


def open_distances(root: Path, pairs: Pairs, num_patches: int) -> MatrixFile:
    """The distances [N, N] mm between all patches, which stay on disk.

    Raises:
        InputError: not there, damaged, or not those of these pairs.
    """
    path = distances_path(root, pairs.patches_file)
    remedy = "write it with `jaxcyto pair BRAIN --all-distances`"
    try:
        matrix = open_matrix(path)
    except READ_ERRORS as error:
        raise InputError(f"{path}: no distances between all patches ({error}); {remedy}") from None
    if matrix.size != num_patches:
        raise InputError(
            f"{path}: float32 [{matrix.size}, {matrix.size}], but there are {num_patches} patches; "
            f"{remedy}"
        )
    if not np.allclose(
        matrix.values(pairs.first, pairs.second), pairs.distance_mm, rtol=1e-4, atol=1e-3
    ):
        raise InputError(f"{path}: other distances than in the file of pairs; {remedy}")
    return matrix


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
    anchors: int = ANCHORS,
    patches_file: str = PATCHES_FILE,
    progress: Progress | None = None,
) -> Pairs:
    """Draws pairs of patches and solves their distances.

    Both patches of a pair lie on one connected surface of one hemisphere and in one split. Every
    patch occurs in at least one pair (an only patch of its group in none, with a warning).

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
    first, second = _candidates(surfaces, patches, number, method, seed, even_distances)
    distance = np.empty(len(first))
    matrix = np.full((len(patches),) * 2, np.inf, np.float32) if all_distances else None
    biases, errors = {}, {}
    face, bary = patches.face, patches.bary
    for index in np.unique(patches.hemisphere).tolist():
        if method == "oracle":
            kept, surface = oracle_path(brain, index), surfaces[index]
            oracle = cached_oracle(
                kept, surface, anchors=anchors, workers=workers, progress=progress
            )
        else:
            oracle = build(surfaces[index], method, seed=seed, workers=workers)
        members = np.flatnonzero(patches.hemisphere == index)
        own = patches.hemisphere[first] == index
        if matrix is not None:
            block = oracle.matrix(face[members], bary[members], workers, progress)
            matrix[np.ix_(members, members)] = block
            distance[own] = matrix[first[own], second[own]]
        else:
            a, b = first[own], second[own]
            distance[own] = oracle.distances(face[a], bary[a], face[b], bary[b], workers, progress)
        name = brain.hemispheres[index].name
        biases[name] = oracle.refined_bias
        if isinstance(oracle, Oracle):
            errors[name] = oracle.mean_error
    assert np.isfinite(distance).all()
    if even_distances:
        chosen = choose_even(first, second, distance, number, seed)
        first, second, distance = first[chosen], second[chosen], distance[chosen]
    if matrix is not None:
        with atomic_write(distances_path(brain.root, patches_file)) as file:
            np.save(file, matrix)
    settings = {
        "method": method,
        "seed": seed,
        "bias": biases,
        "mean_error": errors,
        "all_distances": all_distances,
        "even_distances": even_distances,
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
    surfaces: list[Surface], patches: Patches, number: int, method: str, seed: int, even: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Patches [P], [P] of the pairs whose distances are to be solved; for an even draw many more.

    Raises:
        InputError: the settings do not fit each other, or there are too few pairs or patches.
    """
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
    near = neighbour_pairs(group, patches.position_mm, seed)
    return np.concatenate([first, near[0]]), np.concatenate([second, near[1]])


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


def draw_pairs(group: np.ndarray, num_pairs: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws `num_pairs` pairs within groups, each patch in at least one.

    Each round puts every group in a random order and pairs neighbours in the resulting cycle, so
    that N pairs among N patches use each patch twice. Within the last round pairs are chosen
    so that no patch is left out before others have two.

    Args:
        group: group [N] of each patch.
        num_pairs: number of pairs P.
        seed: of the draw.

    Returns:
        first, second: int64 [P], sorted by nothing; the order is random.

    Raises:
        InputError: if P pairs cannot hold every patch, or no group has two patches.
    """
    sizes = np.bincount(group)
    alone = int((sizes == 1).sum())
    if alone:
        warnings.warn(
            f"{alone} patches are the only ones of their hemisphere, component and split; "
            "they stay without a pair",
            stacklevel=3,
        )
    usable = np.flatnonzero(sizes >= 2)
    if not len(usable):
        raise InputError("no two patches share a hemisphere and a split; sample more patches")
    least = int(((sizes[usable] + 1) // 2).sum())
    if num_pairs < least:
        raise InputError(
            f"num_pairs = {num_pairs}; {least} are needed for every patch to be in a pair "
            f"({len(group)} patches)"
        )
    members = [np.flatnonzero(group == number) for number in usable]
    rng = np.random.default_rng(seed)
    firsts, seconds, have = [], [], 0
    while have < num_pairs:
        even, odd = [], []
        for member in members:
            order = rng.permutation(member)
            cycle = np.stack([order, np.roll(order, -1)], -1)
            if len(order) == 2:
                cycle = cycle[:1]  # the cycle of two is one pair
            # The even edges alone hold every patch; they are used first.
            even.append(cycle[0::2])
            odd.append(cycle[1::2])
        round_pairs = np.concatenate(
            [rng.permutation(np.concatenate(even)), rng.permutation(np.concatenate(odd))]
        )[: num_pairs - have]
        have += len(round_pairs)
        round_pairs = rng.permuted(rng.permutation(round_pairs), axis=1)
        firsts.append(round_pairs[:, 0])
        seconds.append(round_pairs[:, 1])
    return np.concatenate(firsts), np.concatenate(seconds)


def split_of(pairs: Pairs, patches: Patches, split: str) -> np.ndarray:
    """Numbers of the pairs of one split, e.g. "train"."""
    return np.flatnonzero(patches.split[pairs.first] == SPLITS.index(split))
