"""Read batches of windows of annotated sections, through grain.

Training draws windows that are balanced over classes, and evaluation reads a grid of windows. A
draw depends on the seed and its index only, and not on threads, processes or workers, so a run can
resume at any step. Images stay uint8 up to the device.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import grain
import numpy as np

from jaxcyto.config import InputScales, SegmentData
from jaxcyto.data import windows
from jaxcyto.data.loading import Batch, mean_and_std
from jaxcyto.data.segment_table import AnnotatedSection, SegmentTable, Window
from jaxcyto.data.skipping import ReadError, Skipped
from jaxcyto.errors import InputError

SCALE_IMAGES = 256  # training images read to fit the input's mean and standard deviation
ENDLESS = 1 << 40  # batches, because grain needs a length


class SegmentSource:
    """Reads windows and draws training windows, thread-safe."""

    def __init__(self, table: SegmentTable):
        self._table = table
        entries = np.flatnonzero(table.in_split(table.blocks["section"], "train"))
        label = table.blocks["label"][entries]
        # For each class with training pixels: its blocks, and the cumulative sum of their pixels.
        of_class = [entries[label == value] for value in np.unique(label)]
        self._classes = [(e, np.cumsum(table.blocks["count"][e], dtype=np.int64)) for e in of_class]

    def draw(self, seed: int, number: int, attempt: int = 0) -> Window:
        """Draw a training window.

        The class is drawn first, with equal probabilities, then one of its annotated pixels, and
        then the position of this pixel in the window. Windows may extend beyond the section, so
        each pixel is equally likely at each position in the window.

        Args:
            seed: seed of the run.
            number: index of the draw.
            attempt: 0, or the index of a replacement for a window that cannot be read.

        Raises:
            ReadError: the label image cannot be read.
        """
        table = self._table
        rng = np.random.default_rng((seed, number, attempt) if attempt else (seed, number))
        entries, total = self._classes[rng.integers(len(self._classes))]
        pixel = int(rng.integers(total[-1]))
        chosen = int(np.searchsorted(total, pixel, side="right"))
        block = table.blocks[entries[chosen]]
        section, row, column = (int(block[key]) for key in ("section", "row", "column"))
        before = int(total[chosen]) - int(block["count"])  # pixels of the blocks before this one
        labels = self.read_label(Window(section, row, column))
        y, x = divmod(int(np.flatnonzero(labels == block["label"])[pixel - before]), table.side)
        up, left = rng.integers(table.side, size=2).tolist()
        return Window(section, row + y - up, column + x - left)

    def example(
        self, seed: int, number: int, skipped: Skipped | None, step: int = 0
    ) -> tuple[Window, Batch]:
        """Draw a training window and read it.

        Args:
            seed: seed of the run.
            number: index of the draw.
            skipped: if given, a window that cannot be read is replaced by a later attempt.
            step: training step that uses the window, or 0 for none.

        Raises:
            ReadError: the window cannot be read and `skipped` is None.
            InputError: too many attempts in a row cannot be read.
        """

        def draw(attempt: int) -> tuple[Window, Batch]:
            window = self.draw(seed, number, attempt)
            return window, self.read(window)

        return draw(0) if skipped is None else skipped.read(draw, step, number)

    def describe(self, seed: int, number: int, skipped: Skipped | None = None) -> str:
        """Describe the window of a draw, for messages. `number` is its `index` in the batch."""
        return self._table.describe_window(self.example(seed, number, skipped)[0])

    def read(self, window: Window) -> Batch:
        """Read `image`, `label` and, if the table has atlas images, `atlas` of a window.

        Raises:
            ReadError: a file cannot be read. The message names the section and the window.
        """
        item = {"image": self.read_image(window), "label": self.read_label(window)}
        if self._table.sections[window.section].atlas is not None:
            item["atlas"] = self.read_atlas(window)
        return item

    def read_image(self, window: Window) -> np.ndarray:
        """Read the image of a window, uint8 [image_px, image_px, 1]. Outside, it is background."""
        table, corner = self._table, (window.row, window.column)
        with self._named(window, "image") as section:
            return windows.read_image(
                section.image, table.um_per_px, table.geometry, *corner, table.side
            )

    def read_label(self, window: Window) -> np.ndarray:
        """Read the labels of a window, uint8 [side, side], 255 where not annotated or outside."""
        table, corner = self._table, (window.row, window.column)
        with self._named(window, "label") as section:
            return windows.read_label(section.label, table.factor, *corner, table.side)

    def read_atlas(self, window: Window) -> np.ndarray:
        """Read the atlas of a window, uint8 [a, a, areas]. Outside of the section, it is 0."""
        table, corner = self._table, (window.row, window.column)
        with self._named(window, "atlas") as section:
            assert section.atlas is not None, "the table was opened without atlas"
            return windows.read_atlas(section.atlas, table.geometry, *corner, table.side)

    @contextlib.contextmanager
    def _named(self, window: Window, kind: str) -> Iterator[AnnotatedSection]:
        section = self._table.sections[window.section]
        try:
            yield section
        except (InputError, OSError) as error:
            path: Path = getattr(section.row, kind)
            raise ReadError(path, f"{self._table.describe_window(window)}: {error}") from error


def segment_train_batches(
    source: SegmentSource,
    table: SegmentTable,
    config: SegmentData,
    seed: int,
    *,
    process: int = 0,
    processes: int = 1,
    skipped: Skipped | None = None,
    for_steps: bool = False,
) -> grain.MapDataset:
    """Return an endless sequence of training batches. Element k is the batch of step k + 1.

    Example i of this batch is draw k B + i, where B is the size of the global batch. Each process
    gets B / processes images, and the global batch is the same for any number of processes. `index`
    is the index of the draw modulo 2^31.

    Args:
        source: source of the windows.
        table: sections and windows.
        config: size of the global batch.
        seed: seed of the draws.
        process, processes: index of this process and number of processes.
        skipped: if given, a window that cannot be read is replaced by another draw.
        for_steps: whether training steps use the batches, so that failed reads count in `skipped`.

    Raises:
        InputError: the batch size is not divisible by the number of processes.
    """
    size = config.batch_images
    if size % processes:
        raise InputError(f"data.batch_images = {size} must be divisible by {processes} processes")

    def load(k: int) -> Batch:
        numbers = range(k * size + process, (k + 1) * size, processes)
        step = k + 1 if for_steps else 0
        items = [source.example(seed, n, skipped, step)[1] for n in numbers]
        return _batch(items, numbers, len(numbers))

    return grain.MapDataset.range(ENDLESS).map(load)


def segment_eval_batches(
    source: SegmentSource,
    table: SegmentTable,
    config: SegmentData,
    numbers: np.ndarray,
    *,
    process: int = 0,
    processes: int = 1,
) -> grain.MapDataset:
    """Return batches of the given evaluation windows, in order.

    The last batch is padded, and `valid` is False for its padding. Each process gets a contiguous
    part of `batch_images / processes` windows of each global batch. `index` is the index of the
    window (see `SegmentTable.window`).
    """
    size = config.batch_images
    start, stop = process * size // processes, (process + 1) * size // processes

    def load(k: int) -> Batch:
        drawn = numbers[k * size : (k + 1) * size]
        # The padding consists of distinct windows, because batch statistics in train mode use it.
        padding = numbers[np.arange(size - len(drawn)) % len(numbers)]
        index = np.concatenate([drawn, padding])[start:stop]
        items = [source.read(table.window(n)) for n in index]
        return _batch(items, index, len(drawn) - start)

    return grain.MapDataset.range(-(-len(numbers) // size)).map(load)


def _batch(items: list[Batch], index, valid: int) -> Batch:
    batch = {key: np.stack([item[key] for item in items]) for key in items[0]}
    return batch | {
        "index": np.array([int(n) % (1 << 31) for n in index], np.int32),
        "valid": np.arange(len(items)) < valid,
    }


def fit_input_scales(source: SegmentSource, skipped: Skipped | None = None) -> InputScales:
    """Compute the mean and standard deviation of gray values in `SCALE_IMAGES` training images.

    Args:
        source: source of the windows.
        skipped: if given, images that cannot be read are replaced by others.

    Raises:
        ReadError: an image cannot be read and `skipped` is None.
    """
    sums = np.zeros(3)  # number of pixels, sum of values, sum of squares
    gray = np.arange(256.0)
    for number in range(SCALE_IMAGES):
        image = source.example(0, number, skipped)[1]["image"]
        count = np.bincount(image.ravel(), minlength=256)
        sums += np.array([image.size, count @ gray, count @ gray**2])
    mean, std = mean_and_std(sums)
    return InputScales(input_mean=mean, input_std=std)
