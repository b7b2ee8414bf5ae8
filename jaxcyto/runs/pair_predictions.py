"""Read and write the predictions of a pre-trained network for test pairs.

They are in RUN/pair_predictions.npz, which holds these arrays:

pair                       index of the pair, int64 [P]
distance_mm                true distance along the surface, float32 [P]
predicted_distance_mm      float32 [P]
coordinates_mm             true coordinates of both patches, as in training, float32 [P, 2, 3]
predicted_coordinates_mm   float32 [P, 2, 3]

With `absolute_x`, coordinates have |x| in place of x.
"""

from pathlib import Path
from typing import Any

import numpy as np

from jaxcyto.utils.files import Array, atomic_write, naming_damage, read_arrays

FILE = "pair_predictions.npz"
PREDICTIONS_FORMAT = "jaxcyto predictions 1"
SCHEMA = {
    "pair": Array(np.integer, ("P",)),
    "distance_mm": Array(np.floating, ("P",)),
    "predicted_distance_mm": Array(np.floating, ("P",)),
    "coordinates_mm": Array(np.floating, ("P", 2, 3)),
    "predicted_coordinates_mm": Array(np.floating, ("P", 2, 3)),
}


def save_predictions(run: Path, predictions: dict[str, np.ndarray]) -> None:
    """Write the arrays above, completely or not at all."""
    arrays: dict[str, Any] = {name: predictions[name] for name in SCHEMA}
    with atomic_write(run / FILE) as file:
        np.savez(file, format=PREDICTIONS_FORMAT, **arrays)


def read_predictions(run: Path) -> dict[str, np.ndarray] | None:
    """Read the arrays above. Return None if the run has not reached its test.

    Raises:
        InputError: if the file is damaged.
    """
    path = run / FILE
    if not path.exists():
        return None
    remedy = (
        "remove it and start the training command again, which only repeats the test if the run "
        "is finished"
    )
    with naming_damage(path, "file of predictions", remedy):
        arrays = read_arrays(path, PREDICTIONS_FORMAT, SCHEMA)
        if not len(arrays["pair"]):
            raise ValueError("it holds no pair")
    return arrays
