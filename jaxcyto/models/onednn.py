"""Weight gradients of convolutions by oneDNN, on the CPU.

XLA:CPU can call oneDNN for the outputs of a convolution but not for the gradient of its kernel,
which was a third of the training step and more. The primitive that other frameworks use for it is
reached here through oneDNN's C interface (`dnnl.h`, version 3), by a callback: the maps are passed
as they lie in memory, and what comes back is only as large as a kernel.

The library is that of the package `onednn-cpu-gomp`; where it is missing, `available()` is false
and `models/conv.py` does without, as where XLA_FLAGS say that oneDNN is not to be used: programs
with callbacks are not kept in JAX's compilation cache.
"""

from __future__ import annotations

import ctypes
import functools
import os
import threading
from ctypes import byref, c_int, c_int64, c_size_t, c_void_p
from importlib import metadata

import jax
import jax.numpy as jnp
import numpy as np

PACKAGE = "onednn-cpu-gomp"
OFF = "--xla_cpu_experimental_onednn_custom_call=false"  # the flag of `training.host.use_onednn`
# dnnl_types.h and dnnl_common_types.h
CPU, IN_ORDER, FLOAT32, ANY_FORMAT = 1, 1, 3, 1
FORWARD_TRAINING, DIRECT, USER = 64, 1, 1
QUERY_DIFF_WEIGHTS, QUERY_SCRATCHPAD = 132, 136
SRC, TO, SCRATCHPAD, DIFF_DST, DIFF_WEIGHTS = 1, 17, 80, 145, 161


class _Argument(ctypes.Structure):
    _fields_ = [("index", c_int), ("memory", c_void_p)]


@functools.cache
def _library() -> ctypes.CDLL | None:
    # Threads that wait actively would take the processors from XLA's.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        files = metadata.files(PACKAGE) or []
        path = next(file.locate() for file in files if file.name == "libdnnl.so.3")
        library = ctypes.CDLL(str(path))
    except (metadata.PackageNotFoundError, StopIteration, OSError):
        return None
    library.dnnl_primitive_desc_query_md.restype = c_void_p
    library.dnnl_memory_desc_get_size.restype = c_size_t
    return library


def available() -> bool:
    """Whether to use it: it is there (x86-64 Linux, a dependency), and not switched off."""
    return OFF not in os.environ.get("XLA_FLAGS", "") and _library() is not None


def kernel_gradient(
    x: jax.Array, gradient: jax.Array, kernel: int = 3, stride: int = 1
) -> jax.Array:
    """Gradient of a square kernel of a convolution without padding; to be traced for the CPU only.

    Args:
        x: [B, H, W, C], the input.
        gradient: [B, H', W', C'], of the output.
        kernel: side of the kernel.
        stride: of the convolution.

    Returns:
        [kernel, kernel, C, C'] in the dtype of `gradient`, computed in float32.
    """
    shape = (kernel, kernel, x.shape[-1], gradient.shape[-1])
    call = functools.partial(_on_host, stride=stride, shape=shape)
    found = jax.pure_callback(
        call,
        jax.ShapeDtypeStruct(shape, jnp.float32),
        x.astype(jnp.float32),
        gradient.astype(jnp.float32),
        vmap_method="sequential",
    )
    return found.astype(gradient.dtype)


def _on_host(
    x: jax.Array, gradient: jax.Array, stride: int, shape: tuple[int, int, int, int]
) -> np.ndarray:
    inputs, outputs = np.ascontiguousarray(x), np.ascontiguousarray(gradient)
    return _primitive(inputs.shape, outputs.shape, shape, stride)(inputs, outputs)


@functools.cache
def _primitive(x: tuple, gradient: tuple, kernel: tuple, stride: int) -> _KernelGradient:
    return _KernelGradient(x, gradient, kernel, stride)


