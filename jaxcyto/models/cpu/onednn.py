"""Call oneDNN for convolutions and their two gradients on the CPU.

XLA:CPU's own convolutions are slow for large maps of few channels, above all the gradients of the
kernels. oneDNN is the library that other frameworks use there. It is called through its C interface
(`dnnl.h`, version 3) with the addresses of XLA's buffers (see `ffi.py`), so maps are not copied.

The shared library comes from the package `onednn-cpu-gomp`. If it is missing,
`kernels.available()` returns False and `models/layers.py` leaves everything to XLA.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Sequence
from ctypes import byref, c_float, c_int, c_int64, c_size_t, c_void_p
from importlib import metadata
from typing import NamedTuple

import numpy as np

PACKAGE = "onednn-cpu-gomp"
# Constants of dnnl_types.h and dnnl_common_types.h, in this order: dnnl_cpu, dnnl_stream_in_order,
# dnnl_f32, dnnl_format_tag_any, dnnl_forward_training, dnnl_forward_inference,
# dnnl_convolution_direct, dnnl_pooling_max, dnnl_eltwise_relu, dnnl_scratchpad_mode_user. Then
# follow the queries dnnl_query_..._md and the indices of arguments DNNL_ARG_....
CPU, IN_ORDER, FLOAT32, ANY_FORMAT = 1, 1, 3, 1
TRAINING, INFERENCE, DIRECT, RELU, USER = 64, 96, 1, 0x20, 1
QUERY_WEIGHTS, QUERY_DIFF_WEIGHTS, QUERY_SCRATCHPAD = 131, 132, 136
SRC, DST, WEIGHTS, BIAS, SCRATCHPAD = 1, 17, 33, 41, 80
DIFF_SRC, DIFF_DST, DIFF_WEIGHTS = 129, 145, 161
# The slope of ReLU below 0. With a slope of exactly 0, oneDNN computes max(x, 0), which turns NaN
# into 0. With any other slope it multiplies, so NaN stays NaN. This slope is far below the rounding
# of float32, and its results are no denormal numbers, which are slow. Minus infinity stays as well,
# where XLA gives 0: a map that has overflowed does not look sound.
SLOPE = 1e-30

Shape = tuple[int, ...]


class _Argument(ctypes.Structure):
    _fields_ = [("index", c_int), ("memory", c_void_p)]


@functools.cache
def library() -> ctypes.CDLL | None:
    """Load oneDNN's shared library, or return None if it is missing or cannot be loaded."""
    # By default, idle OpenMP threads spin for a while and take the processors from XLA's threads.
    # OpenMP reads the variable when the library is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        files = metadata.files(PACKAGE) or []
        path = next(file.locate() for file in files if file.name == "libdnnl.so.3")
        found = ctypes.CDLL(str(path))
    except (metadata.PackageNotFoundError, StopIteration, OSError):
        return None
    found.dnnl_primitive_desc_query_md.restype = c_void_p
    found.dnnl_memory_desc_get_size.restype = c_size_t
    return found


class Conv(NamedTuple):
    """The shapes of a valid convolution.

    x [B, H, W, C] is the input, kernel [k, k, C, C'] the kernel and y [B, H', W', C'] the output.
    """

    x: Shape
    kernel: Shape
    y: Shape
    stride: int


