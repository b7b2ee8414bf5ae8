"""Write the folder of a finished segmentation run with random weights."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxcyto.models import Geometry, UNet
from jaxcyto.runs.load import save_weights

CLASSES = [
    {"name": "inner", "color": "#aa0000", "kind": "area"},
    {"name": "outer", "color": "#00aa00", "kind": "area"},
    {"name": "background", "color": "#ffffff", "kind": "background"},
]


def write_run(
    root: Path,
    model: UNet,
    *,
    um_per_px: float = 16.0,
    classes: list[dict[str, str]] = CLASSES,
    atlas: bool = False,
    seed: int = 0,
) -> Path:
    """Write config.json and random weights, which NumPy draws so that nothing is compiled."""
    geometry = Geometry.of(model)
    side = geometry.smallest_valid_size
    images = [jnp.zeros((1, side, side, 1))]
    if atlas:
        areas = sum(entry["kind"] == "area" for entry in classes)
        images.append(jnp.zeros((1, *2 * [geometry.atlas_size(side)], areas)))
    rng = np.random.default_rng(seed)

    def draw(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if len(leaf.shape) == 4:  # kernels, drawn as by He et al.
            values = rng.normal(0, (2 / np.prod(leaf.shape[:3])) ** 0.5, leaf.shape)
        else:  # batch normalization and biases
            values = rng.uniform(0.2, 1.0, leaf.shape)
        return values.astype(np.float32)

    shapes = jax.eval_shape(model.init, jax.random.key(0), *images)
    root.mkdir(parents=True)
    save_weights(root, jax.tree.map(draw, shapes))
    config = {
        "classes": classes,
        "data": {"um_per_px": um_per_px, "image_px": side, "atlas": atlas},
        "model": {
            "stem_kernel": model.stem_kernel,
            "stem_stride": model.stem_stride,
            "widths": list(model.widths),
            "dtype": "float32",
            "decoder": model.decoder,
            "pools": list(model.pools),
        },
        "scales": {"input_mean": 128.0, "input_std": 50.0},
    }
    (root / "config.json").write_text(json.dumps(config))
    return root
