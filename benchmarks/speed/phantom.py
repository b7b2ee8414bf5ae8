"""Measure how fast phantom sections are written.

    python benchmarks/speed/phantom.py --sections 8

The sections have 2 um/px and over 10,000 px a side, zstd compression, labels and an atlas. The
script writes them into a temporary folder and removes it. The last line on stdout is one JSON
object.
"""

import argparse
import dataclasses
import json
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from jaxcyto.brain.manifest import read_brain
from jaxcyto.brain.sections.section import open_section
from jaxcyto.phantom.make import make_phantom
from jaxcyto.phantom.settings import PRESETS
from jaxcyto.utils.progress import StderrProgress


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Measure how many megapixels of phantom sections are written per second."
    )
    parser.add_argument("--sections", type=int, default=8)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    settings = dataclasses.replace(PRESETS["full"], num_sections=arguments.sections)
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        progress = StderrProgress("phantom", "sections")
        root = make_phantom(Path(folder) / "brain", settings, progress, arguments.workers)
        seconds = time.monotonic() - start
        row = read_brain(root).sections[0]
        with open_section(row.image, row.pixel_um) as section:
            height, width = section.shape
    megapixels = height * width * arguments.sections / 1e6
    print(f"{arguments.sections} sections of {width} x {height} px in {seconds:.1f} s")
    figures = {"seconds": seconds, "px": [width, height], "workers": arguments.workers}
    print(json.dumps(figures | {"mpx_per_second": megapixels / seconds}))


if __name__ == "__main__":
    main()
