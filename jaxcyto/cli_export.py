"""`jaxcyto export`: weights that travel."""

from pathlib import Path

import click

from jaxcyto.cli_command import Command


@click.command(cls=Command)
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
def export(run: Path, out: Path) -> None:
    """Write the weights of a run as one file, with a model card.

    Writes OUT/model.safetensors (weights, and in its metadata config, test results and training
    data) and OUT/README.md. OUT stands for the run wherever a run is asked for: --config.init_from,
    predict, evaluate, explore; so does the file alone. Of folders only the names are kept.

    \b
    Examples:
      jaxcyto export runs/quickstart exports/quickstart
      jaxcyto export runs/segment exports/segment
    """
    from jaxcyto.export import export_run

    for path in export_run(run, out):
        click.echo(path)
