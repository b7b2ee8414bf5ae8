"""A brain on disk: `brain.toml` and its section table, read and validated as a whole.

Every path in both files is relative to the brain's folder and may not leave it.
All faults found are reported at once, in one `InputError`.
"""

import csv
import dataclasses
import io
import os
import re
import tomllib
from pathlib import Path

import numpy as np

from jaxcyto.errors import InputError

FORMAT = 1
MAX_BYTES = 64 << 20  # brain.toml and sections.csv are small; a larger file is not one of them
SPLITS = ("train", "val", "test", "exclude")
CLASS_KINDS = ("area", "cortex", "white_matter", "background")
SURFACES = ("mid", "pial", "white")
SECTION_COLUMNS = (
    "section",
    "image",
    "pixel_um",
    "affine",
    "coordinates",
    "label",
    "atlas",
    "split",
)


@dataclasses.dataclass(frozen=True)
class Hemisphere:
    """One hemisphere's surfaces. Paths are absolute; `None` where not given.

    `surface` names the one that carries distances and sampling: "mid" (the `mid` file if
    given, else the mean of vertex-matched pial and white), "pial" or "white".
    """

    name: str
    pial: Path | None = None
    white: Path | None = None
    mid: Path | None = None
    labels: Path | None = None
    surface: str = "mid"


@dataclasses.dataclass(frozen=True)
class AreaClass:
    """A class of the label images; its index is its position in `brain.toml`."""

    name: str
    color: str  # "#rrggbb"
    kind: str  # one of CLASS_KINDS


@dataclasses.dataclass(frozen=True)
class SectionRow:
    """One row of the section table. Paths are absolute.

    Either `affine` [3, 4] (mm = affine @ [column, row, 0, 1] at full resolution, pixel centres
    at whole numbers) or `coordinates` (a coarse coordinate map, see `registration.py`) is set.
    """

    index: int
    name: str
    image: Path
    pixel_um: float
    affine: np.ndarray | None = None
    coordinates: Path | None = None
    label: Path | None = None
    atlas: Path | None = None
    split: str = ""


@dataclasses.dataclass(frozen=True)
class Brain:
    """A validated brain folder. `background` is the grey value outside of every image."""

    root: Path
    name: str
    hemispheres: tuple[Hemisphere, ...]
    sections: tuple[SectionRow, ...]
    classes: tuple[AreaClass, ...]
    background: int = 255
    licence: str = ""
    citation: str = ""
    section_table: str = "sections.csv"


def read_brain(root: str | os.PathLike) -> Brain:
    """Reads and validates `root/brain.toml` and its section table.

    Raises:
        InputError: with one line for each fault found in either file.
    """
    root = Path(root).resolve()
    path = root / "brain.toml"
    if not path.is_file():
        hint = " (it is a file; name its folder)" if root.is_file() else ""
        raise InputError(f"{root}: no brain.toml here{hint}; make one as docs/data.md describes")
    faults: list[str] = []
    try:
        table = tomllib.loads(_read_text(path))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InputError(f"{path}: not valid TOML: {error}") from None
    if table.get("format") != FORMAT:
        faults.append(f"{path}: format = {table.get('format')!r}; this version reads {FORMAT}")
    known = {
        "format", "name", "licence", "citation", "sections", "background", "hemispheres", "classes",
    }  # fmt: skip
    faults += _unknown(path, "", table, known)

    def text(field: str, default: str) -> str:
        value = table.get(field, default)
        if not isinstance(value, str):
            faults.append(f"{path}: {field}: expected text, found {value!r}")
            return default
        return value

    background = table.get("background", 255)
    if type(background) is not int or not 0 <= background <= 255:
        faults.append(f"{path}: background = {background!r}; expected a grey value 0 ... 255")
    hemispheres = _hemispheres(root, path, table.get("hemispheres"), faults)
    classes = _classes(path, table.get("classes", []), faults)
    section_table = text("sections", "sections.csv")
    table_path = _inside(root, path, "sections", section_table, faults)
    sections = _sections(root, table_path, faults) if table_path is not None else ()
    if faults:
        raise InputError("\n".join(faults))
    return Brain(
        root=root,
        name=text("name", root.name),
        hemispheres=hemispheres,
        sections=sections,
        classes=classes,
        background=background,
        licence=text("licence", ""),
        citation=text("citation", ""),
        section_table=section_table,
    )


def write_table(path: Path, rows: list[dict[str, str]]) -> None:
    """Writes the section table (columns SECTION_COLUMNS, further ones after them), atomically."""
    columns = list(SECTION_COLUMNS)
    columns += [key for row in rows for key in row if key not in columns]
    columns = list(dict.fromkeys(columns))
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(out.getvalue(), encoding="utf-8")
    os.replace(temporary, path)


def write_splits(brain: Brain, splits: list[str]) -> None:
    """Fills the split column of the section table; every other column is kept as it is."""
    path = brain.root / brain.section_table
    rows = list(csv.DictReader(io.StringIO(_read_text(path), newline="")))
    if len(rows) != len(splits):
        raise InputError(f"{path}: changed while it was in use; run the command again")
    for row, split in zip(rows, splits, strict=True):
        row["split"] = split
    write_table(path, rows)


def _read_text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path}: over {MAX_BYTES >> 20} MiB; not a file of this format")
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None


def _unknown(path: Path, where: str, table: dict, known: set[str]) -> list[str]:
    return [
        f"{path}: {where}unknown field {key!r}; known: {', '.join(sorted(known))}"
        for key in table
        if key not in known
    ]


