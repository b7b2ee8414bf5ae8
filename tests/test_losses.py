"""Test losses against closed forms, NumPy and optax."""

import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
import sklearn.metrics

from jaxcyto import losses
from jaxcyto.errors import InputError
from jaxcyto.losses import coordinate_loss, distance_loss, total_loss
from jaxcyto.models.siamese import SiameseNet

B = 5


@pytest.fixture
def outputs() -> dict:
    rng = np.random.default_rng(1)
    return {
        "features": jnp.asarray(rng.normal(size=(B, 2, 32)), jnp.float32),
        "coordinates_scaled": jnp.asarray(rng.normal(size=(B, 2, 3)), jnp.float32),
    }


@pytest.fixture
def batch() -> dict:
    rng = np.random.default_rng(2)
    return {
        "distance_mm": jnp.asarray(rng.uniform(0, 90, B), jnp.float32),
        "coordinates_mm": jnp.asarray(rng.uniform(-70, 70, (B, 2, 3)), jnp.float32),
        "distance_scaled": jnp.asarray(rng.uniform(0, 2, B), jnp.float32),
        "coordinates_scaled": jnp.asarray(rng.uniform(-1, 1, (B, 2, 3)), jnp.float32),
    }


OUTER = {
    "l1": np.abs,
    "l2": np.square,
    "huber": lambda e: np.where(np.abs(e) < 1, e**2 / 2, np.abs(e) - 0.5),
}


def test_distance_by_hand():
    """The offset (3, 4) gives 25. Against 20, the error is 5, 25 or, beyond delta, 5 - 1/2."""
    outputs = {"features": jnp.asarray([[[1.0, 1.0], [4.0, 5.0]]])}
    batch = {"distance_scaled": jnp.asarray([20.0])}
    assert losses.predicted_distance(outputs["features"]) == 25
    for form, expected in [("l1", 5), ("l2", 25), ("huber", 4.5)]:
        assert distance_loss(outputs, batch, form=form) == expected
    assert distance_loss(outputs, batch, form="huber", huber_delta=2.0) == 2 * 5 - 2


@pytest.mark.parametrize("form", OUTER)
def test_numpy_oracle(form, outputs, batch):
    first, second = np.float64(outputs["features"]).transpose(1, 0, 2)
    error = ((first - second) ** 2).sum(1) - np.float64(batch["distance_scaled"])
    result = jax.jit(functools.partial(distance_loss, form=form))(outputs, batch)
    np.testing.assert_allclose(result, OUTER[form](error), rtol=1e-5)
    assert result.dtype == jnp.float32

    error = np.float64(outputs["coordinates_scaled"]) - np.float64(batch["coordinates_scaled"])
    result = jax.jit(functools.partial(coordinate_loss, form=form))(outputs, batch)
    np.testing.assert_allclose(result, OUTER[form](error).reshape(B, 6).mean(1), rtol=1e-5)
    assert result.dtype == jnp.float32 and result.shape == (B,)


def test_optax_peer(outputs, batch):
    predicted, target = outputs["coordinates_scaled"], batch["coordinates_scaled"]
    for form, peer in [("l2", optax.losses.squared_error), ("huber", optax.losses.huber_loss)]:
        expected = peer(predicted, target).mean(axis=(1, 2))
        np.testing.assert_allclose(coordinate_loss(outputs, batch, form=form), expected, rtol=1e-6)


def test_millimeters_do_not_stand_in_for_a_missing_target(outputs, batch):
    only_mm = {name: batch[name] for name in ("distance_mm", "coordinates_mm")}
    for loss, name in ((distance_loss, "distance"), (coordinate_loss, "coordinates")):
        with pytest.raises(InputError, match=rf"batch\['{name}_scaled'\] is missing"):
            loss(outputs, only_mm)


