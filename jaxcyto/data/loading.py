"""Read batches ahead and compute statistics of the input, for the loaders of both tasks."""

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
    """Iterate over batches that threads read ahead.

    Args:
        batches: random access to batches.
        threads: number of reading threads and of batches read ahead.
        place: wraps the batches so that they are put on the devices.
        start: index of the first batch.
    """
    options = grain.ReadOptions(threads, prefetch_buffer_size=threads)
    iterator = iter(place(batches[start:].to_iter_dataset(options)))
    try:
        yield from iterator
    finally:  # ends the threads, also if the consumer stops early
        iterator.close()


def mean_and_std(sums: np.ndarray) -> tuple[float, float]:
    """Return the mean and standard deviation of gray values.

    Args:
        sums: number of pixels, sum of gray values and sum of their squares, float64 [3].

    Returns:
        The mean, and the standard deviation or 1 if that is larger, so that constant images can be
        divided by it.
    """
    mean, second = sums[1:] / sums[0]
    return float(mean), float(max(np.sqrt(max(second - mean**2, 0.0)), 1.0))
