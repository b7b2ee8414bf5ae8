"""Read batches of pairs of patches from brains on disk, through grain.

Images stay uint8 up to the device. The order of pairs depends on the seed only, and not on threads,
processes or workers, so a run can resume at any step.
"""

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import grain
import numpy as np

from jaxcyto.brain import manifest
from jaxcyto.brain.sampling.patches import corner_px
from jaxcyto.brain.sections.fingerprint import fingerprints
from jaxcyto.brain.sections.section import Section, open_section
from jaxcyto.config import DataConfig, Scales
from jaxcyto.data.loading import Batch, mean_and_std
from jaxcyto.data.pair_table import PairTable
from jaxcyto.data.skipping import ReadError, Skipped
from jaxcyto.errors import InputError
from jaxcyto.utils.median import geometric_median

SCALE_PATCHES = 256  # patches read to fit the input's mean and standard deviation


class PairSource:
    """Random access to the patches and targets of a pair by its index.

    Sections are opened on first use and stay open. Reading is thread-safe.
    """

    def __init__(self, table: PairTable, config: DataConfig):
        self._table = table
        self._patch_px = config.patch_px
        self._um_per_px = config.um_per_px
        self._sections: dict[tuple[int, int], Section] = {}

    def __len__(self) -> int:
        return len(self._table.first)

    def __getitem__(self, index) -> Batch:
        pair = int(self._table.first[index]), int(self._table.second[index])
        patches = np.stack([self.read_patch(patch) for patch in pair])[..., None]
        return {"patches": patches} | self.targets(index)

    def targets(self, index) -> Batch:
        """Return everything about a pair except its images."""
        table = self._table
        return {
            "distance_mm": table.distance_mm[index],
            "coordinates_mm": table.coordinates_mm[[table.first[index], table.second[index]]],
            "index": np.int32(index),
            "valid": np.bool_(True),
        }

    def open_sections(self, threads: int, skipped: Skipped | None) -> None:
        """Read the headers of all sections with a patch, so that a bad file fails before training.

        Args:
            threads: number of reading threads.
            skipped: if given, training sections may fail. They are tried again when needed.

        Raises:
            ReadError: a section image cannot be read.
        """
        table, train = self._table, manifest.SPLITS.index("train")

        def check(patch: int) -> None:
            k, j = table.locate(patch)
            try:
                with self._named(k, j):
                    self._section(k, int(table.patches[k].section[j]))
            except ReadError:
                if skipped is None or table.patches[k].split[j] != train:
                    raise

        first = [np.unique(p.section, return_index=True)[1] for p in table.patches]
        patches = np.concatenate([s + f for s, f in zip(table.patch_start, first, strict=False)])
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(check, patches.tolist()))

    def training_fingerprints(self, threads: int) -> dict[str, str | None]:
        """Return the fingerprint of each section with a training patch, by BRAIN/SECTION.

        It is None for a section that cannot be read.
        """
        sections = {}
        for name, (k, row) in self._table.training_rows.items():
            brain = self._table.brains[k]
            entry = brain.sections[row]
            unopened = Section(entry.image, entry.pixel_um, brain.background, brain.bits)
            sections[name] = self._sections.get((k, row), unopened)
        return fingerprints(sections, threads)

    def read_patch(self, patch: int | np.integer) -> np.ndarray:
        """Read the image of the patch with this index, uint8 [patch_px, patch_px].

        Raises:
            ReadError: the image cannot be read. The message names section, patch and file.
        """
        k, j = self._table.locate(patch)
        patches = self._table.patches[k]
        row = int(patches.section[j])
        side = self._patch_px
        with self._named(k, j):
            section = self._section(k, row)
            left, top = corner_px(patches.center_px[j], section, self._um_per_px, side)
            return section.read_at(self._um_per_px, top, left, side, side)

    @contextlib.contextmanager
    def _named(self, brain: int, patch: int) -> Iterator[None]:
        try:
            yield
        except (InputError, OSError) as error:
            row = self._table.brains[brain].sections[self._table.patches[brain].section[patch]]
            message = f"section {row.name}, patch {patch}: {error}"
            raise ReadError(row.image, message) from error

    def _section(self, brain: int, row: int) -> Section:
        key = brain, row
        if key not in self._sections:
            own = self._table.brains[brain]
            entry = own.sections[row]
            self._sections[key] = open_section(
                entry.image, entry.pixel_um, own.background, own.bits
            )
        return self._sections[key]


class ExampleSource(Protocol):
    """Random access to the examples of a data set by their index."""

    def __getitem__(self, index) -> Batch: ...


