"""Test convolutions and their gradients in oneDNN and XLA against float64 at the real sizes."""

import itertools
import os
import platform
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcyto.models import SiameseNet, UNet
from jaxcyto.models import layers as conv
from jaxcyto.models.cpu import kernels as cpu
from jaxcyto.models.cpu import onednn
from jaxcyto.models.encoder import Block

ON_LINUX = (sys.platform, platform.machine()) == ("linux", "x86_64")
# (batch, side, channels, width, kernel, stride) of layers of the paper's network at 1019 px, of the
# small network and of the U-Net at 2025 px, with odd sides and batches, stems, and a 1x1 kernel as
# in the expansive path.
LAYERS = [
    (2, 30, 3, 8, 3, 1),
    (4, 254, 16, 16, 3, 1),
    (3, 126, 16, 32, 3, 1),
    (6, 124, 32, 32, 3, 1),
    (1, 505, 16, 16, 3, 1),
    (16, 27, 64, 64, 3, 1),
    (2, 17, 5, 7, 3, 1),
    (3, 3, 128, 128, 3, 1),
    (2, 1019, 1, 16, 5, 4),
    (1, 2025, 1, 16, 5, 4),
    (2, 27, 6, 16, 1, 1),
]


def drawn(batch, side, channels, width, kernel=3, stride=1, dtype=np.float32):
    rng = np.random.default_rng(side)
    x = rng.normal(1.0, 1.0, (batch, side, side, channels)).astype(dtype)
    weights = rng.normal(size=(kernel, kernel, channels, width)).astype(dtype)
    result = (side - kernel) // stride + 1
    gradient = rng.normal(size=(batch, result, result, width)).astype(dtype)
    return x, weights, gradient


