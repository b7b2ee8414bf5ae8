"""Evaluate frozen features, as units of run.py."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from sklearn.manifold import TSNE

from benchmarks.evidence.plan import (
    ROWS,
    Size,
    pretext_config,
)
from jaxcyto.brain.manifest import SPLITS, read_brain
from jaxcyto.brain.sampling.pairs import load_pairs, open_distances
from jaxcyto.brain.sampling.patches import Patches, load_patches
from jaxcyto.brain.sections.label_image import UNLABELED
from jaxcyto.explore.border_contrast import embed_curves, gap_statistics, neighbor_gaps
from jaxcyto.explore.probes import probe_areas, probe_coordinates
from jaxcyto.explore.ribbon_walk import walk_ribbons
from jaxcyto.predict.features import embed_brain, patch_areas
from jaxcyto.runs.load import PretextRun, load_pretext_run
from jaxcyto.training.devices import parallel
from jaxcyto.training.evaluator import Evaluator
from jaxcyto.training.pretext import open_pretraining

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
