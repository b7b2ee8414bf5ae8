"""Measure what a network learns on the phantom beyond shortcuts.

    python benchmarks/evidence/phantom_floor.py --out runs/floor

The script trains the quickstart's network on the phantom and, with the same seeds and steps, on the
null brain. The null brain has one profile everywhere, so that only curvature, obliqueness and
artifacts remain to learn from. The default seed of the brain is not the quickstart's, on which
phantom and training were designed. A kernel ridge regression on gray-value histograms of the
phantom's patches shows what intensities alone give away. All errors are on the same held-out
sections, in mm, beside the error of always predicting the training median. The last line on stdout
is one JSON object.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
from absl import flags
from scipy.linalg import cho_factor, cho_solve
from scipy.spatial.distance import cdist

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from configs.quickstart import PAIRS, PATCHES, get_config
from jaxcyto.brain.prepare import pair_brain, sample_brain
from jaxcyto.config import Config
from jaxcyto.data.pair_batches import PairSource, fit_scales
from jaxcyto.data.pair_table import PairTable, open_pairs
from jaxcyto.phantom.make import make_phantom
from jaxcyto.phantom.settings import PRESETS
from jaxcyto.pretext_scores import constant_errors
from jaxcyto.training import log, loop
from jaxcyto.utils.progress import StderrProgress

ERRORS = ("distance_mae_mm", "coordinate_mae_mm")
BINS = 32
RIDGES = 10.0 ** np.arange(-4, 3)


def brain_config(root: Path, null: bool, steps: int | None, seed: int) -> Config:
    """Return the quickstart's config on the brain at `root`, which is made if it is missing.

    Args:
        root: the brain folder.
        null: whether all areas get the same profile.
        steps: steps of training. None keeps the quickstart's.
        seed: seed of the brain.
    """
    config = get_config()
    data = dataclasses.replace(config.data, brains=(str(root),))
    if not (root / data.pairs).exists():
        if not root.exists():
            settings = dataclasses.replace(PRESETS["quickstart"], null=null, seed=seed)
            make_phantom(root, settings, StderrProgress(root.name, "sections"))
        sample_brain(root, num_patches=PATCHES, patch_px=data.patch_px, um_per_px=data.um_per_px)
        pair_brain(root, num_pairs=PAIRS, method="heat", all_distances=True)
    steps = config.steps if steps is None else steps
    return dataclasses.replace(config, data=data, prepare=None, steps=steps)


def histograms(source: PairSource, patches: int) -> np.ndarray:
    """Return gray-value histograms [patches, BINS] as square roots of shares.

    The Euclidean distance of two such vectors is proportional to their Hellinger distance.
    """
    counts = [
        np.histogram(source.read_patch(patch), BINS, range=(0, 256))[0] for patch in range(patches)
    ]
    shares = np.array(counts, float)
    return np.sqrt(shares / shares.sum(axis=1, keepdims=True))


def kernel_ridge(train_x, train_y, val_x, val_y, test_x) -> np.ndarray:
    """Estimate test targets by ridge regression with an RBF kernel.

    The kernel's width is the median distance of 500 training points, and the ridge is chosen by the
    validation error.
    """
    width = np.median(cdist(train_x[:500], train_x[:500]))
    kernel, val, test = (
        np.exp(-((cdist(x, train_x) / width) ** 2)) for x in (train_x, val_x, test_x)
    )
    middle = np.median(train_y, axis=0)
    best, best_error = None, np.inf
    for ridge in RIDGES:
        factor = cho_factor(kernel + ridge * np.eye(len(kernel)))
        weights = cho_solve(factor, train_y - middle)
        error = np.abs(val @ weights + middle - val_y).mean()
        if error < best_error:
            best, best_error = weights, error
    assert best is not None
    return test @ best + middle


def histogram_errors(source: PairSource, table: PairTable) -> dict[str, float]:
    """Return the errors in mm of distance and coordinates predicted from histograms alone.

    They are means over the test pairs.
    """
    features = histograms(source, len(table.coordinates_mm))
    split = {name: table.of_split(name) for name in ("train", "val", "test")}

    def pair_features(pairs):
        a, b = features[table.first[pairs]], features[table.second[pairs]]
        return np.concatenate([np.abs(a - b), (a + b) / 2], axis=1)

    distance = kernel_ridge(
        pair_features(split["train"]),
        table.distance_mm[split["train"]],
        pair_features(split["val"]),
        table.distance_mm[split["val"]],
        pair_features(split["test"]),
    )
    patches = {name: np.r_[table.first[p], table.second[p]] for name, p in split.items()}
    unique = np.unique(patches["train"])
    position = kernel_ridge(
        features[unique],
        table.coordinates_mm[unique],
        features[patches["val"]],
        table.coordinates_mm[patches["val"]],
        features[patches["test"]],
    )
    offset = position - table.coordinates_mm[patches["test"]]
    return {
        "distance_mae_mm": float(np.abs(distance - table.distance_mm[split["test"]]).mean()),
        "coordinate_mae_mm": float(np.linalg.norm(offset, axis=1).mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="The network against the phantom's shortcuts.")
    parser.add_argument("--out", type=Path, default=Path("runs/floor"))
    parser.add_argument("--steps", type=int, help="steps of training (default: the quickstart's)")
    parser.add_argument(
        "--seed", type=int, default=1, help="seed of the brain (the quickstart's is 0)"
    )
    arguments = parser.parse_args()
    flags.FLAGS.mark_as_parsed()  # grain reads absl's flags
    log.log_to_stderr()
    rows = {}
    for name, null in (("phantom", False), ("null", True)):
        out = arguments.out / f"seed_{arguments.seed}"
        root = out / f"brain_{name}"
        config = brain_config(root, null, arguments.steps, arguments.seed)
        test = loop.train(config, out / f"run_{name}")["test"]
        rows[name] = {key: test[key] for key in test}
        if not null:
            table = open_pairs(config.data)
            source = PairSource(table, config.data)
            scales = fit_scales(source, table)
            rows["histogram"] = histogram_errors(source, table)
            pairs = table.of_split("test")
            patches = np.stack([table.first[pairs], table.second[pairs]], axis=1)
            known = {
                "distance_mm": table.distance_mm[pairs],
                "coordinates_mm": table.coordinates_mm[patches],
            }
            rows["histogram"] |= constant_errors(
                known, scales.distance_median_mm, scales.coordinate_median_mm
            )
    print(f"{'error, mm':<12}{'distance':>10}{'constant':>10}{'position':>10}{'constant':>10}")
    columns = [f"{key}{end}" for key in ERRORS for end in ("", "_constant")]
    for name, row in rows.items():
        print(f"{name:<12}" + "".join(f"{row[column]:>10.2f}" for column in columns))
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
