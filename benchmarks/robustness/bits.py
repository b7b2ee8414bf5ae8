"""Compare the results of two checkouts bit by bit, on a phantom brain and short training runs.

    python benchmarks/robustness/bits.py                       # this checkout
    python benchmarks/robustness/bits.py --tree ../before      # this checkout and another one

Each checkout runs in separate processes, through its commands only: `jaxcyto phantom`, `sample` and
`pair`, `train.py` for pre-training and then for segmentation from that run with the atlas branch,
and `jaxcyto predict`. The files of the phantom are hashed byte by byte, and other files by their
decoded arrays. Metrics are hashed without the fields that depend on the clock.
The last line on stdout is one JSON object. With --tree, the exit status is 1 if a hash differs.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from safetensors.numpy import load_file

ROOT = Path(__file__).resolve().parents[2]
PRETEXT = """
from jaxcyto.batch_losses import all_pairs_distance_loss
from jaxcyto.config import AugmentConfig, Config, DataConfig, LossConfig, ModelConfig, Term
from jaxcyto.losses import coordinate_loss, distance_loss

def get_config():
    terms = (
        Term(distance_loss, 1.0), Term(coordinate_loss, 10.0), Term(all_pairs_distance_loss, 3.0)
    )
    return Config(
        data=DataConfig(
            ("brain",), patch_px=32, um_per_px=64.0, batch_pairs=8, threads=2, all_distances=True
        ),
        model=ModelConfig(stem_kernel=3, stem_stride=1, widths=(4, 4, 8)),
        augment=AugmentConfig(noise=0.1), loss=LossConfig(terms=terms),
        steps=8, log_every=1, eval_every=4, checkpoint_every=4, eval_pairs=16, batch_stats_steps=2,
    )
"""
SEGMENT = """
import optax
from jaxcyto.config import ModelConfig, OptimConfig, SegmentConfig, SegmentData

def get_config():
    return SegmentConfig(
        data=SegmentData(
            ("brain",), image_px=60, um_per_px=64.0, atlas=True, batch_images=8, threads=2
        ),
        model=ModelConfig(stem_kernel=3, stem_stride=1, widths=(4, 4, 8)),
        optim=OptimConfig(optimizer=optax.adam, learning_rate=0.01), init_from="pretext",
        steps=8, log_every=1, eval_every=4, checkpoint_every=4, eval_images=4, batch_stats_steps=2,
    )
"""


def digest(*parts: bytes) -> str:
    """Return the first 16 hexadecimal digits of SHA-256."""
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def arrays(table: dict[str, Any]) -> str:
    """Hash arrays by name: their types, shapes and bytes."""
    hashed = [f"{key}{x.dtype}{x.shape}".encode() + x.tobytes() for key, x in sorted(table.items())]
    return digest(*hashed)


def npz(path: Path) -> str:
    """Hash the arrays of an .npz file."""
    with np.load(path) as file:
        return arrays({key: np.asarray(file[key]) for key in file.files})


def metrics(path: Path) -> str:
    """Hash metrics.jsonl without the learning rate and the fields that depend on the clock."""
    skipped = ("time", "train/learning_rate")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    kept = [
        {k: v for k, v in line.items() if k not in skipped and not k.startswith("speed/")}
        for line in lines
    ]
    return digest(json.dumps(kept, sort_keys=True).encode())


def measure(tree: Path, folder: Path) -> dict[str, str]:
    """Run the commands of a checkout in an empty folder and return its hashes by name."""
    environment = os.environ | {"PYTHONPATH": str(tree), "JAX_PLATFORMS": "cpu"}

    def run(*command: str) -> None:
        process = subprocess.run(
            [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True
        )
        if process.returncode:
            raise SystemExit(f"{' '.join(command)}: status {process.returncode}\n{process.stderr}")

    def train(task: str, text: str) -> None:
        (folder / f"{task}.py").write_text(text)
        run(str(tree / "train.py"), "--config", f"{task}.py", "--workdir", task)

    run("-m", "jaxcyto", "phantom", "brain", "--preset", "tiny")
    hashes = {"phantom": digest(*(p.read_bytes() for p in sorted((folder / "brain").rglob("*.*"))))}
    sampling = ["--patches", "240", "--patch-px", "32", "--um-per-px", "64"]
    run("-m", "jaxcyto", "sample", "brain", *sampling)
    run("-m", "jaxcyto", "pair", "brain", "--pairs", "480", "--method", "heat", "--all-distances")
    hashes["patches"] = npz(folder / "brain/patches.npz")
    hashes["pairs"] = npz(folder / "brain/pairs.npz")
    train("pretext", PRETEXT)
    train("segment", SEGMENT)
    for task in ("pretext", "segment"):
        hashes[f"{task} weights"] = arrays(load_file(folder / task / "weights.safetensors"))
        hashes[f"{task} metrics"] = metrics(folder / task / "metrics.jsonl")
        hashes[f"{task} results"] = digest((folder / task / "results.json").read_bytes())
    hashes["pair predictions"] = npz(folder / "pretext/pair_predictions.npz")
    run("-m", "jaxcyto", "predict", "segment", "brain", "--section", "0012")
    maps = sorted((folder / "segment").rglob("*0012*.tif"))
    hashes["class map"] = digest(*(tifffile.imread(path).tobytes() for path in maps))
    return hashes


def main() -> None:
    """Print the hashes of this checkout and, if given, of another one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--tree", type=Path, help="another checkout to compare with")
    parser.add_argument("--keep", type=Path, help="a new folder to keep brains and runs in")
    options = parser.parse_args()
    trees = {"this": ROOT} | ({"other": options.tree.resolve()} if options.tree else {})
    found = {}
    for name, tree in trees.items():
        with tempfile.TemporaryDirectory() as temporary:
            folder = (options.keep or Path(temporary)) / name
            folder.mkdir(parents=True)
            found[name] = measure(tree, folder.resolve())
    for key in found["this"]:
        values = [hashes[key] for hashes in found.values()]
        print(f"{key:<20}{'  '.join(values)}{'' if len(set(values)) == 1 else '  DIFFERENT'}")
    print(json.dumps(found))
    sys.exit(len(trees) == 2 and found["this"] != found["other"])


if __name__ == "__main__":
    main()