def by_definition(x, kernel, stride):
    """Convolve in float64. Return the output, and a function that pulls its gradient back."""
    x, kernel = np.float64(x), np.float64(kernel)
    side = kernel.shape[0]
    height, width = ((each - side) // stride + 1 for each in x.shape[1:3])
    taps = [
        (i, j, np.s_[:, i : i + stride * (height - 1) + 1 : stride,
                     j : j + stride * (width - 1) + 1 : stride])
        for i in range(side) for j in range(side)
    ]  # fmt: skip

    def pull(gradient):
        gradient = np.float64(gradient)
        of_x, of_kernel = np.zeros_like(x), np.zeros_like(kernel)
        for i, j, tap in taps:
            of_x[tap] += gradient @ kernel[i, j].T
            of_kernel[i, j] = np.tensordot(x[tap], gradient, axes=[[0, 1, 2]] * 2)
        return of_x, of_kernel

    return sum(x[tap] @ kernel[i, j] for i, j, tap in taps), pull


def far(one, other):
    return np.linalg.norm(one - other) / np.linalg.norm(other)


@pytest.fixture(params=["onednn", "xla"])
def library(request, monkeypatch):
    """Run a test with oneDNN and with XLA. oneDNN exists on x86-64 Linux only."""
    if request.param == "xla":
        monkeypatch.setattr(cpu, "available", lambda: False)
    elif not ON_LINUX:
        pytest.skip("no oneDNN here")
    jax.clear_caches()  # JAX caches the traces of custom gradients, and with them the library
    yield request.param
    jax.clear_caches()


@pytest.mark.parametrize("layer", LAYERS)
def test_convolution_and_gradients_are_those_of_float64(layer, library):
    if library == "xla" and layer[1] > 200:
        pytest.skip("of XLA's own, small ones will do")
    x, kernel, gradient = drawn(*layer)
    stride = layer[-1]

    @jax.jit
    def both(x, kernel, gradient):
        found, pull = jax.vjp(lambda x, kernel: conv.conv(x, kernel, stride), x, kernel)
        return found, pull(gradient)

    called = both.lower(x, kernel, gradient).as_text().count("custom_call @jaxcyto")
    assert called == (3 if library == "onednn" else 0)
    found, (of_x, of_kernel) = both(x, kernel, gradient)
    wanted, pull = by_definition(x, kernel, stride)
    wanted_of_x, wanted_of_kernel = pull(gradient)
    assert far(found, wanted) < 1e-6
    assert far(of_x, wanted_of_x) < 1e-6
    assert far(of_kernel, wanted_of_kernel) < 2e-5  # sums with up to 256,000 terms


BLOCKS = [  # (batch, side, first kernel, its stride, channels, pooling)
    (2, 1019, 5, 4, (1, 16, 16), True),
    (1, 2025, 5, 4, (1, 16, 16), True),
    (3, 127, 3, 1, (1, 16, 16), True),  # odd edges
    (2, 250, 3, 1, (16, 32, 32), False),
    (2, 20, 1, 1, (8, 64), False),
    (1, 60, 3, 1, (4, 8, 8, 8), True),
]


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("shape", BLOCKS)
def test_blocks_are_those_of_float64(shape, relu, library):
    batch, side, kernel, stride, channels, pool = shape
    rng = np.random.default_rng(side)
    x = rng.normal(size=(batch, side, side, channels[0])).astype(np.float32)
    layers, wanted = [], np.float64(x)
    for number, (before, after) in enumerate(itertools.pairwise(channels)):
        size, step = (kernel, stride) if number == 0 else (3, 1)
        weights = rng.normal(size=(size, size, before, after)) / np.sqrt(size * size * before)
        layers.append([np.float32(y) for y in (weights, *rng.normal(size=(2, after)))])
        wanted = by_definition(wanted, layers[-1][0], step)[0]
        wanted = wanted * layers[-1][1] + layers[-1][2]
        wanted = np.maximum(wanted, 0) if relu else wanted
    if pool:
        edges = [(0, 0), *((0, side % 2) for side in wanted.shape[1:3]), (0, 0)]
        wanted = np.pad(wanted, edges, constant_values=-np.inf)
        wanted = np.max([wanted[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], axis=0)
    found = jax.jit(lambda x, layers: conv.affine_block(x, layers, stride, relu, pool))(x, layers)
    assert far(found, wanted) < 1e-6


def test_block_at_inference_has_gradients(library):
    """Compare gradients of a block at inference, as for saliency maps, with Flax's layers."""
    x = np.random.default_rng(0).normal(size=(2, 43, 43, 3)).astype(np.float32)
    block = Block(8, kernel=5, stride=2, pool=True)
    variables = block.init(jax.random.key(0), x, False)
    statistics = jax.tree.map(lambda y: y + 0.3, variables["batch_stats"])

    def plain(params, x):
        for n, stride in ((1, 2), (2, 1)):
            kernel = params[f"conv{n}"]["kernel"]
            x = nn.Conv(8, kernel.shape[:2], stride, "VALID", use_bias=False).apply(
                {"params": params[f"conv{n}"]}, x
            )
            held = {"params": params[f"bn{n}"], "batch_stats": statistics[f"bn{n}"]}
            x = nn.relu(nn.BatchNorm(use_running_average=True).apply(held, x))
        return nn.max_pool(x, (2, 2), (2, 2))

    def ours(params, x):
        return block.apply({"params": params, "batch_stats": statistics}, x, False)

    def both(function):
        return jax.value_and_grad(lambda *given: jnp.square(function(*given)).sum(), (0, 1))(
            variables["params"], x
        )

    (value, gradients), (wanted, wanted_gradients) = jax.jit(lambda: both(ours))(), both(plain)
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    jax.tree.map(lambda a, b: far(a, b) < 1e-5 or pytest.fail(), gradients, wanted_gradients)


@pytest.mark.parametrize(("dtype", "error"), [(jnp.bfloat16, 2e-2), (np.float64, 1e-12)])
def test_other_dtypes_are_left_to_xla(dtype, error, library):
    with jax.enable_x64(dtype == np.float64):
        x, kernel, gradient = (jnp.asarray(y, dtype) for y in drawn(2, 20, 4, 8))
        found, pull = jax.vjp(conv.conv, x, kernel)
        of_x, of_kernel = pull(gradient)
    assert found.dtype == of_x.dtype == of_kernel.dtype == dtype
    wanted, pull = by_definition(x, kernel, 1)
    for one, other in zip((found, of_x, of_kernel), (wanted, *pull(gradient)), strict=True):
        assert far(np.float64(one), other) < error


def test_a_wider_kernel_is_rounded(library):
    """Check a float64 kernel, whose bytes oneDNN must not read as float32."""
    x, kernel, gradient = drawn(2, 20, 4, 8)
    with jax.enable_x64(True):
        found, pull = jax.vjp(conv.conv, x, np.float64(kernel))
        of_x, of_kernel = pull(gradient)
    assert (found.dtype, of_x.dtype, of_kernel.dtype) == (np.float32, np.float32, np.float64)
    wanted, pull = by_definition(x, kernel, 1)
    for one, other in zip((found, of_x, of_kernel), (wanted, *pull(gradient)), strict=True):
        assert far(np.asarray(one), other) < 1e-5


@pytest.mark.parametrize("shape", [(0, 20, 20, 4), (2, 1, 20, 4), (2, 20, 2, 4)])
def test_nothing_in_nothing_out(shape, library):
    """Check empty batches, and maps that are smaller than the kernel."""
    x, kernel = jnp.ones(shape), jnp.ones((3, 3, 4, 8))

    @jax.jit
    def both(x, kernel):
        found, pull = jax.vjp(conv.conv, x, kernel)
        return found, pull(found), conv.affine_block(x, [(kernel, *2 * [kernel[0, 0, 0]])], 1, 1, 1)

    found, (of_x, of_kernel), block = both(x, kernel)
    assert found.size == block.size == 0 and not of_x.any() and not of_kernel.any()


def test_gradients_of_each_image_by_vmap(library):
    x, kernel, gradient = drawn(3, 20, 4, 8)

    def of_one(x, gradient):
        found, pull = jax.vjp(conv.conv, x[None], kernel)
        return found[0], pull(gradient[None])[1]

    found, of_kernel = jax.jit(jax.vmap(of_one))(x, gradient)
    for n in range(3):
        wanted, pull = by_definition(x[n : n + 1], kernel, 1)
        assert far(found[n], wanted[0]) < 1e-6
        assert far(of_kernel[n], pull(gradient[n : n + 1])[1]) < 1e-5


def test_parameters_are_those_of_flax():
    """Check that names and initial values equal Flax's, so that weights are interchangeable."""
    x = np.zeros((1, 30, 30, 4), np.float32)
    init = nn.initializers.he_normal()

    class Peer(nn.Module):
        @nn.compact
        def __call__(self, x):
            for n in (1, 2):
                x = nn.Conv(8, (3, 3), use_bias=False, kernel_init=init, name=f"conv{n}")(x)
                x = nn.BatchNorm(use_running_average=True, name=f"bn{n}")(x)
            return x

    ours, peer = (module.init(jax.random.key(0), x, *more) for module, *more in (
        (Block(8), False), (Peer(),)))  # fmt: skip
    jax.tree.map(np.testing.assert_array_equal, ours, peer)


@pytest.mark.skipif(not ON_LINUX, reason="no oneDNN here")
def test_devices_share_the_library():
    """Call from eight devices at once, many times. Results must not mix, and none may hang."""
    devices = jax.devices()
    x, kernel, _ = drawn(2 * len(devices), 64, 8, 8)
    mesh = jax.make_mesh((len(devices),), ("data",))
    sharded = jax.device_put(x, jax.NamedSharding(mesh, jax.P("data")))

    def gradient(x, kernel):
        return jax.grad(lambda k: jnp.square(conv.conv(x, k)).sum())(kernel)[None]

    split, whole = jax.P("data"), jax.P()
    per_device = jax.jit(
        jax.shard_map(
            gradient, mesh=mesh, in_specs=(split, whole), out_specs=split, check_vma=False
        )
    )
    one_by_one = jnp.concatenate(
        [jax.jit(gradient)(part, kernel) for part in np.split(x, len(devices))]
    )
    for _ in range(50):
        found = per_device(sharded, kernel)
    np.testing.assert_allclose(found, one_by_one, rtol=1e-4)


@pytest.mark.skipif(not ON_LINUX, reason="no oneDNN here")
@pytest.mark.parametrize("instructions", ["SSE41", "AVX2", "DEFAULT"])
def test_any_thread_may_call(instructions):
    """Run programs in several threads, also with the instructions of older processors.

    This needs a separate process, because oneDNN chooses its instructions once and a fault may end
    the process.
    """
    code = """
import sys; sys.path.insert(0, "tests/models")
import threading
import jax
from jaxcyto.models import layers as conv
from test_conv import by_definition, drawn, far
assert "jaxcyto" in jax.jit(conv.conv).lower(*drawn(1, 9, 2, 2)[:2]).as_text()
layers = [drawn(2, side, *widths) for side, *widths in ((40, 1, 16), (32, 16, 16), (36, 3, 7))]
pull = jax.jit(lambda x, kernel, gradient: jax.vjp(conv.conv, x, kernel)[1](gradient))
for layer in layers:
    pull(*layer)
found = [[] for _ in layers]
work = lambda n: [found[n].append(pull(*layers[n])) for _ in range(20)]
threads = [threading.Thread(target=work, args=(n,)) for n in (0, 1, 2, 0, 1, 2)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
for layer, each in zip(layers, found):
    wanted = by_definition(*layer[:2], 1)[1](layer[2])
    print(max(far(y[n], wanted[n]) for y in each for n in (0, 1)))
"""
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": instructions}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert max(map(float, done.stdout.split())) < 1e-5


@pytest.mark.skipif(not ON_LINUX, reason="no oneDNN here")
def test_what_oneDNN_refuses_is_an_error_of_the_program(monkeypatch):
    def refuse(*_):
        raise RuntimeError("oneDNN: convolution returned status 3")

    monkeypatch.setattr(cpu, "_made_gradient", refuse)
    x, kernel, gradient = drawn(2, 21, 4, 8)
    with pytest.raises(jax.errors.JaxRuntimeError, match="returned status 3"):
        pull = jax.jit(lambda x, kernel, y: jax.vjp(conv.conv, x, kernel)[1](y))
        jax.block_until_ready(pull(x, kernel, gradient))


@pytest.mark.parametrize("names", [["libdnnl.so.3"], []])
def test_without_the_library(names, monkeypatch, tmp_path):
    """Check that XLA takes over if the library is missing or cannot be loaded."""

    class Broken:
        name = "libdnnl.so.3"

        def locate(self):
            return tmp_path / "libdnnl.so.3"

    monkeypatch.setattr(onednn.metadata, "files", lambda _: [Broken() for _ in names])
    assert onednn.library.__wrapped__() is None
    monkeypatch.setattr(onednn, "library", lambda: None)
    assert not cpu._registered.__wrapped__()


# ---- second derivatives --------------------------------------------------------------------------


def gradient_penalty(function, *arguments):
    """Return the gradient of the squared norm of a gradient, for all arguments."""
    chosen = tuple(range(len(arguments)))

    def penalty(*arguments):
        gradients = jax.grad(lambda *a: jnp.sum(function(*a) ** 3), chosen)(*arguments)
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradients))

    return jax.jit(jax.grad(penalty, chosen))(*arguments)


