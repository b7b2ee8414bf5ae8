"""Compute the features of patches with a pre-trained network, and look up their areas.

run = load_pretext_run("runs/pretrain")
brain, patches = read_brain("brains/toy"), load_patches("brains/toy/patches.npz")
features = embed_brain(run, brain, patches).features  # [N, 32]
areas = patch_areas(brain, patches)  # class indices [N]
"""

import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxcyto.augment import normalize
from jaxcyto.brain.annotation.surface_labels import vertex_classes
from jaxcyto.brain.manifest import Brain
from jaxcyto.brain.sampling.patches import Patches, corner_px
from jaxcyto.brain.sections.label_image import UNLABELED
from jaxcyto.brain.sections.section import open_section
from jaxcyto.brain.surfaces.surface import hemisphere_surface
from jaxcyto.data.skipping import ReadError
from jaxcyto.errors import InputError
from jaxcyto.models import SiameseNet
from jaxcyto.runs.load import PretextRun
from jaxcyto.training.devices import parallel
from jaxcyto.utils.ahead import dispatch_ahead
from jaxcyto.utils.progress import Progress

BATCH = 64  # patches. This occupies two cores. Patches of 1019 px need about 2 GB of activations
IN_FLIGHT = 2  # batches submitted to the devices before the first result is fetched
READERS = 4  # threads


class Embedding(NamedTuple):
    """The outputs of the network for N patches.

    Attributes:
        features: features, float32 [N, F]. The squared Euclidean distance of two feature vectors
            predicts the distance along the surface in units of the mean training distance.
        coordinates_mm: predicted positions, float32 [N, 3]. They are (|x|, y, z) if
            `run.absolute_x` is true.
    """

    features: np.ndarray
    coordinates_mm: np.ndarray

    @property
    def coordinates(self) -> np.ndarray:
        """The name of version 0.1, which raises."""
        raise AttributeError("Embedding.coordinates is now Embedding.coordinates_mm")


def embed_brain(
    run: PretextRun,
    brain: Brain,
    patches: Patches,
    *,
    batch: int = BATCH,
    progress: Progress | None = None,
) -> Embedding:
    """Compute the features and predicted positions (mm) of all patches of a brain. See `embed`.

    Raises:
        InputError: the patches were sampled with another size or resolution than that of the run,
            or a section cannot be read.
    """
    if other := patches.differs_in_size(run.patch_px, run.um_per_px):
        name, found, wanted = other
        raise InputError(
            f"{brain.root}: its patches were sampled with {name} = {found:g}, but {run.path} "
            f"was trained with {wanted:g}; run `jaxcyto sample` with that size, into another "
            "file (--out)"
        )
    images = read_patches(brain, patches)
    return embed(run, images, total=len(patches), batch=batch, progress=progress)


def embed(
    run: PretextRun,
    images: Iterable[np.ndarray],
    *,
    total: int = 0,
    batch: int = BATCH,
    progress: Progress | None = None,
) -> Embedding:
    """Compute the features and predicted positions of patches.

    Args:
        run: the network.
        images: patches, uint8 [s, s] each, such as an array [N, s, s], with s = run.patch_px.
        total: count of patches, for `progress`.
        batch: batch size, rounded up to a multiple of twice the number of devices.
        progress: called with (patches done, total).

    Returns:
        Features, and positions in mm, which are (|x|, y, z) if `run.absolute_x` is true.
    """
    scales = run.scales
    features, coordinates_scaled = forward_all(
        run.model,
        run.variables,
        images,
        mean=scales.input_mean,
        std=scales.input_std,
        total=total,
        batch=batch,
        progress=progress,
    )
    return Embedding(features, scales.coordinates_to_mm(coordinates_scaled))


