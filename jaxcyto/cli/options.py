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
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
SECTIONS = click.option(
    "--section",
    "sections",
    multiple=True,
    metavar="NAME",
    help="Only this section; may be repeated.",
)


def parse_shard(_context, _option, value: str | None) -> tuple[int, int] | None:
    """Callback of options that take "I/N": part I of N; none where nothing is given."""
    if value is None:
        return None
    number, slash, count = value.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal()):
        raise click.BadParameter(f"{value!r}: expected I/N, such as 3/16")
    if not 1 <= int(number) <= int(count):
        raise click.BadParameter(f"{value!r}: I counts from 1 to N")
    return int(number), int(count)


def _classes(_context, _option, values: tuple[str, ...]) -> dict[int, str]:
    found = {}
    for value in values:
        key, equals, name = value.partition("=")
        if not equals or not key.strip().lstrip("-").isdecimal():
            raise click.BadParameter(f"{value!r}: expected LABEL=CLASS, such as 1=hOc1")
        found[int(key)] = name.strip()
    return found


LABEL_CLASSES = click.option(
    "--map",
    "classes",
    multiple=True,
    metavar="LABEL=CLASS",
    callback=_classes,
    help="Class of a label that has no name, or another; LABEL= leaves it not annotated.",
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
