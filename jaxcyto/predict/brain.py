"""Predict the class maps of all sections of a brain, resumable after an interruption.

    RUN/predictions/BRAIN/SECTION.ome.tif                 class map
    RUN/predictions/BRAIN/SECTION.probabilities.ome.tif   probability map, if requested
    RUN/predictions/BRAIN/SECTION.png                     overlay, if requested
    RUN/predictions/BRAIN/SECTION.geojson                 polygons of the classes, if requested
    RUN/predictions/BRAIN/HEMISPHERE.label.gii            classes of the vertices, if requested

A class map gets its final name when it and its probability map are complete. It stores a digest of
everything it depends on. Therefore, the same command skips finished sections and predicts the
others.
"""

import dataclasses
import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from jaxcyto.brain.annotation.image_column import select_sections
from jaxcyto.brain.manifest import AreaClass, Brain, inspect_brain, read_brain
from jaxcyto.brain.sections.section import open_section
from jaxcyto.errors import InputError
from jaxcyto.predict.maps import open_class_map, settings_of, write_class_map, write_probability_map
from jaxcyto.predict.outlines import write_outlines
from jaxcyto.predict.overlay import write_overlay
from jaxcyto.predict.planes import Plane
from jaxcyto.predict.predictor import Failure, Predictor, default_tile
from jaxcyto.predict.reading import SectionSource
from jaxcyto.predict.section_jobs import SectionJob, open_source, plan, remove_unfinished
from jaxcyto.predict.surface import write_surface_labels
from jaxcyto.runs.load import load_segment_run
from jaxcyto.utils.progress import Progress


@dataclasses.dataclass(frozen=True)
class Outputs:
    """Which outputs to write in addition to class maps."""

    probabilities: bool = False
    overlay: bool = False
    geojson: bool = False
    surface: bool = False


@dataclasses.dataclass
class PredictionReport:
    """The results of `predict_brain`.

    Attributes:
        folder: folder of the maps.
        predicted: names of the sections that were predicted now.
        finished: names of the sections that were predicted before with the same settings.
        failures: one message for each section that could not be read.
        labels: label files of the surfaces, each with the fraction of vertices that have a class.
        tile_px: side of the windows, or 0 if nothing was predicted.
        pixels: count of predicted map px.
        image_pixels: count of image px that these cover, at the resolution of the network.
        seconds: time taken for these.
    """

    folder: Path
    predicted: list[str] = dataclasses.field(default_factory=list)
    finished: list[str] = dataclasses.field(default_factory=list)
    failures: list[str] = dataclasses.field(default_factory=list)
    labels: list[tuple[Path, float]] = dataclasses.field(default_factory=list)
    tile_px: int = 0
    pixels: int = 0
    image_pixels: int = 0
    seconds: float = 0.0


def predict_brain(
    run_folder: Path,
    brain_folder: Path,
    *,
    sections: Sequence[str] = (),
    shard: tuple[int, int] = (1, 1),
    tile_px: int | None = None,
    outputs: Outputs | None = None,
    progress: Progress | None = None,
) -> PredictionReport:
    """Segment the sections of a brain that are not finished yet.

    Args:
        run_folder: folder of a finished segmentation run.
        brain_folder: folder of the brain.
        sections: names of sections. All sections if empty.
        shard: (i, n) with 1 <= i <= n selects every n-th of the sections, from the i-th on.
        tile_px: side of the windows in image px. By default, it is chosen by the available memory
            and the largest section.
        outputs: additional outputs. By default, there are none.
        progress: called with (map px done, total).

    Returns:
        A report. Its `failures` lists the sections that cannot be read. All others are finished.

    Raises:
        InputError: the run or the brain cannot be read, a section is unknown, or the network does
            not take windows of `tile_px`.
    """
    outputs = outputs or Outputs()
    run = load_segment_run(run_folder)
    brain, missing = _read_brain(brain_folder)
    if outputs.surface and not brain.hemispheres:
        raise InputError(
            f"{brain.root / 'brain.toml'}: no [[hemispheres]]; add their surfaces, or leave out "
            "--surface"
        )
    try:
        rows = select_sections(brain, list(dict.fromkeys(sections)))[shard[0] - 1 :: shard[1]]
    except InputError as error:  # a named section may be missing because its image is
        raise InputError("\n".join([str(error), *missing])) from None
    report = PredictionReport(run.path / "predictions" / brain.root.name)
    report.folder.mkdir(parents=True, exist_ok=True)
    jobs, failures = plan(run, brain, rows, report.folder)
    report.failures = ([] if sections else missing) + failures
    remove_unfinished(jobs, report.folder)
    finished: list[SectionJob] = []
    todo: list[SectionJob] = []
    for job in jobs:
        (finished if job.is_finished(outputs.probabilities) else todo).append(job)
    report.finished = [job.row.name for job in finished]
    if todo:
        tile_px = tile_px or default_tile(run, max(max(job.shape) for job in todo))
        predictor = Predictor(run, tile_px, outputs.probabilities)
        _make_maps(predictor, brain, todo, outputs, progress, report)
    for job in finished:
        if outputs.overlay and not job.is_current(job.overlay):
            _write_overlay(brain, job, run.classes, report)
        if outputs.geojson and not job.is_current(job.geojson):
            _write_geojson(job, run.classes, report)
    if outputs.surface:
        every, _ = plan(run, brain, brain.sections, report.folder)
        maps = [(job.row, open_class_map(job.class_map)) for job in every if job.is_finished(False)]
        report.labels = write_surface_labels(report.folder, brain.hemispheres, maps, run.classes)
    return report