class Primitive:
    """A oneDNN primitive and the memory objects of its arguments, by DNNL_ARG index.

    Maps are stored channels last and kernels as [k, k, C, C']. The primitive itself chooses the
    memory format of kernels that is fastest for it. A kernel that it reads (`WEIGHTS`) is reordered
    into that format before the primitive runs, and a gradient that it writes (`DIFF_WEIGHTS`) is
    reordered back afterwards.
    """

    def __init__(self, described: c_void_p, layouts: dict[int, c_void_p]) -> None:
        self.primitive = _made("primitive_create", described)
        self.own = [_scratch(_asked(described, QUERY_SCRATCHPAD))]
        self.memories = {index: _memory(layout) for index, layout in layouts.items()}
        self.given = dict(self.memories) | {SCRATCHPAD: self.own[0][1]}
        self.before = self.after = None
        for index, query in ((WEIGHTS, QUERY_WEIGHTS), (DIFF_WEIGHTS, QUERY_DIFF_WEIGHTS)):
            if index in layouts:
                own = _asked(described, query)
                self.own.append(_scratch(own))
                self.given[index] = self.own[-1][1]
                if index == WEIGHTS:
                    self.before = _Reorder(layouts[index], own)
                else:
                    self.after = _Reorder(own, layouts[index])

    def point(self, addresses: dict[int, int]) -> None:
        """Set the addresses of arguments, by DNNL_ARG index."""
        for index, address in addresses.items():
            _call("memory_set_data_handle", self.memories[index], c_void_p(address))

    def execute(self) -> None:
        """Run the primitive and wait until it is done."""
        if self.before:
            self.before(self.memories[WEIGHTS], self.given[WEIGHTS])
        _execute(self.primitive, self.given)
        if self.after:
            self.after(self.given[DIFF_WEIGHTS], self.memories[DIFF_WEIGHTS])
        _call("stream_wait", _stream())


def convolution(conv: Conv, bias: bool = False, relu: bool = False) -> Primitive:
    """Create the primitive of a convolution, which computes DST from SRC, WEIGHTS and BIAS.

    Args:
        conv: shapes.
        bias: whether there is an argument BIAS.
        relu: whether ReLU follows.
    """
    layouts = _layouts(conv)
    added = _strided((conv.kernel[3],), (1,)) if bias else None
    described = _made(
        "convolution_forward_primitive_desc_create", *_start(INFERENCE), layouts[SRC],
        _free(conv), added, layouts[DST], *_geometry(conv.stride), _attributes(relu),
    )  # fmt: skip
    return Primitive(described, layouts | ({BIAS: added} if added else {}))


def input_gradient(conv: Conv) -> Primitive:
    """Create the primitive that computes DIFF_SRC from DIFF_DST and WEIGHTS."""
    layouts = _layouts(conv)
    described = _made(
        "convolution_backward_data_primitive_desc_create", engine(), DIRECT, layouts[SRC],
        _free(conv), layouts[DST], *_geometry(conv.stride), _hint(conv), _attributes(),
    )  # fmt: skip
    held = {DIFF_SRC: SRC, DIFF_DST: DST, WEIGHTS: WEIGHTS}
    return Primitive(described, {index: layouts[of] for index, of in held.items()})


def kernel_gradient(conv: Conv) -> Primitive:
    """Create the primitive that computes DIFF_WEIGHTS from SRC and DIFF_DST."""
    layouts = _layouts(conv)
    described = _made(
        "convolution_backward_weights_primitive_desc_create", engine(), DIRECT, layouts[SRC],
        _free(conv), None, layouts[DST], *_geometry(conv.stride), _hint(conv), _attributes(),
    )  # fmt: skip
    held = {SRC: SRC, DIFF_DST: DST, DIFF_WEIGHTS: WEIGHTS}
    return Primitive(described, {index: layouts[of] for index, of in held.items()})


class _Reorder:
    def __init__(self, source: c_void_p, result: c_void_p) -> None:
        made = "reorder_primitive_desc_create"
        described = _made(made, source, engine(), result, engine(), _attributes())
        self.primitive = _made("primitive_create", described)
        self.scratch = _scratch(_asked(described, QUERY_SCRATCHPAD))

    def __call__(self, source: c_void_p, result: c_void_p) -> None:
        _execute(self.primitive, {SRC: source, DST: result, SCRATCHPAD: self.scratch[1]})


@functools.cache
def engine() -> c_void_p:
    """Create oneDNN's engine, which stands for the CPU."""
    return _made("engine_create", CPU, c_size_t(0))


