"""Start the commands that compare rows of training runs, and keep the result of each row."""

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags

from benchmarks.provenance import commit
from jaxcyto.training import log
from jaxcyto.utils import runtime
from jaxcyto.utils.files import write_json


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the options, of which one is `core`, and prepare the process.

    A checkout with changes ends the command.
    """
    options = parser.parse_args()
    if options.core is not None:
        os.sched_setaffinity(0, {options.core})
    if commit().endswith("-dirty"):
        parser.error("the checkout has changes; commit them first, so that results name a commit")
    flags.FLAGS.mark_as_parsed()  # grain reads absl's flags
    runtime.keep_freed_memory()
    log.log_to_stderr()
    return options


def kept(workdir: Path, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the result of a row, which is computed unless `workdir` holds it."""
    path = workdir / "row.json"
    if not path.exists():
        write_json(path, run())
    return json.loads(path.read_text())
