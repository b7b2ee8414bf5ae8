"""Several processes as one job: they join, wait for each other, stop and fail together.

Process 0 owns the run folder; the others compute and read data. What goes over the devices is in
`parallel.py`; this file talks over JAX's coordination service, which lives in process 0 and also
reaches a process whose devices wait for a step that will never end. In a job of one process
everything here does the least possible.
"""

import atexit
import contextlib
import ctypes
import json
import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax._src import clusters, distributed  # of the service, initialize() alone is public

from jaxcyto.config_io import differences
from jaxcyto.errors import InputError

LOST = 3  # exit status: another process of the job is gone
JOIN_S = 300  # until all processes must have joined: nodes start at different times
HEARTBEAT_S = 40  # without a sign of life: the process is given up
POLL_S = 0.5
TOLD_S = 5.0  # that process 0, which hosts the service, waits for the others to hear of a failure
CLUSTERS = ("slurm", "gketpu", "gcetpu")  # found without flags, as JAX calls them
NOTES, VALUES = "jaxcyto/notes", "jaxcyto/values"
CONTINUE = "the same command continues from the last checkpoint"

logger = logging.getLogger("jaxcyto")


def join(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> None:
    """Joins the job that flags or the cluster describe, if there is one; else does nothing.

    Call it before any computation: JAX looks for devices once.

    Args:
        coordinator: HOST:PORT of process 0; with the other two, for a job started by hand.
        processes: of the whole job; 1: none but this one, whatever the cluster says.
        process: number of this one, from 0.

    Raises:
        InputError: the flags contradict each other, or not all processes joined in time.
    """
    if distributed.global_state.client is None:
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
    # signals are Python's here (training/stop.py), and seen by all processes through the notes
    jax.config.update("jax_enable_preemption_service", False)
    apart = (
        f"the processes of this job did not find each other; start {processes or 'all of them'}, "
        f"each with its own number, within {JOIN_S} s, and with a coordinator that all reach"
    )
    _explain_abort(apart, 2)
    logger.info("joining the other processes, for up to %d s", JOIN_S)
    # this waits in C, where no handler of Python's runs
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
    """Whether this is a job of one process."""
    return _peers is None


def is_first() -> bool:
    """Whether this is process 0, which owns the run folder, logs and prints."""
    return _peers is None or _peers.index == 0


def from_first(compute: Callable[[], Any]) -> Any:
    """What `compute` returns (plain JSON values) in process 0, in every process; they wait for it.

    All processes must call it in the same order.
    """
    return compute() if _peers is None else _peers.from_first(compute)


def check_same(what: str, value: Any) -> None:
    """Compares plain JSON values of all processes with those of process 0.

    Raises:
        InputError: names the fields that differ.
    """
    ours = json.loads(json.dumps(value))
    wanted = from_first(lambda: ours)
    if different := differences(wanted, ours):
        raise InputError(
            f"another {what} than in process 0, which has the values before the arrow; start all "
            "processes with the same command on the same files:\n" + "\n".join(different)
        )


def agreed(signum: int | None) -> int | None:
    """The signal that ends the job at this place, the same place in all processes, or None.

    All processes must call it in the same order. A signal reaches the others within POLL_S; all
    go on up to the call after the one that the foremost has made.

    Args:
        signum: the signal that this process has received, if any.
    """
    return signum if _peers is None else _peers.agreed(signum)


@contextlib.contextmanager
def as_if_alone() -> Iterator[None]:
    """Code in which JAX says that this process is the only one.

    For orbax: of several processes each must do the same with it, in the same order, and its
    threads then use the devices between the steps of training; what is off by one, as after a
    checkpoint that is damaged, hangs. Process 0 writes alone.
    """
    if _peers is None:
        yield
        return
    count, client = jax.process_count, distributed.global_state.client
    jax.process_count, distributed.global_state.client = lambda *_: 1, None
    try:
        yield
    finally:
        jax.process_count, distributed.global_state.client = count, client


def part(status: int, reason: str | None) -> None:
    """Ends this process, if it is one of several, and with a reason all others like it.

    Args:
        status: of the exit.
        reason: the message that the others print; None: all end by themselves at this place.
    """
    if _peers is not None:
        _peers.part(status, reason)


def lost(error: Exception) -> str:
    """The message for a step that failed because a process is gone."""
    time.sleep(2 * POLL_S)  # if that one could still say why, this process ends here
    return f"error: a step over all processes failed ({_first_line(error)}): {_GONE}"


_GONE = f"another process of the job has died or cannot be reached, see its own log; {CONTINUE}"


class _Peers(threading.Thread):
    """This process among those of the job; a thread that looks for notes of the others."""

    def __init__(self) -> None:
        super().__init__(name="peers", daemon=True)
        state = distributed.global_state
        assert state.client is not None
        self.index, self.count = state.process_id, state.num_processes
        self._client = state.client
        self._closed = threading.Event()
        self._values = 0
        self._lock = threading.Lock()  # held while all agree on where to stop
        self._calls = 0  # of `agreed`
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
        while not (found := self._client.key_value_dir_get(folder)):
            time.sleep(POLL_S / 5)  # in small waits, so that signals are seen
        return json.loads(found[0][1])

    def agreed(self, signum: int | None) -> int | None:
        with self._lock:
            self._calls += 1
            self._requested = self._requested or signum
            return self._stop_at[1] if self._stop_at and self._calls >= self._stop_at[0] else None

    def part(self, status: int, reason: str | None) -> None:
        with self._parting:  # never released: the first reason counts
            try:
                if reason is not None:
                    self._note("failed", json.dumps([status, reason]))
                else:  # process 0 may still be writing
                    self.from_first(lambda: None)
                self._exit(status)
            except jax.errors.JaxRuntimeError:  # the service is gone, and with it process 0
                os._exit(status)

    def run(self) -> None:
        while not self._closed.wait(POLL_S):
            try:
                notes = dict(self._client.key_value_dir_get(NOTES))
                for number in range(self.count):
                    if failed := notes.get(f"{NOTES}/failed/{number}"):
                        self._follow(number, *json.loads(failed))
                    if stop := notes.get(f"{NOTES}/stop/{number}"):
                        self._requested = self._requested or int(stop)
                if self._requested and self._stop_at is None:
                    self._agree_on_stop(self._requested)
            except jax.errors.JaxRuntimeError:
                return  # the service is gone: JAX ends this process, see _explain_abort

    def _agree_on_stop(self, signum: int) -> None:
        with self._lock:  # none of the threads that count here wait for steps of another process
            self._note("stop", str(signum))
            self._note("calls", str(self._calls))
            keys = [f"{NOTES}/calls/{number}" for number in range(self.count)]
            timeout = 1000 * HEARTBEAT_S
            calls = [int(self._client.blocking_key_value_get(key, timeout)) for key in keys]
            self._stop_at = max(calls) + 1, signum

    def _follow(self, number: int, status: int, message: str) -> None:
        with self._parting:
            reason = message.removeprefix("error: ")
            print(f"error: process {number}: {reason}", file=sys.stderr, flush=True)
            self._exit(status)

    def _exit(self, status: int) -> None:
        """Ends this process at once: the main thread may wait for a step without end."""
        self._note("told", "yes")
        # a process that is gone will not hear of it; the others notice by themselves
        until = time.monotonic() + (2 * POLL_S if status == LOST else TOLD_S)
        while self.index == 0 and time.monotonic() < until:
            notes = dict(self._client.key_value_dir_get(NOTES))
            if all(f"{NOTES}/told/{number}" in notes for number in range(self.count)):
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
    """Whether SLURM or a TPU pod started more than one process."""
    for cluster in clusters.ClusterEnv._cluster_types:
        if cluster.name not in CLUSTERS:
            continue
        # a shell in an allocation has the allocation's number of tasks, but no step of its own
        if cluster.name == "slurm" and "SLURM_STEP_NUM_TASKS" not in os.environ:
            continue
        try:
            if cluster.is_env_present():
                return cluster.get_process_count() > 1
        except Exception as error:  # such as no metadata server on a TPU outside of Google Cloud
            logger.debug("%s: %s", cluster.name, error)
    return False


def _explain_abort(why: str, status: int) -> None:
    """Lets an abort end in a message and a status: so JAX answers a failed join or a lost process.

    The thread that aborts cannot be given a callback: JAX's own (`missed_heartbeat_callback`) does
    not take a Python function.
    """
    message = f"error: {why}\n".encode()

    def say(_: int) -> None:
        os.write(2, message)
        os._exit(status)

    global _on_abort
    _on_abort = ctypes.CFUNCTYPE(None, ctypes.c_int)(say)  # must outlive this function
    ctypes.CDLL(None).signal(int(signal.SIGABRT), _on_abort)


_on_abort: Any = None


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:300]
