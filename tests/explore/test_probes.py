"""Test the probes against pipelines of scikit-learn and cases with known results."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from jaxcyto.errors import InputError
from jaxcyto.explore.probes import probe_areas, probe_coordinates
from jaxcyto.utils.median import geometric_median

TRAIN, TEST = np.arange(600) < 400, np.arange(600) >= 400


def clusters(spread: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw features [600, 8] around one center per area. Area 0 of five is the most frequent."""
    rng = np.random.default_rng(seed)
    areas = rng.choice(5, 600, p=[0.4, 0.2, 0.2, 0.1, 0.1])
    centers = np.random.default_rng(1).normal(size=(5, 8))
    features = centers[areas] + spread * rng.normal(size=(600, 8))
    return features.astype(np.float32), areas


def test_the_same_as_scikit_learn():
    features, areas = clusters(1.2)
    features = features * np.array([1, 100, 1, 1, 1e-3, 1, 1, 1]) + 50  # must have no effect
    found = probe_areas(features, areas, TRAIN, TEST)
    for name, model in (
        ("knn", KNeighborsClassifier(20)),
        ("linear", LogisticRegression(max_iter=2000)),
    ):
        pipeline = make_pipeline(StandardScaler(), model).fit(features[TRAIN], areas[TRAIN])
        said = pipeline.predict(features[TEST])
        assert 0.5 < (said == areas[TEST]).mean() < 0.95  # neither trivial nor impossible
        assert found[name]["accuracy"] == pytest.approx((said == areas[TEST]).mean(), abs=0.006)
        balanced = balanced_accuracy_score(areas[TEST], said)
        assert found[name]["balanced_accuracy"] == pytest.approx(balanced, abs=0.01)
    assert found["train"] == 400 and found["test"] == 200 and found["areas"] == 5


def test_separate_clusters_are_told_apart_and_noise_is_not():
    features, areas = clusters(0.05)
    found = probe_areas(features, areas, TRAIN, TEST)
    assert found["knn"]["accuracy"] == found["linear"]["balanced_accuracy"] == 1
    noise = np.random.default_rng(2).normal(size=(600, 8))
    found = probe_areas(noise, areas, TRAIN, TEST)
    majority = (areas[TEST] == 0).mean()
    assert found["majority"] == {"accuracy": majority, "balanced_accuracy": 0.2}
    for name in ("knn", "linear"):
        assert abs(found[name]["accuracy"] - majority) < 0.1
        assert found[name]["balanced_accuracy"] < 0.3


def test_areas_may_be_names_and_splits_numbers():
    features, areas = clusters(0.05)
    names = np.array([f"hOc{k}" for k in areas])
    found = probe_areas(features, names, np.flatnonzero(TRAIN), np.flatnonzero(TEST))
    assert found == probe_areas(features, areas, TRAIN, TEST)


def test_an_area_that_training_has_not_seen_counts_as_wrong():
    features, areas = clusters(0.05)
    train = TRAIN & (areas != 4)
    found = probe_areas(features, areas, train, TEST)
    assert found["areas"] == 4
    assert found["knn"]["balanced_accuracy"] == pytest.approx(0.8)
    assert found["knn"]["accuracy"] == pytest.approx((areas[TEST] != 4).mean())


def test_constant_features_and_few_patches():
    features, areas = clusters(0.05)
    features[:, 3] = 0.1
    few = np.flatnonzero(TRAIN)[:10]
    found = probe_areas(features, areas, few, TEST)
    assert np.isfinite(found["knn"]["accuracy"])


def test_coordinates_that_are_linear_in_the_features_are_found():
    rng = np.random.default_rng(3)
    features = rng.normal(size=(600, 8)).astype(np.float32) * np.array([1, 1e3, 1, 1, 1, 1, 1, 1])
    position = (features / np.array([1, 1e3, 1, 1, 1, 1, 1, 1])) @ rng.normal(size=(8, 3)) + 30
    found = probe_coordinates(features, position, TRAIN, TEST)
    assert found["coordinate_mae_mm"] < 1e-3
    assert max(found["coordinate_mae_mm_per_axis"]) < 1e-3
    off = position[TEST] - geometric_median(position[TRAIN])
    assert found["coordinate_mae_mm_constant"] == pytest.approx(np.linalg.norm(off, axis=1).mean())
    assert found["coordinate_mae_mm_per_axis_constant"] == pytest.approx(np.abs(off).mean(axis=0))


def test_coordinates_from_noise_are_no_better_than_a_constant():
    rng = np.random.default_rng(4)
    found = probe_coordinates(rng.normal(size=(600, 8)), rng.normal(size=(600, 3)), TRAIN, TEST)
    assert found["coordinate_mae_mm"] > 0.97 * found["coordinate_mae_mm_constant"]


def test_what_cannot_be_probed_is_said():
    features, areas = clusters(0.1)
    with pytest.raises(InputError, match="400 training and 0 test patches"):
        probe_areas(features, areas, TRAIN, np.zeros(600, bool))
    with pytest.raises(InputError, match="1 area"):
        probe_areas(features, np.zeros(600, int), TRAIN, TEST)
    with pytest.raises(InputError, match="0 training"):
        probe_coordinates(features, np.zeros((600, 3)), ~(TRAIN | TEST), TEST)
