"""A synthetic brain, written to disk in the form of a real one: see docs/phantom.md."""

import colorsys
import concurrent.futures
import dataclasses
import itertools
import multiprocessing
import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import tifffile
import tomli_w

from jaxcyto.brain import phantom_shape as shape
from jaxcyto.brain.manifest import write_table
from jaxcyto.brain.phantom_cut import cut_cortex
from jaxcyto.brain.phantom_label import annotated, atlas_channels, displaced
from jaxcyto.brain.phantom_paint import GRID_UM, SectionPainter, draw_look
from jaxcyto.brain.progress import Progress
from jaxcyto.brain.section_writer import write_section
from jaxcyto.brain.surfaces import Surface, write_surface
from jaxcyto.errors import InputError


@dataclasses.dataclass(frozen=True)
class PhantomSettings:
    """What is made; everything follows from these fields.

    Attributes:
        seed: of everything random. Each section draws from generators of its own.
        long_axis_mm: length of a hemisphere before folding.
        mesh_subdivisions: of the icosphere; a hemisphere has 10 * 4**n + 2 vertices.
        num_areas: areas of each hemisphere (the mirror image of the other one's).
        num_other: further regions with profiles of their own, labelled "other cortex" together.
        num_sections: coronal sections, evenly spaced about the middle of the brain.
        spacing_mm: between sections.
        um_per_px: of the images; 16 is a whole multiple of it.
        annotated_fraction: of each section's label image.
        artifacts: mean number of tears, folds and blobs in a section.
        atlas: whether atlas images are written.
        null: one profile everywhere, all else equal.
        compression: of the images; see `section_writer.write_section`.
    """

    seed: int = 0
    long_axis_mm: float = 36.0
    mesh_subdivisions: int = 5
    num_areas: int = 12
    num_other: int = 4
    num_sections: int = 64
    spacing_mm: float = 0.6
    um_per_px: float = 16.0
    annotated_fraction: float = 0.5
    artifacts: float = 6.0
    atlas: bool = True
    null: bool = False
    compression: str | None = None

    def __post_init__(self):
        factor = GRID_UM / self.um_per_px
        if abs(factor - round(factor)) > 1e-9 or factor < 1:
            raise InputError(
                f"um_per_px = {self.um_per_px:g}: label images have {GRID_UM:g} um, which must be "
                "a whole multiple of it; give 1, 2, 4, 8 or 16"
            )


