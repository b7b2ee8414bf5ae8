"""Plan the prediction of each section, and detect the sections that are finished."""

import contextlib
import dataclasses
import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path

from jaxcyto.brain.manifest import Brain, SectionRow
from jaxcyto.brain.sections.atlas_image import section_atlas
from jaxcyto.brain.sections.section import open_section
from jaxcyto.data.windows import label_factor
from jaxcyto.errors import InputError
from jaxcyto.models import Geometry
from jaxcyto.predict.maps import settings_of
from jaxcyto.predict.reading import SectionSource, map_shape
from jaxcyto.runs.load import SegmentRun
from jaxcyto.utils.files import file_sha256

UNTOUCHED_S = 600.0  # temporary files unchanged for longer belong to a killed process


@dataclasses.dataclass(frozen=True, eq=False)
class SectionJob:
    """The prediction of one section.

    Attributes:
        row: row of the section table.
        shape: (height, width) of the map in px.
        settings: digest of everything that the map depends on.
        folder: folder of the maps.
    """

    row: SectionRow
    shape: tuple[int, int]
    settings: str
    folder: Path

    @property
    def class_map(self) -> Path:
        return self.folder / f"{self.row.name}.ome.tif"

    @property
    def probability_map(self) -> Path:
        return self.folder / f"{self.row.name}.probabilities.ome.tif"

    @property
    def overlay(self) -> Path:
        return self.folder / f"{self.row.name}.png"

    @property
    def geojson(self) -> Path:
        return self.folder / f"{self.row.name}.geojson"

    def is_finished(self, probabilities: bool) -> bool:
        """Return whether the maps on disk were predicted with these settings."""
        needed = [self.class_map] + [self.probability_map] * probabilities
        return all(settings_of(path) == self.settings for path in needed)

    def is_current(self, file: Path) -> bool:
        """Return whether a file made from the class map is on disk and not older than it."""
        return file.exists() and file.stat().st_mtime_ns >= self.class_map.stat().st_mtime_ns


def plan(
    run: SegmentRun, brain: Brain, rows: Sequence[SectionRow], folder: Path
) -> tuple[list[SectionJob], list[str]]:
    """Plan the prediction of sections by reading their headers.

    Args:
        run: the network.
        brain: brain of the sections.
        rows: rows of the section table.
        folder: folder of the maps.

    Returns:
        Jobs, and a message for each section that cannot be read.
    """
    common = {
        "weights": file_sha256(run.weights),
        "network": repr(run.model),
        "scales": [run.um_per_px, run.input_mean, run.input_std],
        "classes": [dataclasses.astuple(entry) for entry in run.classes],
        "background": brain.background,
    }
    if brain.bits is not None:  # absent otherwise, so that maps of earlier versions stay valid
        common["bits"] = brain.bits
    jobs, failures = [], []
    for row in rows:
        try:
            odd = row.name.startswith(".") or row.name.endswith(".probabilities")
            if odd or Path(row.name).name != row.name:
                raise InputError("cannot be the name of a map; rename it in the section table")
            source = open_source(run, brain, row)
            source.section.close()
            files = [row.image] + [row.atlas] * (source.atlas is not None)
            stamps = [
                (str(path.relative_to(brain.root)), path.stat().st_size, path.stat().st_mtime_ns)
                for path in files
                if path
            ]
            settings = json.dumps(common | {"pixel_um": row.pixel_um, "files": stamps})
            digest = hashlib.sha256(settings.encode()).hexdigest()
            jobs.append(SectionJob(row, source.shape, digest, folder))
        except InputError as error:
            failures.append(f"section {row.name}: {error}")
    return jobs, failures


def open_source(run: SegmentRun, brain: Brain, row: SectionRow) -> SectionSource:
    """Open a section and, if the network takes one, its atlas image.

    Raises:
        InputError: they cannot be read or do not match the run.
    """
    section = open_section(row.image, row.pixel_um, brain.background, brain.bits)
    if not run.atlas_channels:
        return SectionSource(row.name, section, map_shape(section, run.out_um))
    if row.atlas is None:
        raise InputError(
            f"atlas: empty in {brain.root / brain.section_table}, but this network was trained "
            "with atlas images. Name its atlas image"
        )
    factor = label_factor(run.um_per_px, Geometry.of(run.model))
    atlas = section_atlas(row, section.shape, run.classes, factor)
    return SectionSource(row.name, section, map_shape(section, run.out_um), atlas)


def remove_unfinished(jobs: Sequence[SectionJob], folder: Path) -> None:
    """Remove the temporary files of killed processes for these sections.

    Files that have changed recently are kept, because another process may be writing them.
    """
    names = {
        path.name
        for job in jobs
        for path in (job.class_map, job.probability_map, job.overlay, job.geojson)
    }
    for path in folder.glob(".*.tmp"):  # .NAME.PROCESS.tmp
        if path.name[1:].rsplit(".", 2)[0] not in names:
            continue
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > UNTOUCHED_S:
                path.unlink()
