"""All sections of a brain: class maps in the run's folder, whatever happens on the way.

    RUN/predictions/BRAIN/SECTION.ome.tif                 class map
    RUN/predictions/BRAIN/SECTION.probabilities.ome.tif   if asked for
    RUN/predictions/BRAIN/SECTION.png                     overlay, if asked for
    RUN/predictions/BRAIN/HEMISPHERE.label.gii            classes of the vertices, if asked for

A class map takes its name when it and its probability map are complete, and says what it was
computed with, so the same command skips what is finished and does the rest.
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
    """What is written beside class maps."""

    probabilities: bool = False
    overlay: bool = False
    surface: bool = False


@dataclasses.dataclass
class PredictionReport:
    """What became of the sections, by name, and what it took.

    Attributes:
        folder: where the maps are.
        predicted: computed now.
        finished: computed before, with the same settings.
        failures: one message for each section that could not be read.
        labels: files with labels of a surface, and the share of vertices that have one.
        tile_px: side of the windows; 0: nothing was computed.
        pixels: map px computed.
        image_pixels: px of the sections that they cover, as the network sees them.
        seconds: for these.
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
    """Predicts the sections of a brain that are not finished yet.

    Args:
        run_folder: of a finished segmentation run.
        brain_folder: of the brain.
        sections: names; all if empty.
        shard: (i, n): every n-th of them from the i-th on, counted from 1.
        tile_px: side of the windows; by default what memory allows and the largest section needs.
        outputs: what else is written.
        progress: told the map px done.

    Returns:
        A report; sections that cannot be read are in its `failures`, all others are finished.

    Raises:
        InputError: no such run or brain, an unknown section, or an impossible tile size.
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
    except InputError as error:  # it may be one of those without an image
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
    if outputs.overlay:
        for job in finished:
            if not job.has_overlay():
                _write_overlay(brain, job, run.classes, report)
    if outputs.surface:
        every, _ = plan(run, brain, brain.sections, report.folder)
        maps = [(job.row, open_class_map(job.class_map)) for job in every if job.is_finished(False)]
        report.labels = write_surface_labels(report.folder, brain.hemispheres, maps, run.classes)
    return report


def _read_brain(folder: Path) -> tuple[Brain, list[str]]:
    """A brain, and a message for each section whose image is missing; the others can be predicted.

    Raises:
        InputError: anything else is wrong with the brain's tables.
    """
    brain, faults = inspect_brain(folder)
    missing = [fault for fault in faults if re.search(r": line \d+: image: ", fault)]
    if brain is None or len(missing) < len(faults):
        return read_brain(folder), []  # which raises
    return brain, missing


def _make_maps(
    predictor: Predictor,
    brain: Brain,
    jobs: list[SectionJob],
    outputs: Outputs,
    progress: Progress | None,
    report: PredictionReport,
) -> None:
    """Computes the maps; while those of one section are written, the next one is computed."""
    run = predictor.run
    by_name = {job.row.name: job for job in jobs}
    total, started = sum(job.shape[0] * job.shape[1] for job in jobs), time.monotonic()

    def sources() -> Iterator[SectionSource]:
        for job in jobs:
            try:
                yield open_source(run, brain, job.row)
            except InputError as error:  # it changed since its header was read
                report.failures.append(f"section {job.row.name}: {error}")

    def write(job: SectionJob, planes: list[Plane]) -> None:
        about = (run.out_um, run.classes, job.settings)
        if settings_of(job.class_map) != job.settings:  # what was made of another map
            job.probability_map.unlink(missing_ok=True)
            job.overlay.unlink(missing_ok=True)
        if outputs.probabilities:
            write_probability_map(job.probability_map, planes[1:], *about)
        write_class_map(job.class_map, planes[0], *about)
        report.predicted.append(job.row.name)
        if outputs.overlay:
            _write_overlay(brain, job, run.classes, report)

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
                    writing.result()  # no more than one section waits
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
        with open_section(job.row.image, job.row.pixel_um, brain.background) as section:
            write_overlay(job.overlay, section, open_class_map(job.class_map), classes)
    except InputError as error:
        report.failures.append(f"section {job.row.name}: {error}")
