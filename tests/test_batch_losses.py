"""Test losses over all patches of a batch against plain loops and scikit-learn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp
from sklearn.metrics.pairwise import cosine_similarity, euclidean_distances

from jaxcyto.batch_losses import all_pairs_distance_loss, colocation_loss
from jaxcyto.errors import InputError
from jaxcyto.losses import distance_loss, is_batchwise, total_loss

B = 6
HEMISPHERE = np.repeat([0, 0, 0, 0, 1, 1], 2)
ACROSS = HEMISPHERE[:, None] != HEMISPHERE


@pytest.fixture
def outputs() -> dict:
    rng = np.random.default_rng(0)
    return {"features": jnp.asarray(rng.normal(size=(B, 2, 32)), jnp.float32)}


@pytest.fixture
def distances() -> np.ndarray:
    """Return distances along a line in mm. Pairs are near, and so is all of the last hemisphere."""
    place = np.array([0, 1, 5, 6, 20, 21.5, 21, 40, 0, 0.5, 1, 1.5])
    distances = np.abs(place[:, None] - place).astype(np.float32)
    distances[ACROSS] = np.inf
    return distances


def test_both_are_batchwise():
    assert is_batchwise(all_pairs_distance_loss)
    assert is_batchwise(functools.partial(colocation_loss, near_mm=1.0))


def test_all_pairs_against_a_loop(outputs, distances):
    features = np.float64(outputs["features"]).reshape(2 * B, -1)
    predicted = euclidean_distances(features, squared=True)
    target = distances / 10
    expected = []
    for i in range(2 * B):
        others = np.flatnonzero((HEMISPHERE == HEMISPHERE[i]) & (np.arange(2 * B) != i))
        expected.append(np.abs(predicted[i, others] - target[i, others]).mean())
    batch = {"all_distances_scaled": jnp.asarray(target)}
    found = jax.jit(all_pairs_distance_loss)(outputs, batch)
    np.testing.assert_allclose(found, np.reshape(expected, (B, 2)).mean(1), rtol=1e-5)


def test_all_pairs_of_one_pair_is_the_pair_loss(outputs):
    one = {"features": outputs["features"][:1]}
    target = jnp.asarray([[0, 7.0], [7, 0]])
    found = all_pairs_distance_loss(one, {"all_distances_scaled": target})
    expected = distance_loss(one, {"distance_scaled": jnp.asarray([7.0])})
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("near_mm", [0.1, 2.0, 8.0])
def test_colocation_against_a_loop(near_mm, outputs, distances):
    features = np.float64(outputs["features"]).reshape(2 * B, -1)
    logits = cosine_similarity(features) / 0.5
    expected = np.zeros(2 * B)
    for i in range(2 * B):
        positive = [j for j in range(2 * B) if j != i and distances[i, j] <= near_mm]
        negative = [j for j in range(2 * B) if near_mm < distances[i, j] < np.inf]
        for j in positive:
            among = logits[i, [j, *negative]]
            expected[i] += (logsumexp(among) - logits[i, j]) / len(positive)
    loss = functools.partial(colocation_loss, near_mm=near_mm, temperature=0.5)
    batch = {"all_distances_mm": jnp.asarray(distances)}
    found = jax.jit(loss)(outputs, batch)
    np.testing.assert_allclose(found, expected.reshape(B, 2).mean(1), rtol=1e-5, atol=1e-6)
    assert (near_mm == 0.1) == (not found.any())


def test_gradients_are_finite_where_features_vanish_or_nobody_is_near(outputs, distances):
    still = {"features": outputs["features"].at[0].set(0)}
    alone = np.where(np.eye(2 * B, dtype=bool), 0, np.inf).astype(np.float32)
    for all_distances in (distances, alone):
        batch = {
            "all_distances_mm": jnp.asarray(all_distances),
            "all_distances_scaled": jnp.asarray(all_distances),
        }
        for loss in (all_pairs_distance_loss, colocation_loss):
            total = functools.partial(total_loss, ((loss, 1.0),))
            gradient = jax.grad(total)(still, batch)["features"]
            assert jnp.isfinite(gradient).all()
            assert bool(gradient.any()) == (all_distances is distances)


def test_features_that_follow_the_place_cost_less(distances):
    """Features whose direction turns with the position cost less than the same ones shuffled."""
    angle = np.array([0, 1, 5, 6, 20, 21.5, 21, 40, 0, 0.5, 1, 1.5]) * np.pi / 40
    good = np.stack([np.cos(angle), np.sin(angle)], -1).reshape(B, 2, 2).astype(np.float32)
    batch = {"all_distances_mm": jnp.asarray(distances)}
    bad = np.random.default_rng(1).permutation(good.reshape(-1, 2)).reshape(good.shape)
    cost = [float(colocation_loss({"features": jnp.asarray(f)}, batch).mean()) for f in (good, bad)]
    assert cost[0] < 0.5 * cost[1]


@pytest.mark.parametrize("loss", [all_pairs_distance_loss, colocation_loss])
def test_wrong_shapes_are_refused(loss):
    with pytest.raises(ValueError, match=r"outputs\['features'\] has shape \(4, 32\)"):
        loss({"features": jnp.zeros((4, 32))}, {})


@pytest.mark.parametrize("loss", [all_pairs_distance_loss, colocation_loss])
def test_missing_distances_are_an_error_with_a_remedy(loss):
    outputs = {"features": jnp.zeros((2, 2, 3))}
    with pytest.raises(InputError, match=r"is missing; set data\.all_distances = True"):
        loss(outputs, {"distance_scaled": jnp.zeros(2)})
