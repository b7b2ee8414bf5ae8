"""Files of a brain's folder: text of a bounded size, and names that stay inside the folder."""

import os
from pathlib import Path

from jaxcyto.errors import InputError

MAX_BYTES = 64 << 20  # brain.toml and section tables are small; a larger file is not one of them


def read_text(path: Path) -> str:
    """A UTF-8 text file, with or without a byte order mark.

    Raises:
        InputError: it cannot be read, is not UTF-8 or too large.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path}: over {MAX_BYTES >> 20} MiB; not a file of this format")
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error}); save it as UTF-8") from None


def inside(root: Path, path: Path, field: str, value: object, faults: list[str]) -> Path | None:
    """The absolute path of an existing file inside the brain's folder, links resolved.

    Args:
        root: the folder, links resolved.
        path: the file in which the name stands, for the message.
        field: where in it.
        value: what stands there.
        faults: gets a line if it is no such file; the result is then None.
    """
    if not isinstance(value, str) or not value or "\0" in value:
        faults.append(f"{path}: {field}: expected a file name, found {value!r}")
        return None
    target = Path(os.path.realpath(root / value))  # unlike Path.resolve, never raises
    if Path(value).is_absolute() or not target.is_relative_to(root):
        faults.append(
            f"{path}: {field}: {value!r} leaves the brain's folder; "
            "copy or mount the file inside it and give a relative path"
        )
        return None
    if not os.path.isfile(target):
        faults.append(f"{path}: {field}: no file {value!r} in {root}; correct the name or add it")
        return None
    return target
