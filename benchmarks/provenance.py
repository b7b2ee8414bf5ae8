"""Name the commit that produced a result."""

import functools
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@functools.cache
def commit() -> str:
    """Return the checkout's commit, with "-dirty" appended if tracked files have changes.

    The value is cached at the first call, because the checkout may change while a benchmark runs.
    """
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip()
