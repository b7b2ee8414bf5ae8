"""Register Python functions that XLA:CPU calls with pointers to its buffers, without copies.

XLA's foreign function interface (FFI) calls a C function, the handler, with a pointer to a call
frame. This module builds handlers with ctypes. The ctypes structures below mirror those of
`xla/ffi/api/c_api.h`, which is installed with jaxlib (`jax.ffi.include_dir()`). Within a major
version of the interface these structures only grow at their ends, and XLA rejects handlers of a
major version that it does not support. Programs with FFI calls can be stored in JAX's persistent
compilation cache, unlike programs with callbacks such as `jax.pure_callback`.

Known limitation: XLA runs programs of a few operations, as outside of `jax.jit`, in the thread that
starts them, which may be the main thread. Ctrl-C then becomes an error of the program. If the
signal arrives at the very entry of the handler, before its `try`, Python cannot catch the exception
and the process aborts. Whole networks run in XLA's own threads and are not affected.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import queue
import threading
import time
from collections.abc import Callable
from ctypes import POINTER, c_char_p, c_int, c_int64, c_size_t, c_uint32, c_void_p
from typing import Any, NamedTuple

import jax

MAJOR = 0  # major version of the interface
# XLA_FFI_Extension_Metadata, XLA_FFI_ExecutionStage_EXECUTE, XLA_FFI_DataType_F32,
# XLA_FFI_Error_Code_INTERNAL
METADATA, EXECUTE, FLOAT32, INTERNAL = 1, 3, 11, 13
# At exit, `_finish` assumes that all programs have ended after QUIET_SECONDS without a call. It
# stops waiting after PATIENCE_SECONDS in any case.
QUIET_SECONDS, PATIENCE_SECONDS = 0.5, 60.0


class Buffer(NamedTuple):
    """A float32 argument or result: its address in memory and its shape, in C order."""

    address: int
    shape: tuple[int, ...]


Function = Callable[[list[Buffer], Buffer, dict[str, int]], None]
_kept: list[Any] = []  # XLA keeps pointers to the handlers, so they must never be freed
_last = 0.0  # time of the end of the last call, `time.monotonic`


def register(name: str, function: Function) -> None:
    """Register a function under a name, so that `jax.ffi.ffi_call(name, ...)` calls it on the CPU.

    Args:
        name: name of the FFI target.
        function: called with the list of arguments, the result to fill, and the attributes by name.
            Arguments and result must be float32, attributes int64. An exception that it raises
            becomes an error of the program that calls it.
    """
    if not _worker.is_alive():
        _worker.start()

    @ctypes.CFUNCTYPE(c_void_p, POINTER(_CallFrame))
    def handler(pointer: Any) -> int | None:
        global _last
        frame = pointer.contents
        try:
            # XLA first asks which version the handler was built for, then executes it.
            if frame.extension and frame.extension.contents.type == METADATA:
                extension = ctypes.cast(frame.extension, POINTER(_MetadataExtension)).contents
                version = extension.metadata.contents.version
                version.major, version.minor = MAJOR, frame.api.contents.version.minor
            elif frame.stage == EXECUTE:
                (result,) = _buffers(frame.results)
                _run(function, _buffers(frame.arguments), result, _attributes(frame))
                _last = time.monotonic()
        # Catch everything, KeyboardInterrupt included. No exception can pass through XLA: ctypes
        # would print it and return a null pointer, which tells XLA that the call succeeded.
        except BaseException as error:
            message = f"{name}: {str(error) or type(error).__name__}".encode()
            given = _ErrorCreate(ctypes.sizeof(_ErrorCreate), None, message, INTERNAL)
            return frame.api.contents.error_create(ctypes.byref(given))
        return None  # a null pointer: success

    new_capsule = ctypes.pythonapi.PyCapsule_New
    new_capsule.restype, new_capsule.argtypes = ctypes.py_object, [c_void_p, c_char_p, c_void_p]
    capsule = new_capsule(ctypes.cast(handler, c_void_p), None, None)
    _kept.append(handler)
    jax.ffi.register_ffi_target(name, capsule, platform="cpu")


def _run(function: Callable[..., object], *arguments: Any) -> None:
    """Run a function on the worker thread and wait until it is done, even if interrupted.

    There are two reasons for one thread that does all work. XLA calls handlers from many threads,
    and OpenMP would keep a separate team of threads for each thread that has ever called it. Python
    runs signal handlers, which may raise KeyboardInterrupt, in the main thread only. The work is
    therefore never interrupted halfway.
    """
    if os.getpid() != _process:
        raise RuntimeError(
            "oneDNN cannot be called in a forked process: start processes with the method spawn, "
            "or set JAXCYTO_ONEDNN=0 before the fork"
        )
    done = threading.Lock()
    done.acquire()
    outcome: list[BaseException | None] = []
    submitted, interrupt = False, None
    while not outcome:
        try:
            if not submitted:
                # Set before `put`: an interrupt is raised right after `put` has queued the work,
                # and the work must not be queued twice.
                submitted = True
                _waiting.put((function, arguments, outcome, done))
            done.acquire()
        except BaseException as error:
            # Returning now would let XLA reuse memory that the worker still reads and writes, so
            # keep the interrupt and wait on.
            interrupt = error
    if error := outcome[0] or interrupt:
        raise error


def _work() -> None:
    while True:
        function, arguments, outcome, done = _waiting.get()
        try:
            function(*arguments)
            outcome.append(None)
        except BaseException as error:
            outcome.append(error)
        done.release()
        del function, arguments, outcome, done  # do not keep them alive until the next call


_waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
_worker = threading.Thread(target=_work, name="ffi", daemon=True)
_process = os.getpid()  # a fork copies the module, but not the thread


# `atexit` runs functions in reverse order. JAX registered its own earlier, so this one runs first.
@atexit.register
def _finish() -> None:
    """Wait at exit until all running programs have ended.

    Without this, the process would hang: JAX's own exit function waits for running programs while
    it holds the interpreter lock (GIL), which their calls into Python need.

    Arrays that are still alive can be waited for. A program whose results nobody holds cannot. Such
    programs count as ended once no call has come for `QUIET_SECONDS`. A thread could start new
    programs forever, so the wait ends after `PATIENCE_SECONDS`.
    """
    if not _worker.is_alive():  # it was never started, or this process is a fork without it
        return
    try:
        arrays = jax.live_arrays("cpu")
    except RuntimeError:  # JAX_PLATFORMS excludes the CPU
        return
    for array in arrays:
        with contextlib.suppress(Exception):  # the error of the array's program
            array.block_until_ready()
    start = time.monotonic()
    while time.monotonic() < min(max(start, _last) + QUIET_SECONDS, start + PATIENCE_SECONDS):
        time.sleep(QUIET_SECONDS / 10)
        _run(int)  # a no-op behind the call in progress: returns when that call is done


def _buffers(held: Any) -> list[Buffer]:
    buffers = [ctypes.cast(held.values[n], POINTER(_Buffer)).contents for n in range(held.count)]
    if any(each.dtype != FLOAT32 for each in buffers):
        raise TypeError("an argument or result is not float32")
    return [Buffer(each.data or 0, tuple(each.dims[: each.rank])) for each in buffers]


def _attributes(frame: Any) -> dict[str, int]:
    held = frame.attributes
    names = [held.names[n].contents for n in range(held.count)]
    return {
        ctypes.string_at(name.start, name.length).decode(): held.values[n].contents.value[0]
        for n, name in enumerate(names)
    }


# The structures of c_api.h. `tests/models/test_ffi.py` compares their fields with the header. They
# may end before the header's do, because XLA passes pointers to structures that it has allocated.
class _Extension(ctypes.Structure):
    _fields_ = [("size", c_size_t), ("type", c_int), ("next", c_void_p)]


_HEAD = [("size", c_size_t), ("extension", POINTER(_Extension))]  # the first fields of all others


class _Version(ctypes.Structure):
    _fields_ = [*_HEAD, ("major", c_int), ("minor", c_int)]


class _Metadata(ctypes.Structure):
    _fields_ = [
        ("size", c_size_t), ("version", _Version), ("traits", c_uint32), ("state", c_int64)
    ]  # fmt: skip


class _MetadataExtension(ctypes.Structure):
    _fields_ = [("base", _Extension), ("metadata", POINTER(_Metadata))]


class _Buffer(ctypes.Structure):
    _fields_ = [
        *_HEAD, ("dtype", c_int), ("data", c_void_p), ("rank", c_int64), ("dims", POINTER(c_int64))
    ]  # fmt: skip


class _Held(ctypes.Structure):
    """XLA_FFI_Args and XLA_FFI_Rets, which have the same fields."""

    _fields_ = [*_HEAD, ("count", c_int64), ("types", c_void_p), ("values", POINTER(c_void_p))]


class _Text(ctypes.Structure):
    _fields_ = [("start", c_void_p), ("length", c_size_t)]


class _Scalar(ctypes.Structure):
    _fields_ = [("dtype", c_int), ("value", POINTER(c_int64))]


class _Attributes(ctypes.Structure):
    _fields_ = [
        *_HEAD, ("count", c_int64), ("types", c_void_p), ("names", POINTER(POINTER(_Text))),
        ("values", POINTER(POINTER(_Scalar))),
    ]  # fmt: skip


class _ErrorCreate(ctypes.Structure):
    _fields_ = [*_HEAD, ("message", c_char_p), ("code", c_int)]


class _Api(ctypes.Structure):
    _fields_ = [
        *_HEAD, ("version", _Version), ("internal", c_void_p),
        ("error_create", ctypes.CFUNCTYPE(c_void_p, POINTER(_ErrorCreate))),
    ]  # fmt: skip


class _CallFrame(ctypes.Structure):
    _fields_ = [
        *_HEAD, ("api", POINTER(_Api)), ("context", c_void_p), ("stage", c_int),
        ("arguments", _Held), ("results", _Held), ("attributes", _Attributes), ("future", c_void_p),
    ]  # fmt: skip
