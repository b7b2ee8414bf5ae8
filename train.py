"""Trains a network: python train.py --config configs/quickstart.py --workdir runs/quickstart

Any field of the config can be given here: --config.optim.learning_rate=0.02; jaxcyto/config.py
lists them. The same command continues a run that was stopped.

Exit status: 0 done; 1 the loss was not finite, a file could not be written, or an unforeseen error;
2 bad input; 143 (SIGTERM) or 130 (Ctrl-C) stopped: within 30 s, in training after a checkpoint was
written; a second signal stops at once, and what was trained since the last checkpoint is lost;
3 another process of the job is gone. Several processes (docs/clusters.md) end with one status.
"""

import difflib
import os
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from logging import CRITICAL, getLogger
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from jaxcyto.compilation import keep_programs

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

    from jaxcyto.training import distributed, host, log, loop

    log.log_to_stderr()
    if len(argv) > 1:
        print(f"error: unexpected argument {argv[1]!r}; flags start with --", file=sys.stderr)
        return 2
    try:
        distributed.join(COORDINATOR.value, PROCESSES.value, PROCESS.value)
        if not distributed.is_first():
            log.only_warnings()
        if jax.default_backend() == "cpu":
            host.keep_freed_memory()
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
    from jaxcyto.training import distributed

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


def parse_flags(argv: list[str]) -> list[str]:
    """absl's parser, with one line instead of a traceback for what is wrong in flags or config."""
    match = re.search(r"--config[= ]([^\s:]+)", " ".join(argv))
    path = Path(match[1]).resolve() if match else None
    if path is not None:
        sys.path.append(str(path.parent))  # a config may import its neighbours
    try:
        rest = flags.FLAGS(argv)
        if hasattr(CONFIG.value, "data"):  # raises here if the file could not be read
            return rest
        message = f"{path}: get_config() returns {CONFIG.value!r}, not a Config or SegmentConfig"
    except Exception as error:  # whatever the code of a config raises
        message = explain_config(error, path)
    print(f"error: {explain_flag(message, argv)}", file=sys.stderr)
    raise SystemExit(2)


def explain_flag(message: str, argv: list[str]) -> str:
    """absl's or ml_collections' message about a flag, in words for those who know neither."""
    if "must have a value other than None" in message:
        missing = " and ".join(re.findall(r"flag (--\w+)=None", message))
        example = "python train.py --config configs/quickstart.py --workdir runs/quickstart"
        return f"{missing} missing, as in: {example}"
    if match := re.search(r"Field (\w+) not found on dataclass .*?\.(\w+)'", message):
        from jaxcyto import config

        fields = list(getattr(getattr(config, match[2]), "__dataclass_fields__", {}))
        hint = did_you_mean(match[1], fields)
        return f"no field {match[1]!r} in {match[2]}; {hint}fields: {', '.join(fields)}"
    if match := re.match(r"Unknown command line flag '(\w+)'", message):
        hint = did_you_mean(match[1], [], ["config", "workdir", "processes", "coordinator"])
        return f"unknown flag --{match[1]}; {hint}fields of the config start with --config."
    items = [word for word in argv if re.match(r"--config\.\S*\[\d+\]", word)]
    if message == "tuple index out of range" and items:
        return f"{items[0].split('=')[0]}: there is no such item; items count from 0"
    if match := re.match(r"Type .* of field (config\.\S+) is not supported", message):
        return f"--{match[1]}: not a number or a text: set it in a config file of your own"
    if not message.startswith("flag "):
        return message
    for pattern, words in (
        (r"invalid literal for int\(\) with base 10: .*", "expected a whole number"),
        (r"could not convert string to float: .*", "expected a number"),
        (r"\('Non-boolean argument to boolean flag', .*\)", "expected True or False"),
        (r"Unable to parse value .*", "expected one of the fields within it, not the whole"),
    ):
        message = re.sub(pattern, words, message)
    return message.removeprefix("flag ")


def did_you_mean(name: str, fields: list[str], flag_names: Sequence[str] = ()) -> str:
    """A guess at what a misspelt field or flag was: one of these, or any field of a config."""
    from jaxcyto.config import Config, SegmentConfig, field_paths

    if near := difflib.get_close_matches(name, fields, n=1):
        return f"did you mean {near[0]!r}? "
    paths = {f"--{flag}": flag for flag in flag_names}
    for kind in (Config, SegmentConfig):
        paths |= {f"--config.{path}": path.split(".")[-1] for path in field_paths(kind)}
    near = difflib.get_close_matches(name, paths.values(), n=1)
    return next((f"did you mean {key}? " for key, last in paths.items() if [last] == near), "")


def explain_config(error: Exception, path: Path | None) -> str:
    """What is wrong with flags or config; in which line, if the config or a neighbour raised it."""
    if path is not None and not path.is_file():
        folders = {path.parent, path, Path(__file__).parent / "configs"}
        files = {file.stem: file for folder in folders for file in sorted(folder.glob("*.py"))}
        near = difflib.get_close_matches(path.stem, files, n=1)
        hint = f"; did you mean {os.path.relpath(files[near[0]])}?" if near else ""
        return f"--config {path}: {'a folder' if path.is_dir() else 'no such file'}{hint}"
    cause: BaseException | None = error
    while cause is not None:  # absl and ml_collections wrap some kinds of errors, not others
        if isinstance(cause, SyntaxError) and cause.filename == "<unknown>":  # a value in a flag
            return f"a value of a --config flag: {cause.msg}; write tuples as \"('a', 'b')\""
        if isinstance(cause, SyntaxError) and cause.filename:
            return f"{cause.filename}:{cause.lineno}: {cause.msg}"
        for frame in reversed(traceback.extract_tb(cause.__traceback__)):
            ours = path is not None and Path(frame.filename).parent == path.parent
            if ours and frame.filename != __file__:
                return f"{frame.filename}:{frame.lineno}: {type(cause).__name__}: {cause}"
        cause = cause.__cause__ or cause.__context__
    return str(error.args[0] if isinstance(error, KeyError) and error.args else error)


if __name__ == "__main__":
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    logging.set_verbosity(logging.FATAL)  # of grain and orbax, which also raise what they log
    getLogger("asyncio").setLevel(CRITICAL)  # orbax again, of a damaged checkpoint
    sys.unraisablehook = show
    keep_programs()
    for each in (signal.SIGTERM, signal.SIGINT):  # until loop.train has its own way, see Stop
        signal.signal(each, leave)
    app.run(main, flags_parser=parse_flags)