@functools.cache
def _stream() -> c_void_p:
    return _made("stream_create", engine(), IN_ORDER)


def _execute(primitive: c_void_p, arguments: dict[int, c_void_p]) -> None:
    given = (_Argument * len(arguments))(*(_Argument(*each) for each in arguments.items()))
    _call("primitive_execute", primitive, _stream(), len(arguments), given)


def _start(kind: int, algorithm: int = DIRECT) -> tuple[c_void_p, int, int]:
    return engine(), kind, algorithm


def _hint(conv: Conv) -> c_void_p:
    """Describe the forward primitive, which oneDNN requires as a hint to create a backward one."""
    layouts = _layouts(conv)
    return _made(
        "convolution_forward_primitive_desc_create", *_start(TRAINING), layouts[SRC], _free(conv),
        None, layouts[DST], *_geometry(conv.stride), None,
    )  # fmt: skip


def _layouts(conv: Conv) -> dict[int, c_void_p]:
    # oneDNN lists dimensions as (C', C, k, k) and (B, C, H, W). The strides say how they lie in
    # memory, which here is [k, k, C, C'] and [B, H, W, C].
    side, _, channels, width = conv.kernel
    order = (1, width, side * channels * width, channels * width)
    return {
        SRC: _channels_last(conv.x),
        DST: _channels_last(conv.y),
        WEIGHTS: _strided((width, channels, side, side), order),
    }


def _channels_last(shape: Shape) -> c_void_p:
    batch, height, width, channels = shape
    strides = (height * width * channels, 1, width * channels, channels)
    return _strided((batch, channels, height, width), strides)


def _strided(dims: Shape, strides: Shape) -> c_void_p:
    name = "memory_desc_create_with_strides"
    return _made(name, len(dims), _sizes(dims), FLOAT32, _sizes(strides))


def _free(conv: Conv) -> c_void_p:
    """Describe a kernel whose memory format the primitive may choose."""
    side, _, channels, width = conv.kernel
    dims = (width, channels, side, side)
    return _made("memory_desc_create_with_tag", len(dims), _sizes(dims), FLOAT32, ANY_FORMAT)


def _geometry(stride: int) -> list[ctypes.Array]:
    """Return strides, dilations (0 means none), and the padding on both sides."""
    return [_sizes(pair) for pair in ((stride, stride), (0, 0), (0, 0), (0, 0))]


def _attributes(relu: bool = False) -> c_void_p:
    found = _made("primitive_attr_create")
    # In the default mode, oneDNN's scratchpad belongs to the thread that created the primitive. We
    # allocate scratchpads ourselves, so that a primitive does not depend on the calling thread.
    _call("primitive_attr_set_scratchpad_mode", found, USER)
    if relu:
        after = _made("post_ops_create")
        _call("post_ops_append_eltwise", after, RELU, c_float(SLOPE), c_float(0))
        _call("primitive_attr_set_post_ops", found, after)
    return found


def _asked(described: c_void_p, query: int) -> c_void_p:
    found = library()
    assert found
    return c_void_p(found.dnnl_primitive_desc_query_md(described, query, 0))


def _memory(layout: c_void_p, address: int | None = None) -> c_void_p:
    return _made("memory_create", layout, engine(), c_void_p(address))


def _scratch(layout: c_void_p) -> tuple[np.ndarray, c_void_p]:
    found = library()
    assert found
    array = np.empty(found.dnnl_memory_desc_get_size(layout), np.uint8)
    return array, _memory(layout, array.ctypes.data)


def _sizes(values: Sequence[int]) -> ctypes.Array:
    return (c_int64 * len(values))(*values)


def _made(name: str, *arguments: object) -> c_void_p:
    found = c_void_p()
    _call(name, byref(found), *arguments)
    return found


def _call(name: str, *arguments: object) -> None:
    status = getattr(library(), f"dnnl_{name}")(*arguments)
    if status != 0:
        raise RuntimeError(f"oneDNN: {name} returned status {status}")