def _read_brain(folder: Path) -> tuple[Brain, list[str]]:
    """Read a brain and list a message for each section whose image is missing.

    The other sections can still be predicted.

    Raises:
        InputError: the tables of the brain have any other fault.
    """
    brain, faults = inspect_brain(folder)
    missing = [fault for fault in faults if re.search(r": line \d+: image: ", fault)]
    if brain is None or len(missing) < len(faults):
        return read_brain(folder), []  # this call raises
    return brain, missing


def _make_maps(
    predictor: Predictor,
    brain: Brain,
    jobs: list[SectionJob],
    outputs: Outputs,
    progress: Progress | None,
    report: PredictionReport,
) -> None:
    """Compute the maps, and write those of a section while the next section is computed."""
    run = predictor.run
    by_name = {job.row.name: job for job in jobs}
    total, started = sum(job.shape[0] * job.shape[1] for job in jobs), time.monotonic()

    def sources() -> Iterator[SectionSource]:
        for job in jobs:
            try:
                yield open_source(run, brain, job.row)
            except InputError as error:  # the file has changed since its header was read
                report.failures.append(f"section {job.row.name}: {error}")

    def write(job: SectionJob, planes: list[Plane]) -> None:
        about = (run.out_um, run.classes, job.settings)
        if settings_of(job.class_map) != job.settings:  # outputs of an earlier map
            job.probability_map.unlink(missing_ok=True)
            job.overlay.unlink(missing_ok=True)
            job.geojson.unlink(missing_ok=True)
        if outputs.probabilities:
            write_probability_map(job.probability_map, planes[1:], *about)
        write_class_map(job.class_map, planes[0], *about)
        report.predicted.append(job.row.name)
        if outputs.overlay:
            _write_overlay(brain, job, run.classes, report)
        if outputs.geojson:
            _write_geojson(job, run.classes, report)

    planes: list[Plane] = []
    with ThreadPoolExecutor(1, "writer") as writer:
        writing: Future[None] | None = None
        for part in predictor.sections(sources()):
            job = by_name[part.source.name]
            if isinstance(part, Failure):
                report.failures.append(f"section {job.row.name}: {part.error}")
                part.source.section.close()
                continue
            if part.top == 0:
                count = 1 + len(run.classes) * outputs.probabilities
                planes = [Plane(report.folder, job.shape) for _ in range(count)]
            planes[0].write(part.top, part.classes)
            if part.probabilities is not None:
                for plane, rows in zip(planes[1:], part.probabilities, strict=True):
                    plane.write(part.top, rows)
            report.pixels += part.classes.size
            if progress is not None:
                progress(report.pixels, total)
            if part.top + len(part.classes) == job.shape[0]:
                part.source.section.close()
                if writing is not None:
                    writing.result()  # at most one section waits, because its planes use disk space
                writing = writer.submit(write, job, planes)
        if writing is not None:
            writing.result()
    report.tile_px = predictor.tiling.tile_px
    report.image_pixels = report.pixels * predictor.tiling.geometry.output_stride**2
    report.seconds = time.monotonic() - started


def _write_overlay(
    brain: Brain, job: SectionJob, classes: tuple[AreaClass, ...], report: PredictionReport
) -> None:
    try:
        with open_section(job.row.image, job.row.pixel_um, brain.background, brain.bits) as section:
            write_overlay(job.overlay, section, open_class_map(job.class_map), classes)
    except InputError as error:
        report.failures.append(f"section {job.row.name}: {error}")


def _write_geojson(
    job: SectionJob, classes: tuple[AreaClass, ...], report: PredictionReport
) -> None:
    try:
        write_outlines(job.geojson, job.row, open_class_map(job.class_map), classes)
    except InputError as error:
        report.failures.append(f"section {job.row.name}: {error}")
