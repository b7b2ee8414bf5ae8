"""Write patches.npz and pairs.npz into a brain's folder.

The commands `jaxcyto sample` and `jaxcyto pair` call these functions. The `prepare` function of a
config may call them too.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np

from jaxcyto.brain.figures import points_figure
from jaxcyto.brain.geodesics.oracle import oracle_settings
from jaxcyto.brain.geodesics.oracle_build import parts_folder, saved_oracle, solve_shard
from jaxcyto.brain.manifest import SPLITS, need_hemispheres, read_brain
from jaxcyto.brain.sampling.consistency import check_points
from jaxcyto.brain.sampling.pairing import PairSettings, make_pairs, oracle_path
from jaxcyto.brain.sampling.pairs import PAIRS_FILE, Pairs
from jaxcyto.brain.sampling.patches import PATCHES_FILE, Patches, load_patches
from jaxcyto.brain.sampling.sampling import PatchSettings, sample_patches
from jaxcyto.brain.sampling.splits import assign_splits, split_distances_mm
from jaxcyto.brain.surfaces.surface import hemisphere_surface
from jaxcyto.errors import InputError
from jaxcyto.utils.files import atomic_write
from jaxcyto.utils.progress import StderrProgress


def sample_brain(
    root: str | os.PathLike,
    *,
    out: str = PATCHES_FILE,
    seed: int = 0,
    workers: int | None = None,
    **settings: Any,
) -> Patches:
    """Fill an empty split column, draw patches and write them into the brain's folder.

    A figure beside the file shows the patches on the surfaces: patches_points.png for patches.npz.

    Args:
        root: the brain's folder.
        out: name of the file in this folder.
        seed: seed of the splits and of the draw.
        workers: number of threads that read windows. The default is one per processor.
        **settings: other fields of `sampling.PatchSettings`.

    Returns:
        The patches.

    Raises:
        InputError: as `read_brain`, `assign_splits` and `sample_patches`.
    """
    path = _in_folder(root, out)
    brain = read_brain(root)
    need_hemispheres(brain, "sampling")
    patch_settings = PatchSettings(seed=seed, **settings)
    if not patch_settings.split_axis:
        brain = assign_splits(brain, seed=seed)
    progress = StderrProgress("sampling", "done")
    patches = sample_patches(brain, patch_settings, workers=workers, progress=progress)
    patches.save(path)
    with atomic_write(path.with_name(f"{path.stem}_points.png")) as file:
        points_figure([(brain, patches)]).savefig(file, format="png", dpi=120)
    return patches


def pair_brain(
    root: str | os.PathLike,
    *,
    patches_file: str = PATCHES_FILE,
    out: str = PAIRS_FILE,
    workers: int | None = None,
    **settings: Any,
) -> Pairs:
    """Draw pairs of the brain's patches, solve their distances and write them into its folder.

    A figure beside the file shows a histogram of the distances, see `histogram_path`.

    Args:
        root: the brain's folder.
        patches_file: name of the file of the patches in this folder.
        out: name of the file of the pairs in this folder.
        workers: number of processes. The default is one per processor.
        **settings: other fields of `pairing.PairSettings`.

    Returns:
        The pairs.

    Raises:
        InputError: as `read_brain`, `load_patches` and `make_pairs`.
    """
    path = _in_folder(root, out)
    brain = read_brain(root)
    need_hemispheres(brain, "pairing")
    patches = load_patches(_in_folder(root, patches_file), brain)
    surfaces = [hemisphere_surface(hemisphere) for hemisphere in brain.hemispheres]
    # The surfaces may have changed since the patches were drawn.
    check_points(_in_folder(root, patches_file), patches, surfaces)
    pair_settings = PairSettings(patches_file=patches_file, **settings)
    progress = StderrProgress("distances", "solved")
    pairs = make_pairs(brain, patches, pair_settings, workers=workers, progress=progress)
    pairs.save(path)
    draw_histogram(histogram_path(path), pairs)
    return pairs


def pair_shard(
    root: str | os.PathLike, shard: tuple[int, int], *, workers: int | None = None, **settings: Any
) -> None:
    """Solve part i of n of the oracles of a brain, as one job of a job array.

    Args:
        root: the brain's folder.
        shard: (i, n), where i counts from 1.
        workers: number of processes. The default is one per processor.
        **settings: `anchors`, `reach` and `seed` of `oracle_build.solve_shard`.

    Raises:
        InputError: as `read_brain` and `solve_shard`.
    """
    brain = read_brain(root)
    need_hemispheres(brain, "pairing")
    progress = StderrProgress("distances", "anchors")
    for index, hemisphere in enumerate(brain.hemispheres):
        surface, kept = hemisphere_surface(hemisphere), oracle_path(brain, index)
        if saved_oracle(kept, surface, oracle_settings(**settings)) is not None:
            continue  # the oracle is complete, so this job is late or repeated
        solve_shard(
            surface,
            parts_folder(kept),
            shard,
            workers=workers or os.cpu_count() or 1,
            progress=progress,
            **settings,
        )


def histogram_path(pairs_path: Path) -> Path:
    """Return the path of the histogram of a file of pairs: pairs_distances.png for pairs.npz."""
    return pairs_path.with_name(f"{pairs_path.stem}_distances.png")


def draw_histogram(path: Path, pairs: Pairs) -> None:
    """Draw a histogram of the distances of pairs and write it as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.subplots()
    axes.hist(pairs.distance_mm, bins=60)
    axes.set(xlabel="distance along the cortex, mm", ylabel="pairs")
    axes.set_title(f"{len(pairs)} pairs, {pairs.settings['method']} distances", fontsize=10)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=120)


