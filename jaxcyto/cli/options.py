"""Define the arguments, options and error handling that the commands share."""

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
    help="Seed of the random numbers; the same seed gives the same result.",
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
SECTIONS = click.option(
    "--section",
    "sections",
    multiple=True,
    metavar="NAME",
    help="Only use this section; may be repeated.",
)


def parse_shard(_context, _option, value: str | None) -> tuple[int, int] | None:
    """Parse an option "I/N" (part I of N) into (I, N). This is a callback for click.

    Raises:
        click.BadParameter: the value is not of this form.
    """
    if value is None:
        return None
    index, slash, count = value.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal()):
        raise click.BadParameter(f"{value!r}: expected I/N, such as 3/16")
    if not 1 <= int(index) <= int(count):
        raise click.BadParameter(f"{value!r}: I counts from 1 to N")
    return int(index), int(count)


def _classes(_context, _option, values: tuple[str, ...]) -> dict[int, str]:
    classes = {}
    for value in values:
        key, equals, name = value.partition("=")
        if not equals or not key.strip().lstrip("-").isdecimal():
            raise click.BadParameter(f"{value!r}: expected LABEL=CLASS, such as 1=hOc1")
        classes[int(key)] = name.strip()
    return classes


LABEL_CLASSES = click.option(
    "--map",
    "classes",
    multiple=True,
    metavar="LABEL=CLASS",
    callback=_classes,
    help="Class of a label, needed if the label file gives no name or another one; LABEL= leaves "
    "it unannotated.",
)


class Command(click.Command):
    """A command that prints an InputError or OSError as one message and exits with status 2."""

    def invoke(self, ctx: click.Context):
        try:
            return super().invoke(ctx)
        except InputError as error:
            message = str(error)
        except OSError as error:  # such as a full disk or a folder without write permission
            if error.filename is None or error.strerror is None:
                raise
            message = f"{error.filename}: {error.strerror}"
        click.echo(f"error: {message}", err=True)
        ctx.exit(2)