def _inside(root: Path, path: Path, field: str, value: object, faults: list[str]) -> Path | None:
    """The absolute path of an existing file inside the brain's folder, links resolved."""
    if not isinstance(value, str) or not value or "\0" in value:
        faults.append(f"{path}: {field}: expected a file name, found {value!r}")
        return None
    try:
        target = (root / value).resolve()
    except (OSError, RuntimeError) as error:
        faults.append(f"{path}: {field}: {value!r} cannot be resolved: {error}")
        return None
    if Path(value).is_absolute() or not target.is_relative_to(root):
        faults.append(
            f"{path}: {field}: {value!r} leaves the brain's folder; "
            "copy or mount the file inside it and give a relative path"
        )
        return None
    if not target.is_file():
        faults.append(f"{path}: {field}: no file {value!r} in {root}")
        return None
    return target


def _hemispheres(root, path, value, faults) -> tuple[Hemisphere, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(v, dict) for v in value):
        faults.append(f"{path}: hemispheres: at least one [[hemispheres]] table is needed")
        return ()
    hemispheres, names = [], set()
    for number, table in enumerate(value):
        where = f"hemispheres[{number}]."
        fields = {field.name for field in dataclasses.fields(Hemisphere)}
        faults += _unknown(path, where, table, fields)
        name = table.get("name")
        if not isinstance(name, str) or not name or name in names:
            faults.append(f"{path}: {where}name: expected a name of its own, found {name!r}")
            name = f"hemisphere{number}"
        names.add(name)
        files = {
            key: _inside(root, path, where + key, table[key], faults)
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


def _classes(path, value, faults) -> tuple[AreaClass, ...]:
    if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
        faults.append(f"{path}: classes: expected [[classes]] tables")
        return ()
    if len(value) > 255:
        faults.append(f"{path}: classes: {len(value)} classes; at most 255 (255 = not annotated)")
    classes, names = [], set()
    for number, table in enumerate(value):
        where = f"classes[{number}]."
        faults += _unknown(path, where, table, {"name", "color", "kind"})
        name, color, kind = table.get("name"), table.get("color"), table.get("kind", "area")
        if not isinstance(name, str) or not name or name in names:
            faults.append(f"{path}: {where}name: expected a name of its own, found {name!r}")
        if not isinstance(color, str) or not re.fullmatch(r"#[0-9a-fA-F]{6}", color):
            faults.append(f'{path}: {where}color: expected "#rrggbb", found {color!r}')
        if kind not in CLASS_KINDS:
            faults.append(f"{path}: {where}kind = {kind!r}; one of {', '.join(CLASS_KINDS)}")
        names.add(str(name))
        classes.append(AreaClass(str(name), str(color), str(kind)))
    return tuple(classes)


def _sections(root: Path, path: Path, faults: list[str]) -> tuple[SectionRow, ...]:
    try:
        reader = csv.DictReader(io.StringIO(_read_text(path), newline=""), strict=True)
        header = reader.fieldnames or []
        rows = list(reader)
    except csv.Error as error:
        faults.append(f"{path}: not valid CSV: {error}")
        return ()
    missing = {"section", "image", "pixel_um"} - set(header)
    if missing:
        faults.append(f"{path}: line 1: missing column {', '.join(sorted(missing))}")
        return ()
    if not rows:
        faults.append(f"{path}: no section; add a row for each section image")
    sections, names = [], set()
    for index, row in enumerate(rows):
        line = f"line {index + 2}: "
        if None in row or None in row.values():
            faults.append(f"{path}: {line}{len(header)} columns expected, as in line 1")
            continue
        row = {key: (value or "").strip() for key, value in row.items()}
        if not row["section"] or row["section"] in names:
            faults.append(f"{path}: {line}section {row['section']!r} is empty or stands twice")
        names.add(row["section"])
        try:
            pixel_um = float(row["pixel_um"])
            if not 0.01 <= pixel_um <= 10_000:
                raise ValueError
        except ValueError:
            faults.append(f"{path}: {line}pixel_um = {row['pixel_um']!r}; expected micrometres")
            pixel_um = 1.0
        affine = None
        if bool(row.get("affine")) == bool(row.get("coordinates")):
            faults.append(f"{path}: {line}give either affine (12 numbers) or coordinates (a file)")
        elif row.get("affine"):
            affine = _affine(path, line, row["affine"], pixel_um, faults)
        files = {
            key: _inside(root, path, line + key, row[key], faults)
            for key in ("image", "coordinates", "label", "atlas")
            if row.get(key) or key == "image"
        }
        split = row.get("split", "")
        if split and split not in SPLITS:
            faults.append(f"{path}: {line}split = {split!r}; empty or one of {', '.join(SPLITS)}")
        image = files.pop("image")
        if image is not None:
            sections.append(
                SectionRow(
                    index, row["section"], image, pixel_um, affine=affine, split=split, **files
                )
            )
    return tuple(sections)


def _affine(path, line, text, pixel_um, faults) -> np.ndarray | None:
    try:
        affine = np.array([float(number) for number in text.split()]).reshape(3, 4)
    except ValueError:
        faults.append(f"{path}: {line}affine: expected 12 numbers, row by row, blanks between")
        return None
    column, row = affine[:, 0], affine[:, 1]
    if not np.isfinite(affine).all() or np.linalg.norm(np.cross(column, row)) == 0:
        faults.append(f"{path}: {line}affine: not finite, or maps the image onto a line")
        return None
    size_um = 1000 * np.array([np.linalg.norm(column), np.linalg.norm(row)])
    if (size_um > 2 * pixel_um).any() or (size_um < pixel_um / 2).any():
        faults.append(
            f"{path}: {line}affine: a pixel spans {size_um[0]:.4g} x {size_um[1]:.4g} um, but "
            f"pixel_um = {pixel_um:g}; the affine maps (column, row) px to mm"
        )
        return None
    return affine
