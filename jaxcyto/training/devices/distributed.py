"""Make several processes one job: they join, wait for each other, and stop and fail together.

Process 0 owns the run folder. The other processes only read data and compute. `parallel.py`
exchanges data between devices. This file exchanges small values through the key-value store of
JAX's coordination service, which runs in process 0. The store also works while the devices of a
process wait for a collective that will never finish, because another process has left. In a job of
one process, the functions return at once.
"""

import atexit
import ctypes
import importlib.util
import json
import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import jax

from jaxcyto.config_io import differences
from jaxcyto.errors import InputError

LOST = 3  # exit status of a process that has lost another one
JOIN_S = 300  # time for all processes to join, as nodes start at different times
HEARTBEAT_S = 40  # without a heartbeat for so long, a process counts as lost
POLL_S = 0.5  # interval at which a process looks for notes of the others
TOLD_S = 5.0  # process 0 hosts the store and waits so long until the others have read of a failure
# Variables that srun sets for each process of a job step. In a shell of an allocation (salloc, or a
# batch script without srun), some are set as well, but there is only one process.
SLURM_STEP = (
    *("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_STEP_NUM_TASKS"),
    *("SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID"),
)
# folders of the key-value store
NOTES, VALUES, CONFIRMED = "jaxcyto/notes", "jaxcyto/values", "jaxcyto/confirmed"
CONTINUE = "the same command continues from the last checkpoint"

logger = logging.getLogger("jaxcyto")


