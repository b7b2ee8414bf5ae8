"""What the loaders of both tasks share: reading ahead, and the statistics of the input."""

from collections.abc import Callable, Generator
from typing import Any

import grain
import numpy as np

Batch = dict[str, Any]


def iterate(
    batches: grain.MapDataset,
    threads: int,
    place: Callable[[grain.IterDataset], grain.IterDataset],
    start: int = 0,
) -> Generator[Batch]:
    """Reads ahead in threads from batch `start` on; `place` puts batches on the devices."""
    options = grain.ReadOptions(threads, prefetch_buffer_size=threads)
    iterator = iter(place(batches[start:].to_iter_dataset(options)))
    try:
        yield from iterator
    finally:
        iterator.close()


def mean_and_std(sums: np.ndarray) -> tuple[float, float]:
    """Of gray values, from their number, sum and sum of squares; the latter at least 1."""
    mean, second = sums[1:] / sums[0]
    return float(mean), float(max(np.sqrt(max(second - mean**2, 0.0)), 1.0))
