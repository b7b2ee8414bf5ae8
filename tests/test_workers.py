"""Worker processes that cannot start end in an error within seconds, not in a hang."""

import subprocess
import sys

SCRIPT = """
import numpy as np
from jaxcyto.brain import solve
from jaxcyto.brain.phantom_shape import icosphere
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
    """Spawned children look for the main script, which is not there; the mesh outgrows a pipe."""
    done = subprocess.run(
        [sys.executable, "-"], input=SCRIPT, capture_output=True, text=True, timeout=100
    )
    assert "refused: a process that solved by method heat died" in done.stdout
