"""Read and validate `brain.toml` and the section table of a brain folder.

All paths in both files are relative to the brain's folder and may not leave it. One `InputError`
reports all faults at once.
"""

import dataclasses
import os
import re
import tomllib
from pathlib import Path

from jaxcyto.brain.section_table import (
    SECTION_COLUMNS,
    SPLITS,
    SectionRow,
    read_sections,
    read_table,
    write_table,
)
from jaxcyto.errors import InputError
from jaxcyto.utils.files import inside, read_text

__all__ = [
    "CLASS_KINDS",
    "SECTION_COLUMNS",
    "SPLITS",
    "SURFACES",
    "AreaClass",
    "Brain",
    "Hemisphere",
    "SectionRow",
    "inspect_brain",
    "need_hemispheres",
    "read_brain",
    "read_classes",
    "table_rows",
    "write_splits",
    "write_table",
]

MANIFEST_FORMAT = 1
MAX_LISTED = 20  # most faults in one message. `jaxcyto check` lists all of them.
CLASS_KINDS = ("area", "cortex", "white_matter", "background")
SURFACES = ("mid", "pial", "white")
FIELDS = (
    "format", "name", "licence", "citation", "sections", "background", "bits", "hemispheres",
    "classes",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Hemisphere:
    """The surfaces of one hemisphere. Paths are absolute, or None where no file is given.

    `surface` names the surface that is used for distances and sampling: "mid", "pial" or "white".
    The mid surface is the `mid` file if given, else the mean of vertex-matched pial and white.
    """

    name: str
    pial: Path | None = None
    white: Path | None = None
    mid: Path | None = None
    labels: Path | None = None
    surface: str = "mid"


@dataclasses.dataclass(frozen=True)
class AreaClass:
    """A class of the label images. Its value in label images is its position in `brain.toml`."""

    name: str
    color: str  # "#rrggbb"
    kind: str  # one of CLASS_KINDS


@dataclasses.dataclass(frozen=True)
class Brain:
    """A validated brain folder. Without hemispheres it can be used for segmentation only.

    `background` is the gray value outside of every image. `bits` is the number of bits in use in
    images of 16 bits, and None takes what each file states.
    """

    root: Path
    name: str
    hemispheres: tuple[Hemisphere, ...]
    sections: tuple[SectionRow, ...]
    classes: tuple[AreaClass, ...]
    background: int = 255
    bits: int | None = None
    licence: str = ""
    citation: str = ""
    section_table: str = "sections.csv"


def read_brain(root: str | os.PathLike) -> Brain:
    """Read and validate `root/brain.toml` and its section table.

    Raises:
        InputError: if a file has faults. The message has one line for each fault.
    """
    brain, faults = inspect_brain(root)
    if len(faults) > MAX_LISTED:
        more = len(faults) - MAX_LISTED
        faults[MAX_LISTED:] = [f"... and {more} more; `jaxcyto check {root}` lists them all"]
    if faults or brain is None:
        raise InputError("\n".join(faults))
    return brain


def inspect_brain(root: str | os.PathLike) -> tuple[Brain | None, list[str]]:
    """Read as much as possible of a brain folder, and return it with all faults of its two files.

    A brain with faults serves only to look for further faults. Faulty parts are left out, so a
    hemisphere may lack files and a section its placement. The brain is None if there is no
    readable brain.toml.
    """
    root = Path(os.path.realpath(root))
    path = root / "brain.toml"
    if not os.path.isfile(path):
        if root.is_file():
            return None, [f"{root}: a file; name the folder that holds brain.toml"]
        what = "no brain.toml here" if root.is_dir() else "no such folder"
        hint = "" if root.is_dir() else "name a brain's folder, or "
        if (root / "config.json").is_file():
            what, hint = "a run, not a brain", "the run comes first, then the brain; or "
        return None, [f"{root}: {what}; {hint}make one as docs/data.md describes"]
    if not Path(os.path.realpath(path)).is_relative_to(root):
        return None, [f"{path}: leaves the brain's folder; make it a file, not a link"]
    try:
        table = tomllib.loads(read_text(path))
    except InputError as error:
        return None, [str(error)]
    # RecursionError: deeply nested arrays. ValueError: also integers with thousands of digits.
    except (ValueError, RecursionError) as error:
        return None, [f"{path}: not valid TOML: {error}; correct it there"]
    faults = _unknown(path, "", table, FIELDS)
    if type(table.get("format")) is not int or table["format"] != MANIFEST_FORMAT:
        faults.append(
            f"{path}: format = {table.get('format')!r}; "
            f"this version reads format = {MANIFEST_FORMAT}"
        )

    def text(field: str, default: str) -> str:
        value = table.get(field, default)
        if not isinstance(value, str):
            faults.append(f"{path}: {field} = {value!r}; expected text")
            return default
        return value

    background = table.get("background", 255)
    if type(background) is not int or not 0 <= background <= 255:
        faults.append(f"{path}: background = {background!r}; expected a gray value 0 ... 255")
        background = 255
    bits = table.get("bits")
    if bits is not None and (type(bits) is not int or not 8 <= bits <= 16):
        faults.append(
            f"{path}: bits = {bits!r}; expected how many bits are in use in images of 16 bits, "
            "8 ... 16"
        )
        bits = None
    section_table = text("sections", "sections.csv")
    brain = Brain(
        root=root,
        name=text("name", root.name),
        hemispheres=_hemispheres(root, path, table.get("hemispheres", []), faults),
        sections=(),
        classes=read_classes(path, table.get("classes", []), faults),
        background=background,
        bits=bits,
        licence=text("licence", ""),
        citation=text("citation", ""),
        section_table=section_table,
    )
    table_path = inside(root, path, "sections", section_table, faults)
    if table_path is not None:
        brain = dataclasses.replace(brain, sections=read_sections(root, table_path, faults))
    return brain, faults


def write_splits(brain: Brain, splits: list[str]) -> None:
    """Write the split column of the section table, and leave all other columns unchanged."""
    rows = [row | {"split": split} for row, split in zip(table_rows(brain), splits, strict=True)]
    write_table(brain.root / brain.section_table, rows)


def table_rows(brain: Brain) -> list[dict[str, str]]:
    """Read all columns of the section table from disk, one row for each section of the brain.

    Raises:
        InputError: if the table no longer lists the sections that `brain` was read with.
    """
    path = brain.root / brain.section_table
    faults: list[str] = []
    rows = [row for _, row in read_table(path, faults)]
    if faults or [row["section"] for row in rows] != [row.name for row in brain.sections]:
        raise InputError(f"{path}: changed while it was in use; run the command again")
    return rows


def need_hemispheres(brain: Brain, what: str) -> None:
    """Check that a brain has hemispheres, which `what` (a noun for messages) needs.

    Raises:
        InputError: if the brain has no hemisphere.
    """
    if not brain.hemispheres:
        raise InputError(
            f"{brain.root / 'brain.toml'}: hemispheres: none given, and {what} needs a surface; "
            "add a [[hemispheres]] table as docs/data.md describes"
        )


def _unknown(path: Path, where: str, table: dict, known: tuple[str, ...]) -> list[str]:
    return [
        f"{path}: {where}unknown field {key!r}; known: {', '.join(known)}"
        for key in table
        if key not in known
    ]


def _hemispheres(
    root: Path, path: Path, value: object, faults: list[str]
) -> tuple[Hemisphere, ...]:
    if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
        faults.append(f"{path}: hemispheres: expected [[hemispheres]] tables")
        return ()
    hemispheres, names = [], set()
    for index, table in enumerate(value):
        where = f"hemispheres[{index}]."
        fields = tuple(field.name for field in dataclasses.fields(Hemisphere))
        faults += _unknown(path, where, table, fields)
        name = table.get("name")
        if not isinstance(name, str) or not name or name in names:
            faults.append(f"{path}: {where}name: expected a unique name, found {name!r}")
            name = f"hemisphere{index}"
        names.add(name)
        files = {
            key: inside(root, path, where + key, table[key], faults)
            for key in ("pial", "white", "mid", "labels")
            if key in table
        }
        surface = table.get("surface", "mid")
        if surface not in SURFACES:
            faults.append(
                f"{path}: {where}surface = {surface!r}; expected one of {', '.join(SURFACES)}"
            )
        elif surface == "mid" and "mid" not in table and not {"pial", "white"} <= table.keys():
            faults.append(
                f"{path}: {where}surface: the mid surface needs `mid`, or `pial` and `white`; "
                'or name the one to use: surface = "pial" or "white"'
            )
        elif surface != "mid" and surface not in table:
            faults.append(f"{path}: {where}surface = {surface!r}, but no {surface!r} file is given")
        hemispheres.append(Hemisphere(name=name, surface=str(surface), **files))
    return tuple(hemispheres)


def read_classes(path: Path, value: object, faults: list[str]) -> tuple[AreaClass, ...]:
    """Read the classes from a list of TOML tables. Faults are appended to `faults`."""
    if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
        faults.append(f"{path}: classes: expected [[classes]] tables")
        return ()
    if len(value) > 255:
        faults.append(f"{path}: classes: {len(value)} classes; at most 255 (255 = not annotated)")
    classes, names = [], set()
    for index, table in enumerate(value):
        where = f"classes[{index}]."
        faults += _unknown(path, where, table, ("name", "color", "kind"))
        name, color, kind = table.get("name"), table.get("color"), table.get("kind", "area")
        if not isinstance(name, str) or not name or name in names:
            faults.append(f"{path}: {where}name: expected a unique name, found {name!r}")
        if not isinstance(color, str) or not re.fullmatch(r"#[0-9a-fA-F]{6}", color):
            faults.append(f'{path}: {where}color: expected "#rrggbb", found {color!r}')
        if kind not in CLASS_KINDS:
            faults.append(f"{path}: {where}kind = {kind!r}; one of {', '.join(CLASS_KINDS)}")
        names.add(str(name))
        classes.append(AreaClass(str(name), str(color), str(kind)))
    return tuple(classes)
