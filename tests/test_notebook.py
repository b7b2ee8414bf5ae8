"""Test that the example notebook runs completely and is stored without outputs.

The code cells run in order in one interpreter, without Jupyter, because no other test needs it.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
RUNNER = """\
import json, sys, warnings
import matplotlib
from matplotlib import pyplot
warnings.simplefilter("error", UserWarning)
warnings.filterwarnings("ignore", "FigureCanvasAgg is non-interactive")
notebook, figure = sys.argv[1:]
scope = {"__name__": "__main__"}
for cell in json.load(open(notebook))["cells"]:
    if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), cell["id"], "exec"), scope)
pyplot.savefig(figure)
print("features", *scope["features"].shape, "areas", len(set(scope["areas"].tolist())))
print("test", scope["results"]["test"]["distance_mae_mm"])
"""


def notebooks() -> list[Path]:
    return sorted(FOLDER.glob("*.ipynb"))


@pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.name)
def test_kept_without_outputs(path):
    notebook = json.loads(path.read_text())
    assert notebook["nbformat"] == 4 and notebook["nbformat_minor"] == 5
    cells = notebook["cells"]
    assert len({cell["id"] for cell in cells}) == len(cells)
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code and not any(cell["outputs"] or cell["execution_count"] for cell in code)


def test_the_quickstart_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    figure = tmp_path / "figure.png"
    done = subprocess.run(
        [sys.executable, "-c", RUNNER, str(FOLDER / "quickstart.ipynb"), str(figure)],
        capture_output=True, text=True, timeout=300, cwd=FOLDER,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "features 400 32" in done.stdout and figure.stat().st_size > 10_000
    assert float(done.stdout.split()[-1]) < 30  # mm, the extent of the phantom
    assert not list(FOLDER.glob("*.png"))  # no files are left behind
