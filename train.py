"""Trains a network: python train.py --config configs/quickstart.py --workdir runs/quickstart

Any field of the config can be given here: --config.optim.learning_rate=0.02; jaxcyto/config.py
lists them. The same command continues a run that was stopped.

Exit status: 0 done; 1 the loss was not finite, a file could not be written, or an unforeseen error;
2 bad input; 143 (SIGTERM) or 130 (Ctrl-C) stopped: within 30 s, in training after a checkpoint was
written; a second signal stops at once, and what was trained since the last checkpoint is lost;
3 another process of the job is gone. Several processes (docs/clusters.md) end with one status.
"""

import functools
import os
import signal
import sys
import traceback
import warnings
from logging import CRITICAL, getLogger
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from jaxcyto.cli.train_flags import parse_flags
from jaxcyto.utils.runtime import keep_programs

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A Python file with get_config(), such as those in configs/.", lock_config=True
)
WORKDIR = flags.DEFINE_string("workdir", None, "The folder of the run; made if missing.")
COORDINATOR = flags.DEFINE_string("coordinator", None, "Several processes: HOST:PORT of process 0.")
PROCESSES = flags.DEFINE_integer(
    "processes", None, "How many in all; found by itself on SLURM and TPU pods."
)
PROCESS = flags.DEFINE_integer("process", None, "The number of this process, from 0.")
flags.mark_flags_as_required(["config", "workdir"])


def main(argv: list[str]) -> int:
    """Runs the config; every expected failure ends in one message and an exit status."""
    import jax

    from jaxcyto.training import log, loop
    from jaxcyto.training.devices import distributed
    from jaxcyto.utils.runtime import keep_freed_memory

    log.log_to_stderr()
    if len(argv) > 1:
        print(f"error: unexpected argument {argv[1]!r}; flags start with --", file=sys.stderr)
        return 2
    try:
        distributed.join(COORDINATOR.value, PROCESSES.value, PROCESS.value)
        if not distributed.is_first():
            log.only_warnings()
        if jax.default_backend() == "cpu":
            keep_freed_memory()
        loop.train(CONFIG.value, str(WORKDIR.value))
        return 0
    except loop.Interrupted as stopped:
        log.logger.info("%s", stopped)
        sys.stdout.flush()
        distributed.part(128 + stopped.signum, None if stopped.together else str(stopped))
        os._exit(128 + stopped.signum)  # does not wait for threads that may hang in a read
    except SystemExit as stopped:
        distributed.part(int(stopped.code or 0), "stopped; the same command continues")
        raise
    except Exception as error:
        status, message = explain(error)
        if message is None and distributed.is_alone():
            raise
        if message is None:
            traceback.print_exc()
            message = f"error: unforeseen: {type(error).__name__}, see the log of that process"
        print(message, file=sys.stderr, flush=True)
        distributed.part(status, message)
        return status


def explain(error: Exception) -> tuple[int, str | None]:
    """Exit status and message of a failure; no message for one that nobody foresaw."""
    import jax

    from jaxcyto.errors import InputError
    from jaxcyto.training.devices import distributed

    if isinstance(error, InputError):
        return 2, f"error: {error}"
    if isinstance(error, FloatingPointError):
        return 1, f"error: {error}"
    if isinstance(error, OSError) and error.strerror is not None:  # a full disk, a folder's rights
        where = error.filename or WORKDIR.value
        again = "the same command continues from the last checkpoint"
        return 1, f"error: {where}: {error.strerror}; {again}"
    if isinstance(error, jax.errors.JaxRuntimeError) and not distributed.is_alone():
        return distributed.LOST, distributed.lost(error)
    return 1, None


def leave(signum: int, _: Any) -> None:
    """Handles signals outside of `loop.train`, where there is nothing to save."""
    print("stopped; the same command continues", file=sys.stderr)
    sys.exit(128 + signum)


def show(unraisable: Any) -> None:
    """Prints what cannot be raised, except for writes that end after one has failed.

    orbax raises the first failure and closes its event loop; the others cannot reach it any more.
    """
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


if __name__ == "__main__":
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    logging.set_verbosity(logging.FATAL)  # of grain and orbax, which also raise what they log
    getLogger("asyncio").setLevel(CRITICAL)  # orbax again, of a damaged checkpoint
    sys.unraisablehook = show
    keep_programs()
    for each in (signal.SIGTERM, signal.SIGINT):  # until loop.train has its own way, see Stop
        signal.signal(each, leave)
    app.run(main, flags_parser=functools.partial(parse_flags, config=CONFIG))
