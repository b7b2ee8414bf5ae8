"""Provide the commands `jaxcyto export` and `jaxcyto report`."""

import dataclasses
import json
from pathlib import Path

import click

from jaxcyto.cli.options import Command
from jaxcyto.errors import InputError


@click.command(cls=Command)
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
def export(run: Path, out: Path) -> None:
    """Write the weights of a run as one file, with a model card.

    Writes OUT/model.safetensors and OUT/README.md. The file holds the weights and, in its metadata,
    the config, test results and training data. OUT or the file alone can be used in place of the
    run by --config.init_from, predict, evaluate and explore. Only the names of folders are kept,
    not their paths.

    \b
    Examples:
      jaxcyto export runs/quickstart exports/quickstart
      jaxcyto export runs/segment exports/segment
    """
    from jaxcyto.runs.export import export_run

    for path in export_run(run, out):
        click.echo(path)


@click.command(cls=Command)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="HTML file; default: RUN/report.html.")
@click.option(
    "--brain",
    "brains",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Folder of a brain that has moved or that the run was only tested on; may be repeated.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON and write no page.")
def report(run: Path, out: Path | None, brains: tuple[Path, ...], as_json: bool) -> None:
    """Report a run on one HTML page.

    The page shows errors, training curves, sample pairs or sections with annotation and prediction,
    data, config, throughput and environment. It needs no network. For an unfinished run, it shows
    the data so far. The JSON is described in docs/report.md.

    \b
    Examples:
      jaxcyto report runs/quickstart
      jaxcyto report runs/segment --out segment.html
      jaxcyto report runs/segment --json --brain brains/quickstart
    """
    from jaxcyto.report import gather, write_page

    if out is not None and out.is_dir():
        raise InputError(f"--out {out}: a folder; name the page, such as {out / 'report.html'}")
    gathered = gather(run, brains)
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(gathered), indent=2))
        return
    path = out or run / "report.html"
    size = write_page(gathered, path)
    click.echo(f"{path}: {size / 1e6:.2g} MB; open it in a browser")
