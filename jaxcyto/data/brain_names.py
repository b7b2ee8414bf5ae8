"""Name the brains of a config. Runs and results identify brains by these names."""

from collections.abc import Sequence
from pathlib import Path

from jaxcyto.errors import InputError


def brain_names(roots: Sequence[Path]) -> list[str]:
    """Return the name of each brain: that of its folder.

    If several folders have this name, it is preceded by as many of the folders above as tell them
    apart, such as `left/brain` and `right/brain`.

    Args:
        roots: absolute paths of the folders, without links.

    Raises:
        InputError: a folder is listed twice.
    """
    if twice := [root for root in roots if roots.count(root) > 1]:
        raise InputError(f"data.brains: {twice[0]} is listed twice. Remove one of the entries")
    names = []
    for root in roots:
        lengths = range(1, len(root.parts) + 1)
        tails = ((root.parts[-n:], [other.parts[-n:] for other in roots]) for n in lengths)
        names.append(next(Path(*own).as_posix() for own, every in tails if every.count(own) == 1))
    return names
