"""Training patches that stay in the memory of the devices, `data.on_device`.

Read and sent once; a batch then holds the places of its patches, and the step picks them out. The
batches are those of the loader that reads from disk, bit for bit.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np

from jaxcyto.data.loading import Batch
from jaxcyto.data.pair_batches import PairSource
from jaxcyto.data.pair_table import PairTable
from jaxcyto.errors import InputError
from jaxcyto.training.devices import parallel
from jaxcyto.training.log import logger

SHARE = 0.7  # of a device's free memory: the rest is for the state and the maps of a step
STORED, PLACES = "stored_patches", "patch_places"  # fields of a batch


class ResidentSource:
    """`PairSource` for the training pairs, without images.

    Attributes:
        arrays: what each batch holds beside its own fields: all patches, on every local device.
    """

    def __init__(self, source: PairSource, table: PairTable, threads: int):
        """Reads the patches of all training pairs.

        Raises:
            InputError: they do not fit.
            ReadError: a patch cannot be read.
        """
        self._source = source
        pairs = table.of_split("train")
        if not len(pairs):
            raise InputError("no training pairs; see the split column of the section tables")
        patches = np.unique([table.first[pairs], table.second[pairs]])
        self._patches = patches  # sorted: the place of a patch is found by bisection
        self._table = table
        first = source.read_patch(patches[0])
        needed, free = len(patches) * first.nbytes, SHARE * parallel.free_bytes()
        if needed > min(free, parallel.host_bytes()):
            raise InputError(
                f"data.on_device: {len(patches)} training patches take {needed / 2**30:.1f} GiB, "
                f"but there is room for {min(free, parallel.host_bytes()) / 2**30:.1f} beside what "
                "training needs; leave it False to read from disk"
            )
        images = np.empty((len(patches), *first.shape), np.uint8)

        def read(place: int) -> None:
            images[place] = source.read_patch(patches[place])

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(read, range(len(patches))))
        self.arrays: Batch = {STORED: parallel.copy_to_devices(images)}
        logger.info("%d training patches on each device, %.2f GiB", len(patches), needed / 2**30)

    def __getitem__(self, index) -> Batch:
        table = self._table
        pair = [int(table.first[index]), int(table.second[index])]
        return self._source.targets(index) | {
            PLACES: np.searchsorted(self._patches, pair).astype(np.int32)
        }


def take_patches(batch: Batch) -> Batch:
    """Inside a step: `patches` [b, 2, s, s, 1] of a batch, if it only says where they are."""
    if STORED not in batch:
        return batch
    kept = {key: value for key, value in batch.items() if key not in (STORED, PLACES)}
    images: jax.Array = batch[STORED]
    return kept | {"patches": images[batch[PLACES]][..., None]}
