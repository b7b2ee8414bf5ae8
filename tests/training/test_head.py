"""Test that score maps are fitted to frozen maps, and that these are kept on disk."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tifffile

from jaxcyto.augment import normalize
from jaxcyto.brain.sections.label_image import LABEL_UM
from jaxcyto.brain.sections.section import array_section, open_section
from jaxcyto.config import InputScales
from jaxcyto.data.windows import read_image
from jaxcyto.errors import InputError
from jaxcyto.models import Geometry, UNet
from jaxcyto.models.build import build_encoder
from jaxcyto.training import head
from jaxcyto.training.head import AnnotatedImage, fit_scores
from jaxcyto.training.maps import MapReader

NET = UNet(
    num_classes=3,
    stem_kernel=3,
    stem_stride=1,
    widths=(4, 6, 6, 6, 8),
    decoder="scores",
    pools=(3, 5),
)
SCALES = InputScales(128.0, 50.0)
GEOMETRY = Geometry.of(NET)
UM = 16.0
FACTOR = 2  # label pixels of 16 um on an output pixel of 32 um
WINDOW = GEOMETRY.nearest_valid_sizes(320)[-1]
SIDE = GEOMETRY.output_size(WINDOW)


@pytest.fixture(scope="module")
def variables():
    image = jnp.zeros((1, WINDOW, WINDOW, 1))
    shapes = jax.eval_shape(NET.init, jax.random.key(0), image)
    rng = np.random.default_rng(0)

    def draw(leaf):
        if len(leaf.shape) == 4:
            return rng.normal(0, (2 / np.prod(leaf.shape[:3])) ** 0.5, leaf.shape)
        return rng.uniform(0.2, 1, leaf.shape)

    return jax.tree.map(lambda leaf: np.float32(draw(leaf)), shapes)


def reader(variables, folder=None):
    return MapReader(NET, variables, SCALES, UM, SIDE, folder)


def annotated(seed=0, classes=3, height=300, width=420):
    """Make an image of stripes of noise, whose strength is the class, and annotate a part of it."""
    rng = np.random.default_rng(seed)
    label = np.repeat(np.arange(width) // 20 % classes, 1)[None] * np.ones((height, 1), int)
    gray = 128 + rng.normal(0, 1, (height, width)) * np.array([2, 30, 90])[label]
    shown = np.where(rng.uniform(size=(height, 1)) < 0.6, label, 255).astype(np.uint8)
    image = array_section(np.clip(gray, 0, 255).astype(np.uint8), UM)
    return AnnotatedImage(f"s{seed}", image, array_section(shown, LABEL_UM, 255))


def fit(sections, variables, classes=3, maps=None):
    maps = maps or reader(variables)
    return fit_scores(sections, maps, factor=FACTOR, num_classes=classes, pools=NET.pools)


def test_features_and_network_interpolate_alike(variables):
    """A kernel on the features of the fit gives the logits of the network."""
    rng = np.random.default_rng(1)
    image = rng.normal(size=(1, WINDOW, WINDOW, 1)).astype(np.float32)
    maps = build_encoder(NET).apply({key: variables[key]["encoder"] for key in variables}, image)
    widths = [8, 6, 6]
    kernel = rng.normal(size=(3 * 8 + 6 + 6, 3)).astype(np.float32)
    bias = rng.normal(size=3).astype(np.float32)
    scores = head._as_params(kernel, bias, widths, NET.pools)
    whole = variables | {"params": variables["params"] | {"scores": scores}}
    logits = np.asarray(jax.jit(NET.apply)(whole, image))[0].reshape(-1, 3)
    rows, columns = np.divmod(np.arange(SIDE * SIDE), SIDE)
    maps = tuple(np.asarray(each)[0] for each in maps[-3:])
    features = head._features(maps, NET.pools, SIDE, GEOMETRY.num_ups, rows, columns)
    np.testing.assert_allclose(features @ kernel + bias, logits, rtol=0, atol=1e-4)


def test_the_fit_is_the_minimum(variables, monkeypatch):
    """Compare the gradient of the loss at the fit with that at zero, computed by JAX."""
    monkeypatch.setattr(head, "ITERATIONS", 2000)
    seen = {}

    def regress(x, y, num_classes):
        seen["xy"] = x, y
        return original(x, y, num_classes)

    original = head._regress
    monkeypatch.setattr(head, "_regress", regress)
    fit([annotated()], variables)
    x, y = seen["xy"]
    spread = np.maximum(x.std(axis=0), head.LEAST_SPREAD * np.median(x.std(axis=0)))
    counts = np.bincount(y)

    def loss(standardized, bias):
        logits = ((x - x.mean(axis=0)) / spread) @ standardized + bias[None]
        each = optax.softmax_cross_entropy_with_integer_labels(logits, y.astype(int))
        weighted = jnp.mean(each * (len(y) / 3 / counts)[y])
        return weighted + head.PENALTY / 2 * jnp.sum(standardized**2)

    kernel, bias = original(x, y, 3)
    own = kernel * spread[:, None], bias + x.mean(axis=0) @ kernel
    zero = np.zeros_like(own[0]), np.zeros_like(own[1])
    norms = [optax.tree.norm(jax.grad(loss, (0, 1))(*at)) for at in (own, zero)]
    assert norms[0] < 0.01 * norms[1]
    assert loss(*own) < loss(*zero)


def test_a_channel_that_is_almost_dead_gets_no_huge_kernel():
    """Such a channel would make the first step of training, or another section, go wrong."""
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1, 2], 200)
    x = rng.normal(size=(600, 8)).astype(np.float32) + y[:, None]
    x[:, 3] = 1e-6 * x[:, 3]
    x[:, 5] = 7.0
    kernel, bias = head._regress(x, y, 3)
    assert np.isfinite(kernel).all()
    others = np.abs(np.delete(kernel, [3, 5], axis=0)).max()
    assert np.abs(kernel[[3, 5]]).max() < others
    assert np.mean(np.argmax(x @ kernel + bias, axis=1) == y) > 0.8


@pytest.mark.parametrize("classes", [2, 3])
def test_the_network_predicts_what_was_annotated(variables, classes):
    section = annotated(classes=classes)
    scores, pixels = fit([section], variables)
    assert pixels > 1000
    whole = variables | {"params": variables["params"] | {"scores": scores}}
    maps = reader(variables)
    (window, *_) = head._windows(section, FACTOR, maps, 3)
    image = head_image(section, window)
    predicted = np.argmax(jax.jit(NET.apply)(whole, image)[0], axis=-1)
    known = window.labels != 255
    assert np.mean(predicted[known] == window.labels[known]) > 0.8
    assert set(np.unique(predicted)) <= set(range(classes))  # a class not shown is not predicted


def head_image(section, window):
    gray = read_image(section.image, UM, GEOMETRY, window.row, window.column, SIDE)
    return normalize(gray[None], SCALES.input_mean, SCALES.input_std)


def test_each_class_gives_as_many_pixels(variables, monkeypatch):
    monkeypatch.setattr(head, "PIXELS", 50)
    windows = head._windows(annotated(), FACTOR, reader(variables), 3)
    chosen = head._choose(windows, 3, np.random.default_rng(0))
    labels = [w.labels.ravel()[c] for w, c in zip(windows, chosen, strict=True)]
    np.testing.assert_array_equal(np.bincount(np.concatenate(labels)), [50, 50, 50])
    assert all(len(np.unique(c)) == len(c) for c in chosen)


# ---- maps on disk --------------------------------------------------------------------------------


def test_maps_are_computed_once(variables, tmp_path, monkeypatch):
    section = file_section(tmp_path / "a.tif")
    first = reader(variables, tmp_path / "features").read(section, 0, 0)
    again = reader(variables, tmp_path / "features")
    monkeypatch.setattr(again, "_compute", None)  # calling it fails
    for a, b in zip(first, again.read(section, 0, 0), strict=True):
        assert a.dtype == np.float16
        np.testing.assert_array_equal(a, b)


def file_section(path, seed=0):
    tifffile.imwrite(path, np.random.default_rng(seed).integers(0, 255, (300, 310), np.uint8))
    return open_section(path, UM)


@pytest.mark.parametrize("change", ["weights", "scales", "image"])
def test_other_weights_or_images_have_other_maps(variables, tmp_path, change):
    section, folder = file_section(tmp_path / "a.tif"), tmp_path / "features"
    first = reader(variables, folder).read(section, 0, 0)
    scales = SCALES
    if change == "weights":
        variables = jax.tree.map(lambda leaf: leaf * 0.5, variables)
    elif change == "scales":
        scales = InputScales(100.0, 50.0)
    else:
        section = file_section(tmp_path / "b.tif", seed=1)
    other = MapReader(NET, variables, scales, UM, SIDE, folder).read(section, 0, 0)
    assert not np.array_equal(first[-1], other[-1])


@pytest.mark.parametrize("damage", ["cut", "foreign", "empty"])
def test_damaged_maps_are_named(variables, tmp_path, damage):
    section, folder = file_section(tmp_path / "a.tif"), tmp_path / "features"
    reader(variables, folder).read(section, 0, 0)
    (path,) = folder.glob("*/*/*.npz")
    if damage == "foreign":
        other = file_section(tmp_path / "b.tif", seed=1)
        reader(variables, folder).read(other, 0, 0)
        (foreign,) = set(folder.glob("*/*/*.npz")) - {path}
        path.write_bytes(foreign.read_bytes())
    else:
        path.write_bytes(path.read_bytes()[: 100 if damage == "cut" else 0])
    with pytest.raises(InputError, match=f"{path.name}: damaged.*remove the folder"):
        reader(variables, folder).read(section, 0, 0)


# ---- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.full((300, 420), 255), "no annotated pixel"),
        (np.full((300, 420), 1), "only one class"),
        (np.full((300, 420), 7), "label 7, but there are 3 classes"),
    ],
)
def test_mistakes_in_labels_are_said(variables, labels, words):
    section = annotated()
    wrong = AnnotatedImage(
        "s9", section.image, array_section(labels.astype(np.uint8), LABEL_UM, 255)
    )
    with pytest.raises(InputError, match=words):
        fit([wrong], variables)


def test_no_section_is_a_mistake(variables):
    with pytest.raises(InputError, match="no section is annotated"):
        fit([], variables)