def patches_summary(patches: Patches) -> dict[str, Any]:
    """Return what `jaxcyto sample --json` prints.

    Returns:
        The number of `patches`, the number in each of the `splits`, the `smallest_mm` distances
        between splits, and the stored `settings`.
    """
    counts = np.bincount(patches.split, minlength=len(SPLITS)).tolist()
    return {
        "patches": len(patches),
        "splits": {name: n for name, n in zip(SPLITS, counts, strict=True) if n},
        "smallest_mm": split_distances_mm(patches),
        "settings": patches.settings,
    }


def describe_patches(patches: Patches) -> str:
    """Describe the number of patches by split and the smallest distances between splits."""
    summary = patches_summary(patches)
    counts = ", ".join(f"{count} {split}" for split, count in summary["splits"].items())
    lines = [f"{summary['patches']} patches: {counts}"]
    for splits, distance_mm in summary["smallest_mm"].items():
        lines.append(f"smallest distance {splits}: {distance_mm:.2f} mm")
    return "\n".join(lines)


def pairs_summary(pairs: Pairs) -> dict[str, Any]:
    """Return what `jaxcyto pair --json` prints.

    Returns:
        The number of `pairs`, the `quantiles_mm` of their distances (5, 50 and 95 %), and the
        stored `settings`.
    """
    low, median, high = np.quantile(pairs.distance_mm, [0.05, 0.5, 0.95]).tolist()
    return {
        "pairs": len(pairs),
        "quantiles_mm": {"0.05": low, "0.5": median, "0.95": high},
        "settings": pairs.settings,
    }


def describe_pairs(pairs: Pairs) -> str:
    """Describe the number of pairs, quantiles of their distances, and the accuracy of these."""
    low, median, high = pairs_summary(pairs)["quantiles_mm"].values()
    bias = pairs.settings.get("bias", {})
    removed = ", ".join(f"{name} {value - 1:+.2%}" for name, value in bias.items() if value != 1)
    errors = pairs.settings.get("mean_error", {})
    measured = ", ".join(f"{name} {error:.2%}" for name, error in errors.items() if error == error)
    return (
        f"{len(pairs)} pairs, {pairs.settings['method']} distances: median {median:.1f} mm, "
        f"5 ... 95 % {low:.1f} ... {high:.1f} mm"
        + (f"; bias removed: {removed}" if removed else "")
        + (f"; mean error against exact distances: {measured}" if measured else "")
    )


def _in_folder(root: str | os.PathLike, name: str) -> Path:
    """Return the path of an npz file in the brain's folder.

    Raises:
        InputError: if the name leads elsewhere or does not end in .npz.
    """
    # The suffix keeps a typing error from overwriting brain.toml or the section table.
    if Path(name).name != name or not name.endswith(".npz"):
        raise InputError(
            f"{name!r}: give the name of an .npz file in the brain's folder, not a path"
        )
    return Path(root) / name
