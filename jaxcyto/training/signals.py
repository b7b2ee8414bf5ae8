"""SIGTERM and Ctrl-C: the first one makes the run save and leave, the second ends it at once."""

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
GRACE_SECONDS = 20.0  # from the first signal until the process ends, whatever it is doing
SAME_SECONDS = 0.5  # `timeout` and some schedulers send one signal twice, to process and group


class Interrupted(BaseException):  # as KeyboardInterrupt: `except Exception` must not hide it
    """A signal ended the run, and nothing was lost. `signum` is its number.

    `together`: in a job of several processes, whether each of them raises this.
    """

    def __init__(self, signum: int, together: bool = False):
        super().__init__(f"stopped by {signal.Signals(signum).name}; the same command continues")
        self.signum = signum
        self.together = together


class Stop:
    """While it is entered, the first signal raises `Interrupted` in the main thread.

    Within `held` it does so at the end, so that a step and what belongs to it are not torn apart.
    In a job of several processes it does so, within `together`, at the same `check` in all of them.

    Python runs its handlers between two of its own instructions, not while the main thread is in a
    call to C such as a compilation. Hence a thread watches too: it ends the process, with status
    128 + the signal's number, at the second signal or GRACE_SECONDS after the first.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._held = self._together = False

    def __enter__(self) -> "Stop":
        self._previous = {signum: signal.signal(signum, self._handle) for signum in SIGNALS}
        receiver, self._sender = os.pipe()
        os.set_blocking(self._sender, False)
        self._previous_fd = signal.set_wakeup_fd(self._sender, warn_on_full_buffer=False)
        threading.Thread(target=_watch, args=(receiver,), name="stop", daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        signal.set_wakeup_fd(self._previous_fd)
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        os.close(self._sender)  # ends the thread

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Code in which no signal interrupts; raises `Interrupted` after it if one has come."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        self.check()

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Code in which several processes, which need each other, are interrupted by `check`."""
        self._together = jax.process_count() > 1
        try:
            yield
        finally:
            self._together = False

    def check(self) -> None:
        """Raises `Interrupted` if a signal has come, to any process; all must call it alike."""
        signum = distributed.agreed(self.signum)
        if signum is not None:
            raise Interrupted(signum, together=True)

    def _handle(self, signum: int, _: Any) -> None:
        if self.signum is None:
            self.signum = signum
            if not self._held and not self._together:
                raise Interrupted(signum)


def _watch(receiver: int) -> None:
    """Reads numbers of signals as the system delivers them, until the other end is closed."""
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
                logger.info("%s: saving, then leaving", signal.Signals(signum).name)
            elif time.monotonic() > at + SAME_SECONDS:
                os._exit(128 + signum)
        if first is not None and not ready:
            logger.warning(
                "not done after %g s: leaving; the last checkpoint is intact", GRACE_SECONDS
            )
            os._exit(128 + first)