@pytest.mark.parametrize("stride", [1, 2])
def test_second_derivatives_of_a_convolution(stride, library):
    x, kernel, _ = drawn(2, 12, 3, 4, 3, stride)
    ours = gradient_penalty(lambda x, kernel: conv.conv(x, kernel, stride), x, kernel)
    for one, other in zip(
        ours, gradient_penalty(lambda x, k: conv._by_xla(x, k, stride), x, kernel), strict=True
    ):
        assert far(one, other) < 1e-5


@pytest.mark.parametrize("side", [8, 9])
def test_second_derivatives_of_pooling(side):
    """The penalty is the sum of (3 m^2)^2 over all maxima m, so its gradient is 36 m^3.

    It goes to the first of equal pixels, as the first derivative does.
    """
    x = np.random.default_rng(0).integers(-3, 3, (2, side, side, 3)).astype(np.float32)
    expected = np.zeros_like(x)
    for b, row, column, c in np.ndindex(2, -(-side // 2), -(-side // 2), 3):
        window = x[b, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2, c]
        y, z = np.unravel_index(window.argmax(), window.shape)
        expected[b, 2 * row + y, 2 * column + z, c] = 36 * window.max() ** 3
    (ours,) = gradient_penalty(conv.max_pool, x)
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("net", ["siamese", "unet"])
def test_second_derivatives_of_the_networks(net, train, monkeypatch):
    """A gradient penalty through a whole network, in oneDNN, equals that of XLA alone."""
    if not ON_LINUX:
        pytest.skip("no oneDNN here")
    small: dict = {"stem_kernel": 3, "stem_stride": 1, "widths": (4, 4, 8)}
    if net == "siamese":
        model, shape = SiameseNet(features=5, **small), (2, 2, 32, 32, 1)
    else:
        model, shape = UNet(num_classes=3, **small), (1, 44, 44, 1)
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    variables = dict(jax.jit(model.init)(jax.random.key(0), x))

    def penalty(params, x):
        def output(x):
            outputs, _ = model.apply(
                variables | {"params": params}, x, train, mutable=["batch_stats"]
            )
            return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(outputs))

        if net == "unet":

            def output(x):  # the atlas comes before `train`
                logits, _ = model.apply(
                    variables | {"params": params}, x, None, train, mutable=["batch_stats"]
                )
                return jnp.sum(jnp.sin(logits))

        return jnp.sum(jax.grad(output)(x) ** 2)

    found = []
    for on in (True, False):
        jax.clear_caches()
        if not on:
            monkeypatch.setenv("JAXCYTO_ONEDNN", "0")
        program = jax.jit(jax.grad(penalty)).lower(variables["params"], x)
        assert ("jaxcyto" in program.as_text()) == on
        found.append(program.compile()(variables["params"], x))
    jax.clear_caches()
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(found[1]))
    for one, other in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-4 * scale)