@pytest.mark.parametrize(
    ("kind", "old", "new"),
    [("outputs", *item) for item in losses.RENAMED_OUTPUTS.items()]
    + [("batch", *item) for item in losses.RENAMED_FIELDS.items()],
)
def test_a_key_of_an_earlier_version_names_the_new_one(kind, old, new, outputs, batch):
    def by_item(outputs, batch):
        return {"outputs": outputs, "batch": batch}[kind][old]

    def by_get(outputs, batch):
        return {"outputs": outputs, "batch": batch}[kind].get(old)

    def by_in(outputs, batch):
        return old in {"outputs": outputs, "batch": batch}[kind]

    def of_a_copy(outputs, batch):
        return ({"outputs": outputs, "batch": batch}[kind].copy() | {}).pop(old, 0)

    def mapped(outputs, batch):
        return jax.tree.map(lambda x: x, {"outputs": outputs, "batch": batch}[kind])[old]

    for loss in (
        by_item,
        by_get,
        by_in,
        of_a_copy,
        mapped,
        jax.jit(by_item),
        jax.checkpoint(by_item),
    ):
        with pytest.raises(
            InputError, match=rf"{kind}\['{old}'\]; the key is now {kind}\['{new}'\]"
        ):
            jax.eval_shape(functools.partial(total_loss, ((loss, 1.0),)), outputs, batch)


def test_other_keys_fail_or_default_as_in_any_dict(outputs, batch):
    def loss(outputs, batch):
        assert batch.get("weight") is None and batch.get("weight", 1.0) == 1.0
        assert set(jax.tree.map(jnp.shape, batch)) == set(batch)  # still a tree of arrays
        return outputs["feature"]

    with pytest.raises(KeyError, match=r"'feature'.*features, coordinates_scaled"):
        total_loss(((loss, 1.0),), outputs, batch)


def test_symmetric_and_independent_of_other_examples(outputs, batch):
    swapped = {**outputs, "features": outputs["features"][:, ::-1]}
    np.testing.assert_array_equal(distance_loss(swapped, batch), distance_loss(outputs, batch))
    order = jnp.asarray([3, 0, 4, 1, 2])
    for loss in (distance_loss, coordinate_loss):
        permuted = loss(*jax.tree.map(lambda x: x[order], (outputs, batch)))
        np.testing.assert_array_equal(permuted, loss(outputs, batch)[order])


@pytest.mark.parametrize("form", OUTER)
def test_gradient_is_finite_at_zero_distance(form):
    features = jnp.ones((2, 2, 32))
    for target in (0.0, 1.0):
        batch = {"distance_scaled": jnp.full(2, target)}

        def mean(features, batch=batch):
            return distance_loss({"features": features}, batch, form=form).mean()

        assert np.all(np.isfinite(jax.jit(jax.grad(mean))(features)))


def test_low_precision_outputs_are_compared_in_float32():
    """The difference of nearly equal bfloat16 features is computed exactly, in float32."""
    features = jnp.asarray([[[256.0, 1.0], [258.0, 1.0078125]]], jnp.bfloat16)
    predicted = losses.predicted_distance(features)
    assert predicted.dtype == jnp.float32 and predicted == 4 + 0.0078125**2


@pytest.mark.parametrize(
    ("loss", "change", "words"),
    [
        (
            distance_loss,
            {"distance_scaled": (B, 1)},
            r"distance_scaled'\] has shape \(5, 1\).*\(5,\)",
        ),
        (distance_loss, {"distance_scaled": (1,)}, r"\(1,\).*\(5,\)"),
        (distance_loss, {"distance_scaled": ()}, r"\(\).*\(5,\)"),
        (coordinate_loss, {"coordinates_scaled": (B, 1, 3)}, r"\(5, 1, 3\).*\(5, 2, 3\)"),
        (coordinate_loss, {"coordinates_scaled": (B, 3)}, r"\(5, 3\).*\(5, 2, 3\)"),
    ],
)
def test_shape_mismatch_is_an_error_while_tracing(loss, change, words, outputs, batch):
    wrong = {name: jnp.ones(shape) for name, shape in change.items()}
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(loss, outputs, wrong)


