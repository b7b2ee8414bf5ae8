"""Write the folder of a finished pre-training run with random weights."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxcyto.models import SiameseNet
from jaxcyto.runs.load import save_weights

SCALES = {
    "distance_mm": 20.0,
    "coordinate_low_mm": [1.0, -20.0, -10.0],
    "coordinate_high_mm": [21.0, 30.0, 14.0],
    "distance_median_mm": 19.0,
    "coordinate_median_mm": [8.0, 3.0, 1.0],
    "input_mean": 150.0,
    "input_std": 40.0,
}


def random_variables(model: SiameseNet, side: int, seed: int = 0) -> dict:
    """Draw kernels as He et al. do, and batch normalization that differs from its initial state."""
    rng = np.random.default_rng(seed)

    def draw(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if len(leaf.shape) > 1:
            values = rng.normal(0, (2 / np.prod(leaf.shape[:-1])) ** 0.5, leaf.shape)
        else:
            values = rng.uniform(0.2, 1.0, leaf.shape)
        return values.astype(np.float32)

    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2, side, side, 1)))
    return jax.tree.map(draw, dict(shapes))


def write_run(root: Path, model: SiameseNet, side: int, um_per_px: float = 64.0) -> Path:
    """Write config.json and random weights."""
    root.mkdir(parents=True)
    save_weights(root, random_variables(model, side))
    config = {
        "data": {"um_per_px": um_per_px, "patch_px": side, "absolute_x": True},
        "model": {
            "stem_kernel": model.stem_kernel,
            "stem_stride": model.stem_stride,
            "widths": list(model.widths),
            "features": model.features,
            "dtype": "float32",
        },
        "scales": SCALES,
        "training_sections": ["tiny/0001"],
        "pairs_sha256": {"tiny": "0"},
    }
    (root / "config.json").write_text(json.dumps(config))
    return root
