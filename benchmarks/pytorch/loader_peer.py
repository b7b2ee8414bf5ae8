"""Read windows with zarr over tifffile's store, alone or in a PyTorch DataLoader.

`loader.py` starts this process. It prints the versions of its packages and then answers each line
of JSON on stdin with one on stdout. It does not need jaxcyto.
"""

import importlib.metadata
import json
import os
import sys
import time
import zlib
from typing import Any

import numpy as np

WARM = 4  # batches that are not timed, after those that a DataLoader reads ahead


def open_zarr(path: str) -> Any:
    """Open a section as a zarr array, which decodes tiles on access."""
    import tifffile
    import zarr  # pyright: ignore[reportMissingImports]

    return zarr.open(tifffile.imread(path, aszarr=True), mode="r")


class Pairs:
    """The pairs of windows of `loader.py`. Each worker opens the file itself."""

    def __init__(self, path: str, places: list[list[int]], side: int):
        self.path, self.places, self.side = path, places, side
        self.array = None

    def __len__(self) -> int:
        return 1 << 20  # endless

    def window(self, index: int) -> np.ndarray:
        """Read a window, uint8 [side, side]."""
        self.array = open_zarr(self.path) if self.array is None else self.array
        top, left = self.places[index % len(self.places)]
        return np.asarray(self.array[top : top + self.side, left : left + self.side])

    def __getitem__(self, index: int) -> tuple[int, np.ndarray]:
        return index, np.stack([self.window(index), self.window(index + 1)])[..., None]


def by_zarr(request: dict[str, Any], kept: dict[str, Pairs]) -> dict[str, Any]:
    """Time reading one window after the other."""
    path = request["path"]
    if path not in kept:
        kept.clear()
        kept[path] = Pairs(path, request["places"], request["side"])
        kept[path].window(0)
    pairs, indices = kept[path], range(len(request["places"]))
    start = time.perf_counter()
    for index in indices:
        pairs.window(index)
    seconds = time.perf_counter() - start
    digests = [zlib.crc32(np.ascontiguousarray(pairs.window(index))) for index in indices]
    return {"rate": len(indices) / seconds, "digests": digests}


def by_dataloader(request: dict[str, Any]) -> dict[str, Any]:
    """Time reading shuffled batches of pairs, and check the windows of one batch."""
    from torch.utils.data import DataLoader  # pyright: ignore[reportMissingImports]

    workers, size, digests = request["workers"], request["pairs"], request["digests"]
    pairs: Any = Pairs(request["path"], request["places"], request["side"])
    # spawn, because a fork of a process with zarr's threads would hang
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
    """Answer requests until stdin ends."""
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
        for thread in os.listdir("/proc/self/task"):  # including zarr's threads
            os.sched_setaffinity(int(thread), request["cores"])
        if request["reader"] == "zarr":
            print(json.dumps(by_zarr(request, kept)), flush=True)
        else:
            print(json.dumps(by_dataloader(request)), flush=True)


if __name__ == "__main__":
    main()
