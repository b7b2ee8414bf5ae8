"""Measure peak memory and speed of `jaxcyto predict` on one large section.

    python benchmarks/scale/predict_memory.py --side 40000

The script writes a synthetic section (a disc of tissue over 30 % of a square at 2 um/px) and a run
of the paper's network with random weights into a temporary folder. It predicts the section in a
separate process, whose peak memory is its maximum resident set, and removes the folder. The last
line on stdout is one JSON object.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax
import jax.numpy as jnp
import numpy as np

from jaxcyto.brain.manifest import write_table
from jaxcyto.brain.sections.writer import write_section
from jaxcyto.brain.surfaces.surface import Surface, write_surface
from jaxcyto.config import ModelConfig, SegmentData
from jaxcyto.config_io import to_json
from jaxcyto.models import UNet
from jaxcyto.runs.load import save_weights

CLASSES = 16
BRAIN = """\
format = 1
name = "large"
[[hemispheres]]
name = "left"
mid = "mid.surf.gii"
"""


def write_brain(root: Path, side: int, levels: int) -> None:
    """Write a brain of one section of `side` x `side` px."""
    root.mkdir()
    (root / "brain.toml").write_text(BRAIN)
    corners = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]])
    write_surface(root / "mid.surf.gii", Surface(corners, np.array([[0, 1, 2]])))
    write_section(
        root / "section.tif", bands(side), 2.0, shape=(side, side), compression="zstd",
        levels=levels,
    )  # fmt: skip
    row = {"section": "large", "image": "section.tif", "pixel_um": "2"}
    affine = "0.002 0 0 0  0 0.002 0 0  0 0 0 0"
    write_table(root / "sections.csv", [row | {"affine": affine}])


def bands(side: int) -> Iterator[np.ndarray]:
    """Yield bands of white rows with a disc of noise."""
    noise = np.random.default_rng(0).integers(60, 200, (512, side), dtype=np.uint8)
    radius = side * (0.3 / np.pi) ** 0.5
    for top in range(0, side, 512):
        rows = np.full((min(512, side - top), side), 255, np.uint8)
        half = radius**2 - (top + 256 - side / 2) ** 2
        if half > 0:
            inside = slice(int(side / 2 - half**0.5), int(side / 2 + half**0.5))
            rows[:, inside] = noise[: len(rows), inside]
        yield rows


def write_run(root: Path) -> None:
    """Write a finished run of the paper's network with random weights."""
    root.mkdir()
    model = UNet(CLASSES)
    leaves = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1513, 1513, 1)))
    rng = np.random.default_rng(0)
    draw = lambda leaf: rng.uniform(0.01, 0.1, leaf.shape).astype(np.float32)  # noqa: E731
    save_weights(root, jax.tree.map(draw, leaves))
    kinds = ["area"] * (CLASSES - 1) + ["background"]
    classes = [
        {"name": f"class {k}", "color": f"#{16 * k:02x}8080", "kind": kind}
        for k, kind in enumerate(kinds)
    ]
    config = {"classes": classes, "data": SegmentData(), "model": ModelConfig()}
    scales = {"input_mean": 128.0, "input_std": 50.0}
    (root / "config.json").write_text(json.dumps(to_json(config | {"scales": scales})))


def main() -> None:
    """Write brain and run, predict, and print the figures."""
    parser = argparse.ArgumentParser(description="Peak memory and speed of `jaxcyto predict`.")
    parser.add_argument("--side", type=int, default=40_000, help="side of the section, px of 2 um")
    parser.add_argument("--levels", type=int, default=1, help="number of resolutions in the file")
    parser.add_argument(
        "--tile", type=int, help="side of the windows, px; default: as predict chooses"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_brain(folder / "brain", arguments.side, arguments.levels)
        write_run(folder / "run")
        call = "from jaxcyto.cli import main; main()"
        command = [sys.executable, "-c", call, "predict", folder / "run", folder / "brain"]
        if arguments.tile:
            command += ["--tile", str(arguments.tile)]
        start = time.monotonic()
        subprocess.run(command, check=True, cwd=Path(__file__).resolve().parents[2])
        seconds = time.monotonic() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    map_mpx = (arguments.side / 8) ** 2 / 1e6
    figures = {"side_px": arguments.side, "tile_px": arguments.tile, "seconds": round(seconds, 1)}
    figures |= {"peak_memory_gib": round(peak, 2), "map_mpx_per_second": map_mpx / seconds}
    print(json.dumps(figures | {"device": jax.devices()[0].device_kind}))


if __name__ == "__main__":
    main()
