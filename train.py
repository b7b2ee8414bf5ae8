"""Trains a network: python train.py --config configs/quickstart.py --workdir runs/quickstart

Any field of the config can be given here: --config.optim.learning_rate=0.02. The same command
continues a run that was stopped.

Exit status: 0 done; 1 the loss was not finite, a file could not be written, or an unforeseen error;
2 bad input; 143 (SIGTERM) or 130 (Ctrl-C) stopped: while training, after a checkpoint was written.
"""

import difflib
import re
import signal
import sys
import warnings
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "The folder of the run; made if missing.")
flags.mark_flags_as_required(["config", "workdir"])


def main(argv: list[str]) -> int:
    """Runs the config; every expected failure ends in one message and an exit status."""
    import jax

    from jaxcyto.errors import InputError
    from jaxcyto.training import host, log, loop

    log.log_to_stderr()
    signal.signal(signal.SIGTERM, lambda signum, _: sys.exit(128 + signum))  # unwinds; see Stop
    if jax.default_backend() == "cpu":
        host.keep_freed_memory()
    if len(argv) > 1:
        print(f"unexpected argument {argv[1]!r}; flags start with --", file=sys.stderr)
        return 2
    try:
        loop.train(CONFIG.value, str(WORKDIR.value))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except FloatingPointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:  # a full disk, a folder that may not be written
        if error.filename is None or error.strerror is None:
            raise
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # outside of the training steps there is nothing to save
        print("stopped; the same command continues", file=sys.stderr)
        return 130
    except loop.Interrupted as stopped:
        log.logger.info("%s", stopped)
        return 128 + stopped.signum
    return 0


def parse_flags(argv: list[str]) -> list[str]:
    """absl's parser, with one line instead of a traceback for a misspelt config field."""
    if match := re.search(r"--config[= ](\S+?\.py)\b", " ".join(argv)):
        sys.path.append(str(Path(match[1]).resolve().parent))  # a config may import its neighbours
    try:
        return flags.FLAGS(argv)
    except (KeyError, AttributeError, IndexError, ValueError, TypeError) as error:
        message = str(error).strip("'\"")
    except (flags.Error, OSError) as error:
        message = str(error)
    if match := re.search(r"Field (\w+) not found on dataclass .*?\.(\w+)'", message):
        from jaxcyto import config

        fields = list(getattr(getattr(config, match[2]), "__dataclass_fields__", {}))
        near = difflib.get_close_matches(match[1], fields, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        message = f"no field {match[1]!r} in {match[2]}; {hint}fields: {', '.join(fields)}"
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    logging.set_verbosity(logging.WARNING)  # of grain and orbax
    app.run(main, flags_parser=parse_flags)
