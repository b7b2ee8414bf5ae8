"""What a pre-trained network predicts of the test pairs: RUN/pair_predictions.npz.

pair                       number of the pair, int64 [P]
distance_mm                along the surface, float32 [P]
predicted_distance_mm      float32 [P]
coordinates_mm             of both patches, as trained for (absolute_x), float32 [P, 2, 3]
predicted_coordinates_mm   float32 [P, 2, 3]
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
    """Writes the arrays above, whole or not at all."""
    arrays: dict[str, Any] = {name: predictions[name] for name in SCHEMA}
    with atomic_write(run / FILE) as file:
        np.savez(file, format=PREDICTIONS_FORMAT, **arrays)


def read_predictions(run: Path) -> dict[str, np.ndarray] | None:
    """The arrays above; None where the run has not come to its test.

    Raises:
        InputError: the file is damaged.
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
