"""Provide the command `jaxcyto explore`: the outputs of a trained network for each patch."""

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
    help="Only draw the patches with features nearest to this one; indices start at 0.",
)
@SECTIONS
@LABEL_CLASSES
@click.option(
    "--patches-file",
    default="patches.npz",
    show_default=True,
    help="Patches file in the brain's folder, with the patch size of the run.",
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
    """Explore what a network has learned of each patch of a brain.

    For a pre-training run, writes to RUN/explore/BRAIN: patches.parquet with all features, GIFTI
    maps of the surfaces, figures of the feature distance between neighbors along the ribbon, and
    results.json with the accuracy of area and position probes. --section selects the sections whose
    ribbons are walked along. For a segmentation run, writes the table with the class of each patch,
    and GIFTI labels. The exit status is 1 if a section could not be read.

    \b
    Examples:
      jaxcyto explore runs/quickstart brains/quickstart
      jaxcyto explore runs/quickstart brains/quickstart --nearest 17
      jaxcyto explore runs/quickstart brains/quickstart --json
    """
    import jax

    from jaxcyto.explore.run import explore_features, explore_nearest, explore_predictions
    from jaxcyto.runs.load import is_segmentation, read_config
    from jaxcyto.utils.progress import StderrProgress
    from jaxcyto.utils.runtime import keep_freed_memory

    segments = is_segmentation(read_config(run))
    if segments and (nearest is not None or sections):
        raise click.UsageError("--nearest and --section are for pre-training runs")
    settings["progress"] = StderrProgress("exploring", "px of the maps" if segments else "patches")
    if jax.default_backend() == "cpu":
        keep_freed_memory()  # the network's maps are large, and mapping fresh pages takes time
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
            f"sections now ({', '.join(results['seen'][:5])}), so their scores are biased",
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
    """Format the results of a pre-training run as lines."""
    lines = []
    areas, position = results["probes"]["areas"], results["probes"]["coordinates"]
    if areas is None:
        lines.append("area: not probed; needs labels and patches of the splits train and test")
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
    if position is not None:
        lines.append(
            f"position (ridge): {position['coordinate_mae_mm']:.2f} mm off, the training median "
            f"{position['coordinate_mae_mm_constant']:.2f} mm"
        )
    neighbors = results["neighbors"]
    part = "test" if neighbors["test"] else "all"
    gaps = neighbors[part]
    if gaps["auc"] is not None:
        lines.append(
            f"neighbors along the ribbon ({part} sections): {gaps['median_border']:.2f} mm at "
            f"{gaps['border']} area borders, {gaps['median_within']:.2f} mm at {gaps['within']} "
            f"places within areas, AUC {gaps['auc']:.2f}"
        )
    causes = {name: gaps[f"spearman_{name}"] for name in ("curvature", "obliqueness")}
    known = [f"{name} {rho:+.2f}" for name, rho in causes.items() if rho is not None]
    if known:
        lines.append(f"  within areas, rank correlation with {', '.join(known)}")
    return lines


def _predictions(results: dict[str, Any]) -> list[str]:
    """Format the results of a segmentation run as lines."""
    lines = [f"{results['predicted']} of {results['patches']} patches have a predicted class"]
    if results["accuracy"]:
        score = results["accuracy"]
        lines.append(
            f"area of {score['test']} test patches: {score['accuracy']:.3f} right, "
            f"{score['balanced_accuracy']:.3f} balanced over areas"
        )
    return lines
