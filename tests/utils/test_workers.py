"""Test that worker processes that cannot start raise an error, and end with their parent."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = """
import numpy as np
from jaxcyto.brain.geodesics import solvers as solve
from jaxcyto.phantom.cortex import icosphere
from jaxcyto.brain.surfaces import Surface
from jaxcyto.errors import InputError

solve.POOL_FROM = 0
vertices, faces = icosphere(5)
queries = [(0, k, np.arange(10)) for k in range(8)]
try:
    list(solve.solve_queries([Surface(vertices, faces)], queries, "heat", near=False, workers=2))
except InputError as error:
    print("refused:", error)
"""


def test_script_from_standard_input_does_not_hang():
    """Spawn children that fail on the missing main script while a large mesh fills their pipe."""
    done = subprocess.run(
        [sys.executable, "-"], input=SCRIPT, capture_output=True, text=True, timeout=100
    )
    assert "refused: worker processes cannot start" in done.stdout
    assert "<stdin> is none: save the program as a file" in done.stdout and not done.stderr


@pytest.mark.parametrize("fault", ["no guard", "a worker dies"])
def test_why_workers_die_is_said(tmp_path, fault):
    """Call from a script without a main guard, and let a worker of one with a guard die."""
    script = tmp_path / "script.py"
    if fault == "no guard":
        text = f"{SCRIPT}print('end')\n"
    else:
        body = SCRIPT.replace("\n", "\n    ")
        text = "import os\ndef die(query):\n    os._exit(1)\nif __name__ == '__main__':\n    "
        text += body.replace("solve.POOL_FROM = 0", "solve.POOL_FROM = 0; solve._run = die")
    script.write_text(text)
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=100
    )
    if fault == "no guard":
        assert 'put what starts them below `if __name__ == "__main__":`' in done.stdout
        assert done.stdout.splitlines()[-1] == "end" and not done.stderr
    else:
        assert "refused: a process that solved distances died (memory" in done.stdout


PARENT = """
import os, sys, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from jaxcyto.utils.processes import leave_with_parent

if __name__ == "__main__":
    pool = ProcessPoolExecutor(1, get_context("spawn"), initializer=leave_with_parent)
    print(pool.submit(os.getpid).result(), flush=True)
    time.sleep(100)
"""


def test_workers_leave_when_their_parent_is_killed(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    command = [sys.executable, str(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        os.kill(worker, 0)  # raises if the worker does not exist
        parent.kill()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and alive(worker):
        time.sleep(0.1)
    assert not alive(worker)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rsplit(")")[-1].split()[0] != "Z"
