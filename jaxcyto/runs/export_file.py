"""The one file of an export: weights, and in its metadata all that is needed to use them.

    OUT/model.safetensors   leaves by path, as a run has them; metadata: {"jaxcyto": JSON}

The JSON is a table with the fields `format` and

    config      config.json of the run, with the names instead of the paths of folders
    results     of results.json: steps, pairs and the errors or scores of the test; {} if not tested
    trained_on  the brains, with licence and citation, see `runs.read_trained_on`
    packages    versions that trained it
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from jaxcyto.errors import InputError
from jaxcyto.utils.files import atomic_write

EXPORT = "model.safetensors"
KEY = "jaxcyto"  # a single one: safetensors writes several in any order
EXPORT_FORMAT = 1
FIELDS = {"config": dict, "results": dict, "trained_on": list, "packages": dict}
MAX_CHARACTERS = 16 << 20  # of the JSON; a section of the training data takes some 20


def write_export(path: Path, leaves: dict[str, np.ndarray], table: dict[str, Any]) -> None:
    """Writes an export under a temporary name, then renames it into place.

    Args:
        path: the file.
        leaves: by path.
        table: with the fields `FIELDS`.
    """
    text = json.dumps({"format": EXPORT_FORMAT} | table)
    with atomic_write(path) as file:
        file.write(save(leaves, {KEY: text}))


def read_metadata(path: Path) -> dict[str, Any]:
    """The table of an export, with the fields `FIELDS`.

    Raises:
        InputError: it is damaged, or no export of this format.
    """
    try:
        with safe_open(path, "numpy") as file:
            text = (file.metadata() or {}).get(KEY)
        if text is None:
            raise InputError(
                f"{path}: no export of jaxcyto: its metadata has no field {KEY!r}; write one with "
                "`jaxcyto export RUN OUT`, or name the folder of a run"
            )
        if len(text) > MAX_CHARACTERS:
            raise ValueError(f"{len(text)} characters of metadata")
        table = json.loads(text)
        if table["format"] != EXPORT_FORMAT:
            raise InputError(
                f"{path}: format = {table['format']!r:.80}, but this version reads "
                f"{EXPORT_FORMAT}; "
                "export it again with this version, or install a newer one"
            )
        for field, kind in FIELDS.items():
            if not isinstance(table[field], kind):
                raise TypeError(f"{field} is no {kind.__name__}")
        if not all(isinstance(entry, dict) for entry in table["trained_on"]):
            raise TypeError("trained_on is no list of tables")
        return table
    except InputError:
        raise
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: metadata: damaged ({type(error).__name__}: {str(error)[:200]}); get the file "
            "again, or name the folder of a run"
        ) from None
