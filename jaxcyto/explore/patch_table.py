"""Read and write the table of patches, a Parquet file for pandas, R, DuckDB and Arrow."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxcyto.brain.manifest import SPLITS, AreaClass, Brain
from jaxcyto.brain.sampling.patches import Patches
from jaxcyto.brain.sections.label_image import UNLABELED
from jaxcyto.predict.features import Embedding
from jaxcyto.utils.files import atomic_write

TABLE = "patches.parquet"
KEY = b"jaxcyto"  # metadata field that identifies the weights and patches of the table


def patch_columns(brain: Brain, patches: Patches) -> dict[str, np.ndarray]:
    """Return the columns that do not depend on a network: index, section, position, split."""
    names = np.array([row.name for row in brain.sections], object)
    hemispheres = np.array([each.name for each in brain.hemispheres], object)
    columns = {
        "patch": np.arange(len(patches), dtype=np.int32),
        "section": names[patches.section],
        "hemisphere": hemispheres[patches.hemisphere],
        "split": np.array(SPLITS, object)[patches.split],
        "column_px": patches.center_px[:, 0],
        "row_px": patches.center_px[:, 1],
    }
    return columns | {f"{axis}_mm": patches.position_mm[:, k] for k, axis in enumerate("xyz")}


def class_column(classes: tuple[AreaClass, ...], number: np.ndarray) -> np.ndarray:
    """Return the class name [N] for each class index [N], or None if there is no such class."""
    names = np.full(max(UNLABELED, len(classes)) + 1, None, object)
    names[: len(classes)] = [entry.name for entry in classes]
    return names[number]


def embedding_columns(found: Embedding) -> dict[str, np.ndarray]:
    """Return the columns `feature_00`, `feature_01`, ... and the predicted position in mm."""
    columns = {f"feature_{k:02d}": values for k, values in enumerate(found.features.T)}
    axes = enumerate("xyz")
    return columns | {f"predicted_{axis}_mm": found.coordinates_mm[:, k] for k, axis in axes}


def write_table(path: Path, columns: Mapping[str, np.ndarray], source: Mapping[str, str]) -> None:
    """Write columns [N] as a Parquet file.

    Args:
        path: the file.
        columns: arrays [N] by column name.
        source: digests of the inputs that the columns were computed from.
    """
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({name: pyarrow.array(values) for name, values in columns.items()})
    table = table.replace_schema_metadata({KEY: json.dumps(dict(source), sort_keys=True)})
    with atomic_write(path) as file:
        pyarrow.parquet.write_table(table, file)


def read_embedding(path: Path, source: Mapping[str, str]) -> Embedding | None:
    """Read the features from a table on disk.

    Return None if there is no table, if it is damaged or if it was computed from other inputs than
    those of `source`.
    """
    import pyarrow
    import pyarrow.parquet

    if not path.is_file():
        return None
    try:
        metadata = pyarrow.parquet.read_schema(path).metadata or {}
        if json.loads(metadata.get(KEY, b"{}")) != dict(source):
            return None
        table = pyarrow.parquet.read_table(path)
        names = sorted(name for name in table.column_names if name.startswith("feature_"))
        features = np.column_stack([table[name].to_numpy() for name in names])
        places = np.column_stack([table[f"predicted_{axis}_mm"].to_numpy() for axis in "xyz"])
    except (OSError, KeyError, ValueError, pyarrow.ArrowException):
        return None  # damaged, so the caller computes the features again
    return Embedding(*(np.ascontiguousarray(part, np.float32) for part in (features, places)))
