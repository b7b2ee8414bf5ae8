"""Measure time and memory of drawing 200,000 patches from 3,000 sections, and of pairing them.

    python benchmarks/scale/sampling.py --data ../shared/data

The patches have 1019 px. The sections are like BigBrain's sections 0 to 3000: 20 um apart, of about
the real size (2 um/px, 70,000 x 60,000 px) and at their real positions over the real left
hemisphere. Without `--data` they lie over a folded icosphere. The images are synthetic. All rows of
the section table name the same file of gray noise (tiled, deflated, with a pyramid), because real
images would take 12 TB. Every section is still opened and read separately. Each printed row is the
result of a separate process: patches, pixels per section, seconds, peak memory. `--pairs N` also
solves N pairs. `--figure` saves a figure of the sampled points. The last line on stdout is one JSON
object.
"""

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import tomli_w

from benchmarks.scale.geodesics import folded_sphere
from jaxcyto.brain.manifest import write_table
from jaxcyto.brain.sections.writer import write_section
from jaxcyto.brain.surfaces.surface import Surface, write_surface

WIDTH_MM, HEIGHT_MM = 140.0, 120.0
FIRST_MM, RANGE_MM = -70.01, 60.0  # y of BigBrain's section 0, and the distance to section 3000
CALL = "from jaxcyto.cli import main; main()"


def main() -> None:
    """Write the brain, time the commands, and print the figures."""
    parser = argparse.ArgumentParser(description="Sampling and pairing at the paper's scale")
    parser.add_argument("--data", type=Path, help="folder of the real surface")
    parser.add_argument("--sections", type=int, default=3000)
    parser.add_argument("--patches", type=int, default=200_000)
    parser.add_argument("--pairs", type=int, help="also solve this many pairs")
    parser.add_argument("--figure", type=Path, help="where to save a figure of the sampled points")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / "brain"
        root.mkdir()
        write_surfaces(root, arguments.data)
        for pixel_um, patches in (
            (4.0, arguments.patches // 10),
            (2.0, arguments.patches // 10),
            (2.0, arguments.patches),
        ):
            # Sections are written by another process, because the peak memory of a child begins
            # with that of its parent.
            writer = multiprocessing.get_context("spawn").Process(
                target=write_sections, args=(root, arguments.sections, pixel_um)
            )
            writer.start()
            writer.join()
            row = {"command": "sample", "patches": patches, "pixel_um": pixel_um}
            row["mpx_per_section"] = WIDTH_MM * HEIGHT_MM / pixel_um**2
            size = ["--patch-px", str(round(2038 / pixel_um)), "--um-per-px", str(pixel_um)]
            rows.append(row | timed(["sample", root, "--patches", patches, *size]))
        if arguments.figure:
            shutil.copy(root / "patches_points.png", arguments.figure)
        if arguments.pairs:
            row = {"command": "pair", "patches": arguments.patches, "pairs": arguments.pairs}
            rows.append(row | timed(["pair", root, "--pairs", arguments.pairs]))
    for row in rows:
        print(", ".join(f"{key} {value}" for key, value in row.items()))
    print(json.dumps({"sections": arguments.sections, "rows": rows}))


def timed(command: list) -> dict:
    """Run a command of `jaxcyto`.

    Returns:
        Wall-clock seconds, CPU seconds of all its processes, and the peak memory (GiB) of the
        largest of them.
    """
    begin = time.monotonic()
    with subprocess.Popen([sys.executable, "-c", CALL, *map(str, command)]) as process:
        _, status, usage = wait(process)
    if status:
        raise SystemExit(f"`jaxcyto {command[0]}` ended with {status}")
    seconds = time.monotonic() - begin
    return {
        "seconds": round(seconds, 1),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_gib": round(usage.ru_maxrss / 2**20, 2),
    }


def wait(process: subprocess.Popen) -> tuple[int, int, resource.struct_rusage]:
    """Wait like os.wait4, and store the exit code so that `process` does not wait again."""
    pid, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return pid, process.returncode, usage


def write_surfaces(root: Path, data: Path | None) -> None:
    """Write the surfaces of one hemisphere, and brain.toml."""
    for kind in ("pial", "white"):
        path = root / f"{kind}.surf.gii"
        if data:
            shutil.copy(data / f"bigbrain/surf/tpl-bigbrain_hemi-L_desc-{kind}.surf.gii", path)
        else:
            sphere = folded_sphere()
            shrunk = 1.0 if kind == "pial" else 0.95
            write_surface(path, Surface(shrunk * sphere.vertices + (0, -10, 10), sphere.faces))
    left = {"name": "left", "pial": "pial.surf.gii", "white": "white.surf.gii"}
    manifest = {"format": 1, "name": "many sections", "hemispheres": [left]}
    (root / "brain.toml").write_bytes(tomli_w.dumps(manifest).encode())


def write_sections(root: Path, number: int, pixel_um: float) -> None:
    """Write one image, and a section table that names it for every section."""
    shape = (round(HEIGHT_MM * 1000 / pixel_um), round(WIDTH_MM * 1000 / pixel_um))
    levels = 6 if pixel_um == 2.0 else 5
    image = f"section_{pixel_um:g}um.tif"
    if not (root / image).exists():
        write_section(
            root / image, noise(shape), pixel_um, shape=shape, tile=256,
            compression="deflate", levels=levels, workers=2,
        )  # fmt: skip
    pixel_mm = pixel_um / 1000
    rows = []
    for k in range(number):
        y = FIRST_MM + RANGE_MM * k / number
        affine = (
            f"{pixel_mm} 0 0 {-WIDTH_MM / 2}  0 0 0 {y:.3f}  0 {-pixel_mm} 0 {HEIGHT_MM * 0.65}"
        )
        row = {"section": f"{k:04d}", "image": image, "pixel_um": str(pixel_um)}
        rows.append(row | {"affine": affine})
    write_table(root / "sections.csv", rows)


def noise(shape: tuple[int, int]) -> Iterator[np.ndarray]:
    """Yield bands of 256 rows of gray noise, all the same."""
    band = np.random.default_rng(0).integers(100, 108, (256, shape[1]), dtype=np.uint8)
    for top in range(0, shape[0], 256):
        yield band[: shape[0] - top]


if __name__ == "__main__":
    main()
