"""Test metrics against NumPy, and merged (sum, count) states against the whole set."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

from jaxcyto import metrics


def pairs(size: int, seed: int = 0) -> tuple[dict, dict]:
    rng = np.random.default_rng(seed)
    make = lambda: {  # noqa: E731
        "distance_mm": rng.uniform(0, 90, size).astype(np.float32),
        "coordinates_mm": rng.uniform(-70, 70, (size, 2, 3)).astype(np.float32),
    }
    return make(), make()


def test_by_hand():
    """For one pair, the distance is off by 3 mm and the patches by (3, 4, 0) and (0, 0, -1)."""
    predicted = {
        "distance_mm": jnp.asarray([7.0]),
        "coordinates_mm": jnp.asarray([[[3.0, 4.0, 0.0], [0.0, 0.0, -1.0]]]),
    }
    batch = {"distance_mm": jnp.asarray([10.0]), "coordinates_mm": jnp.zeros((1, 2, 3))}
    result = metrics.compute(metrics.pretext_metrics(predicted, batch))
    assert result == {
        "distance_mae_mm": 3.0,
        "coordinate_mae_mm": 3.0,  # mean of 5 and 1
        "coordinate_mae_mm_per_axis": [1.5, 2.0, 0.5],
    }
    assert json.loads(json.dumps(result)) == result


def numpy_metrics(predicted: dict, batch: dict) -> dict:
    offset = np.float64(predicted["coordinates_mm"]) - batch["coordinates_mm"]
    return {
        "distance_mae_mm": np.abs(
            np.float64(predicted["distance_mm"]) - batch["distance_mm"]
        ).mean(),
        "coordinate_mae_mm": np.sqrt((offset**2).sum(-1)).mean(),
        "coordinate_mae_mm_per_axis": np.abs(offset).reshape(-1, 3).mean(0),
    }


def assert_close(result: dict, expected: dict) -> None:
    assert set(result) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(result[name], value, rtol=1e-5)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(0, 8), min_size=1, max_size=6).filter(any), st.integers(0, 99))
def test_padded_batches_equal_the_whole(sizes, seed):
    """The result does not depend on how pairs are divided into batches of 8, padded with NaN."""
    predicted, batch = pairs(sum(sizes), seed)
    step = jax.jit(metrics.pretext_metrics)
    states, start = [], 0
    for size in sizes:
        part = jax.tree.map(lambda x, s=slice(start, start + size): x[s], (predicted, batch))
        padded = jax.tree.map(
            lambda x: np.concatenate([x, np.full((8 - len(x), *x.shape[1:]), np.nan, x.dtype)]),
            part,
        )
        states.append(step(padded[0], {**padded[1], "valid": np.arange(8) < size}))
        start += size
    merged = metrics.merge(*states)
    assert_close(metrics.compute(merged), numpy_metrics(predicted, batch))
    assert merged["distance_mae_mm"][1] == sum(sizes)
    assert merged["coordinate_mae_mm"][1] == 2 * sum(sizes)


def test_psum_over_devices_equals_one_device():
    predicted, batch = pairs(16)
    batch["valid"] = np.arange(16) < 11
    shards = jax.tree.map(lambda x: x.reshape(4, 4, *x.shape[1:]), (predicted, batch))
    state = jax.pmap(
        lambda p, b: jax.lax.psum(metrics.pretext_metrics(p, b), "batch"),
        axis_name="batch",
        out_axes=None,
        devices=jax.devices()[:4],
    )(*shards)
    assert_close(metrics.compute(state), metrics.compute(metrics.pretext_metrics(predicted, batch)))


def test_constant_predictor_is_scored_alike():
    _, batch = pairs(50)
    constant = {
        "distance_mm": np.broadcast_to(np.median(batch["distance_mm"]), 50),
        "coordinates_mm": np.broadcast_to(np.median(batch["coordinates_mm"], (0, 1)), (50, 2, 3)),
    }
    result = metrics.compute(metrics.pretext_metrics(constant, batch))
    assert_close(result, numpy_metrics(constant, batch))


def test_nothing_counted_is_nan_and_names_may_be_missing():
    state = {"a": (np.float32(0), np.float32(0)), "b": (np.zeros(3), np.float32(0))}
    result = metrics.compute(state)
    assert math.isnan(result["a"]) and all(map(math.isnan, result["b"]))
    merged = metrics.merge({"a": (1.0, 1.0)}, {"a": (3.0, 1.0), "c": (1.0, 2.0)})
    assert metrics.compute(merged) == {"a": 2.0, "c": 0.5}


@pytest.mark.parametrize("name", ["distance_mm", "coordinates_mm"])
def test_shape_mismatch(name):
    predicted, batch = pairs(4)
    predicted[name] = predicted[name][:1]
    with pytest.raises(ValueError, match=rf"predicted {name} has shape \(1"):
        metrics.pretext_metrics(predicted, batch)
    predicted, batch = pairs(4)
    with pytest.raises(ValueError, match=r"valid'\] has shape \(3,\)"):
        metrics.pretext_metrics(predicted, {**batch, "valid": np.ones(3, bool)})


# ---- segmentation --------------------------------------------------------------------------------

NAMES = ("a", "b", "c", "other", "never")
AREAS = (True, True, True, False, True)


def random_maps(seed: int, shape=(6, 9, 7)):
    """Draw predictions and sparse labels. Class 4 is predicted but never annotated."""
    rng = np.random.default_rng(seed)
    label = rng.choice([0, 1, 2, 3, 255], shape, p=[0.3, 0.2, 0.1, 0.1, 0.3]).astype(np.uint8)
    guess = rng.integers(0, 5, shape)
    predicted = np.where((rng.random(shape) < 0.6) & (label != 255), label, guess)
    return predicted.astype(np.uint8), label


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_those_of_scikit_learn(seed):
    predicted, label = random_maps(seed)
    valid = np.array([True, True, False, True, True, True])
    matrices = jax.jit(metrics.confusion_matrices, static_argnums=2)(predicted, label, 5, valid)
    matrix = np.asarray(matrices).sum(0)
    truth, guess = (x[valid][label[valid] != 255] for x in (label, predicted))
    np.testing.assert_array_equal(matrix, confusion_matrix(truth, guess, labels=range(5)))
    scores = metrics.segmentation_scores(matrix, NAMES, AREAS)
    dice = f1_score(truth, guess, labels=range(5), average=None, zero_division=0)
    np.testing.assert_allclose([scores["dice"][name] for name in NAMES[:4]], dice[:4])
    assert scores["dice"]["never"] is None
    macro = f1_score(truth, guess, labels=range(4), average="macro")
    areas = f1_score(truth, guess, labels=range(3), average="macro")
    np.testing.assert_allclose(scores["dice_macro"], macro)
    np.testing.assert_allclose(scores["dice_macro_areas"], areas)
    wrong = 100 * (1 - accuracy_score(truth, guess))
    np.testing.assert_allclose(scores["err_seg_percent"], wrong)
    assert scores["pixels"] == len(truth)


def test_states_of_batches_add_up_to_the_whole():
    """The halves are annotated unequally, so the mean of their scores would be wrong."""
    predicted, label = random_maps(7)
    label[:3, 1:] = 255
    parts = [
        metrics.confusion_matrices(predicted[k : k + 3], label[k : k + 3], 5).sum(0) for k in (0, 3)
    ]
    merged = metrics.merge(*({"confusion": (part, part.sum())} for part in parts))
    whole = metrics.confusion_matrices(predicted, label, 5).sum(0)
    np.testing.assert_array_equal(merged["confusion"][0], whole)
    err = [metrics.segmentation_scores(p, NAMES, AREAS)["err_seg_percent"] for p in (*parts, whole)]
    assert abs(np.mean(err[:2]) - err[2]) > 1


def test_nothing_annotated_has_no_score():
    scores = metrics.segmentation_scores(np.zeros((5, 5)), NAMES, AREAS)
    assert scores["err_seg_percent"] is scores["dice_macro"] is scores["dice_macro_areas"] is None
    assert set(scores["dice"].values()) == {None} and scores["pixels"] == 0


def test_maps_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match="expected"):
        metrics.confusion_matrices(jnp.zeros((2, 3, 3)), jnp.zeros((2, 3, 4)), 5)
