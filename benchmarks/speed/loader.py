"""Measure windows read from tiled BigTIFF per second and core, against the decoder and PyTorch.

    python benchmarks/speed/loader.py --peer-python /path/to/python-with-torch

A synthetic section of 8-bit gray at 2 um/px is written once for each codec. All readers read the
same windows of 1019 px at the same random positions, in turn, and the pixels are compared exactly.

On one core:

* ours: `Section.read_at` as training calls it
* limit: the decoder alone (imagecodecs, from tiles in memory into an allocated buffer). For raw
  tiles it is the page cache (the same bytes, read and copied into a new window).
* zarr: tifffile's zarr store, read by zarr

On all cores, per core:

* our loader: training's whole input (`pair_train_batches` and `iterate`, batches of 8 pairs, the
  config's threads)
* DataLoader: a torch DataLoader over tifffile and zarr, with the same batches and one worker per
  core, or without workers if that is faster

All values are medians of rounds, with the file in the page cache. The peers run in their own
process, which needs numpy, tifffile, imagecodecs and zarr, and torch for the DataLoader. Without
these packages their columns stay empty. The script needs Linux, which can pin a process to one
core. The last line on stdout is one JSON object.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import imagecodecs
import numpy as np
import tifffile
from absl import flags
from scipy.ndimage import gaussian_filter, zoom

from jaxcyto.brain.manifest import SPLITS, Brain
from jaxcyto.brain.sampling.patches import Patches
from jaxcyto.brain.section_table import SectionRow
from jaxcyto.brain.sections.section import open_section
from jaxcyto.config import DataConfig
from jaxcyto.data.loading import iterate
from jaxcyto.data.pair_batches import PairSource, pair_train_batches
from jaxcyto.data.pair_table import PairTable

PIXEL_UM = 2.0
WINDOW = 1019
PAIRS = 8  # per batch
BLOCK = 2048  # side of the texture that sections consist of
CODECS = {  # name: tifffile's name, tifffile's arguments, decoder
    "raw": (None, {}, None),
    "deflate": ("adobe_deflate", {}, imagecodecs.deflate_decode),
    "LZW": ("lzw", {}, imagecodecs.lzw_decode),
    "zstd": ("zstd", {}, imagecodecs.zstd_decode),
    "JPEG": ("jpeg", {"level": 90}, imagecodecs.jpeg_decode),
}
COLUMNS = ("ours", "limit", "zarr", "our loader", "DataLoader")
RATIOS = {"ours/limit": ("ours", "limit"), "ours/zarr": ("ours", "zarr")}
RATIOS["loader/DataLoader"] = ("our loader", "DataLoader")


def texture(seed: int = 0) -> np.ndarray:
    """Draw a texture, uint8 [BLOCK, BLOCK].

    It has dark cells of about 10 um on a ground that varies slowly, and noise.
    """
    rng = np.random.default_rng(seed)
    cells = gaussian_filter(rng.standard_normal((BLOCK, BLOCK), np.float32), 2.0, mode="wrap")
    ground = np.asarray(zoom(rng.standard_normal((17, 17)), BLOCK / 17, order=1), np.float32)
    dark = np.clip(cells / cells.std() - 0.8 + 0.2 * ground, 0, 1.5)
    noise = rng.normal(0, 2.5, (BLOCK, BLOCK))
    return np.clip(205 + 8 * ground - 90 * dark + noise, 0, 245).astype(np.uint8)


def section_bands(side: int) -> Iterator[np.ndarray]:
    """Yield bands, uint8 [<= BLOCK, side], of a section of `side` x `side` px from the top.

    The section is tissue everywhere.
    """
    block, rng = texture(), np.random.default_rng(1)
    for top in range(0, side, BLOCK):
        shifted = np.roll(block, rng.integers(BLOCK, size=2), (0, 1))
        yield np.tile(shifted, -(-side // BLOCK))[: side - top, :side]


def write(path: Path, image: np.ndarray, codec: str, tile: int) -> None:
    """Write one tiled BigTIFF."""
    compression, options, _ = CODECS[codec]
    tifffile.imwrite(
        path, image, bigtiff=True, tile=(tile, tile), photometric="minisblack", metadata=None,
        compression=compression, compressionargs=options, resolutionunit="CENTIMETER",
        resolution=(1e4 / PIXEL_UM, 1e4 / PIXEL_UM),
    )  # fmt: skip


def limit(path: Path, codec: str) -> Callable[[int, int], np.ndarray | None]:
    """Return a function of (top, left) that reads or decodes a window's tiles and does no more."""
    with tifffile.TiffFile(path) as tiff:
        page: Any = tiff.pages[0]
        offsets, counts, side = page.dataoffsets, page.databytecounts, page.tilewidth
        across = -(-page.imagewidth // side)
        tables = {"tables": page.jpegtables} if codec == "JPEG" else {}
    decode: Any = CODECS[codec][2]

    def touched(start: int) -> list[tuple[slice, slice]]:
        """List the overlap with each tile along an axis, as slices of the window and the tile."""
        first, last = start // side, (start + WINDOW - 1) // side
        pairs = []
        for tile in range(first, last + 1):
            low, high = max(start, tile * side), min(start + WINDOW, (tile + 1) * side)
            inside = slice(low - tile * side, high - tile * side)
            pairs.append((slice(low - start, high - start), inside))
        return pairs

    if decode is None:
        fd = os.open(path, os.O_RDONLY)
        buffer = np.empty(side * side, np.uint8)

        def read(top: int, left: int) -> np.ndarray:
            window = np.empty((WINDOW, WINDOW), np.uint8)
            for row, (rows, y) in enumerate(touched(top), top // side):
                block = buffer[: (y.stop - y.start) * side]
                for column, (columns, x) in enumerate(touched(left), left // side):
                    os.preadv(fd, [block], offsets[row * across + column] + y.start * side)
                    window[rows, columns] = block.reshape(-1, side)[:, x]
            return window

        return read

    data = path.read_bytes()
    tiles = [data[start : start + count] for start, count in zip(offsets, counts, strict=True)]
    # each decoder writes into this type without allocating a buffer
    out: Any = np.empty((side, side), np.uint8) if tables else bytearray(side * side)

    def decode_only(top: int, left: int) -> None:
        for row in range(top // side, (top + WINDOW - 1) // side + 1):
            for column in range(left // side, (left + WINDOW - 1) // side + 1):
                decode(tiles[row * across + column], out=out, **tables)

    return decode_only


def pair_table(path: Path, places: np.ndarray) -> PairTable:
    """Build a table of training pairs of windows.

    Args:
        path: the section.
        places: top and left of each window in px, [N, 2]. Pair k consists of windows k and k + 1.
    """
    count = len(places)
    row = SectionRow(0, "section", path, PIXEL_UM, np.eye(3, 4), split="train")
    brain = Brain(path.parent, "loader", (), (row,), ())
    train = np.full(count, SPLITS.index("train"), np.uint8)
    patches = Patches(
        section=np.zeros(count, np.int32),
        center_px=places[:, ::-1] + WINDOW / 2 - 0.5,
        position_mm=np.zeros((count, 3), np.float32),
        hemisphere=np.zeros(count, np.int8),
        face=np.zeros(count, np.int32),
        bary=np.zeros((count, 3), np.float32),
        split=train,
        settings={},
    )
    first = np.arange(count)
    return PairTable(
        brains=(brain,),
        brain_names=(brain.root.name,),
        patches=(patches,),
        patch_start=np.array([0, count]),
        first=first,
        second=(first + 1) % count,
        distance_mm=np.ones(count, np.float32),
        split=train,
        coordinates_mm=patches.position_mm,
        all_distances_mm=None,
        keys=("",),
    )


class OurLoader:
    """Training's input, whose threads run until `close`."""

    def __init__(self, path: Path, places: np.ndarray, config: DataConfig, threads: int):
        table = pair_table(path, places)
        batches = pair_train_batches(PairSource(table, config), table, config, 0)
        self._batches = iterate(batches, threads, lambda dataset: dataset)

    def rate(self, batches: int, warm: int, digests: list[int]) -> float:
        """Return the windows per second over `batches` batches.

        Args:
            batches: number of timed batches.
            warm: number of batches before them. The windows of the last one are checked.
            digests: CRC-32 of each window.
        """
        found = [next(self._batches) for _ in range(warm)]
        start = time.perf_counter()
        windows = sum(next(self._batches)["patches"].shape[0] * 2 for _ in range(batches))
        seconds = time.perf_counter() - start
        for k, pair in zip(found[-1]["index"], found[-1]["patches"], strict=True):
            for number, patch in zip((k, (k + 1) % len(digests)), pair, strict=True):
                assert zlib.crc32(patch) == digests[number], f"window {number} differs"
        return windows / seconds

    def close(self) -> None:
        self._batches.close()


class Peer:
    """The peers' process."""

    def __init__(self, python: str):
        command = [python, str(Path(__file__).parents[1] / "pytorch" / "loader_peer.py")]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.versions: dict[str, str] = self._answer()
        for name in ("zarr", "torch"):
            if name not in self.versions:
                print(f"{python} has no {name}, so its columns stay empty", file=sys.stderr)

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the peer ended with status {self._process.wait()}")
        return json.loads(line)

    def ask(self, reader: str, **request: Any) -> dict[str, Any] | None:
        """Send a request and return the answer, or None if a package is missing."""
        needed = {"zarr"} if reader == "zarr" else {"zarr", "torch"}
        if not needed <= self.versions.keys():
            return None
        assert self._process.stdin is not None
        print(json.dumps({"reader": reader, **request}), file=self._process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def rate(read: Callable[[int, int], Any], places: list[list[int]]) -> float:
    """Return the windows per second of a reader at `places` (top, left)."""
    start = time.perf_counter()
    for top, left in places:
        read(top, left)
    return len(places) / (time.perf_counter() - start)


def measure(path: Path, codec: str, peer: Peer, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure the row of one codec."""
    rng = np.random.default_rng(2)
    places = rng.integers(0, arguments.side - WINDOW, (arguments.windows, 2))
    listed = places.tolist()
    every = sorted(os.sched_getaffinity(0))
    config = DataConfig(patch_px=WINDOW, um_per_px=PIXEL_UM, batch_pairs=PAIRS)
    threads = arguments.threads or config.threads
    section = open_section(path)

    def ours(top: int, left: int) -> np.ndarray:
        return section.read_at(PIXEL_UM, top, left, WINDOW, WINDOW)

    digests = [zlib.crc32(ours(*place)) for place in listed]
    least = limit(path, codec)
    about = {"path": str(path), "places": listed, "side": WINDOW}
    equal = None
    found: dict[str, list[float]] = {name: [] for name in COLUMNS}
    for _ in range(arguments.rounds):
        os.sched_setaffinity(0, every[-1:])
        found["ours"].append(rate(ours, listed))
        found["limit"].append(rate(least, listed))
        os.sched_setaffinity(0, every)
        answer = peer.ask("zarr", **about, cores=every[-1:])
        if answer is not None:
            found["zarr"].append(answer["rate"])
            equal = answer["digests"] == digests
        loader = OurLoader(path, places, config, threads)
        found["our loader"].append(loader.rate(arguments.batches, threads, digests) / len(every))
        loader.close()
        rates = []
        for workers in (0, len(every)):
            answer = peer.ask(
                "DataLoader", **about, cores=every, workers=workers, digests=digests,
                batches=arguments.batches, pairs=config.batch_pairs,
            )  # fmt: skip
            rates += [] if answer is None else [answer["rate"] / len(every)]
        found["DataLoader"] += [max(rates)] if rates else []
    section.close()
    row: dict[str, Any] = {"codec": codec, "equal": equal}
    row["bytes_per_px"] = path.stat().st_size / arguments.side**2
    row |= {name: statistics.median(v) if v else None for name, v in found.items()}
    for name, (above, below) in RATIOS.items():
        row[name] = row[above] / row[below] if row[above] and row[below] else None
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--side", type=int, default=12_288, help="side of the section in px")
    parser.add_argument("--tiles", default="512", help="sides of tiles in px, such as 256,512")
    parser.add_argument("--codecs", default=",".join(CODECS))
    parser.add_argument("--windows", type=int, default=64, help="windows per round")
    parser.add_argument("--batches", type=int, default=16, help="batches per round of a loader")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, help="threads of our loader (default: the config's)")
    parser.add_argument(
        "--peer-python", default=sys.executable, help="an interpreter with torch and zarr"
    )
    arguments = parser.parse_args()
    flags.FLAGS.mark_as_parsed()  # grain reads absl's flags
    peer = Peer(arguments.peer_python)
    names = ("numpy", "tifffile", "imagecodecs", "grain")
    versions = {name: importlib.metadata.version(name) for name in names}
    rows = []
    heads = ("codec", "tile", "bytes/px", *COLUMNS, *RATIOS)
    print("".join(f"{head:>{max(len(head) + 2, 9)}}" for head in heads))
    image = np.concatenate(list(section_bands(arguments.side)))
    with tempfile.TemporaryDirectory() as name:
        for tile in map(int, arguments.tiles.split(",")):
            for codec in arguments.codecs.split(","):
                path = Path(name) / f"{codec}_{tile}.tif"
                write(path, image, codec, tile)
                row = {"tile_px": tile} | measure(path, codec, peer, arguments)
                path.unlink()
                rows.append(row)
                values = [codec, tile, row["bytes_per_px"], *(row[k] for k in (*COLUMNS, *RATIOS))]
                for head, value in zip(heads, values, strict=True):
                    width = max(len(head) + 2, 9)
                    shown = f"{value:.2f}" if isinstance(value, float) else str(value or "")
                    print(f"{shown:>{width}}", end="")
                print("" if row["equal"] is not False else "  DIFFERENT", flush=True)
    peer.close()
    print(
        json.dumps(
            {
                "unit": "windows/s per core",
                "window_px": WINDOW,
                "side_px": arguments.side,
                "rows": rows,
                "device": device_name(),
                "cores": len(os.sched_getaffinity(0)),
                "versions": {"python": platform.python_version()} | versions,
                "peer_versions": peer.versions,
            }
        )
    )


def device_name() -> str:
    """Return the processor's model from /proc/cpuinfo."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    main()
