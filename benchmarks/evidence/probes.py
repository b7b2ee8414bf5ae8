"""Evaluate frozen features and simple intensity statistics, as units of run.py."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
from scipy.ndimage import gaussian_filter
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.manifold import TSNE
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.evidence.atlas_alone import atlas_alone
from benchmarks.evidence.plan import (
    ROWS,
    Size,
    annotated_sections,
    pretext_config,
    segment_config,
)
from jaxcyto.brain.manifest import SPLITS, Brain, SectionRow, read_brain
from jaxcyto.brain.sampling.pairs import load_pairs, open_distances
from jaxcyto.brain.sampling.patches import Patches, load_patches
from jaxcyto.brain.sections.label_image import LABEL_UM, UNLABELED, section_label
from jaxcyto.brain.sections.section import open_section
from jaxcyto.data.segment_table import open_windows
from jaxcyto.explore.border_contrast import embed_curves, gap_statistics, neighbor_gaps
from jaxcyto.explore.probes import probe_areas, probe_coordinates
from jaxcyto.explore.ribbon_walk import walk_ribbons
from jaxcyto.predict.features import embed_brain, patch_areas
from jaxcyto.runs.load import PretextRun, load_pretext_run
from jaxcyto.scores import confusion, scores
from jaxcyto.training.devices import parallel
from jaxcyto.training.evaluator import Evaluator
from jaxcyto.training.pretext import open_pretraining

SIGMAS_UM = (16.0, 32.0, 64.0, 128.0, 256.0)  # of the Gaussian windows of the statistics
PIXELS_PER_CLASS = 4000  # at most this many pixels of each class are fitted on
SCATTER = 600  # number of points kept for a figure


def probe(size: Size, root: Path, run: Path | None, seed: int) -> dict[str, Any]:
    """Evaluate the features of a branch on a brain's test sections.

    Args:
        size: sizes of the experiment.
        root: the brain folder.
        run: a finished pre-training run, or None for an untrained network.
        seed: seed of the untrained network's weights.

    Returns:
        heads: errors of the network's own two outputs, over all pairs of test patches of one
            hemisphere, which are more than pairs.npz has. None for an untrained network.
        knn, linear, majority: accuracies of classifiers in percent, fitted on training patches.
        readout: errors of a ridge regression of the position, fitted on training patches.
        neighbors: statistics of the distances between features of neighbors along the cortex.
        map: a t-SNE of the features.
    """
    network = load_pretext_run(run) if run is not None else _untrained(size, root, seed)
    brain = read_brain(root)
    patches = load_patches(root / "patches.npz", brain)
    found = embed_brain(network, brain, patches)
    areas = patch_areas(brain, patches)
    train, test = (np.flatnonzero(patches.split == SPLITS.index(k)) for k in ("train", "test"))
    position = patches.position_mm.copy()
    position[:, 0] = np.abs(position[:, 0])
    known = areas != UNLABELED
    sections = [k for k, row in enumerate(brain.sections) if row.split == "test"]
    curves = walk_ribbons(brain, sections, patch_px=network.patch_px, um_per_px=network.um_per_px)
    features, usable = embed_curves(network, brain, curves)
    gaps = neighbor_gaps(features, curves.curve, patch_areas(brain, curves.patches), usable=usable)
    return {
        "heads": None if run is None else heads(network, root, patches, found, position, test),
        **_percent(probe_areas(found.features, areas, train[known[train]], test[known[test]])),
        "readout": probe_coordinates(found.features, position, train, test),
        "neighbors": gap_statistics(gaps, curves.curvature, curves.obliqueness),
        "map": feature_map(found.features[test], areas[test]),
    }


def heads(
    network: PretextRun,
    root: Path,
    patches: Patches,
    found: Any,
    position_mm: np.ndarray,
    test: np.ndarray,
) -> dict[str, Any]:
    """Compare a network's distances and coordinates with the truth on test patches.

    Args:
        network: the pre-trained network.
        root: the brain folder.
        patches: all patches of the brain, N of them.
        found: features [N, F] and coordinates [N, 3] in mm of all patches.
        position_mm: true positions [N, 3], with |x| in place of x.
        test: indices of the test patches.

    Returns:
        Mean errors in mm over all pairs with a finite distance and over all test patches, and the
        errors of always predicting the training median (`..._constant`).
    """
    pairs = load_pairs(root / "pairs.npz")
    true = open_distances(root, pairs, len(patches)).block(test)
    first, second = np.triu_indices(len(test), 1)
    finite = np.isfinite(true[first, second])
    first, second = first[finite], second[finite]
    features = found.features[test]
    predicted = np.square(features[first] - features[second]).sum(axis=1)
    predicted = predicted * network.scales.distance_mm
    true = true[first, second]
    offset = found.coordinates_mm[test] - position_mm[test]
    constant = np.array(network.scales.coordinate_median_mm) - position_mm[test]
    kept = np.random.default_rng(0).permutation(len(true))[:SCATTER]
    return {
        "pairs": len(true),
        "distance_mae_mm": float(np.abs(predicted - true).mean()),
        "distance_mae_mm_constant": float(np.abs(true - network.scales.distance_median_mm).mean()),
        "coordinate_mae_mm": float(np.linalg.norm(offset, axis=1).mean()),
        "coordinate_mae_mm_constant": float(np.linalg.norm(constant, axis=1).mean()),
        "coordinate_mae_mm_per_axis": np.abs(offset).mean(axis=0).tolist(),
        "coordinate_mae_mm_per_axis_constant": np.abs(constant).mean(axis=0).tolist(),
        "scatter_true_mm": true[kept].tolist(),
        "scatter_predicted_mm": predicted[kept].tolist(),
    }


def feature_map(features: np.ndarray, areas: np.ndarray) -> dict[str, list]:
    """Map features [N, F] to a plane by t-SNE (van der Maaten and Hinton 2008).

    At most `SCATTER` points are drawn from the N.
    """
    kept = np.random.default_rng(0).permutation(len(features))[:SCATTER]
    perplexity = min(30.0, (len(kept) - 1) / 3)
    plane = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(features[kept])
    return {"x": plane[:, 0].tolist(), "y": plane[:, 1].tolist(), "area": areas[kept].tolist()}


def _untrained(size: Size, root: Path, seed: int) -> PretextRun:
    """Return a branch with initial weights and the batch statistics of training patches."""
    config = pretext_config(size, root, ROWS["4"], seed)
    experiment = open_pretraining(config, None)
    evaluator = Evaluator.of(experiment.task, config.data.threads, lambda: None)
    state = parallel.replicate(experiment.init_state(fresh=True))
    batches = experiment.train_batches(seed=0, for_steps=False, **parallel.share())
    state = jax.device_get(evaluator.reestimate(state, batches, config.batch_stats_steps))
    return PretextRun(
        path=root,
        model=experiment.task.model,
        variables={"params": state.params, "batch_stats": state.batch_stats},
        scales=experiment.task.scales,
        um_per_px=config.data.um_per_px,
        patch_px=config.data.patch_px,
        absolute_x=config.data.absolute_x,
        training_sections=dict.fromkeys(experiment.table.training_sections),
    )


def _percent(found: dict[str, Any]) -> dict[str, Any]:
    """Convert the accuracies of `jaxcyto.explore.probes.probe_areas` to percent."""
    return {
        name: {f"{key}_percent": 100 * value for key, value in found[name].items()}
        for name in ("knn", "linear", "majority")
    }


def baselines(size: Size, root: Path) -> dict[str, Any]:
    """Segment test sections without a network.

    The models are a random forest and a linear model on intensity statistics, and the atlas alone.
    The features of each label pixel are the gray value and its local mean and standard deviation at
    five scales up to 0.26 mm. The models are fitted on the annotated sections of seed 0 and scored
    on all annotated test pixels.
    """
    brain = read_brain(root)
    chosen = annotated_sections(root, size.annotated, 0)
    rng = np.random.default_rng(0)
    parts = [_statistics(brain, row) for row in brain.sections if row.name in chosen]
    x, y = (np.concatenate(each) for each in zip(*parts, strict=True))
    kept = np.concatenate(
        [rng.permutation(np.flatnonzero(y == k))[:PIXELS_PER_CLASS] for k in np.unique(y)]
    )
    models = {
        "random forest": RandomForestClassifier(200, min_samples_leaf=5, n_jobs=-1, random_state=0),
        "linear": make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
    }
    for model in models.values():
        model.fit(x[kept], y[kept])
    classes = len(brain.classes)
    found = {name: np.zeros((classes, classes + 1), np.int64) for name in models}
    for row in brain.sections:
        if row.split == "test" and row.label is not None:
            x, y = _statistics(brain, row)
            for name, model in models.items():
                found[name] += confusion(model.predict(x).astype(np.uint8), y, classes)
    results = {
        name: {"test": scores(matrix, brain.classes), "confusion": matrix.tolist()}
        for name, matrix in found.items()
    }
    if all(row.atlas is not None for row in brain.sections):
        config = segment_config(size, root, "1", 0, None, 1)
        data = dataclasses.replace(config.data, atlas=True)
        alone = atlas_alone(open_windows(data, config.model))
        results["atlas"] = {key: alone[key] for key in ("test", "confusion")}
    return {"annotated": list(chosen), "models": results}


def _statistics(brain: Brain, row: SectionRow) -> tuple[np.ndarray, np.ndarray]:
    """Return features [P, 11] and classes [P] of the annotated label pixels of a section."""
    with open_section(row.image, row.pixel_um, brain.background, brain.bits) as image:
        with section_label(row, image.shape) as labels:
            label = labels.read(0, 0, *labels.shape)
            gray = image.read_at(LABEL_UM, 0, 0, *labels.shape).astype(np.float32)
    features = [gray]
    for sigma in SIGMAS_UM:
        mean = gaussian_filter(gray, sigma / LABEL_UM)
        square = gaussian_filter(gray**2, sigma / LABEL_UM)
        features += [mean, np.sqrt(np.maximum(square - mean**2, 0))]
    where = label != UNLABELED
    return np.stack([feature[where] for feature in features], axis=1), label[where]
