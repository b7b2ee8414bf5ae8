"""The command `jaxcyto`: from a brain on disk to patches and pairs.

Bad input ends in one message on stderr and exit status 2.
"""

import sys
import warnings
from pathlib import Path

import click

from jaxcyto.brain.solve import METHODS
from jaxcyto.errors import InputError

BRAIN = click.argument("brain", type=click.Path(path_type=Path))
SEED = click.option("--seed", default=0, show_default=True, help="Same seed, same result.")


class Command(click.Command):
    """A command whose InputErrors are messages, not tracebacks."""

    def invoke(self, ctx: click.Context):
        try:
            return super().invoke(ctx)
        except InputError as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(2)


class Group(click.Group):
    command_class = Command


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="jaxcyto")
def main() -> None:
    """Self-supervised pre-training on brain sections: prepare the data.

    A brain is a folder with a brain.toml (docs/data.md). In this order:

    \b
      jaxcyto phantom brains/toy --preset tiny
      jaxcyto check brains/toy
      jaxcyto sample brains/toy --patches 500 --patch-px 128 --um-per-px 16
      jaxcyto pair brains/toy --pairs 1000
    """
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    warnings.simplefilter("always", UserWarning)


@main.command()
@BRAIN
def check(brain: Path) -> None:
    """Validate a brain folder: every fault is reported at once.

    Exit status 1 if there is a fault.
    """
    from jaxcyto.brain.check import check_brain

    report = check_brain(brain)
    for line in report.facts:
        click.echo(line)
    for line in report.warnings:
        click.echo(f"warning: {line}", err=True)
    for line in report.faults:
        click.echo(f"fault: {line}", err=True)
    if report.faults:
        click.echo(f"{len(report.faults)} fault(s) in {brain}", err=True)
        sys.exit(1)
    click.echo(f"{brain}: no fault found")


@main.command()
@BRAIN
@click.option("--patches", "num_patches", type=click.IntRange(1), help="Number of patches.")
@click.option("--spacing-mm", type=float, help="Instead: millimetres of ribbon per patch.")
@click.option("--patch-px", default=1019, show_default=True, help="Side of a patch.")
@click.option("--um-per-px", default=2.0, show_default=True, help="Resolution of a patch.")
@click.option("--depth", type=float, help="0 (pial) ... 1 (white); default: the mid surface.")
@click.option("--min-tissue", type=float, help="Least share of tissue in a patch.")
@click.option(
    "--split-axis",
    type=click.Choice(["x", "y", "z"]),
    help="Split within the sections, along this axis (for one or few sections).",
)
@click.option("--out", default="patches.npz", show_default=True, help="File in the brain's folder.")
@SEED
def sample(brain: Path, min_tissue: float | None, **settings) -> None:
    """Draw patches where the sections cut the cortex, evenly per millimetre.

    An empty split column of the section table is filled first, by blocks of sections 2 mm apart.

    Example: jaxcyto sample brains/bigbrain --patches 200000
    """
    from jaxcyto.brain.prepare import describe_patches, sample_brain

    if min_tissue is not None:
        settings["min_tissue"] = min_tissue
    click.echo(describe_patches(sample_brain(brain, **settings)))


@main.command()
@BRAIN
@click.option("--pairs", "num_pairs", type=click.IntRange(1), help="Default: as many as patches.")
@click.option(
    "--method",
    type=click.Choice(METHODS),
    default="heat",
    show_default=True,
    help="exact: seconds per patch on 164k vertices; heat: a tenth of a second, about 1 % off.",
)
@click.option("--all-distances", is_flag=True, help="Also write distances between all patches.")
@click.option("--workers", type=click.IntRange(1), help="Processes; default: the processors.")
@click.option("--patches", "patches_file", default="patches.npz", show_default=True)
@click.option("--out", default="pairs.npz", show_default=True, help="File in the brain's folder.")
@SEED
def pair(brain: Path, **settings) -> None:
    """Pair the patches and solve their distances along the surface.

    Example: jaxcyto pair brains/bigbrain --pairs 200000
    """
    from jaxcyto.brain.prepare import describe_pairs, pair_brain

    click.echo(describe_pairs(pair_brain(brain, **settings)))
