"""Functions in Python that XLA:CPU calls with pointers into its memory, nothing copied.

The handler of XLA's foreign function interface, read by ctypes: the structures are those of
`xla/ffi/api/c_api.h`, which is installed with jaxlib (`jax.ffi.include_dir()`). Within a major
version they only grow at their ends, and XLA refuses handlers of a version that it does not know.
Unlike a program with callbacks, one with such calls can be kept in JAX's compilation cache.

One gap is left: programs of a few operations, as outside `jax.jit`, XLA runs in the thread that
starts them. Ctrl-C there is an error of the program, or, at the very entry of a call, where Python
lets nothing be caught, aborts the process. Whole networks run in threads of XLA's own.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import queue
import threading
import time
from collections.abc import Callable
from ctypes import POINTER, c_char_p, c_int, c_int64, c_size_t, c_uint32, c_void_p
from typing import Any, NamedTuple

import jax

MAJOR = 0  # version of the interface
# an extension's type, a stage, a type of numbers, an error's code
METADATA, EXECUTE, FLOAT32, INTERNAL = 1, 3, 11, 13
QUIET_SECONDS, PATIENCE_SECONDS = 0.5, 60.0  # at exit: programs have ended; they never will


class Buffer(NamedTuple):
    """An argument or a result, float32: where it lies, in rows (C order), and its shape."""

    address: int
    shape: tuple[int, ...]


Function = Callable[[list[Buffer], Buffer, dict[str, int]], None]
_kept: list[Any] = []  # what XLA points to must live as long as the process
_last = 0.0  # time of the last call


def register(name: str, function: Function) -> None:
    """Makes a function callable by `jax.ffi.ffi_call(name, ...)` on the CPU.

    Args:
        name: of the target.
        function: of the arguments, the result and the attributes, which must be int64. What it
            raises becomes an error of the program that calls it.
    """
    if not _worker.is_alive():
        _worker.start()

    @ctypes.CFUNCTYPE(c_void_p, POINTER(_CallFrame))
    def handler(pointer: Any) -> int | None:
        global _last
        frame = pointer.contents
        try:
            if frame.extension and frame.extension.contents.type == METADATA:
                extension = ctypes.cast(frame.extension, POINTER(_MetadataExtension)).contents
                version = extension.metadata.contents.version
                version.major, version.minor = MAJOR, frame.api.contents.version.minor
            elif frame.stage == EXECUTE:
                (result,) = _buffers(frame.results)
                _run(function, _buffers(frame.arguments), result, _attributes(frame))
                _last = time.monotonic()
        except BaseException as error:  # not even KeyboardInterrupt can pass through XLA
            message = f"{name}: {str(error) or type(error).__name__}".encode()
            given = _ErrorCreate(ctypes.sizeof(_ErrorCreate), None, message, INTERNAL)
            return frame.api.contents.error_create(ctypes.byref(given))
        return None

    new_capsule = ctypes.pythonapi.PyCapsule_New
    new_capsule.restype, new_capsule.argtypes = ctypes.py_object, [c_void_p, c_char_p, c_void_p]
    capsule = new_capsule(ctypes.cast(handler, c_void_p), None, None)
    _kept.append(handler)
    jax.ffi.register_ffi_target(name, capsule, platform="cpu")


def _run(function: Callable[..., object], *arguments: Any) -> None:
    """Runs a function on the one thread that does all work, and waits for it whatever comes.

    XLA calls from many threads, and OpenMP keeps a team of its own for each that has ever called
    it. And Python's handlers of signals, which may raise, run in the main thread only: they never
    do so amidst the work.
    """
    done = threading.Lock()
    done.acquire()
    outcome: list[BaseException | None] = []
    asked, interrupt = False, None
    while not outcome:
        try:
            if not asked:
                asked = True
                _waiting.put((function, arguments, outcome, done))
            done.acquire()
        except BaseException as error:  # XLA's memory is in use until the work is done
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
        del function, arguments, outcome, done  # not kept until the next call


_waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
_worker = threading.Thread(target=_work, name="ffi", daemon=True)


@atexit.register  # hence before JAX's own function, which was registered earlier
def _finish() -> None:
    """Lets programs end: JAX waits for them with the interpreter's lock, which calls need.

    Results that nobody holds any more cannot be waited for; their programs have ended when no call
    has come for a while. Threads that start new ones for ever are not waited for without end.
    """
    if not _worker.is_alive():  # never started, or this is a fork
        return
    try:
        arrays = jax.live_arrays("cpu")
    except RuntimeError:  # JAX was told to leave the CPU alone
        return
    for array in arrays:
        with contextlib.suppress(Exception):  # that of its program
            array.block_until_ready()
    start = time.monotonic()
    while time.monotonic() < min(max(start, _last) + QUIET_SECONDS, start + PATIENCE_SECONDS):
        time.sleep(QUIET_SECONDS / 10)
        _run(int)  # after what is under way


def _buffers(held: Any) -> list[Buffer]:
    found = [ctypes.cast(held.values[n], POINTER(_Buffer)).contents for n in range(held.count)]
    if any(each.dtype != FLOAT32 for each in found):
        raise TypeError("an argument or result is not float32")
    return [Buffer(each.data or 0, tuple(each.dims[: each.rank])) for each in found]


def _attributes(frame: Any) -> dict[str, int]:
    held = frame.attributes
    names = [held.names[n].contents for n in range(held.count)]
    return {
        ctypes.string_at(name.start, name.length).decode(): held.values[n].contents.value[0]
        for n, name in enumerate(names)
    }


class _Extension(ctypes.Structure):
    _fields_ = [("size", c_size_t), ("type", c_int), ("next", c_void_p)]


_HEAD = [("size", c_size_t), ("extension", POINTER(_Extension))]  # of all others


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
    """XLA_FFI_Args and XLA_FFI_Rets."""

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