class _KernelGradient:
    """oneDNN's primitive for one set of shapes, made once and kept."""

    def __init__(self, x: tuple, gradient: tuple, kernel: tuple, stride: int) -> None:
        self.shape, self.lock = kernel, threading.Lock()
        engine, self.stream = c_void_p(), c_void_p()
        _call("engine_create", byref(engine), CPU, c_size_t(0))
        _call("stream_create", byref(self.stream), engine, IN_ORDER)

        source, result = _channels_last(x), _channels_last(gradient)
        side, _, channels, width = kernel
        dims = (width, channels, side, side)
        order = (1, width, side * channels * width, channels * width)  # [k, k, C, C'] in memory
        wanted = _descriptor("with_strides", dims, _sizes(order))
        free = _descriptor("with_tag", dims, ANY_FORMAT)
        geometry = [_sizes(pair) for pair in ((stride, stride), (0, 0), (0, 0), (0, 0))]
        hint, described, attributes = c_void_p(), c_void_p(), c_void_p()
        # oneDNN's own scratch memory is that of the thread that has made a primitive
        _call("primitive_attr_create", byref(attributes))
        _call("primitive_attr_set_scratchpad_mode", attributes, USER)
        _call("convolution_forward_primitive_desc_create", byref(hint), engine, FORWARD_TRAINING,
              DIRECT, source, free, None, result, *geometry, None)  # fmt: skip
        _call("convolution_backward_weights_primitive_desc_create", byref(described), engine,
              DIRECT, source, free, None, result, *geometry, hint, attributes)  # fmt: skip
        library = _library()
        assert library

        def asked(primitive: c_void_p, what: int) -> c_void_p:
            return c_void_p(library.dnnl_primitive_desc_query_md(primitive, what, 0))

        own, reorder = asked(described, QUERY_DIFF_WEIGHTS), c_void_p()
        _call("reorder_primitive_desc_create", byref(reorder), own, engine, wanted, engine,
              attributes)  # fmt: skip
        self.convolution, self.reorder = c_void_p(), c_void_p()
        _call("primitive_create", byref(self.convolution), described)
        _call("primitive_create", byref(self.reorder), reorder)

        kept = own, asked(described, QUERY_SCRATCHPAD), asked(reorder, QUERY_SCRATCHPAD)
        self.kept = [np.empty(library.dnnl_memory_desc_get_size(each), np.uint8) for each in kept]
        self.memories = [c_void_p() for _ in range(6)]
        for memory, each in zip(self.memories, (source, result, wanted, *kept), strict=True):
            _call("memory_create", byref(memory), each, engine, None)

    def __call__(self, x: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        found = np.empty(self.shape, np.float32)
        with self.lock:  # several devices may share the primitive's memories
            arrays = (x, gradient, found, *self.kept)
            for memory, array in zip(self.memories, arrays, strict=True):
                _call("memory_set_data_handle", memory, c_void_p(array.ctypes.data))
            source, result, wanted, own, *scratch = self.memories
            self._run(self.convolution, (SRC, source), (DIFF_DST, result), (DIFF_WEIGHTS, own),
                      (SCRATCHPAD, scratch[0]))  # fmt: skip
            self._run(self.reorder, (SRC, own), (TO, wanted), (SCRATCHPAD, scratch[1]))
            _call("stream_wait", self.stream)
        return found

    def _run(self, primitive: c_void_p, *arguments: tuple[int, c_void_p]) -> None:
        given = (_Argument * len(arguments))(*(_Argument(*each) for each in arguments))
        _call("primitive_execute", primitive, self.stream, len(arguments), given)


def _channels_last(shape: tuple[int, int, int, int]) -> c_void_p:
    batch, height, width, channels = shape
    strides = (height * width * channels, 1, width * channels, channels)
    return _descriptor("with_strides", (batch, channels, height, width), _sizes(strides))


def _descriptor(how: str, dims: tuple, layout: object) -> c_void_p:
    found = c_void_p()
    name = f"memory_desc_create_{how}"
    _call(name, byref(found), len(dims), _sizes(dims), FLOAT32, layout)
    return found


def _sizes(values: tuple[int, ...]) -> ctypes.Array:
    return (c_int64 * len(values))(*values)


def _call(name: str, *arguments: object) -> None:
    status = getattr(_library(), f"dnnl_{name}")(*arguments)
    if status != 0:
        raise RuntimeError(f"oneDNN: {name} returned status {status}")
