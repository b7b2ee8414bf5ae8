"""Pairs of patches from brains on disk: a random-access source and its grain pipelines.

Images stay uint8 up to the device. The order of pairs is a function of (seed, step) alone: not of
threads, processes or workers, so that a run resumes by its step number.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import grain
import numpy as np

from jaxcyto.brain import manifest
from jaxcyto.brain.check_results import check_pairs
from jaxcyto.brain.files import file_sha256
from jaxcyto.brain.matrix_file import MatrixFile
from jaxcyto.brain.pairs import load_pairs, open_distances
from jaxcyto.brain.patches import Patches, load_patches
from jaxcyto.brain.sections import Section, open_section
from jaxcyto.config import DataConfig, Scales
from jaxcyto.errors import InputError
from jaxcyto.faults import ReadError, Skipped

Batch = dict[str, Any]
SCALE_PATCHES = 256  # patches read to fit the input's mean and standard deviation


@dataclasses.dataclass(frozen=True, eq=False)
class PairTable:
    """The pairs of all brains of a config, numbered one after the other.

    `first` and `second` [P] count patches over all brains; patch j of brain k has the number
    `patch_start[k] + j`.
    """

    brains: tuple[manifest.Brain, ...]
    patches: tuple[Patches, ...]
    patch_start: np.ndarray  # [brains + 1]
    first: np.ndarray  # [P]
    second: np.ndarray  # [P]
    distance_mm: np.ndarray  # float32 [P]
    split: np.ndarray  # uint8 [P], index into manifest.SPLITS
    coordinates_mm: np.ndarray  # float32 [patches, 3], as targets
    all_distances_mm: tuple[MatrixFile, ...] | None  # one [N, N] a brain
    keys: tuple[str, ...]  # SHA-256 of each brain's file of pairs

    def of_split(self, split: str) -> np.ndarray:
        """Numbers of the pairs in a split, in order."""
        return np.flatnonzero(self.split == manifest.SPLITS.index(split))

    @property
    def training_sections(self) -> list[str]:
        """BRAIN/SECTION of every section with a training patch."""
        train = manifest.SPLITS.index("train")
        return sorted(
            f"{brain.root.name}/{brain.sections[row].name}"
            for brain, patches in zip(self.brains, self.patches, strict=True)
            for row in np.unique(patches.section[patches.split == train])
        )

    def locate(self, patch: int | np.integer) -> tuple[int, int]:
        """(brain, patch within the brain) of a patch number."""
        brain = int(np.searchsorted(self.patch_start, patch, side="right")) - 1
        return brain, int(patch - self.patch_start[brain])

    def distances_mm(self, patches: np.ndarray) -> np.ndarray:
        """Distances [N, N] mm between patches [N]; inf between hemispheres and brains."""
        if self.all_distances_mm is None:
            raise ValueError("the table was opened without all_distances")
        block = np.full((len(patches), len(patches)), np.inf, np.float32)
        brain = np.searchsorted(self.patch_start, patches, side="right") - 1
        for k, matrix in enumerate(self.all_distances_mm):
            rows = np.flatnonzero(brain == k)
            local = patches[rows] - self.patch_start[k]
            block[np.ix_(rows, rows)] = matrix.block(local)
        return block


def open_pairs(config: DataConfig) -> PairTable:
    """Reads brains, patches and pairs named by a config.

    Raises:
        InputError: a file is missing or damaged, or patches were sampled for another size.
    """
    if not config.brains:
        raise InputError("data.brains is empty; give one or more folders with a brain.toml")
    brains, patches, first, second, distance, split = [], [], [], [], [], []
    matrices, keys = [], []
    start = [0]
    for folder in config.brains:
        brain = manifest.read_brain(folder)
        pairs_path = brain.root / config.pairs
        pairs = load_pairs(pairs_path)
        sampled = load_patches(brain.root / pairs.patches_file, brain)
        check_pairs(pairs_path, pairs, sampled)
        for key, wanted in (("patch_px", config.patch_px), ("um_per_px", config.um_per_px)):
            found = sampled.settings[key]
            if not np.isclose(found, wanted):
                raise InputError(
                    f"{brain.root / pairs.patches_file}: sampled with {key} = {found:g}, but "
                    f"data.{key} = {wanted:g}; sample again or change the config"
                )
        if config.all_distances:
            matrices.append(open_distances(brain.root, pairs, len(sampled)))
        brains.append(brain)
        keys.append(file_sha256(pairs_path))
        patches.append(sampled)
        first.append(pairs.first.astype(np.int64) + start[-1])
        second.append(pairs.second.astype(np.int64) + start[-1])
        distance.append(pairs.distance_mm)
        split.append(sampled.split[pairs.first])
        start.append(start[-1] + len(sampled))
    coordinates = np.concatenate([p.position_mm for p in patches]).astype(np.float32)
    if config.absolute_x:
        coordinates[:, 0] = np.abs(coordinates[:, 0])
    return PairTable(
        brains=tuple(brains),
        patches=tuple(patches),
        patch_start=np.array(start),
        first=np.concatenate(first),
        second=np.concatenate(second),
        distance_mm=np.concatenate(distance).astype(np.float32),
        split=np.concatenate(split),
        coordinates_mm=coordinates,
        all_distances_mm=tuple(matrices) if config.all_distances else None,
        keys=tuple(keys),
    )


class PairSource:
    """Random access: the number of a pair -> its patches and targets (`design`: pretext batch).

    Sections are opened on first use and stay open; reading is thread-safe.
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
        """Everything of a pair but its images."""
        table = self._table
        return {
            "distance": table.distance_mm[index],
            "coordinates": table.coordinates_mm[[table.first[index], table.second[index]]],
            "index": np.int32(index),
            "valid": np.bool_(True),
        }

    def open_sections(self, threads: int, skipped: Skipped | None) -> None:
        """Reads the headers of all sections with a patch: better now than after days of training.

        Args:
            threads: that read.
            skipped: where given, training sections may fail; they are tried again later.

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

    def read_patch(self, patch: int | np.integer) -> np.ndarray:
        """The image of a patch number, uint8 [patch_px, patch_px].

        Raises:
            ReadError: names section, patch and file.
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
            entry = self._table.brains[brain].sections[row]
            self._sections[key] = open_section(
                entry.image, entry.pixel_um, self._table.brains[brain].background
            )
        return self._sections[key]


