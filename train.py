"""Train a network: python train.py --config configs/quickstart.py --workdir runs/quickstart

Any field of the config can be set on the command line, such as --config.optim.learning_rate=0.02.
jaxcyto/config.py lists the fields. The same command continues a run that was stopped.

Exit status:
  0    The run is finished.
  1    The loss was not finite, a file could not be written, or an unexpected error occurred.
  2    Bad input.
  3    Another process of the job was lost.
  143  Stopped by SIGTERM within 30 s. During training, a checkpoint is written first. A second
       signal stops at once and loses the steps since the last checkpoint.
  130  Stopped by Ctrl-C, in the same way.

All processes of a job (docs/clusters.md) end with the same status.
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
    "config", None, "Python file with get_config(), such as those in configs/.", lock_config=True
)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run, created if missing.")
COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, for several processes."
)
PROCESSES = flags.DEFINE_integer(
    "processes", None, "Total count of processes, detected automatically on SLURM and TPU pods."
)
PROCESS = flags.DEFINE_integer("process", None, "Index of this process, from 0.")
flags.mark_flags_as_required(["config", "workdir"])


def main(argv: list[str]) -> int:
    """Run the config and return the exit status. Each expected failure prints one message."""
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
        os._exit(128 + stopped.signum)  # do not wait for threads that may hang in a read
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
    """Return the exit status and the message of a failure, without message if unexpected."""
    import jax

    from jaxcyto.errors import InputError
    from jaxcyto.training.devices import distributed

    if isinstance(error, InputError):
        return 2, f"error: {error}"
    if isinstance(error, FloatingPointError):
        return 1, f"error: {error}"
    if isinstance(error, OSError) and error.strerror is not None:
        # such as a full disk or missing write permission
        where = error.filename or WORKDIR.value
        again = "the same command continues from the last checkpoint"
        return 1, f"error: {where}: {error.strerror}; {again}"
    if isinstance(error, jax.errors.JaxRuntimeError) and not distributed.is_alone():
        return distributed.LOST, distributed.lost(error)
    return 1, None


def leave(signum: int, _: Any) -> None:
    """Handle signals outside of `loop.train`, where there is nothing to save."""
    print("stopped; the same command continues", file=sys.stderr)
    sys.exit(128 + signum)


def show(unraisable: Any) -> None:
    """Print unraisable exceptions, except those of writes that end after another one has failed.

    orbax raises the first failure and closes its event loop. The other writes then fail because
    the loop is closed.
    """
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


if __name__ == "__main__":
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    logging.set_verbosity(logging.FATAL)  # grain and orbax also raise the errors that they log
    getLogger("asyncio").setLevel(CRITICAL)  # orbax also logs here if a checkpoint is damaged
    sys.unraisablehook = show
    keep_programs()
    for each in (signal.SIGTERM, signal.SIGINT):  # loop.train installs its own handlers
        signal.signal(each, leave)
    app.run(main, flags_parser=functools.partial(parse_flags, config=CONFIG))