PRESETS = {
    "tiny": PhantomSettings(
        long_axis_mm=18, mesh_subdivisions=4, num_areas=6, num_other=2, num_sections=24,
        spacing_mm=0.8,
    ),
    "quickstart": PhantomSettings(),
    "full": PhantomSettings(
        long_axis_mm=21, num_sections=36, spacing_mm=0.6, um_per_px=2, compression="zstd"
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class SectionPlan:
    """One section: number, grid affine [3, 4] (mm of grid pixels) and grid (height, width)."""

    number: int
    affine: np.ndarray
    shape: tuple[int, int]


def make_phantom(
    out: str | os.PathLike,
    settings: PhantomSettings = PRESETS["quickstart"],
    progress: Progress | None = None,
    workers: int | None = None,
) -> Path:
    """Writes a phantom brain folder; nothing is left at `out` unless it is finished.

    Args:
        out: the folder to make; it must not exist yet, or be empty.
        settings: what is made.
        progress: told the sections done.
        workers: processes (all cores if None); the result does not depend on it.

    Raises:
        InputError: `out` is in use.
    """
    cortex = phantom_cortex(settings)
    plans = coronal_plans(
        cortex,
        (np.arange(settings.num_sections) - (settings.num_sections - 1) / 2) * settings.spacing_mm,
        settings.seed,
    )
    names = [f"area {k + 1}" for k in range(settings.num_areas)]
    return write_brain(out, settings, cortex, plans, names, ["left", "right"], progress, workers)


def phantom_cortex(settings: PhantomSettings) -> shape.Cortex:
    """Both hemispheres of the phantom; the null brain differs in its profiles only."""
    form, layout, texture = (np.random.default_rng((settings.seed, k)) for k in range(3))
    unfolded, pial, white, faces = shape.hemisphere(
        settings.long_axis_mm, settings.mesh_subdivisions, form
    )
    count = settings.num_areas + settings.num_other
    region = shape.regions(unfolded, count, layout)
    profiles = shape.area_profiles(unfolded, region, count, settings.null, texture)
    skew = shape.volume_skew(pial, white, faces)
    mirror, size = np.array([-1, 1, 1]), len(pial)

    def both(values):
        return np.concatenate([values, values])

    return shape.Cortex(
        pial=np.concatenate([pial * mirror, pial]),
        white=np.concatenate([white * mirror, white]),
        faces=np.concatenate([faces[:, ::-1], faces + size]),
        area=both(np.minimum(region, settings.num_areas)),
        profiles=shape.Profiles(
            both(profiles.bounds), both(profiles.coverage), both(profiles.diameter_um)
        ),
        skew=both(skew),
        starts=(0, size, 2 * size),
    )


def coronal_plans(
    cortex: shape.Cortex, positions_mm: np.ndarray, seed: int, margin_mm: float = 0.6
) -> list[SectionPlan]:
    """Sections at y = `positions_mm`, columns +x, rows -z, turned in their plane by up to 2 degrees.

    Every image holds the whole cut; its size is the same for all.
    """
    low, high = cortex.pial.min(0) - margin_mm, cortex.pial.max(0) + margin_mm
    turn = np.deg2rad(2.0)
    centre, half = (low + high) / 2, (high - low) / 2
    half_x = half[0] * np.cos(turn) + half[2] * np.sin(turn)
    half_z = half[2] * np.cos(turn) + half[0] * np.sin(turn)
    step = GRID_UM / 1000
    height, width = int(np.ceil(2 * half_z / step)), int(np.ceil(2 * half_x / step))
    plans = []
    for number, y in enumerate(positions_mm):
        angle = np.random.default_rng((seed, 4, number)).uniform(-turn, turn)
        column = step * np.array([np.cos(angle), 0, np.sin(angle)])
        row = step * np.array([np.sin(angle), 0, -np.cos(angle)])
        origin = np.array([centre[0], y, centre[2]]) - (width - 1) / 2 * column
        origin -= (height - 1) / 2 * row
        plans.append(SectionPlan(number, np.stack([column, row, 0 * row, origin], 1), (height, width)))
    return plans


def write_brain(
    out, settings, cortex, plans, names, hemispheres, progress=None, workers=None
) -> Path:
    """Paints `plans` and writes the whole folder; see `make_phantom`."""
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: already there; remove it or name another folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        for name in ("surfaces", "sections", "labels") + ("atlas",) * settings.atlas:
            (folder / name).mkdir(parents=True)
        _write_surfaces(folder, cortex, hemispheres)
        _paint_all(folder, settings, cortex, plans, len(names), progress, workers)
        _write_manifest(folder, out.name, settings, plans, names, hemispheres)
        if out.exists():
            out.rmdir()
        os.replace(folder, out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return out


def _paint_all(folder, settings, cortex, plans, num_areas, progress, workers) -> None:
    workers = min(workers or os.cpu_count() or 1, len(plans))
    moved = displaced(cortex, np.random.default_rng((settings.seed, 5)))
    paint = _Paint(folder, settings, cortex, moved, num_areas)
    if workers == 1:
        for done, plan in enumerate(plans):
            paint(plan)
            if progress:
                progress(done + 1, len(plans))
        return
    # Forked children would inherit the locks of JAX's threads; spawned ones do not.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(
        workers, context, initializer=_set_paint, initargs=(paint,)
    ) as pool:
        for done, _ in enumerate(pool.map(_call_paint, plans)):
            if progress:
                progress(done + 1, len(plans))


_PAINT = None


def _set_paint(paint) -> None:
    global _PAINT
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
    moved: shape.Cortex  # for the atlas
    num_areas: int

    def __call__(self, plan: SectionPlan) -> None:
        settings, seed = self.settings, (self.settings.seed, 3, plan.number)
        cut = cut_cortex(self.cortex, plan.affine)
        look = draw_look(plan.shape, settings.artifacts, np.random.default_rng((*seed, 0)))
        ids = (self.num_areas + 1, self.num_areas + 2)
        painter = SectionPainter(
            self.cortex, cut, plan.shape, look, settings.um_per_px, ids, seed
        )
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
            channels = atlas_channels(
                self.moved, plan.affine, plan.shape, self.num_areas
            )
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


def colors(count: int) -> list[str]:
    """Colours for areas: hues a golden angle apart, in three lightnesses that differ in grey too."""
    out = []
    for k in range(count):
        rgb = colorsys.hls_to_rgb((0.58 + 0.381966 * k) % 1, (0.38, 0.55, 0.72)[k % 3], 0.7)
        out.append("#" + "".join(f"{round(255 * value):02x}" for value in rgb))
    return out


def _write_surfaces(folder: Path, cortex: shape.Cortex, names: list[str]) -> None:
    for name, (start, end) in zip(names, itertools.pairwise(cortex.starts), strict=True):
        inside = (cortex.faces[:, 0] >= start) & (cortex.faces[:, 0] < end)
        faces = cortex.faces[inside] - start
        for kind in ("pial", "white"):
            surface = Surface(getattr(cortex, kind)[start:end], faces)
            write_surface(folder / "surfaces" / f"{name}.{kind}.surf.gii", surface)
        data = nib.gifti.GiftiDataArray(  # pyright: ignore[reportPrivateImportUsage]
            cortex.area[start:end].astype(np.int32),
            intent="NIFTI_INTENT_LABEL",
            datatype="NIFTI_TYPE_INT32",
            encoding="GIFTI_ENCODING_B64GZ",
        )
        image = nib.gifti.GiftiImage(darrays=[data])  # pyright: ignore[reportPrivateImportUsage]
        (folder / "surfaces" / f"{name}.label.gii").write_bytes(image.to_bytes())


def _write_manifest(folder, brain_name, settings, plans, names, hemispheres) -> None:
    classes = [
        {"name": name, "color": color, "kind": "area"}
        for name, color in zip(names, colors(len(names)), strict=True)
    ]
    classes += [
        {"name": "other cortex", "color": "#b9b4a8", "kind": "cortex"},
        {"name": "white matter", "color": "#e9e6df", "kind": "white_matter"},
        {"name": "background", "color": "#ffffff", "kind": "background"},
    ]
    table = {
        "format": 1,
        "name": brain_name,
        "licence": "CC0-1.0",
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
                "affine": " ".join(f"{v:.12g}" for v in image_affine(plan, settings.um_per_px).ravel()),
                "label": f"labels/{file}",
                "atlas": f"atlas/{file}" if settings.atlas else "",
            }
        )
    write_table(folder / "sections.csv", rows)


def image_affine(plan: SectionPlan, um_per_px: float) -> np.ndarray:
    """mm of image pixels [3, 4]: grid pixel m covers image pixels [m f, (m + 1) f)."""
    factor = GRID_UM / um_per_px
    shift = (1 / factor - 1) / 2  # grid coordinate of image pixel 0
    affine = plan.affine.copy()
    affine[:, :2] /= factor
    affine[:, 3] += shift * (plan.affine[:, 0] + plan.affine[:, 1])
    return affine
