"""Compute the maps of a frozen contracting path over sections, once for each window.

The maps of a window depend on the weights and on the section alone, so they are kept on disk. A new
annotation of the same section then needs no pass through the network. Files lie in

    FOLDER/WEIGHTS/SECTION/ROW_COLUMN.npz

where WEIGHTS is a hash of the weights, the scaling of the input and the size of the window, and
SECTION is one of the section's content, file size and time. Remove FOLDER to free the space.
"""

import hashlib
import json
import os
import weakref
import zipfile
import zlib
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import numpy as np

from jaxcyto.augment import normalize
from jaxcyto.brain.sections.fingerprint import fingerprint
from jaxcyto.brain.sections.section import Section
from jaxcyto.config import InputScales
from jaxcyto.data.windows import read_image
from jaxcyto.errors import InputError
from jaxcyto.models import Geometry, UNet
from jaxcyto.models.build import build_encoder
from jaxcyto.models.encoder import ENCODER
from jaxcyto.models.scores import SCORED
from jaxcyto.utils.files import atomic_write

Maps = tuple[np.ndarray, ...]
CONTENT = "content"  # field of a file that repeats WEIGHTS and SECTION


class MapReader:
    """Reads or computes the maps of the last `SCORED` blocks.

    Args:
        model: the network.
        variables: `params` and `batch_stats`, of which the submodule `encoder` is used.
        scales: standardization of the input.
        um_per_px: resolution of the input, um.
        side: side of a window's output, px of the output grid.
        folder: where maps of sections in files are kept, or None to keep maps of sections in memory
            in memory, too.
    """

    def __init__(
        self,
        model: UNet,
        variables: dict[str, Any],
        scales: InputScales,
        um_per_px: float,
        side: int,
        folder: Path | None,
    ):
        self.geometry = Geometry.of(model)
        self.um_per_px = um_per_px
        self.side = side
        self._folder = folder
        self._kept: dict[tuple[str, int, int], Maps] = {}  # without a folder
        self._sections: weakref.WeakKeyDictionary[Section, str] = weakref.WeakKeyDictionary()
        encoder = build_encoder(model)
        weights = {key: variables[key][ENCODER] for key in ("params", "batch_stats")}
        self._weights = _digest(weights, scales, um_per_px, side)
        self._variables = jax.device_put(weights)

        def forward(variables: Any, image: jax.Array) -> list[jax.Array]:
            image = normalize(image, scales.input_mean, scales.input_std)
            maps: Any = encoder.apply(variables, image)
            return [each.astype("float16") for each in maps[1:][-SCORED:]]

        self._forward = jax.jit(forward)

    def read(self, image: Section, row: int, column: int) -> Maps:
        """Return the maps of a window, each float16 [h, w, C].

        Args:
            image: the section.
            row: first row of the window, px of the output grid.
            column: first column of the window, px of the output grid.

        Raises:
            InputError: the section cannot be read, or the file of its maps is damaged or cannot be
                written.
        """
        section = self._section(image)
        if self._folder is None:
            if (section, row, column) not in self._kept:
                self._kept[section, row, column] = self._compute(image, row, column)
            return self._kept[section, row, column]
        path = self._folder / self._weights / section / f"{row}_{column}.npz"
        if path.exists():
            return _load(path, f"{self._weights}/{section}")
        maps = self._compute(image, row, column)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as file:
                fields: Any = {f"map{k}": each for k, each in enumerate(maps)}
                fields[CONTENT] = np.array(f"{self._weights}/{section}")
                np.savez(file, **fields)
        except OSError as error:
            raise InputError(f"{path}: cannot be written: {error.strerror}") from None
        return maps

    def _compute(self, image: Section, row: int, column: int) -> Maps:
        window = read_image(image, self.um_per_px, self.geometry, row, column, self.side)
        return tuple(np.asarray(each)[0] for each in self._forward(self._variables, window[None]))

    def _section(self, image: Section) -> str:
        """Return a hash of a section that changes with its content."""
        if image not in self._sections:
            key = _array_key if self._folder is None else _file_key
            self._sections[image] = key(image)
        return self._sections[image]


def _file_key(image: Section) -> str:
    """Return a hash of a section in a file, without reading all of it.

    Raises:
        InputError: the file is missing.
    """
    try:
        found = os.stat(image.path)
    except OSError as error:
        raise InputError(f"{image.path}: cannot be read: {error.strerror}") from None
    return _hash([fingerprint(image), found.st_size, found.st_mtime_ns, *_reading(image)])


def _array_key(image: Section) -> str:
    """Return a hash of a section in memory."""
    pixels = hashlib.sha256(image.read(0, 0, *image.shape).tobytes()).hexdigest()
    return _hash([pixels, *_reading(image)])


def _reading(image: Section) -> list[Any]:
    """Return what windows depend on beside the pixels."""
    return [image.shape, image.pixel_um, image.background, image.bits]


def _hash(values: list[Any]) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:32]


def _digest(weights: Any, scales: InputScales, um_per_px: float, side: int) -> str:
    digest = hashlib.sha256()
    for name, leaf in sorted(flax.traverse_util.flatten_dict(weights, sep="/").items()):
        digest.update(f"{name} {leaf.shape}\n".encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    digest.update(json.dumps([scales.input_mean, scales.input_std, um_per_px, side]).encode())
    return digest.hexdigest()[:32]


def _load(path: Path, content: str) -> Maps:
    """Read the maps of a window.

    Raises:
        InputError: the file is damaged, or of other weights or another section.
    """
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            if str(file[CONTENT]) != content:
                raise ValueError("maps of another network or section")
            return tuple(file[f"map{k}"] for k in range(len(file.files) - 1))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            f"{path}: damaged ({error}); remove the folder {path.parent}, and the maps are "
            "computed again"
        ) from None
