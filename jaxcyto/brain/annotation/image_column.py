"""Write label or atlas images into a brain's folder and its section table, all or none."""

import contextlib
import difflib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from jaxcyto.brain.manifest import Brain, SectionRow, table_rows, write_table
from jaxcyto.errors import InputError

FOLDERS = {"label": "labels", "atlas": "atlas"}


def select_sections(brain: Brain, names: Sequence[str]) -> list[SectionRow]:
    """Return the sections with the given names, or all sections if no name is given.

    Raises:
        InputError: if a name is not in the section table.
    """
    known = {row.name: row for row in brain.sections}
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=8) or list(known)[:8]
            some = ", ".join(near) + ", ..." * (len(known) > len(near))
            raise InputError(
                f"{brain.root / brain.section_table}: no section {name!r}; it lists {some}"
            )
    return [known[name] for name in names] if names else list(brain.sections)


@contextlib.contextmanager
def image_column(
    brain: Brain, column: str, sections: Sequence[SectionRow], overwrite: bool
) -> Iterator[Callable[[SectionRow], Path]]:
    """Write the images of a column: `labels/<section>.tif` or `atlas/<section>.tif`.

    The context manager yields a function that returns the path at which to write the image of a
    section. At the end, the images that were written are moved into the folder and entered in the
    section table. If the block raises an error, nothing changes.

    Args:
        brain: the brain.
        column: "label" or "atlas".
        sections: the sections that may get an image.
        overwrite: whether existing images may be replaced.

    Raises:
        InputError: if a section has an image and `overwrite` is not set, if its name cannot be a
            file name, or if the section table has changed meanwhile.
    """
    folder = brain.root / FOLDERS[column]
    table = brain.root / brain.section_table
    if not Path(os.path.realpath(folder)).is_relative_to(brain.root):
        raise InputError(f"{folder}: leaves the brain's folder; make it a folder, not a link")
    for row in sections:
        file = f"{row.name}.tif"
        if Path(file).name != file or row.name.startswith("."):
            raise InputError(
                f"{table}: section {row.name!r} cannot be the name of its {column} image; rename it"
            )
        old = getattr(row, column) or folder / file
        if not overwrite and old.exists():
            raise InputError(
                f"section {row.name}: has the {column} image {old}; add --overwrite to replace it"
            )
    staging = brain.root / f".{folder.name}.{os.getpid()}.tmp"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    try:
        yield lambda row: staging / f"{row.name}.tif"
        rows = table_rows(brain)
        folder.mkdir(exist_ok=True)
        for row in sections:
            file = staging / f"{row.name}.tif"
            if file.exists():
                os.replace(file, folder / file.name)
                rows[row.index][column] = f"{folder.name}/{file.name}"
        write_table(table, rows)
    finally:
        shutil.rmtree(staging)
