"""Explore the outputs of a trained network for all patches of a brain (`jaxcyto explore`).

    RUN/explore/BRAIN/patches.parquet                  position, split, area, features of patches
    RUN/explore/BRAIN/HEMISPHERE.features.func.gii     features on the surface
    RUN/explore/BRAIN/HEMISPHERE.neighbors.func.gii    distance to neighbors along the ribbon
    RUN/explore/BRAIN/neighbors.png, surface.png       the same distance as figures
    RUN/explore/BRAIN/nearest_17.png                   patches with features nearest to patch 17
    RUN/explore/BRAIN/results.json                     probes and statistics

For a segmentation run, the table holds the predicted class, and the maps are those of
`jaxcyto predict --surface`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxcyto.brain.annotation.image_column import select_sections
from jaxcyto.brain.manifest import SPLITS, Brain, read_brain
from jaxcyto.brain.sampling.patches import Patches, load_patches
from jaxcyto.brain.sampling.ribbon import MIN_THICKNESS_MM
from jaxcyto.brain.sections.fingerprint import brain_fingerprints
from jaxcyto.brain.sections.label_image import UNLABELED
from jaxcyto.brain.surfaces.surface import hemisphere_surface
from jaxcyto.brain.surfaces.vertex_maps import vertex_means, write_maps
from jaxcyto.errors import InputError
from jaxcyto.explore.border_contrast import WINDOW, embed_curves, gap_statistics, neighbor_gaps
from jaxcyto.explore.figures import nearest_figure, neighbors_figure, surface_figure
from jaxcyto.explore.patch_table import (
    TABLE,
    class_column,
    embedding_columns,
    patch_columns,
    read_embedding,
    write_table,
)
from jaxcyto.explore.probes import accuracy, probe_areas, probe_coordinates
from jaxcyto.explore.ribbon_walk import STEP_MM, walk_ribbons
from jaxcyto.plots.common import save_figures
from jaxcyto.predict import open_class_map, predict_brain
from jaxcyto.predict.brain import Outputs
from jaxcyto.predict.features import Embedding, embed_brain, patch_areas
from jaxcyto.predict.surface import classes_at
from jaxcyto.runs.load import PretextRun, load_pretext_run, load_segment_run
from jaxcyto.runs.seen import seen
from jaxcyto.utils.files import file_sha256, write_json
from jaxcyto.utils.progress import Progress

WALKED = 24  # sections whose ribbons are walked along, unless sections are named
SHOWN = 8  # of these sections, drawn in neighbors.png
TEST, TRAIN = SPLITS.index("test"), SPLITS.index("train")


@dataclasses.dataclass(frozen=True, eq=False)
class _Subject:
    """A brain with its patches and the output folder."""

    brain: Brain
    patches: Patches
    areas: np.ndarray | None  # class indices [N], or None without labels
    folder: Path
    key: str  # SHA-256 of the patches file


def explore_features(
    run_folder: Path,
    brain_folder: Path,
    *,
    patches_file: str = "patches.npz",
    sections: Sequence[str] = (),
    classes: Mapping[int, str] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write the features of all patches of a brain as table, maps and figures, and probe them.

    Args:
        run_folder: folder of a finished pre-training run.
        brain_folder: folder of a brain with patches of the run's size and resolution.
        patches_file: name of the patches file in the brain folder.
        sections: names of the sections whose ribbons are walked along. By default, these are at
            most 8 test sections and evenly spaced others, up to 24 in total.
        classes: class name of a label, as for `jaxcyto carry --map`.
        progress: called with (patches done, total).

    Returns:
        The content of results.json. `patches` is the count of patches. `probes` holds `areas`
        (see `probe_areas`) and `coordinates` (see `probe_coordinates`), each None without the data
        it needs. `neighbors` holds `gap_statistics` of the `test` sections and of `all` sections,
        with distances in predicted mm. `seen` lists the test sections that the run was trained on,
        and `files` the files written.

    Raises:
        InputError: the run and the brain do not match, or a file cannot be read.
    """
    run = load_pretext_run(run_folder)
    subject = _open(run.path, brain_folder, patches_file, classes)
    brain, patches, folder = subject.brain, subject.patches, subject.folder
    walked, shown = _choose_sections(brain, patches, sections)
    found = _embedding(run, subject, progress)
    files = [folder / TABLE]
    extent_mm = run.patch_px * run.um_per_px / 1000
    names = [f"feature {k:02d}" for k in range(found.features.shape[1])]
    maps = _maps(subject.brain, patches, found.features, extent_mm)
    files += _write_maps(subject, "features", names, maps)

    curves = walk_ribbons(
        brain,
        walked,
        patch_px=run.patch_px,
        um_per_px=run.um_per_px,
        depth=patches.settings.get("depth"),
        min_thickness_mm=patches.settings.get("min_thickness_mm", MIN_THICKNESS_MM),
    )
    features, usable = embed_curves(run, brain, curves, progress=progress)
    areas = None if subject.areas is None else patch_areas(brain, curves.patches, classes)
    gaps = neighbor_gaps(features, curves.curve, areas, usable=usable)
    in_mm = run.scales.distance_to_mm(gaps.squared_distance)
    gaps = dataclasses.replace(gaps, squared_distance=in_mm)
    label = "squared distance of averaged features, predicted mm"
    maps = _maps(brain, curves.patches.select(gaps.before), in_mm[:, None], extent_mm)
    files += _write_maps(subject, "neighbors", [label], maps)
    pictures = {
        "neighbors.png": neighbors_figure(brain, curves, gaps, shown, unit="predicted mm"),
        "surface.png": surface_figure(brain, [values[:, 0] for values in maps], label),
    }
    save_figures(folder, pictures)
    files += [folder / name for name in pictures]

    held_out = curves.patches.split[gaps.before] == TEST
    geometry = curves.curvature, curves.obliqueness
    results = {
        "run": str(run_folder),
        "brain": brain.name,
        "patches": len(patches),
        "probes": _probes(run, subject, found),
        "neighbors": {
            "sections": [brain.sections[index].name for index in walked],
            "step_mm": STEP_MM,
            "window": WINDOW,
            "test": gap_statistics(gaps.select(held_out), *geometry) if held_out.any() else None,
            "all": gap_statistics(gaps, *geometry),
        },
        "seen": _seen(run.training_sections, subject),
        "files": [str(path) for path in files],
    }
    write_json(folder / "results.json", results)
    return results


