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
    one_by_one = jnp.concatenate([gradient(part, kernel) for part in np.split(x, len(devices))])
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
        jax.block_until_ready(jax.vjp(conv.conv, x, kernel)[1](gradient))


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
    assert not cpu.available.__wrapped__()
