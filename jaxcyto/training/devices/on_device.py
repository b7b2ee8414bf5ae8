"""Keep the training patches in the memory of the devices (`data.on_device`).

The patches are read and sent to each device once. A batch then holds the indices of its patches,
and the step gathers them. The batches equal those that are read from disk, bit for bit.
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

SHARE = 0.7  # of a device's free memory. The rest is for the state and the activations of a step
STORED, PLACES = "stored_patches", "patch_places"  # fields of a batch


class ResidentSource:
    """A source of the training pairs that gives indices of patches instead of images.

    Attributes:
        arrays: fields to add to each batch. They hold all patches [local devices, N, s, s] uint8,
            a full copy on each device.
    """

    def __init__(self, source: PairSource, table: PairTable, threads: int):
        """Read the patches of all training pairs, and copy them to the devices.

        Args:
            source: reads patches and targets
            table: the pairs
            threads: threads that read patches

        Raises:
            InputError: there are no training pairs, or their patches do not fit into the memory of
                the devices or of the host.
            ReadError: a patch cannot be read.
        """
        self._source = source
        pairs = table.of_split("train")
        if not len(pairs):
            raise InputError("no training pairs; see the split column of the section tables")
        patches = np.unique([table.first[pairs], table.second[pairs]])
        self._patches = patches  # sorted, so that __getitem__ can find a patch by binary search
        self._table = table
        first = source.read_patch(patches[0])
        needed, free = len(patches) * first.nbytes, SHARE * parallel.free_bytes()
        if needed > min(free, parallel.host_bytes()):
            raise InputError(
                f"data.on_device: {len(patches)} training patches take {needed / 2**30:.1f} GiB, "
                f"but only {min(free, parallel.host_bytes()) / 2**30:.1f} GiB are free beside what "
                "training needs; set it to False to read from disk"
            )
        images = np.empty((len(patches), *first.shape), np.uint8)

        def read(i: int) -> None:
            images[i] = source.read_patch(patches[i])

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
    """Replace the indices of patches in a batch by the patches. For use inside a step.

    Args:
        batch: a batch with `stored_patches` [N, s, s] and `patch_places` [b, 2], or any other
            batch, which is returned unchanged

    Returns:
        The batch with `patches` [b, 2, s, s, 1].
    """
    if STORED not in batch:
        return batch
    kept = {key: value for key, value in batch.items() if key not in (STORED, PLACES)}
    images: jax.Array = batch[STORED]
    return kept | {"patches": images[batch[PLACES]][..., None]}
