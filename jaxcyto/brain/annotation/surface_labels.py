"""Carry labels of the cortical surface into section planes, as label images or atlas images.

The cortex is filled by prisms between corresponding faces of the pial and the white surface. A
pixel of a section is cortex if its center lies in a prism. Its label is the one with the largest
total barycentric weight among the face's three vertices, independent of the depth. A label
therefore stays on its side of a sulcus, and borders between areas run straight from pial to white.
All pixels within the white surfaces are white matter, including ventricles and subcortical nuclei.
"""

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import tifffile

from jaxcyto.brain.annotation.image_column import image_column, select_sections
from jaxcyto.brain.annotation.prisms import (
    Cut,
    cut_prisms,
    evaluate,
    inside_white,
    planes,
    rasterize,
    weighted_majority,
)
from jaxcyto.brain.manifest import Brain, Hemisphere, need_hemispheres, read_brain
from jaxcyto.brain.registration import AffineRegistration, Registration, registration
from jaxcyto.brain.sampling.ribbon import no_overlap
from jaxcyto.brain.sections.label_image import LABEL_UM, UNLABELED, expected_shape
from jaxcyto.brain.sections.section import open_section
from jaxcyto.brain.sections.writer import write_section
from jaxcyto.brain.surfaces.smoothing import smooth
from jaxcyto.brain.surfaces.surface import Surface, read_surface, vertex_matched
from jaxcyto.brain.surfaces.vertex_labels import read_label_names, read_labels
from jaxcyto.errors import InputError
from jaxcyto.utils.progress import Progress

BLOCK = 512  # rows of the label grid that are computed at a time
THICKEST_MM = 20.0  # longer than any edge of a prism, so prisms further off a plane are not cut


@dataclasses.dataclass(frozen=True, eq=False)
class LabeledCortex:
    """All hemispheres in one mesh, with the class of each vertex.

    Attributes:
        pial, white: vertex-matched vertices in mm, float64 [V, 3].
        faces: vertex indices, int64 [F, 3].
        number: class of each vertex, int32 [V], or UNLABELED if it is not known.
        outside: class of the pixels outside of the pial surfaces, or UNLABELED.
        within: class of the pixels within the white surfaces, or UNLABELED.
    """

    pial: np.ndarray
    white: np.ndarray
    faces: np.ndarray
    number: np.ndarray
    outside: int
    within: int


