"""Run the network over whole sections on all local devices, while threads read ahead.

A map does not depend on the size of the windows or on the number of devices. On XLA:CPU in float32,
the logits agree bit for bit for windows of at least 2025 px. For smaller windows, XLA chooses other
convolution algorithms, whose logits differ by less than 1e-4.
"""

import collections
import dataclasses
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcyto.augment import normalize, normalize_atlas
from jaxcyto.errors import InputError
from jaxcyto.models import Geometry, UNet
from jaxcyto.predict.maps import NOT_PREDICTED
from jaxcyto.predict.reading import SectionSource, WindowImages, read_window
from jaxcyto.predict.tiling import Tiling, choose_tile
from jaxcyto.runs.load import SegmentRun
from jaxcyto.training.devices import parallel
from jaxcyto.utils.ahead import map_ahead

READERS = 4  # threads
IN_FLIGHT = 2  # batches submitted to the devices before the first result is fetched
SHARE = 0.5  # fraction of the free memory of a device that a window may take


@dataclasses.dataclass(frozen=True, eq=False)
class Band:
    """Consecutive rows of the map of a section, over its whole width.

    Attributes:
        source: the section.
        top: index of the first row.
        classes: class indices, uint8 [rows, width].
        probabilities: probabilities, uint8 [classes, rows, width], 255 = probability 1, or None if
            not requested.
    """

    source: SectionSource
    top: int
    classes: np.ndarray
    probabilities: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Failure:
    """A section that cannot be read. No band of it follows."""

    source: SectionSource
    error: InputError


@dataclasses.dataclass(eq=False)
class _Tile:
    """A window in the pipeline.

    `window` is set after reading and None without tissue. `output` is set after the network has
    run. `error` is set if the window cannot be read, or if the output is not finite.
    """

    source: SectionSource
    row: int
    column: int
    window: WindowImages | None = None
    output: dict[str, np.ndarray] | None = None
    error: InputError | None = None


class Predictor:
    """The network of a run, compiled once for windows of one size.

    Map px without tissue in their receptive field (see `reading.WindowImages`) get the class of
    kind "background", or NOT_PREDICTED if the run has no such class. The network is not run on
    windows without tissue.

    Args:
        run: the network.
        tile_px: side of the windows in image px.
        probabilities: whether bands also hold probabilities.

    Raises:
        InputError: the network does not take windows of this size.
    """

    def __init__(self, run: SegmentRun, tile_px: int, probabilities: bool = False):
        self.run = run
        self.tiling = Tiling(Geometry.of(run.model), tile_px)
        self.probabilities = probabilities
        kinds = [entry.kind for entry in run.classes]
        self.background = kinds.index("background") if "background" in kinds else NOT_PREDICTED
        self._variables = parallel.replicate(run.variables)
        self._forward = parallel.pmap_eval(
            forward,
            0,
            model=run.model,
            mean=run.input_mean,
            std=run.input_std,
            probabilities=probabilities,
        )

    def section(self, source: SectionSource) -> Iterator[Band]:
        """Yield the bands of one section from top to bottom.

        Raises:
            InputError: the section cannot be read.
        """
        for band in self.sections([source]):
            if isinstance(band, Failure):
                raise band.error
            yield band

    def sections(self, sources: Iterable[SectionSource]) -> Iterator[Band | Failure]:
        """Yield the bands of all sections in order, from top to bottom. Threads read ahead."""
        with ThreadPoolExecutor(READERS, "reader") as pool:
            tiles = (
                _Tile(source, row, column)
                for source in sources
                for row, column in self.tiling.origins(source.shape)
            )
            yield from self._bands(self._computed(self._read(tiles, pool)))

    def _read(self, tiles: Iterator[_Tile], pool: ThreadPoolExecutor) -> Iterator[_Tile]:
        """Yield tiles with their windows in order, with a few tiles read ahead."""
        broken: set[SectionSource] = set()

        def read(tile: _Tile) -> _Tile:
            if tile.source not in broken:
                try:
                    tile.window = read_window(
                        tile.source, self.tiling, self.run.um_per_px, tile.row, tile.column
                    )
                except InputError as error:
                    broken.add(tile.source)
                    tile.error = error
            return tile

        return map_ahead(read, tiles, pool, READERS + jax.local_device_count())

    def _computed(self, tiles: Iterator[_Tile]) -> Iterator[_Tile]:
        """Yield tiles with the output of the network in order.

        Tiles without tissue wait until all tiles before them are computed.
        """
        devices = jax.local_device_count()
        batch: list[_Tile] = []
        waiting: collections.deque[_Tile] = collections.deque()
        flying: collections.deque[tuple[list[_Tile], Any]] = collections.deque()

        def ready() -> Iterator[_Tile]:
            while waiting and (waiting[0].window is None or waiting[0].output is not None):
                yield waiting.popleft()

        for tile in tiles:
            waiting.append(tile)
            if tile.window is not None:
                batch.append(tile)
            if len(batch) == devices:
                flying.append((batch, self._launch(batch)))
                batch = []
            if len(flying) == IN_FLIGHT:
                _land(*flying.popleft())
            yield from ready()
        if batch:
            flying.append((batch, self._launch(batch)))
        for flight in flying:
            _land(*flight)
        yield from ready()

    def _launch(self, tiles: list[_Tile]) -> Any:
        """Launch the network on one tile per device. A short batch repeats its last tile."""
        windows = [tile.window for tile in tiles if tile.window is not None]
        windows += windows[-1:] * (jax.local_device_count() - len(windows))
        batch = {"image": np.stack([window.image for window in windows])}
        if self.run.atlas_channels:
            batch["atlas"] = np.stack([window.atlas for window in windows])  # pyright: ignore
        return self._forward(self._variables, parallel.split_over_devices(batch))

    def _bands(self, tiles: Iterator[_Tile]) -> Iterator[Band | Failure]:
        """Join the tiles of each row to a band. Skip the rest of a section that has failed."""
        failed: set[SectionSource] = set()
        band = None
        for tile in tiles:
            if tile.source in failed:
                continue
            if tile.error is not None:
                failed.add(tile.source)
                yield Failure(tile.source, tile.error)
                continue
            if tile.column == 0:
                band = self._empty_band(tile.source, tile.row)
            assert band is not None
            self._paste(band, tile)
            if tile.column + self.tiling.step >= tile.source.shape[1]:
                yield band

    def _empty_band(self, source: SectionSource, top: int) -> Band:
        height, width = min(self.tiling.step, source.shape[0] - top), source.shape[1]
        classes = np.full((height, width), self.background, np.uint8)
        if not self.probabilities:
            return Band(source, top, classes)
        probabilities = np.zeros((len(self.run.classes), height, width), np.uint8)
        if self.background != NOT_PREDICTED:
            probabilities[self.background] = 255
        return Band(source, top, classes, probabilities)

    def _paste(self, band: Band, tile: _Tile) -> None:
        if tile.window is None or tile.output is None:
            return
        columns = slice(tile.column, tile.column + self.tiling.step)
        target = band.classes[:, columns]
        height, width = target.shape
        tissue = tile.window.tissue[:height, :width]
        np.copyto(target, tile.output["classes"][:height, :width], where=tissue)
        if band.probabilities is not None:
            found = np.moveaxis(tile.output["probabilities"][:height, :width], 2, 0)
            np.copyto(band.probabilities[:, :, columns], found, where=tissue)


