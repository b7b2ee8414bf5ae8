"""Read and write the section table (sections.csv), which has one row for each section image."""

import csv
import dataclasses
import difflib
import io
from pathlib import Path

import numpy as np

from jaxcyto.errors import InputError
from jaxcyto.utils.files import atomic_write, inside, read_text

SPLITS = ("train", "val", "test", "exclude")
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
NEEDED = ("section", "image", "pixel_um")


@dataclasses.dataclass(frozen=True)
class SectionRow:
    """One row of the section table. Paths are absolute.

    Either `affine` or `coordinates` is set. `affine` [3, 4] maps pixels at full resolution to mm:
    mm = affine @ [column, row, 0, 1], with pixel centers at integers. `coordinates` is the
    file of a coarse coordinate map (see `registration.py`).
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


def read_table(path: Path, faults: list[str]) -> list[tuple[int, dict[str, str]]]:
    """Read the (line number, row) pairs of a table. Each row has all columns of the table.

    Faults are appended to `faults`. Rows with another number of cells than the first line are left
    out.

    Raises:
        InputError: if the file cannot be read or is not CSV.
    """
    try:
        reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
        lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader if cells]
    except csv.Error as error:
        raise InputError(
            f"{path}: line {reader.line_num}: not valid CSV ({error}); save the table again as CSV"
        ) from None
    columns = lines[0][1] if lines else []
    for name in dict.fromkeys(columns):
        if columns.count(name) > 1:
            faults.append(f"{path}: line 1: column {name!r} appears twice; remove one")
        near = difflib.get_close_matches(name.lower(), SECTION_COLUMNS, 1, 0.8)
        if near and name not in SECTION_COLUMNS:
            faults.append(f"{path}: line 1: column {name!r}: write {near[0]!r}, or rename it")
    missing = [name for name in NEEDED if name not in columns]
    if missing:
        faults.append(
            f"{path}: line 1: missing column {', '.join(missing)}; the first line names the "
            f"columns, with commas between: {','.join(SECTION_COLUMNS)}"
        )
        return []
    if len(lines) == 1:
        faults.append(f"{path}: no section; add a row for each section image")
    rows = []
    for number, cells in lines[1:]:
        if len(cells) == len(columns):
            rows.append((number, dict(zip(columns, cells, strict=True))))
        else:
            faults.append(
                f"{path}: line {number}: {len(cells)} cells; {len(columns)} as in line 1 needed"
            )
    return rows


def write_table(path: Path, rows: list[dict[str, str]]) -> None:
    """Write the section table atomically: first SECTION_COLUMNS, then all further columns."""
    columns = list(dict.fromkeys([*SECTION_COLUMNS, *(key for row in rows for key in row)]))
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with atomic_write(path) as file:
        file.write(out.getvalue().encode())


def read_sections(root: Path, path: Path, faults: list[str]) -> tuple[SectionRow, ...]:
    """Read the sections of a table. Faults are appended to `faults`.

    Rows without a usable image or pixel size are left out. A row whose placement is faulty has
    neither affine nor coordinates.
    """
    try:
        rows = read_table(path, faults)
    except InputError as error:
        faults.append(str(error))
        return ()
    sections, names = [], set()
    for index, (number, row) in enumerate(rows):
        line = f"line {number}: "
        name = row["section"]
        if not name or name in names:
            faults.append(
                f"{path}: {line}section {name!r} is empty or appears twice; give each section a "
                "unique name"
            )
        names.add(name)
        pixel_um = _pixel_um(row["pixel_um"])
        if pixel_um is None:
            faults.append(
                f"{path}: {line}pixel_um = {row['pixel_um']!r}; expected the size of a pixel of "
                "the image in micrometers, e.g. 2"
            )
        affine = None
        if bool(row.get("affine")) == bool(row.get("coordinates")):
            faults.append(
                f"{path}: {line}affine, coordinates: fill one of them, either 12 numbers or a file"
            )
            row = row | {"coordinates": ""}
        elif row.get("affine"):
            affine = _affine(path, line, row["affine"], pixel_um, faults)
        files = {
            key: inside(root, path, line + key, row[key], faults)
            for key in ("image", "coordinates", "label", "atlas")
            if row.get(key) or key == "image"
        }
        split = row.get("split", "")
        if split and split not in SPLITS:
            faults.append(f"{path}: {line}split = {split!r}; empty or one of {', '.join(SPLITS)}")
        image = files.pop("image")
        if image is not None and pixel_um is not None:
            sections.append(
                SectionRow(index, name, image, pixel_um, affine=affine, split=split, **files)
            )
    return tuple(sections)


def _pixel_um(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if 0.01 <= number <= 10_000 else None


def _affine(
    path: Path, line: str, text: str, pixel_um: float | None, faults: list[str]
) -> np.ndarray | None:
    try:
        affine = np.array([float(number) for number in text.split()]).reshape(3, 4)
    except ValueError:
        faults.append(
            f"{path}: {line}affine: {len(text.split())} words; expected 12 numbers, row by row, "
            "with blanks between"
        )
        return None
    # The limit is far beyond any brain, and below it no sum or square below can overflow.
    if not (np.isfinite(affine).all() and np.abs(affine).max() < 1e6):
        faults.append(f"{path}: {line}affine: not finite or over 1e6; expected mm")
        return None
    size_mm = np.linalg.norm(affine[:, :2], axis=0)
    area = np.linalg.norm(np.cross(affine[:, 0], affine[:, 1]))
    if area <= 1e-3 * size_mm.prod():
        faults.append(
            f"{path}: {line}affine: maps the image onto a line; the first two of its four "
            "columns are the steps of one column and one row, in mm"
        )
        return None
    size_um = 1000 * size_mm
    if pixel_um and ((size_um > 2 * pixel_um) | (size_um < pixel_um / 2)).any():
        faults.append(
            f"{path}: {line}affine: a pixel spans {size_um[0]:.4g} x {size_um[1]:.4g} um, but "
            f"pixel_um = {pixel_um:g}; the affine maps (column, row) px to mm"
        )
        return None
    return affine
