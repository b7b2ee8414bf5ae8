"""Define the fuzz targets of a run folder's readers."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.robustness.fuzz.containers import in_export, in_safetensors
from benchmarks.robustness.fuzz.mutations import Mutation, in_bytes, in_json, in_text
from benchmarks.robustness.fuzz.seeds import CLASSES
from benchmarks.robustness.fuzz.targets import Seeds, Target
from jaxcyto.config import InputScales, Scales
from jaxcyto.models import Geometry, SiameseNet, UNet
from jaxcyto.runs.export_file import EXPORT, read_metadata, write_export
from jaxcyto.runs.load import (
    TRAINED_ON,
    WEIGHTS,
    InputError,
    is_segmentation,
    load_pretext_run,
    load_segment_run,
    load_weights,
    read_config,
    read_trained_on,
    save_weights,
)
from jaxcyto.runs.metrics_file import read_metrics
from jaxcyto.runs.model_card import model_card
from jaxcyto.runs.record import read_saved
from jaxcyto.training.state.checkpoint import Checkpoints, _newest_intact
from jaxcyto.training.state.state import State
from jaxcyto.training.state.transfer import pretraining_scales


def run_targets(root: Path) -> dict[str, Target]:
    """Make the run folder `root`, and return the targets of all its readers."""
    jax.config.update("jax_platforms", "cpu")
    root.mkdir()
    model = UNet(num_classes=3, stem_kernel=3, stem_stride=1, widths=(4, 4, 4))
    side = Geometry(3, 1, 3).smallest_valid_size
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, side, side, 1), np.float32))
    save_weights(root, jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes))
    config = {
        "classes": [vars(entry) for entry in CLASSES],
        "data": {"um_per_px": 16.0, "image_px": side, "atlas": False},
        "model": {"stem_kernel": 3, "stem_stride": 1, "widths": [4, 4, 4], "dtype": "float32"},
        "scales": {"input_mean": 128.0, "input_std": 50.0},
        "training_sections": ["ball/a"],
    }
    other = config | {"pairs_sha256": ["0" * 64], "scales": vars(Scales())}
    del other["classes"]
    lines = [{"step": step, "time": 1.0, "loss": 0.5} for step in range(5)]
    text = (in_bytes, in_text, in_json, in_json)
    seeds = [json.dumps(each, indent=2).encode() for each in (config, other)]
    (root / "config.json").write_bytes(seeds[0])
    weights = (root / WEIGHTS).read_bytes()
    metrics = "".join(json.dumps(line) + "\n" for line in lines).encode()
    return {
        "weights": Target(WEIGHTS, [(weights, (in_bytes, in_safetensors))], _weights),
        "run config": Target("config.json", [(seed, text) for seed in seeds], _config),
        "export": Target(f"export/{EXPORT}", _write_exports(root, config), _export),
        "checkpoint": Target("t.file", _write_checkpoint(root), _checkpoint),
        "metrics": Target("metrics.jsonl", [(metrics, (in_bytes, in_text))], _metrics),
    }


def _write_exports(root: Path, config: dict[str, Any]) -> Seeds:
    """Write an export of a segmentation and one of a pre-training, and return both as seeds."""
    net = SiameseNet(stem_kernel=3, stem_stride=1, widths=(4, 4), features=4)
    shapes = jax.eval_shape(net.init, jax.random.key(0), np.zeros((1, 2, 13, 13, 1), np.float32))
    pretext = {key: value for key, value in config.items() if key != "classes"} | {
        "data": {"um_per_px": 16.0, "patch_px": 13, "brains": ["ball"]},
        "model": config["model"] | {"widths": [4, 4], "features": 4},
        "scales": vars(Scales()),
        "pairs_sha256": {"ball": "0" * 64},
    }
    own = dict.fromkeys(TRAINED_ON, "ball")
    about = {"trained_on": [own], "packages": {"jax": "1"}, "results": {"test": {"wrong": 0.5}}}
    path = root / "export" / EXPORT
    path.parent.mkdir()
    flat = {
        "/".join(key.key for key in where): np.ones(leaf.shape, np.float32)
        for where, leaf in jax.tree_util.tree_leaves_with_path(dict(shapes))
    }
    seeds = []
    for leaves, each in ((load_weights(root), config), (flat, pretext)):
        write_export(path, leaves, about | {"config": each})
        seeds.append((path.read_bytes(), (in_bytes, in_safetensors, in_export, in_export)))
    return seeds


def _export(path: Path) -> None:
    """Read an export, and check that its model card can be written."""
    load_weights(path)
    assert read_trained_on(path) is not None
    if is_segmentation(read_config(path)):
        network = load_segment_run(path)
    else:
        network = load_pretext_run(path)
        assert network.weights == path and np.isfinite(network.scales.input_mean)
        pretraining_scales(path, network.um_per_px, {"ball/c": None})
    assert model_card("name", network, read_metadata(path)).startswith("---")


def _write_checkpoint(root: Path) -> Seeds:
    """Write a checkpoint of step 3, and return each of its files as a seed.

    A seed is the file's relative path, a zero byte and its content.
    """
    leaf = np.arange(6, dtype=np.float32)
    state = State(jnp.int32(3), {"w": leaf}, {"mean": leaf}, {"trace": leaf})
    with Checkpoints(root / "whole") as checkpoints:
        checkpoints.save(3, state)
    files = [path for path in sorted((root / "whole").rglob("*")) if path.is_file()]
    text = (in_bytes, in_text, in_json)
    return [
        (bytes(path.relative_to(root / "whole")) + b"\0" + path.read_bytes(), (in_file(text),))
        for path in files
    ]


def in_file(mutations: tuple[Mutation, ...]) -> Mutation:
    """Apply one of the mutations to the content behind the path and the zero byte."""

    def mutation(rng: random.Random, data: bytes) -> bytes:
        name, _, content = data.partition(b"\0")
        return name + b"\0" + rng.choice(mutations)(rng, content)

    return mutation


def _checkpoint(path: Path) -> None:
    name, _, content = path.read_bytes().partition(b"\0")
    folder = path.parent / "checkpoints"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(path.parent / "whole", folder)
    (folder / name.decode()).write_bytes(content)
    step, leaves = _newest_intact(folder)
    assert step == 3 and len(leaves) == 4
    assert all(leaf.size == 1 or leaf.tolist() == [0, 1, 2, 3, 4, 5] for leaf in leaves.values())


def _weights(path: Path) -> None:
    for name, leaf in load_weights(path.parent).items():
        assert name.split("/")[0] in ("params", "batch_stats") and "/" in name
        assert leaf.dtype.kind == "f" and np.isfinite(leaf).all()


def _config(path: Path) -> None:
    """Read a config with each of its four readers, and raise if all of them refuse it."""
    refusals = []
    for read in (_segment_run, _saved, _saved_pretext, _pretraining):
        try:
            read(path.parent)
        except InputError as error:
            refusals.append(error)
    if len(refusals) == 4:
        raise refusals[0]


def _segment_run(run: Path) -> None:
    found = load_segment_run(run)
    assert found.classes and found.input_std > 0 and np.isfinite(found.input_mean)
    assert 0 < found.um_per_px < np.inf and all(isinstance(x, str) for x in found.training_sections)


def _saved(run: Path) -> None:
    read_saved(run, InputScales, "classes")


def _saved_pretext(run: Path) -> None:
    read_saved(run, Scales, "pairs_sha256")


def _pretraining(run: Path) -> None:
    scales = pretraining_scales(run, 16.0, {"ball/c": None})
    assert scales.input_std > 0 and np.isfinite([scales.input_mean, scales.input_std]).all()


def _metrics(path: Path) -> None:
    for line in read_metrics(path):
        assert isinstance(line, dict) and isinstance(line["step"], int)
