"""Test the score maps, the choice of decoder, and stored batch statistics."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import uniform_filter
from test_unet import BOTH_NET, SCORES_NET, SMALL, SMALL_NET, normal, random_variables

from jaxcyto.models import UNet
from jaxcyto.models.scores import enlarge, local_means
from jaxcyto.models.unet import ENCODER

SIDE = 300


@pytest.mark.parametrize("shape", [(1, 6, 9, 2), (2, 11, 5, 3)])
def test_enlarge_interpolates_bilinearly(shape):
    x = normal(*shape)
    whole = jax.image.resize(x, (shape[0], 2 * shape[1], 2 * shape[2], shape[3]), "linear")
    np.testing.assert_allclose(enlarge(x), whole[:, 2:-2, 2:-2], rtol=0, atol=1e-6)


def test_local_means_are_those_of_scipy():
    x = normal(2, 12, 14, 3)
    maps = local_means(x, (3, 7))
    assert [each.shape for each in maps] == 3 * [(2, 6, 8, 3)]
    for side, found in zip((1, 3, 7), maps, strict=True):
        expected = uniform_filter(x, (0, side, side, 0))[:, 3:-3, 3:-3]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_both_decoders_add_up():
    image = normal(2, SIDE, SIDE, 1)
    variables = random_variables(UNet(5, **BOTH_NET), image)
    parts = []
    for decoder in ("unet", "scores"):
        net = UNet(5, **BOTH_NET | {"decoder": decoder})
        shapes = jax.eval_shape(net.init, jax.random.key(0), image)
        own = {key: {name: variables[key][name] for name in shapes[key]} for key in shapes}
        parts.append(jax.jit(net.apply)(own, image))
    result = jax.jit(UNet(5, **BOTH_NET).apply)(variables, image)
    np.testing.assert_allclose(result, parts[0] + parts[1], rtol=0, atol=1e-4)


def test_scores_start_at_zero():
    image = jnp.zeros((1, SIDE, SIDE, 1))
    net = UNet(4, **SCORES_NET)
    logits, _ = jax.jit(net.init_with_output)(jax.random.key(0), image)
    assert logits.shape == (1, 12, 12, 4)
    np.testing.assert_array_equal(logits, 0)


def test_the_network_without_score_maps_has_the_reach_of_the_paper():
    assert UNet(4, **SMALL_NET).pools == ()
    assert SMALL.reach == 0


def test_stored_statistics_are_constants_in_training():
    """Training then computes what inference computes, and leaves the statistics alone."""
    net = UNet(4, **SCORES_NET, stored_statistics=True)
    image = normal(2, SIDE, SIDE, 1)
    variables = random_variables(net, image)
    run = jax.jit(functools.partial(net.apply, train=True, mutable=["batch_stats"]))
    logits, updated = run(variables, image)
    np.testing.assert_allclose(logits, jax.jit(net.apply)(variables, image), rtol=0, atol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, updated["batch_stats"], variables["batch_stats"])

    _, changed = jax.jit(
        functools.partial(UNet(4, **SCORES_NET).apply, train=True, mutable=["batch_stats"])
    )(variables, image)
    first = changed["batch_stats"][ENCODER]["block1"]["bn1"]["mean"]
    assert not np.array_equal(first, variables["batch_stats"][ENCODER]["block1"]["bn1"]["mean"])
