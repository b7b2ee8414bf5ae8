"""`jaxcyto explore`: what a trained network makes of a brain, patch by patch."""

import json
import sys
from pathlib import Path
from typing import Any

import click

from jaxcyto.cli.options import BRAIN, LABEL_CLASSES, SECTIONS, Command


@click.command(cls=Command)
@click.argument("run", type=click.Path(path_type=Path))
@BRAIN
@click.option(
    "--nearest",
    type=click.IntRange(0),
    metavar="PATCH",
    help="Only draw the patches that are most like this one; patches count from 0.",
)
@SECTIONS
@LABEL_CLASSES
@click.option(
    "--patches-file",
    default="patches.npz",
    show_default=True,
    help="File in the brain's folder, of the size that the run was trained with.",
)
@click.option("--json", "as_json", is_flag=True, help="Print results.json instead of a table.")
def explore(
    run: Path,
    brain: Path,
    nearest: int | None,
    sections: tuple[str, ...],
    as_json: bool,
    **settings,
) -> None:
    """Ask what a network has learned of each patch of a brain.

    Writes to RUN/explore/BRAIN: patches.parquet, GIFTI maps of the surfaces, pictures of how far
    neighbors along the ribbon are apart in the network's eyes, and results.json with how well area
    and place can be read from the features. --section names the sections whose ribbons are walked
    along. Of a segmentation run: the table with the class at each patch, and GIFTI labels; exit
    status 1 if a section could not be read.

    \b
    Examples:
      jaxcyto explore runs/quickstart brains/quickstart
      jaxcyto explore runs/quickstart brains/quickstart --nearest 17
      jaxcyto explore runs/quickstart brains/quickstart --json
    """
    from jaxcyto.explore.run import explore_features, explore_nearest, explore_predictions
    from jaxcyto.runs.load import is_segmentation, read_config
    from jaxcyto.utils.progress import StderrProgress

    segments = is_segmentation(read_config(run))
    if segments and (nearest is not None or sections):
        raise click.UsageError("--nearest and --section are for pre-training runs")
    settings["progress"] = StderrProgress("exploring", "px of the maps" if segments else "patches")
    if nearest is not None:
        path = explore_nearest(run, brain, nearest, **settings)
        click.echo(json.dumps({"files": [str(path)]}) if as_json else str(path))
        return
    if segments:
        results, lines = explore_predictions(run, brain, **settings), _predictions
    else:
        results, lines = explore_features(run, brain, sections=sections, **settings), _features
    if results["seen"]:
        click.echo(
            f"warning: the run was trained on {len(results['seen'])} section(s) that are test "
            f"sections now ({', '.join(results['seen'][:5])}): scores are too good",
            err=True,
        )
    for failure in results.get("failures", ()):
        click.echo(f"error: {failure}", err=True)
    if as_json:
        click.echo(json.dumps(results, indent=2))
    else:
        for line in [*lines(results), *results["files"]]:
            click.echo(line)
    if results.get("failures"):
        sys.exit(1)


def _features(results: dict[str, Any]) -> list[str]:
    """The results of a pre-training run, in lines."""
    lines = []
    areas, place = results["probes"]["areas"], results["probes"]["coordinates"]
    if areas is None:
        lines.append("area: not probed; it takes labels, and patches of the splits train and test")
    else:
        lines.append(
            f"{f'area of {areas["test"]} test patches':<40}{'accuracy':>9}{'balanced':>10}"
        )
        named = (("20 nearest", "knn"), ("linear", "linear"), ("most frequent area", "majority"))
        for title, key in named:
            score = areas[key]
            lines.append(
                f"  {title:<38}{score['accuracy']:>9.3f}{score['balanced_accuracy']:>10.3f}"
            )
    if place is not None:
        lines.append(
            f"position (ridge): {place['coordinate_mae_mm']:.2f} mm off, the training median "
            f"{place['coordinate_mae_mm_constant']:.2f} mm"
        )
    found = results["neighbors"]
    part, gaps = ("test", found["test"]) if found["test"] else ("all", found["all"])
    if gaps["auc"] is not None:
        lines.append(
            f"neighbors along the ribbon ({part} sections): {gaps['median_border']:.2f} mm at "
            f"{gaps['border']} area borders, {gaps['median_within']:.2f} mm at {gaps['within']} "
            f"places within areas, AUC {gaps['auc']:.2f}"
        )
    causes = {name: gaps[f"spearman_{name}"] for name in ("curvature", "obliqueness")}
    told = [f"{name} {rho:+.2f}" for name, rho in causes.items() if rho is not None]
    if told:
        lines.append(f"  within areas, rank correlation with {', '.join(told)}")
    return lines


def _predictions(results: dict[str, Any]) -> list[str]:
    """The results of a segmentation run, in lines."""
    lines = [f"{results['predicted']} of {results['patches']} patches have a predicted class"]
    if results["accuracy"]:
        score = results["accuracy"]
        lines.append(
            f"area of {score['test']} test patches: {score['accuracy']:.3f} right, "
            f"{score['balanced_accuracy']:.3f} balanced over areas"
        )
    return lines
