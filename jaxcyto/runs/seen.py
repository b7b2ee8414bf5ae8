"""Find held-out sections that a run was trained on, by their content or else by their name.

Sections are given as {BRAIN/SECTION: fingerprint}, with the fingerprints of
`brain.sections.fingerprint`. A fingerprint is None where it is not known.
"""

import logging
from collections.abc import Mapping

logger = logging.getLogger("jaxcyto")


def seen(
    trained: Mapping[str, str | None], held_out: Mapping[str, str | None]
) -> list[tuple[str, str]]:
    """List held-out sections that were trained on, each with its name in training.

    Sections with equal fingerprints are the same. If one of two fingerprints is not known, sections
    are the same if their names and those of their brain folders are equal. A note is logged if none
    is known of those trained on, as of runs of older versions.
    """
    if trained and held_out and not any(trained.values()):
        logger.warning(
            "the run records no fingerprints of the sections it was trained on, as in earlier "
            "versions, so they are compared by name: sections of a renamed brain are not recognized"
        )
    by_content = {content: name for name, content in trained.items() if content is not None}
    by_name = {_short(name): name for name in trained}
    unknown = {_short(name): name for name, content in trained.items() if content is None}
    found, other = [], []
    for name, content in held_out.items():
        if content in by_content:
            found.append((name, by_content[content]))
        elif same := (by_name if content is None else unknown).get(_short(name)):
            found.append((name, same))
        elif _short(name) in by_name:
            other.append(name)
    if other:
        logger.warning(
            "%d held-out sections have the names of training sections, but other content (%s). If "
            "they are edited copies, the scores are too good",
            len(other),
            ", ".join(other[:3]),
        )
    return sorted(found)


def _short(name: str) -> str:
    """Return the name of the section with that of its brain's folder, without folders above."""
    return "/".join(name.split("/")[-2:])