# ---- forward mode --------------------------------------------------------------------------------


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("side", [32, 31])
def test_forward_mode_works_without_onednn_and_names_the_switch_with_it(train, side, monkeypatch):
    """The derivative along a direction equals the product of the gradient with it."""
    model = SiameseNet(features=5, stem_kernel=3, stem_stride=1, widths=(4, 4, 8))
    x, along = np.random.default_rng(0).normal(size=(2, 2, 2, side, side, 1)).astype(np.float32)
    variables = model.init(jax.random.key(0), x)

    def output(x):
        outputs, _ = model.apply(variables, x, train, mutable=["batch_stats"])
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(outputs))

    gradient = jax.grad(output)(x)
    with pytest.raises(TypeError, match=r"set JAXCYTO_ONEDNN=0 in the env.* or onednn = False"):
        jax.jvp(output, (x,), (along,))
    with pytest.raises(TypeError, match="JAXCYTO_ONEDNN=0") as caught:
        jax.hessian(output)(x)
    assert str(caught.value).count("JAXCYTO_ONEDNN") == 1
    monkeypatch.setenv("JAXCYTO_ONEDNN", "0")
    value, slope = jax.jvp(output, (x,), (along,))
    assert float(value) == pytest.approx(float(output(x)), rel=1e-5)
    assert float(slope) == pytest.approx(float(jnp.vdot(gradient, along)), rel=1e-4, abs=1e-4)
    np.testing.assert_allclose(jax.grad(output)(x), gradient, atol=1e-5)