def test_outputs_of_wrong_shape():
    batch = {"distance_scaled": jnp.ones(4), "coordinates_scaled": jnp.ones((4, 2, 3))}
    with pytest.raises(ValueError, match=r"\(8, 32\).*\[B, 2, F\]"):
        distance_loss({"features": jnp.ones((8, 32))}, batch)
    with pytest.raises(ValueError, match=r"\(4, 2, 2\).*\[B, 2, 3\]"):
        coordinate_loss({"coordinates_scaled": jnp.ones((4, 2, 2))}, batch)


def test_unknown_form(outputs, batch):
    with pytest.raises(ValueError, match="'l3' is none of l1, l2, huber"):
        distance_loss(outputs, batch, form="l3")


def test_total_is_the_weighted_sum_of_means(outputs, batch):
    terms = ((distance_loss, 1.0), (functools.partial(coordinate_loss, form="l2"), 10.0))
    total = jax.jit(functools.partial(total_loss, terms))(outputs, batch)
    expected = np.mean(distance_loss(outputs, batch))
    expected += 10 * np.mean(coordinate_loss(outputs, batch, form="l2"))
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    assert total.shape == () and total.dtype == jnp.float32
    assert total_loss((), outputs, batch) == 0


def test_padding_does_not_enter_the_total(outputs, batch):
    """A batch that is padded, even with NaN, has the value and gradient of its valid part."""
    terms = ((distance_loss, 1.0), (coordinate_loss, 10.0))
    keep = jnp.asarray([True, False, True, True, False])
    poisoned = jax.tree.map(
        lambda x: jnp.where(keep.reshape(-1, *[1] * (x.ndim - 1)), x, jnp.nan), batch
    )
    short = jax.tree.map(lambda x: x[keep], (outputs, batch))
    value = functools.partial(total_loss, terms)
    total, grads = jax.value_and_grad(value)(outputs, {**poisoned, "valid": keep})
    expected, expected_grads = jax.value_and_grad(value)(*short)
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a[keep], b, rtol=1e-6), grads, expected_grads
    )
    assert total_loss(terms, outputs, {**batch, "valid": jnp.zeros(B, bool)}) == 0
    with pytest.raises(ValueError, match=r"valid'\] has shape \(4,\)"):
        total_loss(terms, outputs, {**batch, "valid": jnp.ones(4, bool)})


def test_term_means_are_named_by_their_functions(outputs, batch):
    huber = functools.partial(distance_loss, form="huber")
    means = losses.term_means(((distance_loss, 1.0), (huber, 3.0)), outputs, batch)
    assert set(means) == {"distance_loss", "distance_loss_2"}
    np.testing.assert_allclose(means["distance_loss_2"], huber(outputs, batch).mean(), rtol=1e-6)


def test_term_that_reduces_is_refused(outputs, batch):
    def mean_loss(outputs, batch):
        return distance_loss(outputs, batch).mean()

    with pytest.raises(ValueError, match=r"mean_loss returned shape \(\).*\(5,\)"):
        total_loss(((mean_loss, 1.0),), outputs, batch)


def test_weight_decay_takes_kernels_only():
    params = {
        "block1": {
            "conv1": {"kernel": jnp.full((3, 3, 1, 2), 2.0)},
            "bn1": {"scale": jnp.full(2, 100.0), "bias": jnp.full(2, 100.0)},
        },
        "features": {"kernel": jnp.full((4, 5), -1.0), "bias": jnp.full(5, 100.0)},
    }
    assert losses.weight_decay(params) == 18 * 4 + 20
    gradient = jax.grad(losses.weight_decay)(params)
    assert np.all(gradient["features"]["kernel"] == -2) and np.all(
        gradient["features"]["bias"] == 0
    )


# ---- the example of docs/losses.md ---------------------------------------------------------------


@pytest.fixture
def my_losses(tmp_path, monkeypatch):
    """Import the Python code of docs/losses.md as a user would."""
    text = (Path(__file__).parents[1] / "docs" / "losses.md").read_text()
    sources = [s for s in re.findall(r"```python\n(.*?)```", text, re.S) if "# my_losses.py" in s]
    assert len(sources) == 2
    (tmp_path / "documented_losses.py").write_text("\n".join(sources))
    monkeypatch.syspath_prepend(tmp_path)
    import documented_losses  # pyright: ignore[reportMissingImports]

    return documented_losses


