"""Time our steps and forward passes for peer.py, and write the files that both sides read.

The process answers the requests of torch_speed.py, and one more that writes files:

    {"write": true, "net": "siamese" or "unet", "batch": N, "side": px, "weights": FILE,
     "images": FILE, "targets": FILE}
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file

from jaxcyto.augment import normalize
from jaxcyto.config import AugmentConfig, InputScales, LossConfig, Scales, Term
from jaxcyto.config_io import to_json
from jaxcyto.losses import cross_entropy
from jaxcyto.models import Geometry, SiameseNet, UNet
from jaxcyto.runs.export_file import write_export
from jaxcyto.training.devices import parallel
from jaxcyto.training.pretext import PretextTask
from jaxcyto.training.segment import SegmentTask
from jaxcyto.training.state.state import State
from jaxcyto.training.step import train_step
from jaxcyto.utils.runtime import keep_freed_memory

CLASSES = 16
SCALES: dict[str, Any] = {"input_mean": 128.0, "input_std": 50.0}


def main() -> None:
    """Answer requests until stdin ends."""
    if jax.default_backend() == "cpu":
        keep_freed_memory()
    made: dict[str, Callable[[], float]] = {}
    for line in sys.stdin:
        asked = json.loads(line)
        answer: dict[str, Any] = {}
        if "write" in asked:
            write(asked)
        elif "make" in asked:
            made[asked["make"]], answer["value"] = make(asked)
        elif "time" in asked:
            made[asked["time"]]()  # not timed: caches are cold, and idle pages may be swapped out
            answer["seconds"] = [_timed(made[asked["time"]]) for _ in range(asked["repeats"])]
        elif "drop" in asked:
            made.pop(asked["drop"], None)
        else:
            device = jax.devices()[0]
            answer = {"device": device.device_kind, "platform": device.platform}
            answer["peak_gib"] = _peak_gib(device)
        print(json.dumps(answer), flush=True)


def network(net: str, dtype: str) -> Any:
    """Return the network "siamese" or "unet" in the paper's size."""
    if net == "siamese":
        return SiameseNet(dtype=jnp.dtype(dtype))
    return UNet(num_classes=CLASSES, dtype=jnp.dtype(dtype))


def write(asked: dict[str, Any]) -> None:
    """Write random weights, images and targets to files that both sides read."""
    net, batch, side = asked["net"], asked["batch"], asked["side"]
    rng = np.random.default_rng(0)
    pair = (2,) if net == "siamese" else ()
    shape = (batch, *pair, side, side)
    coarse = rng.integers(0, 256, (*shape[:-2], -(-side // 8), -(-side // 8)), np.uint8)
    images = coarse.repeat(8, -1).repeat(8, -2)[..., :side, :side] // 2
    images += rng.integers(0, 128, shape, np.uint8)
    np.save(asked["images"], images)
    if net == "siamese":
        distance = rng.uniform(0, 2, batch).astype(np.float32)
        coordinates = rng.uniform(-1, 1, (batch, 2, 3)).astype(np.float32)
        np.savez(asked["targets"], distance=distance, coordinates=coordinates)
    else:
        out = Geometry().output_size(side)
        np.savez(asked["targets"], label=rng.integers(0, CLASSES, (batch, out, out), np.uint8))
    model = network(net, "float32")
    example = np.zeros((1, *shape[1:], 1), np.float32)
    variables: Any = jax.jit(model.init)(jax.random.key(0), example)
    leaves: Any = flatten_dict(jax.tree.map(np.asarray, variables), sep="/")
    config: dict[str, Any] = {"model": to_json(_layout(model)), "scales": SCALES}
    if net == "unet":
        config |= {"data": {"atlas": False}, "classes": [{"kind": "other"}] * CLASSES}
    table = {"config": config, "results": {}, "trained_on": [], "packages": {}}
    write_export(Path(asked["weights"]), leaves, table)


def _layout(model: Any) -> dict[str, Any]:
    names = ("stem_kernel", "stem_stride", "widths", "features")
    return {name: getattr(model, name) for name in names if hasattr(model, name)}


def make(asked: dict[str, Any]) -> tuple[Callable[[], float], float]:
    """Compile the function to time, and return it with its first value.

    The value is the loss of the first step or the mean square of the outputs.
    """
    leaves = load_file(asked["weights"])
    variables = unflatten_dict(leaves, sep="/")
    images = np.load(asked["images"], allow_pickle=False)[..., None]
    with np.load(asked["targets"], allow_pickle=False) as file:
        batch = dict(file)
    model = network(asked["net"], asked["dtype"])
    if asked["mode"] == "forward":
        apply = jax.jit(lambda variables, x: model.apply(variables, normalize(x, *SCALES.values())))
        variables, x = jax.device_put((variables, images))

        def forward() -> float:
            found: Any = apply(variables, x)
            first = found["features"] if isinstance(found, dict) else found
            return float(jnp.mean(jnp.square(first)))

        value = forward()
        return forward, value

    off = AugmentConfig(flip=False, rotate=False, brightness=0.0, contrast=0.0, blur_px=0.0)
    optimizer = optax.sgd(0.001, momentum=0.9, nesterov=True)
    if asked["net"] == "siamese":
        task: Any = PretextTask(model, LossConfig(), off, Scales(**SCALES), optimizer)
        # These scales are 1 mm and -1 ... 1 mm, so scaled units equal millimeters.
        batch = {f"{name}_mm": value for name, value in batch.items()} | {"patches": images}
    else:
        loss = LossConfig(terms=(Term(cross_entropy),))
        task = SegmentTask(model, loss, off, InputScales(**SCALES), optimizer)
        batch["image"] = images
    size = len(images)
    batch |= {"index": np.arange(size, dtype=np.int32), "valid": np.ones(size, bool)}
    params = variables["params"]
    state = parallel.replicate(
        State(jnp.zeros((), jnp.int32), params, variables["batch_stats"], optimizer.init(params))
    )
    compiled = parallel.pmap_train(train_step, task=task)
    placed = jax.device_put(parallel.split_over_devices(batch), jax.devices()[0])
    held = [state]

    def step() -> float:
        held[0], out = compiled(held[0], placed)
        return float(out["checks"]["loss"])

    value = step()
    step()
    return step, value


def _timed(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def _peak_gib(device: Any) -> float:
    stats = device.memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"] / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