def test_pooling_gives_forward_and_backward_the_same_pixel(monkeypatch):
    x = jnp.array(np.random.default_rng(0).integers(-2, 3, (2, 7, 8, 3)), jnp.float32)  # with ties
    weight = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
    backward = jax.vjp(conv.max_pool, x)[1](weight)[0]
    monkeypatch.setenv("JAXCYTO_ONEDNN", "0")
    np.testing.assert_array_equal(jax.vjp(conv.max_pool, x)[1](weight)[0], backward)
    along = jax.random.normal(jax.random.key(1), x.shape)
    slope = jax.jvp(conv.max_pool, (x,), (along,))[1]
    np.testing.assert_allclose(jnp.vdot(slope, weight), jnp.vdot(along, backward), rtol=1e-5)


# ---- values that are not finite, shapes, the switch ----------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("pool", [True, False])
def test_values_that_are_not_finite_stay(value, pool, library):
    """At inference the same outputs are not finite as in plain XLA, for a value at any position."""
    rng = np.random.default_rng(0)
    layers = [
        (*(np.float32(rng.normal(size=shape)) for shape in ((3, 3, a, 8), (8,), (8,))),)
        for a in (3, 8)
    ]

    def plain(x):
        for kernel, a, b in layers:
            x = nn.relu(conv._by_xla(x, kernel * a[None, None, None], 1) + b[None, None, None])
        return conv.max_pool(x) if pool else x

    ours = jax.jit(lambda x: conv.affine_block(x, layers, 1, True, pool))
    for row, column in ((0, 0), (7, 8), (8, 7), (15, 15)):
        x = rng.normal(size=(1, 16, 16, 3)).astype(np.float32)
        x[0, row, column, 1] = value
        found, wanted = np.isnan(ours(x)), np.isnan(jax.jit(plain)(x))
        assert wanted.any() and not (wanted & ~found).any()
        if np.isnan(value):
            np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    ("x", "kernel"),
    [
        ((1, 8, 8, 3), (3, 3, 4, 2)),
        ((1, 8, 8, 3), (3, 2, 3, 2)),
        ((8, 8, 3), (3, 3, 3, 2)),
        ((1, 8, 8, 3), (3, 3, 2)),
    ],
)
@pytest.mark.parametrize("jitted", [True, False])
def test_shapes_that_do_not_fit_are_refused_before_a_library_sees_them(x, kernel, jitted):
    x, kernel = jnp.zeros(x), jnp.zeros(kernel)
    convolve = jax.jit(conv.conv) if jitted else conv.conv
    with pytest.raises(ValueError, match="kernel"):
        convolve(x, kernel)
    if x.ndim == kernel.ndim == 4:
        layers = [(kernel, jnp.ones(2), jnp.zeros(2))]
        with pytest.raises(ValueError, match="does not fit"):
            conv.affine_block(x, layers, 1, True, False)


