"""Read and write the file of an export, which holds the weights and the metadata to use them.

    OUT/model.safetensors   arrays by their path, as in a run, and metadata {"jaxcyto": JSON}

The JSON is an object with the field `format` and these fields:

    config      config.json of the run, with the names of folders instead of their paths
    results     steps, pairs and the test results of results.json, or {} without a test
    trained_on  the brains, with license and citation (see `runs.load.read_trained_on`)
    packages    versions of the packages that trained the network
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
KEY = "jaxcyto"  # a single key, because safetensors does not keep the order of several
EXPORT_FORMAT = 1
FIELDS = {"config": dict, "results": dict, "trained_on": list, "packages": dict}
MAX_CHARACTERS = 16 << 20  # of the JSON. A training section takes approximately 80


def write_export(path: Path, leaves: dict[str, np.ndarray], table: dict[str, Any]) -> None:
    """Write the file of an export atomically.

    Args:
        path: the file.
        leaves: arrays by their path in the network.
        table: metadata with the fields `FIELDS`.
    """
    text = json.dumps({"format": EXPORT_FORMAT} | table)
    with atomic_write(path) as file:
        file.write(save(leaves, {KEY: text}))


def read_metadata(path: Path) -> dict[str, Any]:
    """Read the metadata of an export, a dict with the fields `FIELDS` and `format`.

    Raises:
        InputError: the file is damaged, or it is not an export of this format.
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
                f"{EXPORT_FORMAT}; export it again with this version, or install a newer one"
            )
        for field, kind in FIELDS.items():
            if not isinstance(table[field], kind):
                raise TypeError(f"{field} is not a {kind.__name__}")
        if not all(isinstance(entry, dict) for entry in table["trained_on"]):
            raise TypeError("trained_on is not a list of objects")
        return table
    except InputError:
        raise
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: metadata: damaged ({type(error).__name__}: {str(error)[:200]}); get the file "
            "again, or name the folder of a run"
        ) from None
