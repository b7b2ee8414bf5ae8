"""Provide the commands for segmentation: annotate, carry, predict and evaluate."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jaxcyto.cli.options import ABOVE_0, BRAIN, JSON, LABEL_CLASSES, SECTIONS, Command, parse_shard

if TYPE_CHECKING:
    from jaxcyto.predict.brain import PredictionReport


@click.command(cls=Command)
@BRAIN
@click.option(
    "--geojson",
    required=True,
    type=click.Path(path_type=Path),
    help="GeoJSON file, or a folder of files named after their sections.",
)
@click.option("--section", metavar="NAME", help="Section that a single file annotates.")
@click.option(
    "--unit",
    type=click.Choice(["px", "um"]),
    default="px",
    show_default=True,
    help="Unit of the coordinates: pixels at full resolution (QuPath) or micrometers.",
)
@click.option(
    "--order",
    type=click.Choice(["area", "file"]),
    default="area",
    show_default=True,
    help="Paint smaller annotations over larger ones, or later ones over earlier ones.",
)
@click.option(
    "--stroke-um",
    type=ABOVE_0,
    help="Width of lines and diameter of points in micrometers. Without it, both are left out.",
)
@click.option("--overwrite", is_flag=True, help="Replace existing label images.")
def annotate(brain: Path, **settings) -> None:
    """Convert drawn annotations to label images.

    Reads GeoJSON as exported by QuPath, writes labels/SECTION.tif and fills the column `label` of
    the section table. Annotations get the class of brain.toml with their name. Where they overlap,
    the smaller one counts. Prints the annotated area of each class in square millimeters.

    \b
    Examples:
      jaxcyto annotate brains/bigbrain --geojson export/
      jaxcyto annotate brains/bigbrain --geojson drawn.geojson --section 1081
      jaxcyto annotate brains/bigbrain --geojson scribbles/ --stroke-um 100
    """
    from jaxcyto.brain.annotation.polygons import annotate_brain

    click.echo(annotate_brain(brain, **settings))


@click.command(cls=Command)
@BRAIN
@SECTIONS
@LABEL_CLASSES
@click.option(
    "--into",
    type=click.Choice(["label", "atlas"]),
    default="label",
    show_default=True,
    help="Write label images (class indices) or atlas images (probability of each area).",
)
@click.option(
    "--fwhm-mm",
    type=click.FloatRange(0),
    default=0.0,
    show_default=True,
    help="Width (FWHM) in mm by which an atlas is smoothed along the surface.",
)
@click.option("--overwrite", is_flag=True, help="Replace existing images.")
def carry(brain: Path, **settings) -> None:
    """Transfer the area labels of the surfaces to the sections.

    Reads the `labels` of each hemisphere, writes labels/SECTION.tif or atlas/SECTION.tif for every
    section that cuts the cortex, and fills the section table. Prints the class of each label.

    \b
    Examples:
      jaxcyto carry brains/bigbrain --map 181=hOc1
      jaxcyto carry brains/bigbrain --into atlas --fwhm-mm 4
    """
    from jaxcyto.brain.annotation.surface_labels import carry_labels
    from jaxcyto.utils.progress import StderrProgress

    if settings["fwhm_mm"] and settings["into"] == "label":
        raise click.UsageError("--fwhm-mm is for --into atlas")
    click.echo(carry_labels(brain, progress=StderrProgress("carrying", "sections"), **settings))


@click.command(cls=Command)
@click.argument("run", type=click.Path(path_type=Path))
@BRAIN
@SECTIONS
@click.option(
    "--shard",
    metavar="I/N",
    default="1/1",
    callback=parse_shard,
    help="Only predict part I of N of the sections, for job arrays.",
)
@click.option(
    "--tile",
    "tile_px",
    type=click.IntRange(1),
    help="Side of the windows in pixels; default: chosen by the available memory. Large windows "
    "are faster.",
)
@click.option("--probabilities", is_flag=True, help="Also write the probability of each class.")
@click.option("--overlay", is_flag=True, help="Also draw the borders of the classes on the tissue.")
@click.option("--geojson", is_flag=True, help="Also write the classes as polygons for QuPath.")
@click.option("--surface", is_flag=True, help="Also write the class of each vertex as GIFTI.")
@JSON
def predict(
    run: Path, brain: Path, shard: tuple[int, int], tile_px: int | None, as_json: bool, **settings
) -> None:
    """Segment whole sections with a trained network.

    Writes RUN/predictions/BRAIN/SECTION.ome.tif, a pyramidal OME-TIFF of class indices with the
    names and colors of the classes. Pixels without tissue nearby get the class of kind
    "background". --geojson writes SECTION.geojson beside it, in pixels of the section image. It
    can be corrected in QuPath and given to `jaxcyto annotate`. Finished sections are skipped, so
    the same command continues after an interruption. The exit status is 1 if a section could not
    be read. All other sections are predicted.

    \b
    Examples:
      jaxcyto predict runs/segment brains/bigbrain --overlay
      jaxcyto predict runs/segment brains/bigbrain --shard $SLURM_ARRAY_TASK_ID/16
      jaxcyto predict runs/segment brains/bigbrain --surface
      jaxcyto predict runs/segment brains/bigbrain --section 1081 --geojson
    """
    from jaxcyto.predict import Outputs, predict_brain
    from jaxcyto.utils.progress import StderrProgress

    sections = settings.pop("sections")
    if settings["surface"] and shard != (1, 1):
        raise click.UsageError(
            "--surface needs all sections: run it without --shard once all shards are finished"
        )
    report = predict_brain(
        run,
        brain,
        sections=sections,
        shard=shard,
        tile_px=tile_px,
        outputs=Outputs(**settings),
        progress=StderrProgress("predicting", "px of the maps"),
    )
    click.echo(json.dumps(_as_json(report)) if as_json else _described(report))
    for line in report.failures:
        click.echo(f"error: {line}", err=True)
    if report.failures:
        click.echo(f"{len(report.failures)} section(s) failed", err=True)
        sys.exit(1)


def _described(report: PredictionReport) -> str:
    lines = []
    if report.predicted:
        maps, images = (px / report.seconds / 1e6 for px in (report.pixels, report.image_pixels))
        lines.append(
            f"{len(report.predicted)} section(s) in {report.seconds:.1f} s with tiles of "
            f"{report.tile_px} px: {maps:.3g} Mpx/s of maps, {images:.3g} Mpx/s of images"
        )
    if report.finished:
        lines.append(f"{len(report.finished)} section(s) finished before")
    for path, share in report.labels:
        lines.append(f"{path}: {100 * share:.0f} % of the vertices have a class")
    return "\n".join([*lines, f"class maps are in {report.folder}"])


def _as_json(report: PredictionReport) -> dict[str, Any]:
    labels = {str(path): share for path, share in report.labels}
    return dataclasses.asdict(report) | {"folder": str(report.folder), "labels": labels}


@click.command(cls=Command)
@click.argument("run", type=click.Path(path_type=Path))
@BRAIN
@click.option(
    "--split",
    type=click.Choice(["train", "val", "test"]),
    default="test",
    show_default=True,
    help="Split of the section table.",
)
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="Second run, such as one without pre-training. Both confusion matrices are drawn.",
)
@JSON
def evaluate(run: Path, brain: Path, split: str, against: Path | None, as_json: bool) -> None:
    """Score a trained network on the annotated sections of a split.

    Predicts the sections that `jaxcyto predict` has not predicted yet. Writes results.json, the
    confusion matrix and a figure of each section to RUN/evaluation/BRAIN/SPLIT, and prints the
    scores. --json prints the content of results.json, for two runs by their folders.

    \b
    Examples:
      jaxcyto evaluate runs/segment brains/bigbrain
      jaxcyto evaluate runs/segment brains/bigbrain --against runs/random
    """
    from jaxcyto.predict.evaluate import compare, evaluate_brain, evaluation_folder
    from jaxcyto.runs.load import find
    from jaxcyto.scores import scores_table
    from jaxcyto.utils.progress import StderrProgress

    def score(folder: Path) -> dict:
        progress = StderrProgress("predicting", "px of the maps")
        return evaluate_brain(folder, brain, split, progress)

    if against is not None and against.resolve() == run.resolve():
        raise click.UsageError("--against: the same run; name another")
    if against is None:
        scores = score(run)
        click.echo(json.dumps(scores) if as_json else scores_table(scores))
        if not as_json:
            folder = evaluation_folder(find(run).folder, brain, split)
            click.echo(f"results.json and figures are in {folder}")
        return
    results = {str(folder): score(folder) for folder in (against, run)}
    figure = compare(results, run, brain, split)
    if as_json:
        click.echo(json.dumps(results))
        return
    for folder, scores in results.items():
        click.echo(f"{folder}\n{scores_table(scores)}\n")
    click.echo(f"confusion matrices of both: {figure}")
