"""Compare `jaxcyto predict` with PyTorch on a whole section, in map px per second.

    python benchmarks/speed/predict_speed.py --peer-python /path/to/python-with-torch

The section is synthetic and tissue everywhere. The network is the paper's, with random weights that
give about equally frequent classes. The two run in turn, and the values are medians of rounds. A
first round for compilation and caches does not count. Reading and writing files is included.

* Ours is the command `jaxcyto predict` within a process that stays alive, from the header of the
  section to the finished pyramid. Executables come from JAX's compilation cache.
* The peer (`torch_predict.py`) runs the same weights and tiles in a plain loop, from an array on
  disk to another one.

Both use tiles of 2025 px. Ours also uses its default tile, and the peer some larger ones, of which
the best counts. The two maps are compared. Without torch the peer's rows are left out. The last
line on stdout is one JSON object.
"""

import argparse
import importlib.metadata
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from benchmarks.scale.predict_memory import write_brain, write_run
from benchmarks.speed.loader import device_name, section_bands
from jaxcyto.brain.sections.writer import write_section
from jaxcyto.models import Geometry
from jaxcyto.predict import open_class_map
from jaxcyto.predict.tiling import Tiling

TILE = 2025  # the tile of training in px
PEER_TILES = (3049, 4073, 5097)
CALIBRATION_PX = 3049  # side of the image that batch statistics are computed on


def calibrate(run: Path, image: np.ndarray) -> None:
    """Give a finished run random weights, with the batch statistics that they have on an image.

    These statistics make the classes about equally frequent.

    Args:
        run: the run folder.
        image: uint8 [H, W].
    """
    import jax
    import jax.numpy as jnp

    from jaxcyto.augment import normalize
    from jaxcyto.models import UNet
    from jaxcyto.runs.load import load_segment_run, save_weights

    loaded = load_segment_run(run)
    model: UNet = loaded.model
    standard = normalize(jnp.asarray(image)[None, ..., None], loaded.input_mean, loaded.input_std)

    @jax.jit
    def with_statistics(key: jax.Array) -> Any:
        variables = model.init(key, standard)
        _, after = model.apply(variables, standard, train=True, mutable=["batch_stats"])
        moved = jax.tree.map(jnp.subtract, after["batch_stats"], variables["batch_stats"])
        # running = 0.9 running + 0.1 batch, solved for the batch's value
        found = jax.tree.map(lambda a, d: a + 10 * d, variables["batch_stats"], moved)
        return {"params": variables["params"], "batch_stats": found}

    save_weights(run, jax.tree.map(np.asarray, with_statistics(jax.random.key(0))))


