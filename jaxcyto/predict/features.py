"""Features of patches from a trained (or untrained) branch, and the areas the patches lie in.

run = load_pretext_run("runs/pretrain")
brain, patches = read_brain("brains/toy"), load_patches("brains/toy/patches.npz")
found = embed_brain(run, brain, patches)         found.features [N, 32]
area = patch_areas(brain, patches)               class numbers [N]
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

BATCH = 64  # patches: fills two cores; of 1019 px, some 2 GB of activations
IN_FLIGHT = 2  # batches given to the devices before the first one's result is fetched
READERS = 4  # threads


class Embedding(NamedTuple):
    """What the network says of N patches.

    Attributes:
        features: float32 [N, F]; squared Euclidean distances are distances in units of the mean
            training distance.
        coordinates_mm: float32 [N, 3], predicted positions; (|x|, y, z) if `run.absolute_x`.
    """

    features: np.ndarray
    coordinates_mm: np.ndarray


def embed_brain(
    run: PretextRun,
    brain: Brain,
    patches: Patches,
    *,
    batch: int = BATCH,
    progress: Progress | None = None,
) -> Embedding:
    """Features and predicted positions (mm) of all patches of a brain; see `embed`.

    Raises:
        InputError: they were sampled for another size than the run's, or a section cannot be read.
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
    """Features and predicted positions of patches.

    Args:
        run: the network.
        images: uint8 [s, s] each, such as an array [N, s, s]; s = run.patch_px.
        total: their number, for `progress`.
        batch: patches at a time, rounded up to twice the devices.
        progress: called with (patches done, total).

    Returns:
        Features, and positions in mm: (|x|, y, z) if `run.absolute_x`.
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
    """The network's own outputs for patches, with stored batch statistics, on all local devices.

    Memory is in proportion to `batch`; compiled once, the last batch is padded.

    Args:
        model: of the encoder and heads.
        variables: its `params` and `batch_stats`, trained or not.
        images: uint8 [s, s] each.
        mean: of the input, gray value.
        std: of the input, gray values.
        total: number of images, for `progress`.
        batch: patches at a time, rounded up to twice the devices.
        progress: called with (patches done, total).

    Returns:
        `features` float32 [N, F] and `coordinates_scaled` float32 [N, 3].
    """
    devices = 2 * jax.local_device_count()  # the network takes patches in twos
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
    """The same function for the same network, so that a second call does not compile again."""
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
    del axis_name  # stored statistics: patches do not see each other
    return model.apply(variables, normalize(twos, mean, std))


def read_patches(brain: Brain, patches: Patches) -> Iterator[np.ndarray]:
    """The images of patches in their order, uint8 [patch_px, patch_px]; threads read ahead.

    Raises:
        ReadError: names section and file.
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
                with open_section(row.image, row.pixel_um, brain.background) as section:

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
    """The class of each patch's center, int32 [N]: an index into `brain.classes`, or UNLABELED.

    It is that of the nearest corner of its triangle (the largest barycentric coordinate), as
    `jaxcyto carry` reads the labels of the surfaces.

    Args:
        brain: its hemispheres name files of labels.
        patches: of it.
        names: class name of a label, where the label file does not say it.

    Raises:
        InputError: no hemisphere has labels, or none of them is a class of the brain.
    """
    surfaces = [hemisphere_surface(each) for each in brain.hemispheres]
    classes, _ = vertex_classes(brain, [len(each.vertices) for each in surfaces], names or {})
    found = np.full(len(patches), UNLABELED, np.int32)
    for number, (surface, own) in enumerate(zip(surfaces, classes, strict=True)):
        chosen = np.flatnonzero(patches.hemisphere == number)
        corner = patches.bary[chosen].argmax(axis=1)
        found[chosen] = own[surface.faces[patches.face[chosen], corner]]
    return found
