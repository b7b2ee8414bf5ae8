"""Stop a run on SIGTERM or Ctrl-C: save and exit on the first signal, abort on the second."""

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax

from jaxcyto.training.devices import distributed
from jaxcyto.training.log import logger

SIGNALS = signal.SIGTERM, signal.SIGINT
GRACE_SECONDS = 20.0  # from the first signal until the process is ended, whatever it is doing
SAME_SECONDS = 0.5  # repeats this soon are one signal: `timeout` signals process and group


class Interrupted(BaseException):
    """A signal that ends the run. The training loop saves a checkpoint before it passes this on.

    Like KeyboardInterrupt it derives from BaseException, so that `except Exception` in a library or
    a callback cannot swallow it.

    Attributes:
        signum: the signal, such as `signal.SIGTERM`
        together: whether each process of the job raises this. False if the signal reached only this
            process, which then has to tell the others.
    """

    def __init__(self, signum: int, together: bool = False):
        super().__init__(f"stopped by {signal.Signals(signum).name}; the same command continues")
        self.signum = signum
        self.together = together


class Stop:
    """A context manager in which the first signal raises `Interrupted` in the main thread.

    * Within `held`, a signal raises at the end of the block, so that a step and its logging and
      checkpoint are not separated.
    * Within `together`, in a job of several processes, a signal to any of them raises in all of
      them at the same call of `check`.

    A Python signal handler is not enough. When a signal arrives, the interpreter only sets a flag,
    and the main thread runs the handler before its next bytecode instruction. While the main thread
    is inside a C call, such as an XLA compilation or a read from a dead disk, no handler runs. The
    interpreter does, however, write each signal to the file descriptor of `signal.set_wakeup_fd` as
    soon as it arrives. A thread (`_watch`) reads them there. It ends the process at the second
    signal, or GRACE_SECONDS after the first. The exit status is then 128 + signal.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._held = self._together = False

    def __enter__(self) -> "Stop":
        self._previous = {signum: signal.signal(signum, self._handle) for signum in SIGNALS}
        receiver, self._sender = os.pipe()
        os.set_blocking(self._sender, False)  # set_wakeup_fd requires it
        self._previous_fd = signal.set_wakeup_fd(self._sender, warn_on_full_buffer=False)
        threading.Thread(target=_watch, args=(receiver,), name="stop", daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        signal.set_wakeup_fd(self._previous_fd)
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        os.close(self._sender)  # the thread reads the end of the pipe and returns

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold signals until the end of a block, and then raise `Interrupted` if one arrived.

        Because its end calls `check`, all processes must enter such blocks in the same order.
        """
        self._held = True
        try:
            yield
        finally:
            self._held = False
        self.check()

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Restrict `Interrupted` to calls of `check` in a block, if there are several processes.

        Their steps exchange data. If one process left between two `check`s, the others would wait
        for it forever.
        """
        self._together = jax.process_count() > 1
        try:
            yield
        finally:
            self._together = False

    def check(self) -> None:
        """Raise `Interrupted` if a signal has arrived at any process.

        All processes must call it in the same order, so that all of them leave at the same call.
        """
        signum = distributed.agreed(self.signum)
        if signum is not None:
            raise Interrupted(signum, together=True)

    def _handle(self, signum: int, _: Any) -> None:
        if self.signum is None:
            self.signum = signum
            if not self._held and not self._together:
                raise Interrupted(signum)


def _watch(receiver: int) -> None:
    """End the process at the second signal, or GRACE_SECONDS after the first.

    Signals arrive as bytes from `signal.set_wakeup_fd`. The thread returns once the other end of
    the pipe is closed. It uses `os._exit`, because a normal exit would have to wait for the main
    thread.
    """
    first = at = None
    while True:
        left = None if at is None else max(0.0, at + GRACE_SECONDS - time.monotonic())
        ready = select.select([receiver], [], [], left)[0]
        received = os.read(receiver, 64) if ready else b""
        if ready and not received:
            os.close(receiver)
            return
        for signum in received:
            if signum not in SIGNALS:
                continue
            if first is None or at is None:
                first, at = signum, time.monotonic()
                logger.info("%s: saving, then exiting", signal.Signals(signum).name)
            elif time.monotonic() > at + SAME_SECONDS:
                os._exit(128 + signum)
        if first is not None and not ready:
            logger.warning(
                "not done after %g s: exiting; the last checkpoint is intact", GRACE_SECONDS
            )
            os._exit(128 + first)
