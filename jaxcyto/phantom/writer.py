"""Write the folder of a phantom brain. Several processes paint its sections."""

import concurrent.futures
import dataclasses
import itertools
import multiprocessing
import os
import shutil
from pathlib import Path

import numpy as np
import tifffile
import tomli_w

from jaxcyto.brain.manifest import write_table
from jaxcyto.brain.sections.writer import write_section
from jaxcyto.brain.surfaces.gifti import gifti_array, write_gifti
from jaxcyto.brain.surfaces.surface import Surface, write_surface
from jaxcyto.errors import InputError
from jaxcyto.phantom import cortex as shape
from jaxcyto.phantom.acquisition import GRID_UM, draw_look
from jaxcyto.phantom.annotation import annotated, atlas_channels, displaced
from jaxcyto.phantom.paint import SectionPainter
from jaxcyto.phantom.settings import PhantomSettings, SectionPlan, cut_cortex, image_affine
from jaxcyto.utils.processes import leave_with_parent
from jaxcyto.utils.progress import Progress

# Twelve colors of M. Krzywinski's palettes for color blindness (mk.bcgsc.ca/colorblind). They
# differ from each other and from the colors of the other classes by at least 12 units of CIELAB,
# for normal, protan, deutan and tritan vision (simulated after Machado et al. 2009).
AREA_COLORS = (
    "#009f81", "#9400e6", "#ffdc3d", "#6a0213", "#ff71fd", "#003c86",
    "#ff6e3a", "#e20134", "#9f0162", "#ffb2fd", "#68023f", "#ff5aaf",
)  # fmt: skip


