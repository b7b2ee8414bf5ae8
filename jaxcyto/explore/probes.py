"""How much of area and place can be read from frozen features: k-NN, linear and ridge probes.

Each is fitted on training patches and scored on test patches, on features standardized by the
training patches. scikit-learn does the work; it is imported on first use, for it takes a second.
"""

from typing import Any

import numpy as np

from jaxcyto.errors import InputError

NEIGHBORS = 20
# of the ridge penalty, chosen by leave-one-out error on the training patches
ALPHAS = tuple(10.0**k for k in range(-3, 5))
MOST_ITERATIONS = 2000  # of the logistic regression: 32 features need some 100


def probe_areas(
    features: np.ndarray,
    areas: np.ndarray,
    train: np.ndarray,
    test: np.ndarray,
    *,
    neighbors: int = NEIGHBORS,
) -> dict[str, Any]:
    """Area of test patches by k nearest neighbors and by a linear model.

    * k-NN: the most frequent area among the 20 nearest training patches. Euclidean, as the pretext
      task shapes features: it looks at differences alone, so that their origin, on which the cosine
      depends, is arbitrary.
    * linear: multinomial logistic regression with an L2 penalty of C = 1 (scikit-learn's default).
    * majority: the most frequent area of the training patches: the floor.

    Args:
        features: float [N, F].
        areas: numbers or names [N].
        train: patches to fit on, bool [N] or numbers.
        test: patches to score.
        neighbors: k; all training patches if they are fewer.

    Returns:
        `train` and `test` (numbers of patches), `areas` (of the training patches), and for each of
        `knn`, `linear` and `majority` the `accuracy` and the `balanced_accuracy`: the mean recall
        over the areas of the test patches.

    Raises:
        InputError: there are no test patches, or the training patches have fewer than two areas.
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
    scores = {name: accuracy(truth, said) for name, said in predicted.items()}
    return {"train": len(known), "test": len(truth), "areas": len(names), **scores}


def probe_coordinates(
    features: np.ndarray, position_mm: np.ndarray, train: np.ndarray, test: np.ndarray
) -> dict[str, Any]:
    """Position of test patches by ridge regression; its penalty is chosen on the training patches.

    Args:
        features: float [N, F].
        position_mm: [N, 3]; give (|x|, y, z) where left and right look alike.
        train: patches to fit on, bool [N] or numbers.
        test: patches to score.

    Returns:
        `coordinate_mae_mm` (mean Euclidean distance), `coordinate_mae_mm_per_axis`, and both with
        `_constant` for the training median, the floor; as in `metrics.pretext_metrics`.

    Raises:
        InputError: there are no training or test patches.
    """
    from sklearn.linear_model import RidgeCV

    fitted, scored = _standardized(features, train, test)
    known, truth = position_mm[train].astype(np.float64), position_mm[test].astype(np.float64)
    read = RidgeCV(ALPHAS).fit(fitted, known).predict(scored)
    results = {}
    for suffix, said in (("", read), ("_constant", np.median(known, axis=0))):
        off = truth - said
        results[f"coordinate_mae_mm{suffix}"] = float(np.linalg.norm(off, axis=1).mean())
        results[f"coordinate_mae_mm_per_axis{suffix}"] = np.abs(off).mean(axis=0).tolist()
    return results


def _standardized(
    features: np.ndarray, train: np.ndarray, test: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Training and test features in float64, by mean and standard deviation of the former."""
    fitted, scored = features[train].astype(np.float64), features[test].astype(np.float64)
    if not len(fitted) or not len(scored):
        raise InputError(
            f"probes: {len(fitted)} training and {len(scored)} test patches; both are needed: see "
            "the split column of the section table"
        )
    mean, std = fitted.mean(axis=0), fitted.std(axis=0)
    std[std <= 1e-9 * np.abs(mean)] = 1.0  # a constant feature stays one
    return (fitted - mean) / std, (scored - mean) / std


def accuracy(truth: np.ndarray, said: np.ndarray) -> dict[str, float]:
    """`accuracy` and `balanced_accuracy` (mean recall over the areas of `truth`) of N patches."""
    right = truth == said
    recalls = [right[truth == name].mean() for name in np.unique(truth)]
    return {"accuracy": float(right.mean()), "balanced_accuracy": float(np.mean(recalls))}