class Process:
    """A process that answers each line of JSON with one."""

    def __init__(self, *command: Any):
        self._process = subprocess.Popen(
            [str(part) for part in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        self.versions = self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._process.args} ended with {self._process.wait()}")
        return json.loads(line)

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def serve(folder: Path) -> None:
    """Run `jaxcyto predict` for each request on stdin, in our process."""
    import re

    import jax
    from click.testing import CliRunner

    from jaxcyto.cli import main as command

    jax.config.update("jax_compilation_cache_dir", str(folder / "cache"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    device = jax.devices()[0].device_kind
    versions = {"jax": jax.__version__, "jaxlib": importlib.metadata.version("jaxlib")}
    print(json.dumps(versions | {"device": device}), flush=True)
    for line in sys.stdin:
        shutil.rmtree(folder / "run" / "predictions", ignore_errors=True)
        tile = json.loads(line)["tile_px"]
        options = ["--tile", str(tile)] if tile else []
        start = time.perf_counter()
        result = CliRunner().invoke(
            command, ["predict", str(folder / "run"), str(folder / "brain"), *options]
        )
        seconds = time.perf_counter() - start
        found = re.search(r"tiles of (\d+) px", result.output)
        if result.exit_code or found is None:
            raise SystemExit(f"predict failed: {result.output} {result.exception!r}")
        print(json.dumps({"seconds": seconds, "tile_px": int(found[1])}), flush=True)


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure all rows, and print the table."""
    side, geometry = arguments.side, Geometry()
    write_brain(folder / "brain", 1024, 1)
    image = np.concatenate(list(section_bands(side)))
    write_section(folder / "brain" / "section.tif", image, 2.0, compression="zstd")
    np.save(folder / "section.npy", image)
    write_run(folder / "run")
    calibrate(folder / "run", image[:CALIBRATION_PX, :CALIBRATION_PX])
    ours = Process(sys.executable, __file__, "--serve", folder)
    peer = None
    if has_torch(arguments.peer_python):
        from jaxcyto.runs.export import export_run

        export_run(folder / "run", folder / "export")
        script = Path(__file__).parents[1] / "pytorch" / "torch_predict.py"
        names = ("export/model.safetensors", "section.npy", "map.npy")
        peer = Process(arguments.peer_python, script, *(folder / name for name in names))
    else:
        print(f"{arguments.peer_python} has no torch, so the peer is left out", file=sys.stderr)
    out_px = (-(-side // geometry.output_stride)) ** 2
    times: dict[tuple[str, int], list[float]] = {}
    agreement, classes = [], 0
    for round_index in range(arguments.rounds + 1):
        for tile in (None, TILE):
            answer = ours.ask(tile_px=tile)
            key = ("ours, default" if tile is None else "ours", answer["tile_px"])
            times.setdefault(key, []).append(answer["seconds"])
        found = open_class_map(next((folder / "run/predictions").glob("*/*.ome.tif")))
        our_map = found.read(0, 0, *found.levels[0].shape)
        for tile in (TILE, *arguments.peer_tiles):
            if peer is None:
                break
            step = Tiling(geometry, tile).step
            answer = peer.ask(tile_px=tile, step=step, offset=geometry.label_offset)
            times.setdefault(("PyTorch", tile), []).append(answer["seconds"])
            their_map = np.load(folder / "map.npy", allow_pickle=False)
            agreement.append(float((our_map == their_map).mean()))
        if not round_index:  # not counted: it includes compilation and the choice of algorithms
            classes = len(np.unique(our_map))
            times = {}
    ours.close()
    if peer:
        peer.close()
    rows: list[dict[str, Any]] = []
    rates: dict[str, dict[int, float]] = {}  # px/s by who and tile
    for (who, tile), seconds in times.items():
        rate = out_px / statistics.median(seconds)
        rates.setdefault(who, {})[tile] = rate
        rows.append({"who": who, "tile_px": tile, "px_per_second": rate, "seconds": seconds})
        print(f"{who:<16}{tile:>6} px tiles{rate:>12.0f} px/s")
    equal, default = rates["ours"][TILE], max(rates["ours, default"].values())
    ratios = {"default/2025": default / equal}
    if peer:
        ratios["equal tiles"] = equal / rates["PyTorch"][TILE]
        ratios["ratio_best_peer"] = max(equal, default) / max(rates["PyTorch"].values())
    for name, ratio in ratios.items():
        print(f"{name:<16}{ratio:.2f}")
    return {
        "unit": "map px/s",
        "side_px": side,
        "rows": rows,
        "ratios": ratios,
        "equal_px": min(agreement, default=None),
        "classes_in_map": classes,
        "host": device_name(),
        "cores": len(os.sched_getaffinity(0)),
        "versions": ours.versions,
        "peer_versions": peer.versions if peer else None,
    }


def has_torch(python: str) -> bool:
    """Return whether an interpreter can import torch and safetensors."""
    code = "import torch, safetensors"
    return subprocess.run([python, "-c", code], capture_output=True).returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--side", type=int, default=14_464, help="side of the section in px of 2 um"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--peer-tiles", type=int, nargs="*", default=PEER_TILES, help="the peer's tiles beside 2025"
    )
    parser.add_argument(
        "--peer-python", default=sys.executable, help="an interpreter with torch and safetensors"
    )
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve)
        return
    with tempfile.TemporaryDirectory() as name:
        print(json.dumps(measure(Path(name), arguments)))


if __name__ == "__main__":
    main()
