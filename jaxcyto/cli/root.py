"""Define the command `jaxcyto` with all its subcommands.

Results go to stdout. Progress, warnings and errors go to stderr. The exit status is 0 for success,
1 if `check` found a fault or `predict` or `explore` could not read a section, and 2 for bad input,
which is reported in one message without a traceback.
"""

import logging
import warnings

import click

from jaxcyto.cli.data import check, pair, phantom, sample
from jaxcyto.cli.explore import explore
from jaxcyto.cli.export import export, report
from jaxcyto.cli.options import Command
from jaxcyto.cli.segment import annotate, carry, evaluate, predict
from jaxcyto.utils.runtime import keep_programs


class Group(click.Group):
    command_class = Command

    def list_commands(self, ctx: click.Context) -> list[str]:
        """List the commands in the order of the workflow. By default, click sorts them by name."""
        return list(WORK)


WORK = (
    *("phantom", "check", "sample", "pair", "annotate", "carry"),
    *("predict", "evaluate", "explore", "report", "export"),
)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="jaxcyto", prog_name="jaxcyto")
def main() -> None:
    """Map cortical areas in brain sections. Networks are trained by train.py.

    BRAIN is a folder with a brain.toml (docs/data.md). RUN is a folder that train.py has written.
    These commands take you from a synthetic brain to a pre-trained network:

    \b
      jaxcyto phantom brains/toy --preset tiny
      jaxcyto check brains/toy
      jaxcyto sample brains/toy --patches 500 --patch-px 128 --um-per-px 16
      jaxcyto pair brains/toy --pairs 1000 --all-distances
      python train.py --config configs/quickstart.py --workdir runs/toy \\
          --config.data.brains=brains/toy --config.steps=200

    For segmentation, run `annotate` or `carry` before training, and `predict` and `evaluate` after
    it.
    """
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # our own messages report damage
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    warnings.simplefilter("always", UserWarning)
    keep_programs()


for command in (
    *(phantom, check, sample, pair, annotate, carry),
    *(predict, evaluate, explore, report, export),
):
    main.add_command(command)