def test_batchwise_is_seen_through_partial(my_losses):
    loss = my_losses.all_pairs_relative_loss
    assert losses.is_batchwise(loss)
    assert losses.is_batchwise(functools.partial(functools.partial(loss)))
    assert losses.is_batchwise(losses.batchwise(functools.partial(distance_loss, form="l2")))
    assert not losses.is_batchwise(functools.partial(distance_loss, form="l2"))
    assert not losses.is_batchwise(my_losses.close_pairs_loss)


def test_documented_relative_loss(my_losses, outputs):
    """The value equals that of a loop, and the gradient is finite despite inf distances."""
    rng = np.random.default_rng(3)
    distances = rng.uniform(0, 2, (2 * B, 2 * B)).astype(np.float32)
    hemisphere = np.repeat([0, 0, 1, 1, 1], 2)
    distances[hemisphere[:, None] != hemisphere] = np.inf
    batch = {"all_distances_scaled": jnp.asarray(distances)}

    features = np.float64(outputs["features"]).reshape(2 * B, -1)
    expected = []
    for i in range(2 * B):
        others = [j for j in range(2 * B) if j != i and hemisphere[i] == hemisphere[j]]
        predicted = ((features[others] - features[i]) ** 2).sum(1)
        error = np.abs(predicted - distances[i, others]) / (distances[i, others] + 0.1)
        expected.append(error.mean())
    terms = ((my_losses.all_pairs_relative_loss, 2.0),)
    total, grads = jax.jit(jax.value_and_grad(functools.partial(total_loss, terms)))(outputs, batch)
    np.testing.assert_allclose(total, 2 * np.mean(expected), rtol=1e-5)
    assert np.all(np.isfinite(grads["features"])) and np.any(grads["features"] != 0)


def test_documented_own_term(my_losses, outputs, batch):
    near = functools.partial(my_losses.close_pairs_loss, reach=1.0)
    expected = np.where(batch["distance_scaled"] < 1.0, distance_loss(outputs, batch), 0).mean()
    np.testing.assert_allclose(total_loss(((near, 0.5),), outputs, batch), expected / 2, rtol=1e-6)
    assert 0 < np.sum(batch["distance_scaled"] < 1.0) < B


def test_documented_gradient_penalty(tmp_path, monkeypatch):
    """Both derivatives are those of a piecewise linear network, one example at a time."""
    text = (Path(__file__).parents[1] / "docs" / "losses.md").read_text()
    for name in ("my_penalty", "my_step"):
        (source,) = re.findall(rf"```python\n# {name}\.py\n(.*?)```", text, re.DOTALL)
        (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    from my_penalty import gradient_penalty  # pyright: ignore[reportMissingImports]
    from my_step import penalty_gradient  # pyright: ignore[reportMissingImports]

    model = SiameseNet(features=4, stem_kernel=3, stem_stride=1, widths=(4, 8))
    patches = jax.random.normal(jax.random.key(0), (3, 2, 14, 14, 1))
    variables = jax.jit(model.init)(jax.random.key(1), patches)
    penalty = jax.jit(functools.partial(gradient_penalty, model))
    values = penalty(variables, patches)
    assert values.shape == (3,) and np.all(values > 0)
    np.testing.assert_allclose(penalty(variables, patches[1:2]), values[1:2], rtol=1e-5)
    # The network is piecewise linear in its input, so a small difference along the slope is exact.
    total = jax.jit(lambda patches: jnp.sum(model.apply(variables, patches)["features"]))
    step = 1e-3 * jax.jit(jax.grad(total))(patches)
    difference = float(total(patches + step) - total(patches - step)) / 2e-3
    np.testing.assert_allclose(difference, np.sum(values), rtol=0.02)

    # At the start all biases are zero, so the slope is proportional to each kernel, and the penalty
    # to its square: the derivative along the kernel is twice the penalty.
    params, statistics = variables["params"], variables["batch_stats"]
    gradient = jax.jit(functools.partial(penalty_gradient, model))(params, statistics, patches)
    kernels = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path)
        if "kernel" in name and "coordinates" not in name:
            along = functools.reduce(lambda tree, key: tree[key.key], path, gradient)
            np.testing.assert_allclose(jnp.vdot(leaf, along), 2 * np.mean(values), rtol=1e-3)
            kernels += 1
    assert kernels == 5


