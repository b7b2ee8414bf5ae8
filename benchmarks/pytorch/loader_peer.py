"""What PyTorch users read windows with: zarr over tifffile's store, alone or in a DataLoader.

The peers' process of `loader.py`: prints the versions it has, then answers each line of JSON on
stdin with one on stdout. Needs nothing of jaxcyto.
"""

import importlib.metadata
import json
import os
import sys
import time
import zlib
from typing import Any

import numpy as np

WARM = 4  # batches, after those that a DataLoader reads ahead


def open_zarr(path: str) -> Any:
    """The section as a zarr array; tiles are decoded as windows ask for them."""
    import tifffile
    import zarr  # pyright: ignore[reportMissingImports]

    return zarr.open(tifffile.imread(path, aszarr=True), mode="r")


class Pairs:
    """The pairs of windows of `loader.py`; opens the file in each worker."""

    def __init__(self, path: str, places: list[list[int]], side: int):
        self.path, self.places, self.side = path, places, side
        self.array = None

    def __len__(self) -> int:
        return 1 << 20  # endless

    def window(self, number: int) -> np.ndarray:
        """uint8 [side, side]."""
        self.array = open_zarr(self.path) if self.array is None else self.array
        top, left = self.places[number % len(self.places)]
        return np.asarray(self.array[top : top + self.side, left : left + self.side])

    def __getitem__(self, index: int) -> tuple[int, np.ndarray]:
        return index, np.stack([self.window(index), self.window(index + 1)])[..., None]


def by_zarr(request: dict[str, Any], kept: dict[str, Pairs]) -> dict[str, Any]:
    """One window after the other."""
    path = request["path"]
    if path not in kept:
        kept.clear()
        kept[path] = Pairs(path, request["places"], request["side"])
        kept[path].window(0)
    pairs, numbers = kept[path], range(len(request["places"]))
    start = time.perf_counter()
    for number in numbers:
        pairs.window(number)
    seconds = time.perf_counter() - start
    digests = [zlib.crc32(np.ascontiguousarray(pairs.window(number))) for number in numbers]
    return {"rate": len(numbers) / seconds, "digests": digests}


def by_dataloader(request: dict[str, Any]) -> dict[str, Any]:
    """Shuffled batches of pairs."""
    from torch.utils.data import DataLoader  # pyright: ignore[reportMissingImports]

    workers, size, digests = request["workers"], request["pairs"], request["digests"]
    pairs: Any = Pairs(request["path"], request["places"], request["side"])
    # Workers are started afresh: a fork with zarr's threads about would hang.
    context = "spawn" if workers else None
    batches = iter(
        DataLoader(pairs, size, shuffle=True, num_workers=workers, multiprocessing_context=context)
    )
    for _ in range(2 * workers + WARM - 1):
        next(batches)
    index, patches = next(batches)
    start = time.perf_counter()
    windows = sum(next(batches)[1].shape[0] * 2 for _ in range(request["batches"]))
    seconds = time.perf_counter() - start
    for k, pair in zip(index.tolist(), patches.numpy(), strict=True):
        for number, patch in zip((k, k + 1), pair, strict=True):
            assert zlib.crc32(patch) == digests[number % len(digests)], f"window {number} differs"
    return {"rate": windows / seconds}


def main() -> None:
    """Answers until stdin ends."""
    versions = {"python": sys.version.split()[0]}
    for name in ("numpy", "tifffile", "imagecodecs", "zarr", "torch"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    print(json.dumps(versions), flush=True)
    kept: dict[str, Pairs] = {}
    for line in sys.stdin:
        request = json.loads(line)
        for thread in os.listdir("/proc/self/task"):  # zarr's, too
            os.sched_setaffinity(int(thread), request["cores"])
        if request["reader"] == "zarr":
            print(json.dumps(by_zarr(request, kept)), flush=True)
        else:
            print(json.dumps(by_dataloader(request)), flush=True)


if __name__ == "__main__":
    main()