def join(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> None:
    """Join the job that the flags or the cluster describe. Without one, do nothing.

    Call it before any computation, because JAX looks for devices only once.

    A job that is started by hand needs all three arguments. On SLURM and TPU pods none is needed.

    Args:
        coordinator: HOST:PORT of process 0
        processes: count of processes in the job. 1 alone means a job of this process only, whatever
            the cluster says.
        process: index of this process, from 0

    Raises:
        InputError: the flags contradict each other, or not all processes joined within JOIN_S.
    """
    if not jax.distributed.is_initialized():
        _check_flags(coordinator, processes, process)
        if processes == 1 or (processes is None and not _on_cluster()):
            return
        _initialize(coordinator, processes, process)
    _explain_abort(_GONE, LOST)
    global _peers
    _peers = _Peers()
    _peers.start()
    atexit.register(_peers.close)
    count = _peers.count
    if count != (wanted := from_first(lambda: count)):
        raise InputError(f"--processes {count}, but process 0 was started with {wanted}")


def _initialize(coordinator: str | None, processes: int | None, process: int | None) -> None:
    # JAX's preemption service would install its own handler of SIGTERM. training/signals.py
    # handles it instead, and `agreed` passes it on to the other processes.
    jax.config.update("jax_enable_preemption_service", False)
    apart = (
        f"the processes of this job did not find each other; start {processes or 'all of them'}, "
        f"each with its own index, within {JOIN_S} s, and with a coordinator that all can reach"
    )
    _explain_abort(apart, 2)
    logger.info("joining the other processes, for up to %d s", JOIN_S)
    # initialize() waits inside C++, where Python runs no signal handlers. With the system's default
    # handlers, Ctrl-C and SIGTERM end the process while it waits.
    handlers = {s: signal.signal(s, signal.SIG_DFL) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            cluster_detection_method=None if processes is None else "deactivate",
            initialization_timeout=JOIN_S,
            heartbeat_timeout_seconds=HEARTBEAT_S,
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise InputError(f"{apart} ({_first_line(error)})") from None
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)


def is_alone() -> bool:
    """Return whether this is a job of one process."""
    return _peers is None


def is_first() -> bool:
    """Return whether this is process 0, which owns the run folder, logs and prints."""
    return _peers is None or _peers.index == 0


def from_first(compute: Callable[[], Any]) -> Any:
    """Call a function in process 0, and return its result in every process.

    All processes must call it in the same order. Those other than 0 wait for the result.

    Args:
        compute: returns plain JSON values. It is called in process 0 only.
    """
    return compute() if _peers is None else _peers.from_first(compute)


def check_same(what: str, value: Any) -> None:
    """Check that a value is the same in all processes.

    Args:
        what: name of the value, for the message
        value: plain JSON values

    Raises:
        InputError: the value differs from that of process 0. The message names the fields.
    """
    ours = json.loads(json.dumps(value))
    wanted = from_first(lambda: ours)
    if different := differences(wanted, ours):
        raise InputError(
            f"this process has another {what} than process 0, whose values are before the arrow; "
            "start all processes with the same command on the same files:\n" + "\n".join(different)
        )
    if _peers is not None:
        _peers.confirm()  # before process 0 writes anything


def agreed(signum: int | None) -> int | None:
    """Return the signal that ends the job at this call, or None to continue.

    All processes must call it in the same order, for example once per step. Each n-th call then
    returns the same in all of them, so that they stop after the same step and none waits for the
    others in a collective. A signal to one process reaches the others within POLL_S. The processes
    then agree on the call after the latest one that any of them has made, and go on until there.

    Args:
        signum: the signal that this process has received, if any
    """
    return signum if _peers is None else _peers.agreed(signum)


def part(status: int, reason: str | None) -> None:
    """Exit this process if it is one of several, and make the others exit with the same status.

    In a job of one process it returns.

    Args:
        status: exit status
        reason: message that the other processes print before they exit. None means that all
            processes call this function themselves, so it only waits for process 0.
    """
    if _peers is not None:
        _peers.part(status, reason)


def lost(error: Exception) -> str:
    """Return the message for a step that failed because another process has left the job.

    If that process could still leave a note with the reason, this call does not return. The thread
    of `_Peers` reads the note, prints the reason and exits.
    """
    time.sleep(2 * POLL_S)  # time for the thread to read the note
    return f"error: a step over all processes failed ({_first_line(error)}): {_GONE}"


_GONE = f"another process of the job has died or cannot be reached, see its own log; {CONTINUE}"


class _Peers(threading.Thread):
    """A thread that watches the key-value store for notes of the other processes.

    The keys are `jaxcyto/notes/KIND/PROCESS`, with one of these kinds:
    * "failed": [status, reason]. All other processes exit with this status.
    * "told": the process has read of the failure and exits.
    * "stop": the signal that the process has received.
    * "calls": how often the process had called `agreed` when it read of a signal.
    """

    def __init__(self) -> None:
        super().__init__(name="peers", daemon=True)
        from jaxcyto.training.devices import jax_private  # in jobs of several processes only

        self.index, self.count = jax.process_index(), jax.process_count()
        self._client = jax_private.key_value_store()
        self._closed = threading.Event()
        self._values = 0  # values sent by `from_first` so far
        self._confirmed = 0  # calls of `confirm` so far
        self._lock = threading.Lock()  # held while the processes agree on the call that stops them
        self._calls = 0  # of `agreed` so far
        self._requested: int | None = None
        self._stop_at: tuple[int, int] | None = None  # (call, signal)
        self._parting = threading.Lock()

    def close(self) -> None:
        self._closed.set()
        self.join()

    def from_first(self, compute: Callable[[], Any]) -> Any:
        self._values += 1
        folder = f"{VALUES}/{self._values}"
        if self.index == 0:
            value = compute()
            self._client.key_value_set(f"{folder}/value", json.dumps(value))
            return value
        while not (entries := self._client.key_value_dir_get(folder)):
            # The store also has a blocking get. It waits in C++, where signals are not handled.
            time.sleep(POLL_S / 5)
        return json.loads(entries[0][1])

    def confirm(self) -> None:
        """Wait in process 0 until each process has called this as often.

        If one has failed instead, the thread ends this process.
        """
        self._confirmed += 1
        folder = f"{CONFIRMED}/{self._confirmed}"
        self._client.key_value_set(f"{folder}/{self.index}", "yes")
        while self.index == 0 and len(self._client.key_value_dir_get(folder)) < self.count:
            time.sleep(POLL_S / 5)

    def agreed(self, signum: int | None) -> int | None:
        with self._lock:
            self._calls += 1
            self._requested = self._requested or signum
            return self._stop_at[1] if self._stop_at and self._calls >= self._stop_at[0] else None

    def part(self, status: int, reason: str | None) -> None:
        with self._parting:  # never released, because _exit does not return: the first reason wins
            try:
                if reason is not None:
                    self._note("failed", json.dumps([status, reason]))
                else:  # wait for process 0, which may still be writing a checkpoint
                    self.from_first(lambda: None)
                self._exit(status)
            except jax.errors.JaxRuntimeError:  # the store has gone, because process 0 has
                os._exit(status)

    def run(self) -> None:
        while not self._closed.wait(POLL_S):
            try:
                notes = dict(self._client.key_value_dir_get(NOTES))
                for index in range(self.count):
                    if failed := notes.get(f"{NOTES}/failed/{index}"):
                        self._follow(index, *json.loads(failed))
                    if stop := notes.get(f"{NOTES}/stop/{index}"):
                        self._requested = self._requested or int(stop)
                if self._requested and self._stop_at is None:
                    self._agree_on_stop(self._requested)
            except jax.errors.JaxRuntimeError:
                return  # process 0 has gone, and JAX aborts this process (see _explain_abort)

    def _agree_on_stop(self, signum: int) -> None:
        """Choose the call of `agreed` at which all processes stop.

        The thread holds the lock from counting its own calls until it knows those of all others. No
        process can call `agreed` again in between, so the chosen call, one after the largest count,
        still lies ahead of all of them. This cannot deadlock: no thread holds the lock during a
        step, which could need the other processes, so each of them can publish its count.
        """
        with self._lock:
            self._note("stop", str(signum))
            self._note("calls", str(self._calls))
            keys = [f"{NOTES}/calls/{index}" for index in range(self.count)]
            timeout = 1000 * HEARTBEAT_S  # milliseconds
            calls = [int(self._client.blocking_key_value_get(key, timeout)) for key in keys]
            self._stop_at = max(calls) + 1, signum

    def _follow(self, index: int, status: int, message: str) -> None:
        """Exit as the process `index` did, which has left a message."""
        with self._parting:
            reason = message.removeprefix("error: ")
            print(f"error: process {index}: {reason}", file=sys.stderr, flush=True)
            self._exit(status)

    def _exit(self, status: int) -> None:
        """Exit with `os._exit`, because the main thread may wait forever for a step to finish.

        Process 0 first waits until the others have read why, since the store ends with it.
        """
        self._note("told", "yes")
        # A lost process will never read the note, and the others notice the loss themselves. So
        # there is no point in waiting long for all of them.
        until = time.monotonic() + (2 * POLL_S if status == LOST else TOLD_S)
        while self.index == 0 and time.monotonic() < until:
            notes = dict(self._client.key_value_dir_get(NOTES))
            if all(f"{NOTES}/told/{index}" in notes for index in range(self.count)):
                break
            time.sleep(POLL_S / 5)
        sys.stdout.flush()
        os._exit(status)

    def _note(self, kind: str, value: str) -> None:
        self._client.key_value_set(f"{NOTES}/{kind}/{self.index}", value, allow_overwrite=True)


_peers: _Peers | None = None


def _check_flags(coordinator: str | None, processes: int | None, process: int | None) -> None:
    given = [value is not None for value in (coordinator, processes, process)]
    if given == [False, True, False] and processes == 1:
        return
    if any(given) and not all(given):
        raise InputError(
            "--coordinator, --processes and --process belong together: give all three or, on SLURM "
            "and TPU pods, none"
        )
    if processes is None or process is None or coordinator is None:
        return
    if not 0 <= process < processes:
        raise InputError(
            f"--process {process} of --processes {processes}; expected 0 ... {processes - 1}"
        )
    if not re.fullmatch(r"[^\s/]+:\d{1,5}", coordinator):
        raise InputError(
            f"--coordinator {coordinator}; expected HOST:PORT of process 0, with a free port"
        )


def _on_cluster() -> bool:
    """Return whether SLURM or a TPU pod started more than one process."""
    if all(name in os.environ for name in SLURM_STEP):
        return int(os.environ["SLURM_NTASKS"]) > 1
    if importlib.util.find_spec("libtpu") is None:  # not a machine with TPUs
        return False
    from jaxcyto.training.devices import jax_private

    return jax_private.on_tpu_pod()


def _explain_abort(why: str, status: int) -> None:
    """Make an abort by JAX end with a message and an exit status.

    If joining fails or another process is lost, a C++ thread of JAX calls abort(). JAX's option for
    this case (`missed_heartbeat_callback`) does not take a Python function. A handler of Python's
    `signal` module would never run, because it needs the main thread, which waits in C++. A C
    signal handler, made here with ctypes, runs in the aborting thread itself.

    Args:
        why: the message
        status: the exit status
    """
    message = f"error: {why}\n".encode()

    def say(_: int) -> None:
        os.write(2, message)
        os._exit(status)

    global _on_abort
    # A global keeps the callback from being garbage-collected while C still points to it.
    _on_abort = ctypes.CFUNCTYPE(None, ctypes.c_int)(say)
    ctypes.CDLL(None).signal(int(signal.SIGABRT), _on_abort)


_on_abort: Any = None


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:300]
