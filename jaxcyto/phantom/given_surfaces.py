"""Paint the phantom's texture on given surfaces, with given layer thicknesses if available."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxcyto.brain.surfaces.surface import read_surface, vertex_matched
from jaxcyto.brain.surfaces.vertex_labels import read_label_names, read_labels
from jaxcyto.errors import InputError
from jaxcyto.phantom import cortex as shape
from jaxcyto.phantom.settings import PhantomSettings, coronal_plans
from jaxcyto.phantom.writer import area_classes, write_brain
from jaxcyto.utils.progress import Progress

MIN_LAYER_SHARE = 0.02  # of the cortex. Thinner layers are noise of the measurement.
# Standard deviation of the logarithm of a layer's coverage and cell size between areas.
AREA_SPREAD = 0.12
WAVELENGTH_MM = 60.0  # of the variation inside areas


@dataclasses.dataclass(frozen=True)
class GivenHemisphere:
    """The files of one hemisphere, which must be vertex-matched.

    Attributes:
        name: for example "left".
        pial, white: surfaces.
        labels: area of each vertex, 0 for none. If None, all cortex is "other cortex".
        thickness: npz with `um`, or npy: thickness of layers I to VI in um, [V, 6], 0 = unknown. If
            None, layers have the generic shares of `phantom.cortex`.
    """

    name: str
    pial: str | os.PathLike
    white: str | os.PathLike
    labels: str | os.PathLike | None = None
    thickness: str | os.PathLike | None = None


def paint_surfaces(
    out: str | os.PathLike,
    hemispheres: Sequence[GivenHemisphere],
    y_range_mm: tuple[float, float],
    settings: PhantomSettings,
    progress: Progress | None = None,
    workers: int | None = None,
) -> Path:
    """Write a brain folder of painted sections through given surfaces.

    Layers have the given thickness if there is one. Coverage and cell size are generic, with small
    differences between areas and smooth variation inside of them. Layers with a given thickness
    follow the linear depth in which it was measured. Others follow the equivolumetric depth.

    Args:
        out: the folder to make. It must not exist yet, or be empty.
        hemispheres: the surfaces to paint on.
        y_range_mm: y of the first and the last section plane. `settings.num_sections` planes are
            evenly spaced between them.
        settings: as for `make_phantom`. Fields about the shape of the brain have no effect.
        progress: called with the number of sections done and the number of all sections.
        workers: number of processes, all cores if None.

    Returns:
        The folder.

    Raises:
        InputError: if a file cannot be used, or the planes meet no surface.
    """
    parts, names, keys = [], {}, []
    for given in hemispheres:
        pial, white = read_surface(given.pial), read_surface(given.white)
        if not vertex_matched(pial, white):
            raise InputError(
                f"{given.pial} and {given.white}: not vertex-matched; "
                "take pial and white of one reconstruction"
            )
        count = len(pial.vertices)
        labels = np.zeros(count, np.int32)
        if given.labels is not None:
            labels = read_labels(given.labels, count)
            names |= read_label_names(given.labels)
        parts.append((given, pial, white, labels))
        keys.append(labels)
    keys = [int(key) for key in np.unique(np.concatenate(keys)) if key > 0]
    cortex = _cortex(parts, keys, settings)
    positions = np.linspace(min(y_range_mm), max(y_range_mm), settings.num_sections)
    low, high = cortex.pial[:, 1].min(), cortex.pial[:, 1].max()
    if positions[-1] < low or positions[0] > high:
        raise InputError(
            f"y_range_mm = {positions[0]:g} ... {positions[-1]:g} meets no surface; "
            f"they lie at y = {low:.1f} ... {high:.1f} mm"
        )
    plans = coronal_plans(cortex, positions, settings.own_seed)
    areas, taken = [], {item["name"] for item in area_classes([])}
    for key in keys:
        name = names.get(key) or f"area {key}"
        areas.append(f"{name} ({key})" if name in taken else name)
        taken.add(areas[-1])
    sides = [given.name for given in hemispheres]
    return write_brain(
        out, settings, cortex, plans, areas, sides, progress, workers,
        licence="that of the surfaces, labels and thicknesses it was painted on",
    )  # fmt: skip


def _cortex(parts, keys: list[int], settings: PhantomSettings) -> shape.Cortex:
    sizes = np.cumsum([0] + [len(labels) for *_, labels in parts])
    pial = np.concatenate([pial.vertices for _, pial, _, _ in parts])
    white = np.concatenate([white.vertices for _, _, white, _ in parts])
    faces = np.concatenate(
        [pial.faces + start for (_, pial, _, _), start in zip(parts, sizes, strict=False)]
    )
    labels = np.concatenate([labels for *_, labels in parts])
    area = np.full(len(labels), len(keys), np.int32)
    for index, key in enumerate(keys):
        area[labels == key] = index
    measured = [given.thickness is not None for given, *_ in parts]
    share = np.concatenate(
        [_layer_share(given.thickness, len(labels)) for given, _, _, labels in parts]
    )
    skew = shape.volume_skew(pial, white, faces)
    for start, end, known in zip(sizes, sizes[1:], measured, strict=False):
        skew[start:end] *= not known
    if settings.null:
        share = np.tile(shape.LAYER_SHARE, (len(area), 1))
    return shape.Cortex(
        pial=pial,
        white=white,
        faces=faces,
        area=area,
        profiles=_profiles((pial + white) / 2, area, share, settings),
        skew=skew,
        starts=tuple(int(size) for size in sizes),
    )


def _profiles(middle, area, share, settings: PhantomSettings) -> shape.Profiles:
    rng = np.random.default_rng((settings.seed, 2))
    where = np.abs(middle) * [1, 0, 0] + middle * [0, 1, 1]  # the same field in both hemispheres

    def varied(layers):
        between = AREA_SPREAD * rng.standard_normal((area.max() + 1, shape.NUM_LAYERS))
        inside = [shape.smooth_field(where, WAVELENGTH_MM, rng) for _ in layers]
        log = between[area] + AREA_SPREAD / 2 * np.stack(inside, axis=1)
        return layers * np.exp(log * (not settings.null))

    return shape.normalized_profiles(
        share, varied(shape.LAYER_COVERAGE), varied(shape.LAYER_DIAMETER_UM)
    )


def _layer_share(path, count: int) -> np.ndarray:
    """Read the share of each layer [count, 6] of the cortex's thickness."""
    if path is None:
        return np.tile(shape.LAYER_SHARE, (count, 1))
    try:
        table = np.load(path, allow_pickle=False)
        um = np.asarray(table["um"] if hasattr(table, "files") else table, float)
    except (OSError, KeyError, ValueError) as error:
        raise InputError(
            f"{path}: expected npz with `um`, or npy, [V, 6] thicknesses in um: {error}"
        ) from None
    if um.shape != (count, shape.NUM_LAYERS) or not np.isfinite(um).all() or (um < 0).any():
        raise InputError(
            f"{path}: um {um.shape}; expected finite numbers >= 0, [{count}, {shape.NUM_LAYERS}], "
            "one row for each vertex of the surface"
        )
    total = um.sum(1, keepdims=True)
    share = um / np.maximum(total, 1)
    share[total[:, 0] == 0] = shape.LAYER_SHARE
    return np.maximum(share, MIN_LAYER_SHARE)
