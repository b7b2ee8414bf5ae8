"""Probe frozen features for area and position with k-NN, linear and ridge models.

Each model is fitted on training patches and scored on test patches. The features are standardized
with the mean and standard deviation of the training patches. The choice of probes and their
settings is ours, not the paper's. scikit-learn is imported on first use, because the import takes
a second.
"""

from typing import Any

import numpy as np

from jaxcyto.errors import InputError
from jaxcyto.utils.median import geometric_median

NEIGHBORS = 20
# candidate ridge penalties. Leave-one-out error on the training patches selects one
ALPHAS = tuple(10.0**k for k in range(-3, 5))
MOST_ITERATIONS = 2000  # of the logistic regression. 32 features need approximately 100


def probe_areas(
    features: np.ndarray,
    areas: np.ndarray,
    train: np.ndarray,
    test: np.ndarray,
    *,
    neighbors: int = NEIGHBORS,
) -> dict[str, Any]:
    """Score the prediction of the area of test patches by k-NN and by a linear model.

    * k-NN predicts the most frequent area among the nearest training patches. The distance is
      Euclidean, because the pretext task only uses differences of features. Their origin, on which
      a cosine distance would depend, is arbitrary.
    * linear is multinomial logistic regression with an L2 penalty and C = 1 (the default of
      scikit-learn).
    * majority always predicts the most frequent area of the training patches.

    Args:
        features: features, float [N, F].
        areas: area indices or names [N].
        train: patches to fit on, bool [N] or indices.
        test: patches to score, bool [N] or indices.
        neighbors: k of k-NN. If there are fewer training patches, all of them are used.

    Returns:
        A dict with the counts `train` and `test` of patches, the count `areas` of areas of the
        training patches, and for each of `knn`, `linear` and `majority` a dict with `accuracy` and
        `balanced_accuracy`, the mean recall over the areas of the test patches.

    Raises:
        InputError: there are no training or test patches, or the training patches have fewer than
            two areas.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier

    fitted, scored = _standardized(features, train, test)
    known, truth = areas[train], areas[test]
    names, counts = np.unique(known, return_counts=True)
    if len(names) < 2:
        raise InputError(
            f"probes: training patches lie in {len(names)} area(s), at least 2 are needed; sample "
            "more patches, or look at the labels with `jaxcyto check`"
        )
    models = {
        "knn": KNeighborsClassifier(min(neighbors, len(known)), metric="euclidean"),
        "linear": LogisticRegression(max_iter=MOST_ITERATIONS),
    }
    predicted = {name: model.fit(fitted, known).predict(scored) for name, model in models.items()}
    predicted["majority"] = np.full(len(truth), names[counts.argmax()])
    scores = {name: accuracy(truth, guesses) for name, guesses in predicted.items()}
    return {"train": len(known), "test": len(truth), "areas": len(names), **scores}


def probe_coordinates(
    features: np.ndarray, position_mm: np.ndarray, train: np.ndarray, test: np.ndarray
) -> dict[str, Any]:
    """Score the prediction of the position of test patches by ridge regression.

    The penalty is selected from `ALPHAS` on the training patches.

    Args:
        features: features, float [N, F].
        position_mm: positions in mm [N, 3]. Pass (|x|, y, z) for a run with `absolute_x`.
        train: patches to fit on, bool [N] or indices.
        test: patches to score, bool [N] or indices.

    Returns:
        A dict with `coordinate_mae_mm` (mean Euclidean distance), `coordinate_mae_mm_per_axis`, and
        both with the suffix `_constant` for always predicting the geometric median of the training
        patches, as in `metrics.pretext_metrics`.

    Raises:
        InputError: there are no training or test patches.
    """
    from sklearn.linear_model import RidgeCV

    fitted, scored = _standardized(features, train, test)
    known, truth = position_mm[train].astype(np.float64), position_mm[test].astype(np.float64)
    ridge = RidgeCV(ALPHAS).fit(fitted, known).predict(scored)
    results = {}
    for suffix, predicted in (("", ridge), ("_constant", geometric_median(known))):
        error = truth - predicted
        results[f"coordinate_mae_mm{suffix}"] = float(np.linalg.norm(error, axis=1).mean())
        results[f"coordinate_mae_mm_per_axis{suffix}"] = np.abs(error).mean(axis=0).tolist()
    return results


def _standardized(
    features: np.ndarray, train: np.ndarray, test: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Standardize float64 features by the mean and standard deviation of the training patches."""
    fitted, scored = features[train].astype(np.float64), features[test].astype(np.float64)
    if not len(fitted) or not len(scored):
        raise InputError(
            f"probes: {len(fitted)} training and {len(scored)} test patches; both are needed: see "
            "the split column of the section table"
        )
    mean, std = fitted.mean(axis=0), fitted.std(axis=0)
    std[std <= 1e-9 * np.abs(mean)] = 1.0  # a constant feature must not be divided by 0
    return (fitted - mean) / std, (scored - mean) / std


def accuracy(truth: np.ndarray, said: np.ndarray) -> dict[str, float]:
    """Compute `accuracy` and `balanced_accuracy` of the predicted areas of N patches.

    Args:
        truth: true areas [N].
        said: predicted areas [N].

    Returns:
        A dict with both. `balanced_accuracy` is the mean recall over the areas in `truth`.
    """
    right = truth == said
    recalls = [right[truth == name].mean() for name in np.unique(truth)]
    return {"accuracy": float(right.mean()), "balanced_accuracy": float(np.mean(recalls))}