def write_brain(
    out: str | os.PathLike,
    settings: PhantomSettings,
    cortex: shape.Cortex,
    plans: list[SectionPlan],
    area_names: list[str],
    hemispheres: list[str],
    progress: Progress | None = None,
    workers: int | None = None,
    licence: str = "CC0-1.0",
) -> Path:
    """Paint the planned sections and write the brain's folder.

    Args:
        out: the folder to make. It must not exist yet, or be empty.
        settings: settings of the phantom.
        cortex: surfaces, areas and profiles.
        plans: planes of the sections.
        area_names: name of each area.
        hemispheres: name of each hemisphere.
        progress: called with the number of sections done and the number of all sections.
        workers: number of processes, all cores if None.
        licence: value of the field `licence` of brain.toml.

    Returns:
        The folder.

    Raises:
        InputError: if `out` exists and is not an empty folder.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: already there; remove it or choose another folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    # Write beside `out` and rename at the end, so that `out` is never incomplete.
    folder = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        for name in ("surfaces", "sections", "labels") + ("atlas",) * settings.atlas:
            (folder / name).mkdir(parents=True)
        classes = area_classes(area_names)
        _write_surfaces(folder, cortex, hemispheres, classes)
        _paint_all(folder, settings, cortex, plans, len(area_names), progress, workers)
        _write_manifest(folder, out.name, licence, settings, plans, classes, hemispheres)
        if out.exists():
            out.rmdir()
        os.replace(folder, out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return out


def _paint_all(folder, settings, cortex, plans, num_areas, progress, workers) -> None:
    workers = min(workers or os.cpu_count() or 1, len(plans))
    moved = displaced(cortex, np.random.default_rng((settings.own_seed, 5)))
    paint = _Paint(folder, settings, cortex, moved, num_areas)
    if workers == 1:
        for done, plan in enumerate(plans):
            paint(plan)
            if progress:
                progress(done + 1, len(plans))
        return
    # Forked processes would inherit locks that JAX's threads may hold, and could hang.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(
        workers, context, initializer=_set_paint, initargs=(paint,)
    ) as pool:
        for done, _ in enumerate(pool.map(_call_paint, plans)):
            if progress:
                progress(done + 1, len(plans))


_PAINT = None  # of a worker process, set once so that the surfaces are not sent with each section


def _set_paint(paint) -> None:
    global _PAINT
    leave_with_parent()
    _PAINT = paint


def _call_paint(plan) -> None:
    assert _PAINT is not None
    _PAINT(plan)


@dataclasses.dataclass(frozen=True)
class _Paint:
    """Paints one section and writes its image, labels and atlas."""

    folder: Path
    settings: PhantomSettings
    cortex: shape.Cortex
    moved: shape.Cortex  # the displaced cortex of the atlas
    num_areas: int

    def __call__(self, plan: SectionPlan) -> None:
        settings, seed = self.settings, (self.settings.own_seed, 3, plan.number)
        cut = cut_cortex(self.cortex, plan.affine)
        look = draw_look(plan.shape, settings.artifacts, np.random.default_rng((*seed, 0)))
        ids = (self.num_areas + 1, self.num_areas + 2)
        painter = SectionPainter(self.cortex, cut, plan.shape, look, settings.um_per_px, ids, seed)
        class_map = np.empty(plan.shape, np.uint8)
        factor = painter.factor
        write_section(
            self.folder / "sections" / f"{plan.number:04d}.tif",
            painter.rows(class_map),
            settings.um_per_px,
            shape=(plan.shape[0] * factor, plan.shape[1] * factor),
            compression=settings.compression,
        )
        known = annotated(
            plan.shape, settings.annotated_fraction, np.random.default_rng((*seed, 3))
        )
        write_section(
            self.folder / "labels" / f"{plan.number:04d}.tif",
            np.where(known, class_map, np.uint8(255)),
            GRID_UM,
            compression="zstd",
        )
        if settings.atlas:
            channels = atlas_channels(self.moved, plan.affine, plan.shape, self.num_areas)
            tifffile.imwrite(
                self.folder / "atlas" / f"{plan.number:04d}.tif",
                channels,
                tile=(256, 256),
                photometric="minisblack",
                planarconfig="separate",
                compression="zstd",
                metadata=None,
                software=False,
                resolution=(1e4 / GRID_UM, 1e4 / GRID_UM),
                resolutionunit="CENTIMETER",
                maxworkers=1,
            )


def area_classes(names: list[str]) -> list[dict[str, str]]:
    """Return the classes of brain.toml: the areas, then other cortex, white matter, background.

    If there are more than twelve areas, colors repeat.
    """
    classes = [
        {"name": name, "color": AREA_COLORS[k % len(AREA_COLORS)], "kind": "area"}
        for k, name in enumerate(names)
    ]
    return [
        *classes,
        {"name": "other cortex", "color": "#b9b4a8", "kind": "cortex"},
        {"name": "white matter", "color": "#e9e6df", "kind": "white_matter"},
        {"name": "background", "color": "#ffffff", "kind": "background"},
    ]


def _write_surfaces(folder: Path, cortex: shape.Cortex, names, classes) -> None:
    labels = [(area["name"], (*_rgb(area["color"]), 1.0)) for area in classes]
    for name, (start, end) in zip(names, itertools.pairwise(cortex.starts), strict=True):
        inside = (cortex.faces[:, 0] >= start) & (cortex.faces[:, 0] < end)
        faces = cortex.faces[inside] - start
        for kind in ("pial", "white"):
            surface = Surface(getattr(cortex, kind)[start:end], faces)
            write_surface(folder / "surfaces" / f"{name}.{kind}.surf.gii", surface)
        areas = gifti_array(cortex.area[start:end].astype(np.int32), "NIFTI_INTENT_LABEL")
        write_gifti(folder / "surfaces" / f"{name}.label.gii", [areas], labels=labels)


def _rgb(color: str) -> tuple[float, float, float]:
    red, green, blue = (int(color[k : k + 2], 16) / 255 for k in (1, 3, 5))
    return red, green, blue


def _write_manifest(folder, brain_name, licence, settings, plans, classes, hemispheres) -> None:
    table = {
        "format": 1,
        "name": brain_name,
        "licence": licence,
        "citation": "synthetic; made by jaxcyto",
        "sections": "sections.csv",
        "background": 255,
        "hemispheres": [
            {
                "name": name,
                "pial": f"surfaces/{name}.pial.surf.gii",
                "white": f"surfaces/{name}.white.surf.gii",
                "labels": f"surfaces/{name}.label.gii",
            }
            for name in hemispheres
        ],
        "classes": classes,
    }
    (folder / "brain.toml").write_text(tomli_w.dumps(table), encoding="utf-8")
    rows = []
    for plan in plans:
        file = f"{plan.number:04d}.tif"
        rows.append(
            {
                "section": f"{plan.number:04d}",
                "image": f"sections/{file}",
                "pixel_um": f"{settings.um_per_px:g}",
                "affine": " ".join(
                    f"{v:.12g}" for v in image_affine(plan, settings.um_per_px).ravel()
                ),
                "label": f"labels/{file}",
                "atlas": f"atlas/{file}" if settings.atlas else "",
            }
        )
    write_table(folder / "sections.csv", rows)