def _land(tiles: list[_Tile], outputs: Any) -> None:
    """Wait for the outputs of a batch and assign them to its tiles."""
    outputs = parallel.join_devices(outputs)
    for number, tile in enumerate(tiles):
        tile.output = {key: value[number] for key, value in outputs.items()}
        if not tile.output["finite"]:
            tile.error = InputError(
                f"section {tile.source.name}: the output of the network is not finite in the tile "
                f"at row {tile.row}, column {tile.column} of its map. The weights overflow on this "
                "image: train with a lower learning rate or with optim.clip_norm"
            )


def forward(
    variables: dict[str, Any],
    batch: dict[str, jax.Array],
    *,
    model: UNet,
    mean: float,
    std: float,
    probabilities: bool,
    axis_name: str | None = None,
) -> dict[str, jax.Array]:
    """Compute the classes and probabilities of a batch of windows.

    Args:
        variables: `params` and `batch_stats` of the network.
        batch: `image` uint8 [B, tile, tile, 1] and, if the network takes one, `atlas` uint8
            [B, a, a, A].
        model: the network.
        mean: mean of the input in gray values.
        std: standard deviation of the input in gray values.
        probabilities: whether to return probabilities, too.
        axis_name: not used, because windows are independent.

    Returns:
        `classes` uint8 [B, n, n], whether all logits of an example are `finite` [B] and, if
        requested, `probabilities` uint8 [B, n, n, C] with 255 = probability 1.
    """
    del axis_name
    atlas = batch.get("atlas")
    if atlas is not None:
        atlas = normalize_atlas(atlas)
    logits: Any = model.apply(variables, normalize(batch["image"], mean, std), atlas)
    outputs = {
        "classes": jnp.argmax(logits, axis=-1).astype(jnp.uint8),
        "finite": jnp.all(jnp.isfinite(logits), axis=(1, 2, 3)),
    }
    if probabilities:
        outputs["probabilities"] = jnp.round(255 * jax.nn.softmax(logits)).astype(jnp.uint8)
    return outputs


def default_tile(run: SegmentRun, longest: int) -> int:
    """Choose the side of the windows in image px by the available memory.

    See `tiling.choose_tile`.

    Args:
        run: the network.
        longest: longest side of a map in map px.
    """
    return choose_tile(
        Geometry.of(run.model),
        longest=longest,
        at_least=run.image_px,
        memory_bytes=window_bytes(),
        bytes_per_px=bytes_per_px(run.model),
    )


def bytes_per_px(model: UNet) -> float:
    """Estimate the device memory in bytes that a window needs for each of its px.

    The largest activations are the two of the first block, with 4 * width / stride^2 bytes per px
    each. XLA:CPU computes in float32 (4 bytes) for any dtype. We measured on XLA:CPU 8.0 bytes per
    px at the paper's size, 11 with an atlas, and 127 and 164 for the small network. The estimate is
    twice the two activations. This leaves room for the atlas, a second window in the queue, and the
    workspace of GPU libraries.
    """
    return 2 * 2 * 4 * model.widths[0] / model.stem_stride**2


def window_bytes() -> float:
    """Return the memory in bytes that a window may take on each local device."""
    return SHARE * parallel.free_bytes()