def forward_all(
    model: SiameseNet,
    variables: Mapping[str, Any],
    images: Iterable[np.ndarray],
    *,
    mean: float,
    std: float,
    total: int = 0,
    batch: int = BATCH,
    progress: Progress | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Run the network on patches with stored batch statistics, on all local devices.

    Memory is proportional to `batch`. The last batch is padded, so that the network is compiled
    only once.

    Args:
        model: the network.
        variables: its `params` and `batch_stats`, trained or not.
        images: patches, uint8 [s, s] each.
        mean: mean of the input in gray values.
        std: standard deviation of the input in gray values.
        total: count of patches, for `progress`.
        batch: batch size, rounded up to a multiple of twice the number of devices.
        progress: called with (patches done, total).

    Returns:
        `features` float32 [N, F] and `coordinates_scaled` float32 [N, 3].
    """
    devices = 2 * jax.local_device_count()  # the network takes pairs of patches
    batch = -(-batch // devices) * devices
    forward = _compiled(model, mean, std)  # pyright: ignore  (flax modules are hashable)
    placed = parallel.replicate(dict(variables))

    def dispatched() -> Iterator[tuple[int, Any]]:
        for some in itertools.batched(images, batch):
            block = np.stack([*some, *[some[-1]] * (batch - len(some))])
            twos = block.reshape(-1, 2, *block.shape[1:], 1)
            yield len(some), forward(placed, parallel.split_over_devices(twos))

    features, coordinates, done = [], [], 0
    for count, outputs in dispatch_ahead(dispatched(), IN_FLIGHT):
        outputs = parallel.join_devices(outputs)
        features.append(outputs["features"].reshape(batch, -1)[:count])
        coordinates.append(outputs["coordinates_scaled"].reshape(batch, -1)[:count])
        done += count
        if progress:
            progress(done, max(total, done))
    if not features:
        return np.zeros((0, model.features), np.float32), np.zeros((0, 3), np.float32)
    return np.concatenate(features), np.concatenate(coordinates)


@functools.lru_cache(maxsize=8)
def _compiled(model: SiameseNet, mean: float, std: float) -> Any:
    """Build the compiled function. The cache avoids compiling again for the same network."""
    return parallel.pmap_eval(_forward, 0, model=model, mean=mean, std=std)


def _forward(
    variables: Any,
    twos: jax.Array,
    *,
    model: SiameseNet,
    mean: float,
    std: float,
    axis_name: str | None,
) -> Any:
    del axis_name  # patches are independent, because batch statistics are stored
    return model.apply(variables, normalize(twos, mean, std))


def read_patches(brain: Brain, patches: Patches) -> Iterator[np.ndarray]:
    """Yield the images of patches in order, uint8 [patch_px, patch_px]. Threads read ahead.

    Raises:
        ReadError: a section cannot be read. The error names the section and the file.
    """
    side, um_per_px = int(patches.settings["patch_px"]), float(patches.settings["um_per_px"])
    numbers = np.arange(len(patches))
    starts = np.flatnonzero(np.diff(patches.section, prepend=-1))
    with ThreadPoolExecutor(READERS, "reader") as pool:
        for own in np.split(numbers, starts[1:]):
            if not len(own):
                return
            row = brain.sections[patches.section[own[0]]]
            try:
                with open_section(row.image, row.pixel_um, brain.background, brain.bits) as section:

                    def read(number: int, section=section) -> np.ndarray:
                        center = patches.center_px[number]
                        left, top = corner_px(center, section, um_per_px, side)
                        return section.read_at(um_per_px, top, left, side, side)

                    for some in itertools.batched(own.tolist(), BATCH):
                        yield from pool.map(read, some)
            except (InputError, OSError) as error:
                raise ReadError(row.image, f"section {row.name}: {error}") from error


def patch_areas(
    brain: Brain, patches: Patches, names: Mapping[int, str] | None = None
) -> np.ndarray:
    """Look up the class at the center of each patch.

    This is the class of the vertex with the largest barycentric coordinate in the triangle of the
    center. Labels are interpreted as by `jaxcyto carry`.

    Args:
        brain: brain whose hemispheres have label files.
        patches: N patches of the brain.
        names: class name of a label, for labels that the label file does not name.

    Returns:
        Class indices into `brain.classes`, or UNLABELED, int32 [N].

    Raises:
        InputError: no hemisphere has labels, or no label is a class of the brain.
    """
    surfaces = [hemisphere_surface(each) for each in brain.hemispheres]
    classes, _ = vertex_classes(brain, [len(each.vertices) for each in surfaces], names or {})
    found = np.full(len(patches), UNLABELED, np.int32)
    for number, (surface, own) in enumerate(zip(surfaces, classes, strict=True)):
        chosen = np.flatnonzero(patches.hemisphere == number)
        corner = patches.bary[chosen].argmax(axis=1)
        found[chosen] = own[surface.faces[patches.face[chosen], corner]]
    return found
