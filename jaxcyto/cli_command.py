"""What the commands of `jaxcyto` share."""

from pathlib import Path

import click

from jaxcyto.errors import InputError

ABOVE_0 = click.FloatRange(0, min_open=True)
BRAIN = click.argument("brain", type=click.Path(path_type=Path))
SEED = click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Same seed, same result.",
)


class Command(click.Command):
    """A command whose InputErrors are messages, not tracebacks."""

    def invoke(self, ctx: click.Context):
        try:
            return super().invoke(ctx)
        except InputError as error:
            message = str(error)
        except OSError as error:  # a full disk, a folder that may not be written
            if error.filename is None or error.strerror is None:
                raise
            message = f"{error.filename}: {error.strerror}"
        click.echo(f"error: {message}", err=True)
        ctx.exit(2)