def explore_nearest(
    run_folder: Path,
    brain_folder: Path,
    patch: int,
    *,
    patches_file: str = "patches.npz",
    classes: Mapping[int, str] | None = None,
    progress: Progress | None = None,
) -> Path:
    """Draw the patches whose features are nearest to those of one patch, and return the path.

    Args:
        run_folder: folder of a finished pre-training run.
        brain_folder: folder of a brain with patches of the run's size and resolution.
        patch: index of the patch.
        patches_file: name of the patches file in the brain folder.
        classes: class name of a label, as for `jaxcyto carry --map`.
        progress: called with (patches done, total).

    Raises:
        InputError: there is no such patch, the run and the brain do not match, or a file cannot be
            read.
    """
    run = load_pretext_run(run_folder)
    subject = _open(run.path, brain_folder, patches_file, classes)
    if not 0 <= patch < len(subject.patches):
        raise InputError(
            f"--nearest {patch}: {subject.brain.root / patches_file} holds patches 0 ... "
            f"{len(subject.patches) - 1}"
        )
    found = _embedding(run, subject, progress)
    names = None
    if subject.areas is not None:
        names = class_column(subject.brain.classes, subject.areas)
    figure = nearest_figure(
        subject.brain, subject.patches, found.features, patch, names, run.scales
    )
    save_figures(subject.folder, {f"nearest_{patch}.png": figure})
    return subject.folder / f"nearest_{patch}.png"