def pair_train_batches(
    source: ExampleSource,
    table: PairTable,
    config: DataConfig,
    seed: int,
    *,
    process: int = 0,
    processes: int = 1,
    skipped: Skipped | None = None,
    for_steps: bool = False,
) -> grain.MapDataset:
    """Return an endless sequence of training batches. Element k is the batch of step k + 1.

    Pairs are reshuffled in each epoch. Each process gets `batch_pairs / processes` pairs, and the
    global batch is the same for any number of processes.

    Args:
        source: source of the pairs.
        table: table of the pairs.
        config: size of the global batch, and whether to add `all_distances_mm`.
        seed: seed of the order.
        process, processes: index of this process and number of processes.
        skipped: if given, a pair that cannot be read is replaced by a random training pair.
        for_steps: whether training steps use the batches, so that failed reads count in `skipped`.

    Raises:
        InputError: the batch size is not divisible by the number of processes or exceeds the number
            of training pairs, or `skipped` does not work with the config.
    """
    size = config.batch_pairs
    if size % processes:
        raise InputError(f"data.batch_pairs = {size} must be divisible by {processes} processes")
    pairs = table.of_split("train")
    if len(pairs) < size:
        raise InputError(
            f"{len(pairs)} training pairs are fewer than data.batch_pairs = {size}. "
            "Make more pairs or smaller batches"
        )
    if config.all_distances and skipped is not None and processes > 1:
        raise InputError(
            "data.on_error = 'skip' with data.all_distances takes one process only, because no "
            "process knows what the others have skipped. Set data.on_error = 'raise'"
        )

    def load(position: int, pair: int) -> Batch:
        def draw(attempt: int) -> Batch:
            if not attempt:
                return source[pair]
            rng = np.random.default_rng((seed, position, attempt))
            return source[pairs[rng.integers(len(pairs))]]

        if skipped is None:
            return draw(0)
        return skipped.read(draw, position // size + 1 if for_steps else 0, position)

    order = grain.MapDataset.source(pairs.tolist()).seed(seed).shuffle().repeat()
    items = order.map_with_index(load)[process::processes]
    batches = items.batch(size // processes, drop_remainder=True)
    if config.all_distances:
        ordered = order.batch(size, drop_remainder=True)

        def add_distances(k: int, batch: Batch) -> Batch:
            index = batch["index"]
            if processes > 1:  # columns follow the order of gathering, process by process
                drawn = np.asarray(ordered[k])
                index = np.concatenate([drawn[p::processes] for p in range(processes)])
            patches = np.stack([table.first[index], table.second[index]], axis=1).reshape(-1)
            rows = len(patches) // processes
            block = table.distances_mm(patches)[process * rows : (process + 1) * rows]
            return batch | {"all_distances_mm": block}

        batches = batches.map_with_index(add_distances)
    return batches


def pair_eval_batches(
    source: PairSource,
    table: PairTable,
    config: DataConfig,
    pairs: np.ndarray,
    *,
    process: int = 0,
    processes: int = 1,
) -> grain.MapDataset:
    """Return batches of the given pairs, in order.

    The last batch is padded, and `valid` is False for its padding. Each process gets a contiguous
    part of `batch_pairs / processes` pairs of each global batch.

    Args:
        source: source of the pairs.
        table: table of the pairs.
        config: size of the global batch, and whether to add `all_distances_mm`.
        pairs: indices of the pairs.
        process, processes: index of this process and number of processes.
    """
    size = config.batch_pairs
    steps = -(-len(pairs) // size)
    own = slice(process * size // processes, (process + 1) * size // processes)

    def load(k: int) -> Batch:
        index = pairs[k * size : (k + 1) * size]
        # The padding consists of distinct pairs, because batch statistics in train mode use it.
        padded = np.concatenate([index, pairs[np.arange(size - len(index)) % len(pairs)]])
        items = [source[i] for i in padded[own]]
        batch = {key: np.stack([item[key] for item in items]) for key in items[0]}
        batch["valid"] = (np.arange(size) < len(index))[own]
        if config.all_distances:
            patches = np.stack([table.first[padded], table.second[padded]], axis=1).reshape(-1)
            batch["all_distances_mm"] = table.distances_mm(patches)[2 * own.start : 2 * own.stop]
        return batch

    return grain.MapDataset.range(steps).map(load)


def fit_scales(source: PairSource, table: PairTable, skipped: Skipped | None = None) -> Scales:
    """Fit the scales of outputs and input (`config.Scales`) on the training pairs.

    Args:
        source: source of the pairs.
        table: table of the pairs.
        skipped: if given, patches that cannot be read are replaced by other training patches.

    Raises:
        InputError: there are no training pairs.
        ReadError: a patch cannot be read and `skipped` is None.
    """
    pairs = table.of_split("train")
    if not len(pairs):
        raise InputError("no training pairs. See the split column of the section tables")
    patches = np.unique([table.first[pairs], table.second[pairs]])
    coordinates = table.coordinates_mm[patches].astype(np.float64)
    chosen = patches[np.linspace(0, len(patches) - 1, min(SCALE_PATCHES, len(patches))).astype(int)]
    sums = np.zeros(3)  # number of pixels, sum of values, sum of squares
    for patch in chosen:

        def draw(attempt: int, patch: int = patch) -> np.ndarray:
            if attempt:
                patch = np.random.default_rng((patch, attempt)).choice(patches)
            return source.read_patch(patch)

        gray = (skipped.read(draw, 0, patch) if skipped else draw(0)).astype(np.float64)
        sums += gray.size, gray.sum(), (gray**2).sum()
    mean, std = mean_and_std(sums)
    distance = table.distance_mm[pairs].astype(np.float64)
    low, high = coordinates.min(axis=0), coordinates.max(axis=0)
    high = np.where(high - low < 1e-3, low + 1.0, high)  # constant if there is only one section
    return Scales(
        distance_mm=float(distance.mean()),
        coordinate_low_mm=tuple(low.tolist()),
        coordinate_high_mm=tuple(high.tolist()),
        distance_median_mm=float(np.median(distance)),
        coordinate_median_mm=tuple(geometric_median(coordinates).tolist()),
        input_mean=mean,
        input_std=std,
    )
