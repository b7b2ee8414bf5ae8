"""Test the U-Net: sizes, values against NumPy, seams between tiles, alignment, and gradients."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from jaxcyto.models import Geometry, SiameseNet, UNet
from jaxcyto.models.cpu import kernels as cpu
from jaxcyto.models.layers import BN_EPSILON, BN_MOMENTUM
from jaxcyto.models.unet import Up

PAPER = Geometry()
SMALL = Geometry(stem_kernel=3, stem_stride=1, num_blocks=5)
SMALL_NET = {"stem_kernel": 3, "stem_stride": 1, "widths": (16, 32, 64, 64, 128)}
SCORES_NET = SMALL_NET | {"decoder": "scores", "pools": (3, 7)}
SCORES = Geometry(stem_kernel=3, stem_stride=1, num_blocks=5, reach=3)
BOTH_NET = SCORES_NET | {"decoder": "both"}
CLASSES = 16


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def atlas_for(geometry: Geometry, image: np.ndarray, channels: int, seed: int = 1) -> np.ndarray:
    height, width = map(geometry.atlas_size, image.shape[1:3])
    rng = np.random.default_rng(seed)
    return rng.uniform(size=(len(image), height, width, channels)).astype(np.float32)


def fill(net: UNet, image, atlas, leaf) -> dict:
    """Make variables. Each is leaf(name, shape, number of inputs of an output value)."""

    def make(path, x):
        # An output pixel of a transposed convolution depends on only one of the 2x2 taps.
        taps = slice(2, -1) if path[1].key.startswith("up") else slice(0, -1)
        return np.float32(leaf(path[-1].key, x.shape, np.prod(x.shape[taps])))

    shapes = jax.eval_shape(net.init, jax.random.key(0), image, atlas)
    return jax.tree_util.tree_map_with_path(make, shapes)


def random_variables(net: UNet, image, atlas=None) -> dict:
    """Draw He-normal kernels, and random scales, biases and statistics."""
    rng = np.random.default_rng(2)

    def leaf(name, shape, inputs):
        if name == "kernel":
            return rng.normal(size=shape) * np.sqrt(2 / inputs)
        return (name in ("scale", "var")) + rng.uniform(-0.3, 0.3, shape)

    return fill(net, image, atlas, leaf)


def averaging(net: UNet, image, atlas) -> dict:
    """Make variables with which convolutions average and batch normalization has no effect."""

    def leaf(name, shape, inputs):
        return np.full(shape, 1 / inputs if name == "kernel" else name in ("scale", "var"))

    return fill(net, image, atlas, leaf)


def shapes_of(net: UNet, image: tuple[int, ...], atlas: tuple[int, ...] | None = None):
    """Return the shapes of the logits and of the variables, without computing them."""
    args = [None if s is None else jax.ShapeDtypeStruct(s, jnp.float32) for s in (image, atlas)]
    return jax.eval_shape(net.init_with_output, jax.random.key(0), *args)


def count(tree) -> int:
    return sum(x.size for x in jax.tree.leaves(tree))


# ---- counts and sizes ----------------------------------------------------------------------------


def test_the_paper_counts_1479728_parameters():
    """Check the count of Spitzer et al. 2017.

    An atlas adds the parameters of its path, and channels where the paths are joined.
    """
    net = UNet(num_classes=CLASSES)
    base = shapes_of(net, (1, 2025, 2025, 1))[1]
    assert count(base["params"]) == 1_479_728
    atlas = shapes_of(net, (1, 2025, 2025, 1), (1, 256, 256, 13))[1]
    blocks = 9 * (16 * 32 + 32 * 32 + 32 * 64 + 3 * 64 * 64 + 64 * 128 + 3 * 128 * 128)
    norms = 2 * 16 + 4 * (32 + 64 + 64 + 128 + 128)
    assert count(atlas["params"]["atlas_encoder"]) == 25 * 13 * 16 + blocks + norms
    joined = 4 * 128 * 128 + 9 * (128 * 128 + 2 * 64 * 64 + 32 * 32)
    assert count(atlas["params"]) == 1_479_728 + 25 * 13 * 16 + blocks + norms + joined


@pytest.mark.parametrize("net", [{}, SMALL_NET])
def test_encoder_has_the_leaves_of_the_siamese_network(net):
    """Compare leaves with and without an atlas, so that weights can be copied by name."""
    geometry = SMALL if net else PAPER
    side = geometry.siamese_sizes[-1]
    patches = jax.ShapeDtypeStruct((2, 2, side, side, 1), jnp.float32)
    siamese = jax.eval_shape(SiameseNet(**net).init, jax.random.key(0), patches)
    side = geometry.smallest_valid_size
    atlas = (1, geometry.atlas_size(side), geometry.atlas_size(side), 2)
    for shape in (None, atlas):
        variables = shapes_of(UNet(CLASSES, **net), (1, side, side, 1), shape)[1]
        for collection in ("params", "batch_stats"):
            assert variables[collection]["encoder"] == siamese[collection]["encoder"]


@pytest.mark.parametrize(
    ("net", "geometry", "sides"),
    [
        ({}, PAPER, [(1513, 1513, 4, 4), (2025, 1641, 68, 20), (5097, 9193, 452, 964)]),
        (SMALL_NET, SMALL, [(188, 188, 4, 4), (204, 668, 12, 244)]),
    ],
)
def test_output_sizes(net, geometry, sides):
    for height, width, *output in sides:
        atlas = (3, geometry.atlas_size(height), geometry.atlas_size(width), 5)
        for shape in (None, atlas):
            logits = shapes_of(UNet(7, **net), (3, height, width, 1), shape)[0]
            assert (logits.shape, logits.dtype) == ((3, *output, 7), jnp.float32)


@pytest.mark.parametrize(
    ("image", "atlas", "words"),
    [
        ((1, 2000, 2025, 1), None, "2000 px does not fit.*the nearest 1897 px and 2025 px"),
        ((1, 2025, 1019, 1), None, "1019 px does not fit.*the nearest 1513 px"),
        ((1, 2025, 2025), None, r"image has shape \(1, 2025, 2025\), expected \[B, H, W, 1\]"),
        ((1, 2025, 2025, 3), None, r"expected \[B, H, W, 1\]"),
        ((1, 2025, 2025, 1), (1, 252, 256, 13), r"2025 x 2025 px needs \[1, 256, 256, A\]"),
        ((2, 1513, 2025, 1), (1, 192, 256, 13), r"1513 x 2025 px needs \[2, 192, 256, A\]"),
        ((1, 2025, 2025, 1), (1, 256, 256), r"needs \[1, 256, 256, A\]"),
    ],
)
def test_wrong_sizes_are_refused(image, atlas, words):
    with pytest.raises(ValueError, match=words):
        shapes_of(UNet(CLASSES), image, atlas)


def test_with_and_without_atlas_are_two_networks():
    net = UNet(CLASSES, **SMALL_NET)
    image, atlas = (1, 188, 188, 1), (1, 96, 96, 2)
    image_, atlas_ = (jax.ShapeDtypeStruct(s, jnp.float32) for s in (image, atlas))
    with pytest.raises(ValueError, match="has no atlas path, but is called with an atlas"):
        jax.eval_shape(net.apply, shapes_of(net, image)[1], image_, atlas_)
    with pytest.raises(ValueError, match="has an atlas path, but is called without an atlas"):
        jax.eval_shape(net.apply, shapes_of(net, image, atlas)[1], image_)


# ---- against other implementations ---------------------------------------------------------------


def test_up_is_the_transposed_convolution_of_flax():
    """Compare values and both gradients for the same kernel."""
    x, weight = normal(2, 5, 7, 6), normal(2, 10, 14, 3, seed=1)
    peer = nn.ConvTranspose(3, (2, 2), strides=(2, 2), padding="VALID", use_bias=False)
    variables = Up(3).init(jax.random.key(0), x)
    assert jax.tree.map(jnp.shape, variables) == {"params": {"kernel": (2, 2, 6, 3)}}

    def values_and_gradients(module, variables, x):
        value, pull = jax.vjp(module.apply, variables, x)
        return value, *pull(weight)

    ours, theirs = (
        jax.jit(functools.partial(values_and_gradients, module))(variables, x)
        for module in (Up(3), peer)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), ours, theirs)


def test_up_starts_at_the_scale_of_he():
    """Check the variance 2 / C, because each output pixel depends on C values, not 4 C."""
    kernel = Up(256).init(jax.random.key(0), normal(1, 1, 1, 64))["params"]["kernel"]
    assert np.var(kernel) == pytest.approx(2 / 64, rel=0.05)


def reference(variables, image, atlas, train: bool):
    """Run the network in plain NumPy and double precision. Return logits and batch means."""
    params, stats = jax.tree.map(np.float64, (variables["params"], variables["batch_stats"]))
    means = {}

    def norm(x, path, name):
        scope, old = params, stats
        for key in path:
            scope, old = scope[key], old[key]
        mean, var = (x.mean((0, 1, 2)), x.var((0, 1, 2))) if train else old[name].values()
        means[(*path, name)] = mean
        x = (x - mean) / np.sqrt(var + BN_EPSILON)
        return x * scope[name]["scale"] + scope[name]["bias"]

    def conv(x, kernel, stride=1):
        windows = sliding_window_view(x, kernel.shape[:2], axis=(1, 2))[:, ::stride, ::stride]
        return np.einsum("bhwcij,ijco->bhwo", windows, kernel)

    def block(x, *path, stride=1):
        scope = params
        for key in path:
            scope = scope[key]
        for i in range(1, len(scope) // 2 + 1):
            x = conv(x, scope[f"conv{i}"]["kernel"], stride if i == 1 else 1)
            x = np.maximum(norm(x, path, f"bn{i}"), 0)
        return x

    def pool(x):
        return np.max([x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], axis=0)

    texture1 = block(image, "encoder", "block1", stride=2)
    texture2 = block(pool(texture1), "encoder", "block2")
    texture3 = block(pool(texture2), "encoder", "block3")
    skip, x = texture2, texture3
    if atlas is not None:
        atlas1 = block(atlas, "atlas_encoder", "block1")
        assert atlas1.shape[1:3] == pool(texture1).shape[1:3]
        atlas2 = block(atlas1, "atlas_encoder", "block2")
        atlas3 = block(pool(atlas2), "atlas_encoder", "block3")
        skip, x = np.concatenate([texture2, atlas2], -1), np.concatenate([texture3, atlas3], -1)

    kernel = params["up4"]["kernel"]
    up = np.empty((x.shape[0], 2 * x.shape[1], 2 * x.shape[2], kernel.shape[3]))
    for i, j in np.ndindex(2, 2):  # Flax rotates the kernel by 180 degrees
        up[:, i::2, j::2] = x @ kernel[1 - i, 1 - j]
    up = np.maximum(norm(up, (), "up4_bn"), 0)
    top, left = (skip.shape[1] - up.shape[1]) // 2, (skip.shape[2] - up.shape[2]) // 2
    skip = skip[:, top : top + up.shape[1], left : left + up.shape[2]]
    x = block(np.concatenate([up, skip], -1), "block4")
    return norm(x @ params["classifier"]["kernel"][0, 0], (), "classifier_bn"), means


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("channels", [None, 3])
def test_whole_network_against_numpy(channels, train):
    net = UNet(4, stem_kernel=5, stem_stride=2, widths=(3, 5, 6))
    geometry = Geometry(5, 2, 3)
    side = geometry.smallest_valid_size
    image = normal(2, side, side + geometry.period, 1)
    atlas = None if channels is None else atlas_for(geometry, image, channels)
    variables = random_variables(net, image, atlas)
    logits, updates = net.apply(variables, image, atlas, train, mutable=["batch_stats"])
    expected, means = reference(variables, np.float64(image), atlas, train)
    assert logits.shape[1:3] == tuple(map(geometry.output_size, image.shape[1:3]))
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    for path, mean in means.items() if train else ():
        old, new = variables["batch_stats"], updates["batch_stats"]
        for key in path:
            old, new = old[key], new[key]
        mean = BN_MOMENTUM * old["mean"] + (1 - BN_MOMENTUM) * mean
        np.testing.assert_allclose(new["mean"], mean, atol=1e-5)


# ---- seams ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("net", "geometry", "whole", "tiles", "channels"),
    [
        (SMALL_NET, SMALL, 348, (188, 204, 236, 284), None),
        (SMALL_NET, SMALL, 348, (188, 220, 284), 3),
        (SCORES_NET, SCORES, 412, (284, 300), None),
        (BOTH_NET, SCORES, 364, (284, 316), 3),
        ({}, PAPER, 2281, (1513, 2025, 2153), None),
    ],
)
def test_tiles_join_without_seam(net, geometry, whole, tiles, channels):
    """Check that tiles at multiples of the period are crops of the whole image's output.

    They agree bit for bit in oneDNN. XLA convolves maps of small tiles by another algorithm.
    """
    tolerance = 0.0 if cpu.available() else 1e-4
    net = UNet(CLASSES, **net)
    image = normal(1, whole, whole, 1)
    atlas = None if channels is None else atlas_for(geometry, image, channels)
    apply = jax.jit(functools.partial(net.apply, random_variables(net, image, atlas)))
    logits = np.asarray(apply(image, atlas))

    def crop(x, top, left, size):
        return None if x is None else x[:, top : top + size, left : left + size]

    step = geometry.period
    for tile in tiles:
        last = (whole - tile) // step
        for row, column in {(0, last), (last, 0), (last // 2, last)}:
            row, column = row * step, column * step
            out = row // geometry.output_stride, column // geometry.output_stride
            result = apply(
                crop(image, row, column, tile), crop(atlas, *out, geometry.atlas_size(tile))
            )
            expected = crop(logits, *out, geometry.output_size(tile))
            np.testing.assert_allclose(result, expected, rtol=0, atol=tolerance)


def test_tiles_off_the_period_have_seams():
    """Check that the test above can fail, by a shift of half a period of the deepest pooling."""
    net, image = UNet(CLASSES, **SMALL_NET), normal(1, 220, 204, 1)
    apply = jax.jit(functools.partial(net.apply, random_variables(net, image[:, :204])))
    half = SMALL.period // 2
    shift = half // SMALL.output_stride
    whole, moved = apply(image[:, :204]), apply(image[:, half : 204 + half])
    assert np.abs(moved[:, :-shift] - whole[:, shift:]).max() > 0.01


# ---- alignment of input and output ---------------------------------------------------------------


def section_window(geometry: Geometry, side: int, row: int):
    """Return the positions in the section of a window's image, atlas and label pixels.

    In batches, row r of the output grid covers [s r, s (r + 1)) in image px.
    """
    s, n = geometry.output_stride, geometry.output_size(side)
    image = s * row - geometry.label_offset + np.arange(side) + 0.5
    atlas = s * (row - geometry.atlas_offset + np.arange(geometry.atlas_size(side)) + 0.5)
    return image, atlas, s * (row + np.arange(n) + 0.5)


@pytest.mark.parametrize(
    ("net", "geometry", "offset"),
    [
        ({}, PAPER, 0.5),
        (SMALL_NET, SMALL, 0.0),
        (SCORES_NET, SCORES, 0.0),
        (BOTH_NET, SCORES, 0.0),
    ],
)
def test_image_atlas_and_label_lie_on_each_other(net, geometry, offset):
    """Check alignment with a network that averages, and pixels whose value is their position.

    The output is then the mean position that it depends on, in the image alone or in the atlas
    alone. Max pooling shifts it up a ramp, and by as much down the reversed ramp. The mean of both
    ramps is free of this bias. Transposed convolutions repeat pixels, so single outputs are off by
    some hundredths of a pixel, symmetrically. In the paper's grid, an offset of half an image px
    remains.
    """
    net, side = UNet(1, **net), geometry.smallest_valid_size
    *inputs, label = section_window(geometry, side, row=7)
    zeros = [np.zeros((1, x.size, x.size, 1), np.float32) for x in inputs]
    apply = jax.jit(functools.partial(net.apply, averaging(net, *zeros)))

    def look(eye, values):
        """Run the network on `values` along the rows of one input. The other input is zero."""
        images = list(zeros)
        images[eye] = zeros[eye] + np.float32(values)[:, None, None]
        return np.float64(apply(*images))[0, :, 0, 0]

    for eye, (positions, expected) in enumerate(zip(inputs, (offset, 0), strict=True)):
        scale, low, high = look(eye, np.ones_like(positions)), positions[0], positions[-1]
        up = low + look(eye, positions - low) / scale
        down = high - look(eye, high - positions) / scale
        assert (up - down).min() > geometry.output_stride / 2  # the bias of max pooling
        error = (up + down) / 2 - label
        assert abs(error.mean()) == pytest.approx(expected, abs=5e-3)
        assert np.abs(error - error.mean()).max() < 0.05 * geometry.output_stride


def test_an_edge_arrives_together():
    """Check that a border in the image or the atlas is predicted where the labels have it.

    One side of the border is white. Each output pixel is assigned to the side whose image gives the
    larger output.
    """
    net, side, row = UNet(1, **SMALL_NET), 204, 3
    *inputs, label = section_window(SMALL, side, row)
    zeros = [np.zeros((1, x.size, x.size, 1), np.float32) for x in inputs]
    apply = jax.jit(functools.partial(net.apply, averaging(net, *zeros)))
    for axis, eye in np.ndindex(2, 2):
        for border in SMALL.output_stride * np.arange(row + 2, row + label.size - 1):
            beyond = (inputs[eye] > border).reshape((1, -1, 1, 1) if axis == 0 else (1, 1, -1, 1))
            answers = []
            for tissue in (beyond, ~beyond):
                images = list(zeros)
                images[eye] = zeros[eye] + tissue
                answers.append(apply(*images)[0, :, :, 0])
            predicted = answers[0] > answers[1]
            expected = (label > border)[:, None] if axis == 0 else (label > border)[None]
            np.testing.assert_array_equal(predicted, np.broadcast_to(expected, predicted.shape))


@pytest.mark.parametrize(
    ("net", "geometry"), [(SMALL_NET, SMALL), (SCORES_NET, SCORES), (BOTH_NET, SCORES)]
)
def test_receptive_field(net, geometry):
    """Check that outputs depend on a window as wide as `Geometry` says, and on its position."""
    net, needed = UNet(1, **net), geometry.smallest_valid_size
    assert Geometry.of(net) == geometry
    start, n = 2 * geometry.period, geometry.output_size(needed)
    first = start // geometry.output_stride
    ramp = np.arange(needed + 4 * geometry.period, dtype=np.float32)
    # A rising and a falling ramp, so that max pooling takes the last and the first row of windows.
    image = np.stack([ramp, ramp[::-1]])[:, :, None, None] + np.zeros((ramp.size, 1), np.float32)
    variables = averaging(net, image, None)

    def window(image):
        return net.apply(variables, image)[:, first : first + n].sum()

    gradient = np.asarray(jax.jit(jax.grad(window))(image))
    touched = np.flatnonzero(gradient.any(axis=(0, 2, 3)))
    assert needed == n * geometry.output_stride + geometry.receptive_field
    assert (touched[0], touched[-1]) == (start, start + needed - 1)


# ---- precision, devices, gradients ---------------------------------------------------------------


def test_bfloat16_keeps_parameters_and_logits_in_float32():
    image = normal(1, 204, 204, 1)
    atlas = atlas_for(SMALL, image, 3)
    half = UNet(CLASSES, **SMALL_NET, dtype=jnp.bfloat16)
    for leaf in jax.tree.leaves(jax.eval_shape(half.init, jax.random.key(0), image, atlas)):
        assert leaf.dtype == jnp.float32
    full = UNet(CLASSES, **SMALL_NET)
    variables = random_variables(full, image, atlas)
    result = jax.jit(half.apply)(variables, image, atlas)
    expected = jax.jit(full.apply)(variables, image, atlas)
    assert result.dtype == jnp.float32
    error = np.linalg.norm(result - expected) / np.linalg.norm(expected)
    assert 1e-6 < error < 0.05


def test_batch_norm_over_devices_equals_one_device():
    """Check that two devices with different images use the statistics of both."""
    image = normal(2, 188, 188, 1) * np.float32([0.2, 3]).reshape(2, 1, 1, 1)
    atlas = atlas_for(SMALL, image, 2)
    variables = random_variables(UNet(CLASSES, **SMALL_NET), image, atlas)

    def forward(axis_name, image, atlas):
        net = UNet(CLASSES, **SMALL_NET, axis_name=axis_name)
        return net.apply(variables, image, atlas, True, mutable=["batch_stats"])

    one, one_stats = jax.jit(functools.partial(forward, None))(image, atlas)
    two, two_stats = jax.pmap(
        functools.partial(forward, "batch"), axis_name="batch", devices=jax.devices()[:2]
    )(image[:, None], atlas[:, None])
    np.testing.assert_allclose(two[:, 0], one, atol=1e-3)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, np.broadcast_to(b, a.shape), atol=1e-4),
        *(two_stats, one_stats),
    )


def test_gradients_are_those_of_float64():
    """Compare gradients with float64.

    Errors are relative to at least a thousandth of the whole gradient, because a bias before an
    open ReLU and another batch normalization has a true gradient of zero.
    """
    image = normal(2, 204, 188, 1)
    variables = random_variables(UNet(CLASSES, **SMALL_NET), image)
    target = np.random.default_rng(4).integers(0, CLASSES, (2, 12, 4))

    def gradient(variables, image):
        net = UNet(CLASSES, **SMALL_NET, dtype=image.dtype)

        def loss(params):
            variables_ = {"params": params, "batch_stats": variables["batch_stats"]}
            logits, _ = net.apply(variables_, image, train=True, mutable=["batch_stats"])
            own = jnp.take_along_axis(jax.nn.log_softmax(logits), target[..., None], axis=-1)
            return -own.mean()

        return jax.grad(loss)(variables["params"])

    result = jax.tree.map(np.asarray, jax.jit(gradient)(variables, image))
    with jax.enable_x64(True):
        arguments = jax.tree.map(np.float64, (variables, image))
        true = jax.tree.map(np.asarray, jax.jit(gradient)(*arguments))
    assert true["classifier"]["kernel"].dtype == np.float64
    whole = np.sqrt(sum(np.sum(leaf**2) for leaf in jax.tree.leaves(true)))

    def check(path, one, other):
        error = np.linalg.norm(one - other) / max(np.linalg.norm(other), 1e-3 * whole)
        assert error < 2e-3, jax.tree_util.keystr(path)

    jax.tree_util.tree_map_with_path(check, result, true)