def explore_predictions(
    run_folder: Path,
    brain_folder: Path,
    *,
    patches_file: str = "patches.npz",
    classes: Mapping[int, str] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write the classes that a segmentation run predicts for all patches and for the surfaces.

    Sections that `jaxcyto predict` has not predicted yet are predicted first.

    Args:
        run_folder: folder of a finished segmentation run.
        brain_folder: folder of a brain with patches.
        patches_file: name of the patches file in the brain folder.
        classes: class name of a label, as for `jaxcyto carry --map`.
        progress: called with (map px done, total).

    Returns:
        The content of results.json. `patches` counts the patches and `predicted` those with a
        class. `accuracy` holds the count `test` of test patches with a known area and a
        prediction, and their `accuracy` and `balanced_accuracy`. It is None without such patches.
        `seen` lists the test sections that the run was trained on, `failures` the sections that
        cannot be read, and `files` the files written.

    Raises:
        InputError: the run and the brain do not match, or a file cannot be read.
    """
    run = load_segment_run(run_folder)
    subject = _open(run.path, brain_folder, patches_file, classes)
    brain, patches = subject.brain, subject.patches
    report = predict_brain(
        run_folder, brain_folder, outputs=Outputs(surface=True), progress=progress
    )
    predicted = np.full(len(patches), UNLABELED, np.uint8)
    for index in np.unique(patches.section):
        row = brain.sections[index]
        path = report.folder / f"{row.name}.ome.tif"
        if path.is_file():
            own = np.flatnonzero(patches.section == index)
            numbers = open_class_map(path)
            predicted[own] = classes_at(numbers, row.pixel_um, *patches.center_px[own].T)
    said = class_column(run.classes, predicted)
    columns = patch_columns(brain, patches)
    scores = None
    if subject.areas is not None:
        columns["area"] = class_column(brain.classes, subject.areas)
        scored = (subject.areas != UNLABELED) & (patches.split == TEST) & (predicted != UNLABELED)
        if scored.any():
            scores = {"test": int(scored.sum())}
            scores |= accuracy(columns["area"][scored].astype(str), said[scored].astype(str))
    columns["predicted"] = said
    weights = file_sha256(run.weights)
    write_table(subject.folder / TABLE, columns, {"weights": weights, "patches": subject.key})
    results = {
        "run": str(run_folder),
        "brain": brain.name,
        "patches": len(patches),
        "predicted": int((predicted < len(run.classes)).sum()),
        "accuracy": scores,
        "seen": _seen(run.training_sections, subject),
        "failures": report.failures,
        "files": [str(subject.folder / TABLE), *(str(path) for path, _ in report.labels)],
    }
    write_json(subject.folder / "results.json", results)
    return results


def _open(
    run: Path, brain_folder: Path, patches_file: str, classes: Mapping[int, str] | None
) -> _Subject:
    brain = read_brain(brain_folder)
    path = brain.root / patches_file
    patches = load_patches(path, brain)
    areas = None
    if any(each.labels for each in brain.hemispheres):
        areas = patch_areas(brain, patches, classes)
    folder = run / "explore" / brain.root.name
    folder.mkdir(parents=True, exist_ok=True)
    return _Subject(brain, patches, areas, folder, file_sha256(path))


def _embedding(run: PretextRun, subject: _Subject, progress: Progress | None) -> Embedding:
    """Read the features of all patches from the table, or compute them.

    The table is only read if it was computed from the same weights and patches. It is always
    written again, because the labels may have changed.
    """
    brain, patches, path = subject.brain, subject.patches, subject.folder / TABLE
    assert run.weights is not None
    source = {"weights": file_sha256(run.weights), "patches": subject.key}
    found = read_embedding(path, source)
    if found is None:
        found = embed_brain(run, brain, patches, progress=progress)
    columns = patch_columns(brain, patches)
    if subject.areas is not None:
        columns["area"] = class_column(brain.classes, subject.areas)
    write_table(path, columns | embedding_columns(found), source)
    return found


def _choose_sections(
    brain: Brain, patches: Patches, names: Sequence[str]
) -> tuple[list[int], list[int]]:
    """Choose the rows of the sections to walk along, and of those to draw."""
    if names:
        by_name = {row.name: index for index, row in enumerate(brain.sections)}
        chosen = [by_name[row.name] for row in select_sections(brain, list(dict.fromkeys(names)))]
        return chosen, chosen[:SHOWN]
    every = np.unique(patches.section)
    test = np.unique(patches.section[patches.split == TEST])
    middle = max(0, len(every) // 2 - SHOWN // 2)
    shown = test[:SHOWN] if len(test) else every[middle : middle + SHOWN]
    even = every[np.linspace(0, len(every) - 1, min(len(every), WALKED - len(shown))).astype(int)]
    return np.union1d(shown, even).tolist(), shown.tolist()


def _maps(brain: Brain, patches: Patches, values: np.ndarray, reach_mm: float) -> list[np.ndarray]:
    """Average values [N, C] of patches into maps [V, C] on each hemisphere."""
    maps = []
    for number, hemisphere in enumerate(brain.hemispheres):
        own, surface = patches.hemisphere == number, hemisphere_surface(hemisphere)
        maps.append(
            vertex_means(surface, patches.face[own], patches.bary[own], values[own], reach_mm)
        )
    return maps


def _write_maps(
    subject: _Subject, what: str, names: list[str], maps: list[np.ndarray]
) -> list[Path]:
    """Write HEMISPHERE.WHAT.func.gii for each hemisphere and return the paths."""
    written = []
    for hemisphere, values in zip(subject.brain.hemispheres, maps, strict=True):
        written.append(subject.folder / f"{hemisphere.name}.{what}.func.gii")
        write_maps(written[-1], hemisphere.name, names, values)
    return written


def _probes(run: PretextRun, subject: _Subject, found: Embedding) -> dict[str, Any]:
    patches = subject.patches
    train, test = patches.split == TRAIN, patches.split == TEST
    results: dict[str, Any] = {"areas": None, "coordinates": None}
    if not train.any() or not test.any():
        return results
    position = patches.position_mm.copy()
    if run.absolute_x:
        position[:, 0] = np.abs(position[:, 0])
    results["coordinates"] = probe_coordinates(found.features, position, train, test)
    if subject.areas is not None:
        known = subject.areas != UNLABELED
        if (known & test).any() and len(np.unique(subject.areas[known & train])) > 1:
            results["areas"] = probe_areas(
                found.features, subject.areas, known & train, known & test
            )
    return results


def _seen(training_sections: Mapping[str, str | None], subject: _Subject) -> list[str]:
    """List the test sections that the run was trained on, because their scores are biased."""
    brain, patches = subject.brain, subject.patches
    test = np.unique(patches.section[patches.split == TEST])
    held_out = brain_fingerprints(brain, [brain.sections[index] for index in test])
    return [name for name, _ in seen(training_sections, held_out)]
