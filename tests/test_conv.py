"""The convolution and its two gradients: against float64 at the real sizes, against flax."""

import os
import platform
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcyto.models import conv, onednn
from jaxcyto.models.conv import Conv, convolve, kernel_gradient
from jaxcyto.training import host

ON_LINUX = (sys.platform, platform.machine()) == ("linux", "x86_64")
# batch, side, channels, width: layers of the paper's network at 1019 px, in whole (the last two)
# and in chunks of images; odd sides, odd batches; the small network; the U-Net at 2025 px
LAYERS = [
    (2, 30, 3, 8),
    (4, 254, 16, 16),
    (3, 126, 16, 32),
    (6, 124, 32, 32),
    (1, 505, 16, 16),
    (16, 27, 64, 64),
    (2, 17, 5, 7),
]


def drawn(batch, side, channels, width, dtype=np.float32):
    rng = np.random.default_rng(side)
    x = rng.normal(1.0, 1.0, (batch, side, side, channels)).astype(dtype)
    kernel = rng.normal(size=(3, 3, channels, width)).astype(dtype)
    gradient = rng.normal(size=(batch, side - 2, side - 2, width)).astype(dtype)
    return x, kernel, gradient


def truth(x, gradient):
    """The kernel's gradient by its definition, in float64."""
    x, gradient = np.float64(x), np.float64(gradient)
    height, width = gradient.shape[1:3]
    flat = gradient.reshape(-1, gradient.shape[3])
    return np.array(
        [
            [x[:, i : i + height, j : j + width].reshape(len(flat), -1).T @ flat for j in range(3)]
            for i in range(3)
        ]
    )


def far(one, other):
    return np.linalg.norm(one - other) / np.linalg.norm(other)


@pytest.mark.parametrize("library", [True, False])
@pytest.mark.parametrize("layer", LAYERS)
def test_gradients_are_those_of_float64_and_of_xla(layer, library, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "" if library else onednn.OFF)  # else the matrix products
    assert onednn.available() == (library and ON_LINUX)
    x, kernel, gradient = drawn(*layer)

    def pull(function):
        pulled = jax.jit(lambda *arguments: jax.vjp(function, *arguments)[1](gradient))
        asked = "callback" in pulled.lower(x, kernel).as_text()
        assert asked == (library and ON_LINUX and function is conv.conv)
        return pulled(x, kernel)

    ours, plain = pull(conv.conv), pull(convolve)
    np.testing.assert_array_equal(ours[0], plain[0])  # of the input: the same computation
    assert far(ours[1], truth(x, gradient)) < 1e-5
    assert far(plain[1], truth(x, gradient)) < 1e-5


@pytest.mark.parametrize("batch", [2, 5])
def test_chunks_of_images_add_up(monkeypatch, batch):
    x, _, gradient = drawn(batch, 20, 4, 8)
    whole = kernel_gradient(x, gradient)
    monkeypatch.setattr(conv, "CHUNK_BYTES", 0)
    np.testing.assert_allclose(kernel_gradient(x, gradient), whole, rtol=1e-4, atol=1e-4)


def test_bfloat16_is_summed_in_float32():
    """Only the result is rounded: a sum of 60,000 terms in bfloat16 would stop growing."""
    x, _, gradient = (jnp.asarray(y, jnp.bfloat16) for y in drawn(4, 124, 8, 8))
    found = kernel_gradient(x, gradient)
    assert found.dtype == jnp.bfloat16
    assert far(np.float64(found), truth(x, gradient)) < 4e-3


@pytest.mark.parametrize("library", [True, False])
def test_float64_stays_float64(library, monkeypatch):
    monkeypatch.setattr(onednn, "available", lambda: library)
    x, kernel, gradient = drawn(2, 20, 4, 8, np.float64)
    with jax.enable_x64(True):
        found = np.asarray(jax.vjp(conv.conv, x, kernel)[1](gradient)[1])
    assert far(found, truth(x, gradient)) < 1e-12


def test_gradients_of_each_image_by_vmap():
    x, kernel, gradient = drawn(3, 20, 4, 8)

    def of_one(x, gradient):
        return jax.vjp(lambda k: conv.conv(x[None], k), kernel)[1](gradient[None])[0]

    found = jax.jit(jax.vmap(of_one))(x, gradient)
    for n in range(3):
        assert far(found[n], truth(x[n : n + 1], gradient[n : n + 1])) < 1e-5


@pytest.fixture
def switched_on(monkeypatch):
    """Elsewhere than on x86-64 Linux there is no package."""
    monkeypatch.setenv("XLA_FLAGS", "")
    if not ON_LINUX:
        pytest.skip("no oneDNN here")


def test_library_is_found_and_used(switched_on):
    assert onednn.available() and f"--{host.ONEDNN_FLAG}=false" == onednn.OFF
    text = jax.jit(jax.grad(lambda k: conv.conv(jnp.ones((1, 20, 20, 2)), k).sum())).lower(
        jnp.ones((3, 3, 2, 4))
    )
    assert "callback" in text.as_text()


@pytest.mark.parametrize(("side", "kernel", "stride", "channels"), [(1019, 5, 4, 1), (27, 1, 1, 6)])
def test_library_takes_other_kernels(side, kernel, stride, channels, switched_on):
    rng = np.random.default_rng(side)
    x = rng.normal(1.0, 1.0, (2, side, side, channels)).astype(np.float32)
    weights = rng.normal(size=(kernel, kernel, channels, 16)).astype(np.float32)
    plain, pull = jax.vjp(lambda k: convolve(x, k, stride), weights)
    gradient = rng.normal(size=plain.shape).astype(np.float32)
    ours = jax.jit(lambda k: jax.vjp(lambda k: conv.conv(x, k, stride), k)[1](gradient)[0])(weights)
    assert far(ours, pull(gradient)[0]) < 1e-5


