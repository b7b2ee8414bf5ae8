"""`jaxcyto export` and `jaxcyto report`: a run as one file of weights, and as one page."""

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

    Writes OUT/model.safetensors (weights, and in its metadata config, test results and training
    data) and OUT/README.md. OUT stands for the run wherever a run is asked for: --config.init_from,
    predict, evaluate, explore; so does the file alone. Of folders only the names are kept.

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
@click.option("--out", type=click.Path(path_type=Path), help="The page; default: RUN/report.html.")
@click.option(
    "--brain",
    "brains",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A brain that is not where the config says, or that the run was only tested on; may be "
    "repeated.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures instead, write no page.")
def report(run: Path, out: Path | None, brains: tuple[Path, ...], as_json: bool) -> None:
    """Put all that is known of a run on one page.

    The page needs no network: errors, training curves, sample pairs or sections with annotation and
    prediction, data, config, throughput and environment. Of a run that is not finished, what is
    there already. The JSON is described in docs/report.md.

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