def carry_labels(
    root: str | os.PathLike,
    *,
    sections: Sequence[str] = (),
    classes: Mapping[int, str] | None = None,
    into: str = "label",
    fwhm_mm: float = 0.0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> str:
    """Write `labels/<section>.tif` or `atlas/<section>.tif` from the hemispheres' `labels`.

    Args:
        root: the brain's folder.
        sections: names of the sections. If empty, all sections that meet a surface are used.
        classes: class name by label, or "" for labels that become not annotated. A label that is
            not listed becomes the class that has its name in the label file, else the class of
            kind cortex.
        into: "label" for class indices, "atlas" for one channel per area (255 = probability 1).
        fwhm_mm: full width at half maximum of a Gaussian along the surface, which turns memberships
            into probabilities (atlas only). With 0 all values are 0 or 255.
        overwrite: whether existing images are replaced.
        progress: called with the number of sections done and the number of all sections.

    Returns:
        A text that lists the class of each label and the images written.

    Raises:
        InputError: if the brain has no hemisphere with pial, white and labels, no label becomes a
            class, no section meets a surface, or an image exists and `overwrite` is not set.
    """
    brain = read_brain(root)
    cortex, lines = labeled_cortex(brain, classes or {})
    membership = None
    if into == "atlas":
        areas = [k for k, item in enumerate(brain.classes) if item.kind == "area"]
        if not areas:
            raise InputError(f"{brain.root / 'brain.toml'}: classes: none is of kind area")
        membership = (cortex.number[:, None] == areas).astype(np.float32)
        if fwhm_mm:
            middle = Surface((cortex.pial + cortex.white) / 2, cortex.faces)
            membership = smooth(middle, membership, fwhm_mm)
    rows, registrations, written = select_sections(brain, sections), [], 0
    with image_column(brain, into, rows, overwrite) as path_of:
        for done, row in enumerate(rows):
            with open_section(row.image, row.pixel_um) as section:
                full = section.shape
            registrations.append(registration(row, full))
            shape = expected_shape(full, row.pixel_um)
            cut = cut_section(cortex, registrations[-1], row.pixel_um)
            if _meets(cut, shape):
                written += 1
                path = path_of(row)
                if membership is None:
                    blocks = label_blocks(cortex, cut, shape)
                    write_section(path, blocks, LABEL_UM, shape=shape, compression="deflate")
                else:
                    _write_atlas(path, atlas_channels(membership, cut, shape))
            if progress:
                progress(done + 1, len(rows))
        if not written:
            surfaces = [Surface(cortex.pial, cortex.faces)]
            part = dataclasses.replace(
                brain, hemispheres=(Hemisphere("all"),), sections=tuple(rows)
            )
            table = brain.root / brain.section_table
            reason = no_overlap(part, surfaces, registrations)
            raise InputError(f"{table}: affine: no section meets a surface\n{reason}")
    lines.append(f"{written} {into} image(s) written, {len(rows) - written} without cortex")
    return "\n".join(lines)


def labeled_cortex(brain: Brain, classes: Mapping[int, str]) -> tuple[LabeledCortex, list[str]]:
    """Read the hemispheres with the class of each vertex.

    A hemisphere without labels is cortex of unknown class. Pixels outside of the pial surfaces get
    the class of kind background only if there are two hemispheres. With one hemisphere they may
    belong to the other one.

    Returns:
        The cortex, and lines of text that list the class of each label.

    Raises:
        InputError: see `carry_labels`.
    """
    need_hemispheres(brain, "carrying labels")
    # Reversed, so that the first class of each kind counts.
    kinds = {item.kind: index for index, item in reversed(list(enumerate(brain.classes)))}
    title = [item.name for item in brain.classes]
    parts = [_pial_white(each) for each in brain.hemispheres]
    sizes = [len(pial.vertices) for pial, _ in parts]
    number, lines = vertex_classes(brain, sizes, classes)
    starts = np.cumsum([0, *sizes])
    cortex = LabeledCortex(
        pial=np.concatenate([pial.vertices for pial, _ in parts]),
        white=np.concatenate([white.vertices for _, white in parts]),
        faces=np.concatenate(
            [
                pial.faces.astype(np.int64) + start
                for (pial, _), start in zip(parts, starts, strict=False)
            ]
        ),
        number=np.concatenate(number),
        outside=kinds.get("background", UNLABELED) if len(parts) > 1 else UNLABELED,
        within=kinds.get("white_matter", UNLABELED),
    )
    for where, value in (("within white", cortex.within), ("outside of pial", cortex.outside)):
        lines.append(f"{where}: {'not annotated' if value == UNLABELED else title[value]}")
    return cortex, lines


def vertex_classes(
    brain: Brain, num_vertices: Sequence[int], classes: Mapping[int, str]
) -> tuple[list[np.ndarray], list[str]]:
    """Read the label files and convert labels to classes.

    Args:
        brain: a brain whose hemispheres name label files.
        num_vertices: number of vertices of each hemisphere.
        classes: as for `carry_labels`.

    Returns:
        The class of each vertex, int32 [V] for each hemisphere, and lines of text that list the
        class of each label. The class is UNLABELED in hemispheres without labels and for labels
        that `classes` maps to "".

    Raises:
        InputError: if no hemisphere has labels, no label becomes a class, or a file is damaged.
    """
    per_hemisphere, names = [], {}
    for each, count in zip(brain.hemispheres, num_vertices, strict=True):
        if each.labels is None:
            per_hemisphere.append(None)
            continue
        per_hemisphere.append(read_labels(each.labels, count))
        for key, name in read_label_names(each.labels).items():
            if names.setdefault(key, name) != name:
                raise InputError(
                    f"{each.labels}: label {key} is {name!r} here and {names[key]!r} in "
                    "another hemisphere; use the same label for the same area in both"
                )
    known = [labels for labels in per_hemisphere if labels is not None]
    if not known:
        raise InputError(
            f"{brain.root / 'brain.toml'}: hemispheres: labels: none given; name a file of area "
            "labels"
        )
    keys, counts = np.unique(np.concatenate(known), return_counts=True)
    chosen = _classes_of(brain, keys.tolist(), names, classes)
    table = np.array([chosen[key] for key in keys.tolist()], np.int32)
    number = [
        np.full(count, UNLABELED, np.int32)
        if labels is None
        else table[np.searchsorted(keys, labels)]
        for labels, count in zip(per_hemisphere, num_vertices, strict=True)
    ]
    lines = [
        f"label {key}{f' ({names[key]})' if key in names else ''}, {count} vertices: "
        + ("not annotated" if chosen[key] == UNLABELED else brain.classes[chosen[key]].name)
        for key, count in zip(keys.tolist(), counts.tolist(), strict=True)
    ]
    return number, lines


def cut_section(cortex: LabeledCortex, place: Registration, pixel_um: float) -> Cut:
    """Cut the cortex by a section, on the section's label grid.

    A bent section is flattened: every vertex is mapped to its (column, row) and its distance to the
    section. The cut is therefore exact at the vertices and linear between them.
    """
    pial, white = (_to_grid(each, place, pixel_um) for each in (cortex.pial, cortex.white))
    return cut_prisms(pial, white, cortex.faces)


def label_blocks(cortex: LabeledCortex, cut: Cut, shape: tuple[int, int]) -> Iterator[np.ndarray]:
    """Yield the label image [height, width], uint8, in blocks of rows."""
    linear = planes(cut)
    for top in range(0, shape[0], BLOCK):
        height = min(BLOCK, shape[0] - top)
        triangle = rasterize(cut, top, height, shape[1])
        out = np.full(triangle.shape, cortex.outside, np.uint8)
        out[inside_white(cut, top, height, shape[1])] = cortex.within
        row, column = np.nonzero(triangle >= 0)
        _, ids, weights, _ = evaluate(cut, linear, triangle[row, column], column, row + top)
        out[row, column] = weighted_majority(cortex.number[ids], weights)
        yield out


def atlas_channels(membership: np.ndarray, cut: Cut, shape: tuple[int, int]) -> np.ndarray:
    """Interpolate memberships [V, channels] in the cortex, for an atlas image.

    Returns:
        uint8 [channels, height, width], 255 = probability 1, and 0 outside of the cortex.
    """
    linear = planes(cut)
    out = np.zeros((membership.shape[1], *shape), np.uint8)
    for top in range(0, shape[0], BLOCK):
        triangle = rasterize(cut, top, min(BLOCK, shape[0] - top), shape[1])
        row, column = np.nonzero(triangle >= 0)
        _, ids, weights, _ = evaluate(cut, linear, triangle[row, column], column, row + top)
        for k, channel in enumerate(np.ascontiguousarray(membership.T)):
            value = np.rint(255 * (weights * channel[ids]).sum(0)).astype(np.uint8)
            # Most areas are far away. Without writing zeros, the memory of `out` stays unmapped.
            some = np.flatnonzero(value)
            out[k, row[some] + top, column[some]] = value[some]
    return out


def _pial_white(hemisphere: Hemisphere) -> tuple[Surface, Surface]:
    if hemisphere.pial is None or hemisphere.white is None:
        raise InputError(
            f"hemisphere {hemisphere.name}: carrying labels needs pial and white, between which "
            "the cortex lies"
        )
    pial, white = read_surface(hemisphere.pial), read_surface(hemisphere.white)
    if not vertex_matched(pial, white):
        raise InputError(
            f"{hemisphere.pial} and {hemisphere.white}: not vertex-matched; take pial and white of "
            "one reconstruction"
        )
    return pial, white


def _classes_of(
    brain: Brain, keys: list[int], names: Mapping[int, str], given: Mapping[int, str]
) -> dict[int, int]:
    """Return the class, or UNLABELED, of every label."""
    toml = brain.root / "brain.toml"
    indices = {item.name: k for k, item in enumerate(brain.classes)}
    kinds = {item.kind: k for k, item in reversed(list(enumerate(brain.classes)))}
    listed = ", ".join(f"{key} ({names[key]})" if key in names else str(key) for key in keys)
    for key, name in given.items():
        if key not in keys:
            raise InputError(f"--map {key}={name}: no vertex has this label; labels are {listed}")
        if name and name not in indices:
            raise InputError(f"--map {key}={name}: {toml} lists {', '.join(indices)}")
    classes = {key: indices.get(given.get(key, names.get(key, "")), None) for key in keys}
    if not any(value is not None for value in classes.values()):
        raise InputError(
            f"{toml}: classes: none has the name of a label ({listed}); map labels to classes, "
            f"for example --map {keys[-1]}={next(iter(indices), 'NAME')}"
        )
    other = kinds.get("cortex", UNLABELED)
    return {
        key: UNLABELED if given.get(key) == "" else other if value is None else value
        for key, value in classes.items()
    }


def _to_grid(points_mm: np.ndarray, place: Registration, pixel_um: float) -> np.ndarray:
    """Map points [V, 3] in mm to (column, row) on the label grid and mm off the section, [V, 3]."""
    column, row, offset = AffineRegistration(place.affine).to_px(points_mm)
    # The exact mapping is iterative, so it is used near the section only. For all other points only
    # the side of the section matters, which the affine gives.
    if place.bend_mm:
        near = np.abs(offset) <= 2 * place.bend_mm + THICKEST_MM
        column[near], row[near], offset[near] = place.to_px(points_mm[near])
    scale = pixel_um / LABEL_UM
    return np.stack([(column + 0.5) * scale - 0.5, (row + 0.5) * scale - 0.5, offset], axis=1)


def _meets(cut: Cut, shape: tuple[int, int]) -> bool:
    """Return whether any triangle of the cut lies in the image."""
    limit = np.array(shape)[::-1] - 1
    return bool(((cut.corner.max(1) >= 0) & (cut.corner.min(1) <= limit)).all(1).any())


def _write_atlas(path, channels: np.ndarray) -> None:
    tifffile.imwrite(
        path,
        channels,
        bigtiff=True,
        tile=(256, 256),
        photometric="minisblack",
        planarconfig="separate",
        compression="adobe_deflate",
        metadata=None,
        software=False,
        resolution=(1e4 / LABEL_UM, 1e4 / LABEL_UM),
        resolutionunit="CENTIMETER",
    )