def test_devices_share_the_library(switched_on):
    """Eight devices call at once, with large maps, many times: nothing is mixed up, none waits."""
    devices = jax.devices()
    x, kernel, _ = drawn(2 * len(devices), 64, 8, 8)
    mesh = jax.make_mesh((len(devices),), ("data",))
    sharded = jax.device_put(x, jax.NamedSharding(mesh, jax.P("data")))

    def gradient(x, kernel):
        return jax.grad(lambda k: jnp.square(conv.conv(x, k)).sum())(kernel)[None]

    per_device = jax.jit(
        jax.shard_map(
            gradient, mesh=mesh, in_specs=(jax.P("data"), jax.P()), out_specs=jax.P("data")
        )
    )
    one_by_one = jnp.concatenate([gradient(part, kernel) for part in np.split(x, len(devices))])
    for _ in range(50):
        found = per_device(sharded, kernel)
    np.testing.assert_allclose(found, one_by_one, rtol=1e-4)


@pytest.mark.skipif(not ON_LINUX, reason="no oneDNN here")
@pytest.mark.parametrize("instructions", ["SSE41", "AVX2", "DEFAULT"])
def test_any_thread_may_call(instructions):
    """One thread makes the primitives, others run them, also those of older processors.

    In a process of its own: oneDNN chooses instructions once, and may end the process.
    """
    code = """
import sys; sys.path.insert(0, "tests")
import threading
import numpy as np
from jaxcyto.models import onednn
from test_conv import drawn, far, truth
layers = [drawn(2, side, *widths)[::2] for side, *widths in ((40, 1, 16), (32, 16, 16), (36, 3, 7))]
call = lambda x, gradient: onednn._on_host(x, gradient, 1, (3, 3, x.shape[3], gradient.shape[3]))
for layer in layers:
    call(*layer)
found = [[] for _ in layers]
work = lambda n: [found[n].append(call(*layers[n])) for _ in range(20)]
threads = [threading.Thread(target=work, args=(n,)) for n in (0, 1, 2, 0, 1, 2)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(max(far(y, truth(*layer)) for layer, each in zip(layers, found) for y in each))
"""
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": instructions}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1e-5


@pytest.mark.parametrize("names", [["libdnnl.so.3"], []])
def test_without_the_library(names, monkeypatch, tmp_path):
    """A file that cannot be loaded, or none: the products take over."""

    class Broken:
        name = "libdnnl.so.3"

        def locate(self):
            return tmp_path / "libdnnl.so.3"

    monkeypatch.setattr(onednn.metadata, "files", lambda _: [Broken() for _ in names])
    assert onednn._library.__wrapped__() is None


@pytest.mark.parametrize(("kernel", "stride", "channels"), [(3, 1, 4), (5, 4, 1), (1, 1, 6)])
def test_layer_is_that_of_flax(kernel, stride, channels):
    """Parameters by name, their initial values, and the output."""
    x = np.random.default_rng(0).normal(size=(2, 33, 37, channels)).astype(np.float32)
    init = nn.initializers.he_normal()
    ours = Conv(8, kernel, stride, init)
    peer = nn.Conv(8, (kernel, kernel), (stride, stride), "VALID", use_bias=False, kernel_init=init)
    variables = ours.init(jax.random.key(0), x)
    jax.tree.map(np.testing.assert_array_equal, variables, peer.init(jax.random.key(0), x))
    np.testing.assert_array_equal(ours.apply(variables, x), peer.apply(variables, x))


def test_onednn_gives_the_same_numbers():
    """The flag of `train.py`, in a process of its own: flags are read when JAX starts."""
    code = """
import sys; sys.path.insert(0, "tests")
from jaxcyto.training import host
assert host.use_onednn()
import jax
from jaxcyto.models import conv
from test_conv import convolve, drawn, far, truth
x, kernel, gradient = drawn(4, 126, 16, 32)
pull = jax.jit(lambda *a: jax.vjp(conv.conv, *a)[1](gradient)).lower(x, kernel).compile()
print("onednn" in pull.as_text())
ours, out = pull(x, kernel), jax.jit(convolve)(x, kernel)
print(far(ours[1], truth(x, gradient)), abs(out).sum(), abs(ours[0]).sum())
"""
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    used, numbers = done.stdout.splitlines()
    assert used == "True", "the flag has no effect"
    error, out, for_x = map(float, numbers.split())
    x, kernel, gradient = drawn(4, 126, 16, 32)
    ours = jax.vjp(conv.conv, x, kernel)[1](gradient)[0]
    assert error < 1e-5
    np.testing.assert_allclose(out, abs(convolve(x, kernel)).sum(), rtol=1e-5)
    np.testing.assert_allclose(for_x, abs(ours).sum(), rtol=1e-5)


def test_flag_keeps_what_the_user_set(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", f"--a=1 --{host.ONEDNN_FLAG}=false")
    assert not host.use_onednn()
    assert os.environ["XLA_FLAGS"] == f"--a=1 --{host.ONEDNN_FLAG}=false"
    monkeypatch.setenv("XLA_FLAGS", "--a=1")
    monkeypatch.setattr(host.metadata, "version", lambda name: "99.0")
    assert not host.use_onednn()
    assert os.environ["XLA_FLAGS"] == "--a=1"
