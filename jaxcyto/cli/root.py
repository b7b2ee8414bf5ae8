"""The command `jaxcyto`, with all its sub-commands.

Results go to stdout; progress, warnings and errors to stderr. Exit status: 0 done, 1 `check` found
a fault or `predict` or `explore` a bad section, 2 bad input (one message, no traceback).
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
        """In the order of the work; click's own order is the alphabet's."""
        return list(WORK)


WORK = (
    *("phantom", "check", "sample", "pair", "annotate", "carry"),
    *("predict", "evaluate", "explore", "report", "export"),
)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="jaxcyto", prog_name="jaxcyto")
def main() -> None:
    """Maps of cortical areas from brain sections: all but the training, which is train.py.

    BRAIN is a folder with a brain.toml (docs/data.md), RUN a folder that train.py has written.
    From a synthetic brain to a pre-trained network, in this order:

    \b
      jaxcyto phantom brains/toy --preset tiny
      jaxcyto check brains/toy
      jaxcyto sample brains/toy --patches 500 --patch-px 128 --um-per-px 16
      jaxcyto pair brains/toy --pairs 1000 --all-distances
      python train.py --config configs/quickstart.py --workdir runs/toy \\
          --config.data.brains=brains/toy --config.steps=200

    Before training a segmentation `annotate` or `carry`, after it `predict` and `evaluate`.
    """
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # damage is said in our own messages
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    warnings.simplefilter("always", UserWarning)
    keep_programs()


for command in (
    *(phantom, check, sample, pair, annotate, carry),
    *(predict, evaluate, explore, report, export),
):
    main.add_command(command)
