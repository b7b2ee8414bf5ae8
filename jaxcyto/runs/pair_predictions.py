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

from jaxcyto.errors import InputError
from jaxcyto.utils.files import READ_ERRORS, atomic_write, read_npz

FILE = "pair_predictions.npz"
PREDICTIONS_FORMAT = "jaxcyto predictions 1"
SHAPES = {
    "pair": (),
    "distance_mm": (),
    "predicted_distance_mm": (),
    "coordinates_mm": (2, 3),
    "predicted_coordinates_mm": (2, 3),
}


def save_predictions(run: Path, predictions: dict[str, np.ndarray]) -> None:
    """Writes the arrays above, whole or not at all."""
    arrays: dict[str, Any] = {name: predictions[name] for name in SHAPES}
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
    try:
        found = read_npz(path, PREDICTIONS_FORMAT)
        arrays = {name: found[name] for name in SHAPES}
        if not len(arrays["pair"]):
            raise ValueError("it holds no pair")
        for name, shape in SHAPES.items():
            if arrays[name].shape != (len(arrays["pair"]), *shape):
                raise ValueError(f"{name} has the shape {arrays[name].shape}")
            if not np.isfinite(arrays[name]).all():
                raise ValueError(f"{name} is not finite")
        return arrays
    except READ_ERRORS as error:
        raise InputError(
            f"{path}: damaged ({error}); remove it and start the training command again: a "
            "finished run only repeats its test"
        ) from None
