"""Windows of annotated sections: a random-access source and its grain pipelines.

Training draws windows balanced over classes, evaluation walks over a grid of them. A draw is a
function of (seed, number) alone: not of threads, processes or workers, so that a run resumes by
its step number. Images stay uint8 up to the device.
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

SCALE_IMAGES = 256  # draws read to fit the input's mean and standard deviation
ENDLESS = 1 << 40  # batches


class SegmentSource:
    """Reads windows and draws those of training; thread-safe."""

    def __init__(self, table: SegmentTable):
        self._table = table
        entries = np.flatnonzero(table.in_split(table.blocks["section"], "train"))
        label = table.blocks["label"][entries]
        # Of each class with training pixels: its blocks, and their pixels added up.
        of_class = [entries[label == number] for number in np.unique(label)]
        self._classes = [(e, np.cumsum(table.blocks["count"][e], dtype=np.int64)) for e in of_class]

    def draw(self, seed: int, number: int, attempt: int = 0) -> Window:
        """Training window `number` of a seed; further attempts are other windows.

        A class is drawn, each as likely as the other; then one of its annotated pixels; then
        where in the window this pixel lies. Near the border of a section windows overhang, so
        that every pixel is as likely at every place.

        Raises:
            ReadError: the label image cannot be read.
        """
        table = self._table
        rng = np.random.default_rng((seed, number, attempt) if attempt else (seed, number))
        entries, total = self._classes[rng.integers(len(self._classes))]
        pixel = int(rng.integers(total[-1]))
        place = int(np.searchsorted(total, pixel, side="right"))
        block = table.blocks[entries[place]]
        section, row, column = (int(block[key]) for key in ("section", "row", "column"))
        before = int(total[place]) - int(block["count"])
        labels = self.read_label(Window(section, row, column))
        y, x = divmod(int(np.flatnonzero(labels == block["label"])[pixel - before]), table.side)
        up, left = rng.integers(table.side, size=2).tolist()
        return Window(section, row + y - up, column + x - left)

    def example(
        self, seed: int, number: int, skipped: Skipped | None, step: int = 0
    ) -> tuple[Window, Batch]:
        """A training window and what is read of it; of later attempts where `skipped` is given."""

        def draw(attempt: int) -> tuple[Window, Batch]:
            window = self.draw(seed, number, attempt)
            return window, self.read(window)

        return draw(0) if skipped is None else skipped.read(draw, step, number)

    def describe(self, seed: int, number: int, skipped: Skipped | None = None) -> str:
        """What a draw shows, for messages; `number` is its `index` in the batch."""
        return self._table.describe_window(self.example(seed, number, skipped)[0])

    def read(self, window: Window) -> Batch:
        """`image`, `label` and, where the table has them, `atlas` of a window."""
        item = {"image": self.read_image(window), "label": self.read_label(window)}
        if self._table.sections[window.section].atlas is not None:
            item["atlas"] = self.read_atlas(window)
        return item

    def read_image(self, window: Window) -> np.ndarray:
        """uint8 [image_px, image_px, 1]; outside of the section background."""
        table, place = self._table, (window.row, window.column)
        with self._named(window, "image") as section:
            return windows.read_image(
                section.image, table.um_per_px, table.geometry, *place, table.side
            )

    def read_label(self, window: Window) -> np.ndarray:
        """uint8 [side, side]; what is not annotated, and outside of the section, 255."""
        table, place = self._table, (window.row, window.column)
        with self._named(window, "label") as section:
            return windows.read_label(section.label, table.factor, *place, table.side)

    def read_atlas(self, window: Window) -> np.ndarray:
        """uint8 [a, a, areas]; outside of the section 0."""
        table, place = self._table, (window.row, window.column)
        with self._named(window, "atlas") as section:
            assert section.atlas is not None, "the table was opened without atlas"
            return windows.read_atlas(section.atlas, table.geometry, *place, table.side)

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
    """Endless batches; element k is the batch of step k + 1, its example i is draw k B + i.

    Each process gets `batch_images / processes` images; the global batch is the same for any
    number of processes. `index` is the number of the draw, modulo 2^31. For `skipped` and
    `for_steps` see `pair_batches.pair_train_batches`.
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
    """The given evaluation windows in order, once; the last batch is padded, `valid` False.

    Each process gets `batch_images / processes` windows in a row of each global batch. `index` is
    the number of the window (see `SegmentTable.window`).
    """
    size = config.batch_images
    start, stop = process * size // processes, (process + 1) * size // processes

    def load(k: int) -> Batch:
        drawn = numbers[k * size : (k + 1) * size]
        # the padding is distinct windows, for batch statistics in train mode see it
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
    """Mean and standard deviation of the gray values of training images.

    Args:
        source: of the windows.
        skipped: where given, other images take the place of those that cannot be read.
    """
    sums = np.zeros(3)  # of pixels, values, squares
    gray = np.arange(256.0)
    for number in range(SCALE_IMAGES):
        image = source.example(0, number, skipped)[1]["image"]
        count = np.bincount(image.ravel(), minlength=256)
        sums += np.array([image.size, count @ gray, count @ gray**2])
    mean, std = mean_and_std(sums)
    return InputScales(input_mean=mean, input_std=std)