# ---- segmentation --------------------------------------------------------------------------------


def logits_and_labels(seed: int = 0, ignored: float = 0.4):
    rng = np.random.default_rng(seed)
    logits = 3 * rng.normal(size=(4, 5, 6, 3)).astype(np.float32)
    label = rng.integers(0, 3, (4, 5, 6)).astype(np.uint8)
    label[rng.random(label.shape) < ignored] = 255
    label[3] = 255  # an example without annotation
    return {"logits": logits}, {"label": label}


def test_cross_entropy_is_that_of_scikit_learn():
    outputs, batch = logits_and_labels()
    values = losses.cross_entropy(outputs, batch)
    assert values.shape == (4,) and values[3] == 0
    for k in range(3):
        use = batch["label"][k] != 255
        probability = scipy.special.softmax(outputs["logits"][k][use].astype(np.float64), axis=-1)
        expected = sklearn.metrics.log_loss(batch["label"][k][use], probability, labels=[0, 1, 2])
        np.testing.assert_allclose(values[k], expected, rtol=1e-5)


def test_focal_loss_in_numpy():
    """The loss follows Lin et al. 2017, equations 3 to 5, for each class against the others."""
    outputs, batch = logits_and_labels()
    for gamma in (0.0, 2.0):
        values = losses.focal_loss(outputs, batch, gamma=gamma)
        p = scipy.special.expit(outputs["logits"].astype(np.float64))
        one_hot = batch["label"][..., None] == np.arange(3)
        right = np.where(one_hot, p, 1 - p)
        pixels = (-((1 - right) ** gamma) * np.log(right)).sum(-1)
        for k in range(3):
            expected = pixels[k][batch["label"][k] != 255].mean()
            np.testing.assert_allclose(values[k], expected, rtol=1e-4)
        assert values[3] == 0


def test_dice_loss_in_numpy():
    outputs, batch = logits_and_labels()
    values = losses.dice_loss(outputs, batch, smooth=0.5)
    p = scipy.special.softmax(outputs["logits"].astype(np.float64), axis=-1)
    for k in range(4):
        use = batch["label"][k] != 255
        one_hot = batch["label"][k][use][:, None] == np.arange(3)
        both = (p[k][use] * one_hot).sum(0)
        dice = (both + 0.5) / ((p[k][use].sum(0) + one_hot.sum(0)) / 2 + 0.5)
        np.testing.assert_allclose(values[k], (1 - dice).mean(), rtol=1e-4, atol=1e-7)


SEGMENTATION = (losses.cross_entropy, losses.focal_loss, losses.dice_loss)


@pytest.mark.parametrize("loss", SEGMENTATION)
def test_pixels_without_annotation_do_not_count(loss):
    """They change neither the value nor the gradient, whatever their logits are, even NaN."""
    outputs, batch = logits_and_labels()
    ignored = batch["label"] == 255
    for number in (1e4, np.nan):
        odd = np.where(ignored[..., None], np.float32(number), outputs["logits"])
        np.testing.assert_array_equal(loss({"logits": odd}, batch), loss(outputs, batch))
    gradient = jax.grad(lambda x: loss({"logits": x}, batch).sum())(outputs["logits"])
    assert np.isfinite(gradient).all()
    assert not np.asarray(gradient)[ignored].any()
    assert np.abs(np.asarray(gradient)[~ignored]).min() > 0


@pytest.mark.parametrize("loss", SEGMENTATION)
def test_labels_of_another_shape_are_refused(loss):
    outputs, batch = logits_and_labels()
    with pytest.raises(ValueError, match="expected"):
        loss(outputs, {"label": batch["label"][:, 1:]})
