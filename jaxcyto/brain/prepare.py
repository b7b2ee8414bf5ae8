"""From a brain folder to patches.npz and pairs.npz beside its brain.toml, in two steps.

`jaxcyto sample` and `jaxcyto pair` are these functions; a config's `prepare` may call them too.
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
from jaxcyto.brain.sampling.pairing import make_pairs, oracle_path
from jaxcyto.brain.sampling.pairs import PAIRS_FILE, Pairs
from jaxcyto.brain.sampling.patches import PATCHES_FILE, Patches, load_patches
from jaxcyto.brain.sampling.sampling import sample_patches
from jaxcyto.brain.sampling.splits import assign_splits, split_distances_mm
from jaxcyto.brain.surfaces.surface import hemisphere_surface
from jaxcyto.errors import InputError
from jaxcyto.utils.files import atomic_write
from jaxcyto.utils.progress import StderrProgress


def sample_brain(
    root: str | os.PathLike, *, out: str = PATCHES_FILE, seed: int = 0, **settings: Any
) -> Patches:
    """Fills an empty split column, draws patches, writes them into the brain's folder.

    They are drawn on the surface beside them: patches_points.png for patches.npz.

    Args:
        root: the brain's folder.
        out: name of the file in it.
        seed: of splits and draw.
        **settings: of `sampling.sample_patches`.

    Raises:
        InputError: as `read_brain`, `assign_splits` and `sample_patches`.
    """
    path = _in_folder(root, out)
    brain = read_brain(root)
    need_hemispheres(brain, "sampling")
    if not settings.get("split_axis"):
        brain = assign_splits(brain, seed=seed)
    patches = sample_patches(
        brain, seed=seed, progress=StderrProgress("sampling", "done"), **settings
    )
    patches.save(path)
    with atomic_write(path.with_name(f"{path.stem}_points.png")) as file:
        points_figure([(brain, patches)]).savefig(file, format="png", dpi=120)
    return patches


def pair_brain(
    root: str | os.PathLike,
    *,
    patches_file: str = PATCHES_FILE,
    out: str = PAIRS_FILE,
    **settings: Any,
) -> Pairs:
    """Draws pairs of the brain's patches, solves their distances, writes them into its folder.

    A histogram of the distances is drawn beside them, see `histogram_path`.

    Args:
        root: the brain's folder.
        patches_file: name of the patches' file in it.
        out: name of the pairs' file in it.
        **settings: of `pairing.make_pairs`.

    Raises:
        InputError: as `read_brain`, `load_patches` and `make_pairs`.
    """
    path = _in_folder(root, out)
    brain = read_brain(root)
    need_hemispheres(brain, "pairing")
    patches = load_patches(_in_folder(root, patches_file), brain)
    surfaces = [hemisphere_surface(hemisphere) for hemisphere in brain.hemispheres]
    check_points(_in_folder(root, patches_file), patches, surfaces)  # the surfaces may be new
    pairs = make_pairs(
        brain,
        patches,
        patches_file=patches_file,
        progress=StderrProgress("distances", "solved"),
        **settings,
    )
    pairs.save(path)
    draw_histogram(histogram_path(path), pairs)
    return pairs


def pair_shard(
    root: str | os.PathLike, shard: tuple[int, int], *, workers: int | None = None, **settings: Any
) -> None:
    """Solves part i of n of what the distances of a brain need, as one job of an array.

    Args:
        root: the brain's folder.
        shard: (i, n), i from 1.
        workers: processes.
        **settings: of `oracle_build.solve_shard`.

    Raises:
        InputError: as `read_brain` and `solve_shard`.
    """
    brain = read_brain(root)
    need_hemispheres(brain, "pairing")
    progress = StderrProgress("distances", "anchors")
    for index, hemisphere in enumerate(brain.hemispheres):
        surface, kept = hemisphere_surface(hemisphere), oracle_path(brain, index)
        if saved_oracle(kept, surface, oracle_settings(**settings)) is not None:
            continue  # a late or repeated job
        solve_shard(
            surface,
            parts_folder(kept),
            shard,
            workers=workers or os.cpu_count() or 1,
            progress=progress,
            **settings,
        )


def histogram_path(pairs_path: Path) -> Path:
    """Where the histogram of a file of pairs is drawn: pairs_distances.png for pairs.npz."""
    return pairs_path.with_name(f"{pairs_path.stem}_distances.png")


def draw_histogram(path: Path, pairs: Pairs) -> None:
    """Draws how many pairs there are at each distance."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.subplots()
    axes.hist(pairs.distance_mm, bins=60)
    axes.set(xlabel="distance along the cortex, mm", ylabel="pairs")
    axes.set_title(f"{len(pairs)} pairs, {pairs.settings['method']} distances", fontsize=10)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=120)


def patches_summary(patches: Patches) -> dict[str, Any]:
    """What `jaxcyto sample` says: `patches` by split, `smallest_mm` between splits, `settings`."""
    counts = np.bincount(patches.split, minlength=len(SPLITS)).tolist()
    return {
        "patches": len(patches),
        "splits": {name: n for name, n in zip(SPLITS, counts, strict=True) if n},
        "smallest_mm": split_distances_mm(patches),
        "settings": patches.settings,
    }


def describe_patches(patches: Patches) -> str:
    """Counts by split and the smallest distances between splits, in words."""
    found = patches_summary(patches)
    named = ", ".join(f"{count} {split}" for split, count in found["splits"].items())
    lines = [f"{found['patches']} patches: {named}"]
    for splits, distance_mm in found["smallest_mm"].items():
        lines.append(f"smallest distance {splits}: {distance_mm:.2f} mm")
    return "\n".join(lines)


def pairs_summary(pairs: Pairs) -> dict[str, Any]:
    """What `jaxcyto pair` says: `pairs`, `quantiles_mm` (5, 50 and 95 %) and `settings`."""
    low, median, high = np.quantile(pairs.distance_mm, [0.05, 0.5, 0.95]).tolist()
    return {
        "pairs": len(pairs),
        "quantiles_mm": {"0.05": low, "0.5": median, "0.95": high},
        "settings": pairs.settings,
    }


def describe_pairs(pairs: Pairs) -> str:
    """Number of pairs and quantiles of their distances, in words."""
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
    # The ending keeps a slip from overwriting brain.toml or the section table.
    if Path(name).name != name or not name.endswith(".npz"):
        raise InputError(
            f"{name!r}: needed is the name of an .npz file in the brain's folder, not a path"
        )
    return Path(root) / name