def test_factors_of_another_length_are_refused():
    layers = [(jnp.zeros((3, 3, 3, 2)), jnp.ones(2), jnp.zeros(3))]
    with pytest.raises(ValueError, match=r"offsets \(3,\).*expected \(2,\)"):
        conv.affine_block(jnp.zeros((1, 8, 8, 3)), layers, 1, True, False)


def test_the_switches_and_eager_calls(monkeypatch):
    """The environment, the config's switch, and calls outside of jit all leave the work to XLA."""
    if not ON_LINUX:
        pytest.skip("no oneDNN here")
    x, kernel, _ = drawn(1, 9, 2, 2)

    def uses_onednn() -> bool:
        jax.clear_caches()
        return "jaxcyto" in jax.jit(conv.conv).lower(x, kernel).as_text()

    assert uses_onednn()
    monkeypatch.setenv("JAXCYTO_ONEDNN", "0")
    assert not uses_onednn()
    monkeypatch.delenv("JAXCYTO_ONEDNN")
    cpu.switch(False)
    try:
        assert not uses_onednn()
    finally:
        cpu.switch(True)
    assert uses_onednn()
    monkeypatch.setattr(cpu, "convolve", lambda *a, **k: pytest.fail("an eager call of oneDNN"))
    conv.conv(x, kernel)


def test_a_forked_child_raises_instead_of_waiting():
    """The thread that calls oneDNN does not exist in a fork, and OpenMP does not survive one."""
    if not ON_LINUX:
        pytest.skip("no oneDNN here")
    code = """
import os, sys, warnings
warnings.simplefilter("ignore")
import jax, numpy as np
from jaxcyto.models.cpu import ffi
from jaxcyto.models import layers
x, k = np.ones((1, 9, 9, 2), np.float32), np.ones((3, 3, 2, 2), np.float32)
jax.jit(layers.conv)(x, k).block_until_ready()
child = os.fork()
if child == 0:
    try:
        ffi._run(int)
    except RuntimeError as error:
        os.write(1, str(error).encode())
        os._exit(7)
    os._exit(0)
print("", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split()[-1] == "7" and "fork" in done.stdout, done