def corner_px(
    center_px: np.ndarray, section: Section, um_per_px: float, side: int
) -> tuple[int, int]:
    """(left, top) of a patch on the grid of `um_per_px` (see `Section.read_at`).

    Args:
        center_px: (column, row) at full resolution; met to half a pixel of the patch's grid.
        section: gives the ratio of the two resolutions.
        um_per_px: of the patch.
        side: of the patch, px.
    """
    assert section.pixel_um is not None
    ratio = um_per_px / section.pixel_um
    left, top = np.rint((center_px + 0.5) / ratio - side / 2).astype(int).tolist()
    return left, top


class Source(Protocol):
    """Gives the example of a number."""

    def __getitem__(self, index) -> Batch: ...


def train_batches(
    source: Source,
    table: PairTable,
    config: DataConfig,
    seed: int,
    *,
    process: int = 0,
    processes: int = 1,
    skipped: Skipped | None = None,
    counted: bool = False,
) -> grain.MapDataset:
    """Endless shuffled batches, reshuffled each epoch; element k is the batch of step k + 1.

    Each process gets `batch_pairs / processes` pairs; the global batch is the same for any
    number of processes.

    Args:
        source: of the pairs.
        table: of the pairs.
        config: sizes.
        seed: of the order.
        process, processes: which share.
        skipped: where given, a training pair drawn at random takes the place of one that cannot
            be read.
        counted: whether that is noted as of a training step.
    """
    size = config.batch_pairs
    if size % processes:
        raise InputError(f"data.batch_pairs = {size} must be divisible by {processes} processes")
    pairs = table.of_split("train")
    if len(pairs) < size:
        raise InputError(
            f"{len(pairs)} training pairs are fewer than data.batch_pairs = {size}; "
            "make more pairs or smaller batches"
        )
    if config.all_distances and skipped is not None and processes > 1:
        raise InputError(
            "data.on_error = 'skip' with data.all_distances: takes one process, for none knows "
            "what the others have skipped; set data.on_error = 'raise'"
        )

    def load(place: int, pair: int) -> Batch:
        def draw(attempt: int) -> Batch:
            if not attempt:
                return source[pair]
            rng = np.random.default_rng((seed, place, attempt))
            return source[pairs[rng.integers(len(pairs))]]

        if skipped is None:
            return draw(0)
        return skipped.read(draw, place // size + 1 if counted else 0, place)

    numbers = grain.MapDataset.source(pairs.tolist()).seed(seed).shuffle().repeat()
    items = numbers.map_with_index(load)[process::processes]
    batches = items.batch(size // processes, drop_remainder=True)
    if config.all_distances:
        ordered = numbers.batch(size, drop_remainder=True)

        def add_distances(k: int, batch: Batch) -> Batch:
            index = batch["index"]
            if processes > 1:  # columns in the order in which devices gather: process by process
                drawn = np.asarray(ordered[k])
                index = np.concatenate([drawn[p::processes] for p in range(processes)])
            patches = np.stack([table.first[index], table.second[index]], axis=1).reshape(-1)
            rows = len(patches) // processes
            block = table.distances_mm(patches)[process * rows : (process + 1) * rows]
            return batch | {"all_distances": block}

        batches = batches.map_with_index(add_distances)
    return batches


def eval_batches(
    source: PairSource,
    table: PairTable,
    config: DataConfig,
    pairs: np.ndarray,
    *,
    process: int = 0,
    processes: int = 1,
) -> grain.MapDataset:
    """The given pairs in order, once; the last batch is padded with `valid` False.

    Each process gets `batch_pairs / processes` pairs in a row of each global batch.
    """
    size = config.batch_pairs
    steps = -(-len(pairs) // size)
    own = slice(process * size // processes, (process + 1) * size // processes)

    def load(k: int) -> Batch:
        index = pairs[k * size : (k + 1) * size]
        # the padding is distinct pairs, for batch statistics in train mode see it
        padded = np.concatenate([index, pairs[np.arange(size - len(index)) % len(pairs)]])
        items = [source[i] for i in padded[own]]
        batch = {key: np.stack([item[key] for item in items]) for key in items[0]}
        batch["valid"] = (np.arange(size) < len(index))[own]
        if config.all_distances:
            patches = np.stack([table.first[padded], table.second[padded]], axis=1).reshape(-1)
            batch["all_distances"] = table.distances_mm(patches)[2 * own.start : 2 * own.stop]
        return batch

    return grain.MapDataset.range(steps).map(load)


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


def fit_scales(source: PairSource, table: PairTable, skipped: Skipped | None = None) -> Scales:
    """Scales of outputs and inputs from the training pairs alone (`config.Scales`).

    Args:
        source: of the pairs.
        table: of the pairs.
        skipped: where given, other training patches take the place of those that cannot be read.
    """
    pairs = table.of_split("train")
    if not len(pairs):
        raise InputError("no training pairs; see the split column of the section tables")
    patches = np.unique([table.first[pairs], table.second[pairs]])
    coordinates = table.coordinates_mm[patches].astype(np.float64)
    chosen = patches[np.linspace(0, len(patches) - 1, min(SCALE_PATCHES, len(patches))).astype(int)]
    sums = np.zeros(3)  # of pixels, values, squares
    for patch in chosen:

        def draw(attempt: int, patch: int = patch) -> np.ndarray:
            if attempt:
                patch = np.random.default_rng((patch, attempt)).choice(patches)
            return source.read_patch(patch)

        grey = (skipped.read(draw, 0, patch) if skipped else draw(0)).astype(np.float64)
        sums += grey.size, grey.sum(), (grey**2).sum()
    mean, second = sums[1:] / sums[0]
    distance = table.distance_mm[pairs].astype(np.float64)
    low, high = coordinates.min(axis=0), coordinates.max(axis=0)
    high = np.where(high - low < 1e-3, low + 1.0, high)  # one section only: the axis is constant
    return Scales(
        distance_mm=float(distance.mean()),
        coordinate_low_mm=tuple(low.tolist()),
        coordinate_high_mm=tuple(high.tolist()),
        distance_median_mm=float(np.median(distance)),
        coordinate_median_mm=tuple(np.median(coordinates, axis=0).tolist()),
        input_mean=float(mean),
        input_std=float(max(np.sqrt(max(second - mean**2, 0.0)), 1.0)),
    )
