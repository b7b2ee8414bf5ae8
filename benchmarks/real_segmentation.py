"""Segmentation on real tissue: a sulcus with a manual cortex mask, and ten small patches.

    python benchmarks/real_segmentation.py --data DATA --out runs/real_segmentation

DATA holds histology/columns_cut300 and histology/spitzer_histoseg_patches (where they come from:
docs/real_segmentation.md). Trains the small network on the CPU three times: on the left part of the
sulcus, tested on its right third; on patches with grey and white matter; on patches with V1.
Every test part is scored twice, by the windows of training and by `jaxcyto evaluate`, from maps of
whole sections. Prints tables; last line: one JSON object.
"""

import argparse
import dataclasses
import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import optax
import tifffile
import tomli_w
from absl import flags
from PIL import Image
from scipy.ndimage import gaussian_filter

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jaxcyto.brain.label_images import LABEL_UM, expected_shape
from jaxcyto.brain.manifest import AreaClass, write_table
from jaxcyto.brain.resample import resample, source_range
from jaxcyto.config import ModelConfig, OptimConfig, SegmentConfig, SegmentData, small
from jaxcyto.evaluate import confusion, evaluate_brain, scores, scores_table
from jaxcyto.training import host, log, loop

COLUMNS_UM = 8.0  # px of columns_cut300: not stated anywhere, assumed (see the docs)
PATCHES_UM = 39.0  # px of spitzer_histoseg_patches
CORTEX = AreaClass("cortex", "#c8553d", "cortex")
GREY = AreaClass("grey matter", "#c8553d", "cortex")
WHITE = AreaClass("white matter", "#e9e6df", "white_matter")
BACKGROUND = AreaClass("background", "#ffffff", "background")
OTHER = dataclasses.replace(BACKGROUND, name="not cortex")
SULCUS = (OTHER, CORTEX)
SCHEMES = {
    "gmwm": (BACKGROUND, GREY, WHITE),
    "v1": (dataclasses.replace(BACKGROUND, name="not V1"), AreaClass("V1", "#aa2030", "area")),
}
# Rows and columns of the sulcus, px. Between two parts lie 42 px (0.34 mm) that neither has.
PARTS = {
    "train": (slice(0, 1250), slice(0, 640)),
    "val": (slice(1292, 1932), slice(0, 640)),
    "test": (slice(0, 1932), slice(682, 1024)),  # the right third
}
TEST_PATCHES = (3, 4)  # of five; gmwm_train_3 is entirely white


def label_image(label: np.ndarray, pixel_um: float) -> np.ndarray:
    """Class numbers on the 16 um grid: the class that covers most of each pixel, lowest first."""
    height, width = expected_shape(label.shape, pixel_um)
    ratio = LABEL_UM / pixel_um
    rows, columns = (np.arange(*source_range(0, n, ratio)) for n in (height, width))
    rows, columns = (
        np.clip(k, 0, n - 1) for k, n in zip((rows, columns), label.shape, strict=True)
    )
    needed = label[np.ix_(rows, columns)]
    shares = [
        resample(np.where(needed == number, 255, 0).astype(np.uint8), 0, 0, height, width, ratio)
        for number in range(int(label.max()) + 1)
    ]
    return np.argmax(shares, axis=0).astype(np.uint8)


def write_brain(
    root: Path,
    name: str,
    classes: tuple[AreaClass, ...],
    pixel_um: float,
    sections: list[tuple[str, str, np.ndarray, np.ndarray]],
) -> Path:
    """A brain folder without surfaces, of (section, split, image, class numbers) each."""
    root.mkdir(parents=True, exist_ok=True)
    rows, mm = [], pixel_um / 1000
    affine = f"{mm} 0 0 0  0 0 0 0  0 {-mm} 0 0"  # the table wants one; no surface is to be met
    for section, split, image, label in sections:
        tifffile.imwrite(root / f"{section}.tif", image, compression="zlib")
        tifffile.imwrite(
            root / f"{section}_label.tif", label_image(label, pixel_um), compression="zlib"
        )
        row = {"section": section, "image": f"{section}.tif", "pixel_um": f"{pixel_um:g}"}
        rows.append(row | {"affine": affine, "label": f"{section}_label.tif", "split": split})
    write_table(root / "sections.csv", rows)
    table = {
        "format": 1,
        "name": name,
        "licence": "none stated",
        "background": 255,
        "classes": [dataclasses.asdict(entry) for entry in classes],
    }
    (root / "brain.toml").write_text(tomli_w.dumps(table))
    return root


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def sulcus(data: Path) -> tuple[np.ndarray, np.ndarray]:
    """Image, and 1 for cortex and 0 for the rest, uint8 [1932, 1024]."""
    folder = data / "histology/columns_cut300"
    return read(folder / "cut_300.tif"), (read(folder / "cortex_mask.png") > 0).astype(np.uint8)


def lay_out_sulcus(data: Path, root: Path) -> Path:
    """The parts of the sulcus as sections of their own: no window sees two of them."""
    image, mask = sulcus(data)
    parts = [(split, split, image[where], mask[where]) for split, where in PARTS.items()]
    return write_brain(root, "a sulcus (columns_cut300)", SULCUS, COLUMNS_UM, parts)


def lay_out_patches(data: Path, root: Path, scheme: str) -> Path:
    """The five patches of a label scheme ("gmwm" or "v1"), split by image."""
    folder = data / "histology/spitzer_histoseg_patches"
    patches = [
        (
            f"{scheme}_{k}",
            "test" if k in TEST_PATCHES else "train",
            read(folder / f"{scheme}_train_{k}_image.png"),
            read(folder / f"{scheme}_train_{k}_label.png"),
        )
        for k in range(5)
    ]
    return write_brain(root, f"patches ({scheme})", SCHEMES[scheme], PATCHES_UM, patches)


def config(
    root: Path, um_per_px: float, image_px: int, steps: int, model: ModelConfig | None = None
) -> SegmentConfig:
    """Of a short run without pre-training."""
    return SegmentConfig(
        data=SegmentData(
            brains=(str(root),), image_px=image_px, um_per_px=um_per_px, batch_images=8
        ),
        model=model or small(),
        optim=OptimConfig(optimizer=optax.adam, learning_rate=0.002, warmup_steps=20),
        steps=steps,
        log_every=10,
        eval_every=50,
        batch_stats_steps=20,
        checkpoint_every=100,
    )


def train_and_evaluate(settings: SegmentConfig, run: Path) -> dict[str, Any]:
    """Trains, scores by windows and by maps; prints both, returns the figures."""
    started = time.monotonic()
    root = Path(settings.data.brains[0])
    print(f"\n{root.name}, scored by the windows of training", flush=True)
    windows = loop.train(settings, run)
    maps = evaluate_brain(run, root, "test")
    print(f"\n{root.name}, scored by maps of whole sections\n{scores_table(maps)}", flush=True)
    return {
        "windows": windows["test"],
        "maps": maps["test"],
        "steps": windows["steps"],
        "seconds": round(time.monotonic() - started),
    }


def constants(data: Path) -> dict[str, float]:
    """Dice of cortex on the test part without a network.

    `all`: everything is cortex. `grey`: cortex is what is darker than a threshold, after a blur of
    0.16 mm; the threshold is the best one on the training part.
    """
    image, mask = sulcus(data)

    def dice(where: np.ndarray, part: str) -> float:
        truth = mask[PARTS[part]]
        return scores(confusion(where.astype(np.uint8), truth, 2), SULCUS)["dice"]["cortex"]

    def darker(threshold: float, part: str) -> np.ndarray:
        return gaussian_filter(image[PARTS[part]].astype(float), 160 / COLUMNS_UM) < threshold

    best = max(range(100, 250, 2), key=lambda t: dice(darker(t, "train"), "train"))
    everything = np.ones_like(mask[PARTS["test"]])
    return {"all": dice(everything, "test"), "grey": dice(darker(best, "test"), "test")}


def main() -> None:
    parser = argparse.ArgumentParser(description="Segmentation of real tissue, small network.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/real_segmentation"))
    arguments = parser.parse_args()
    flags.FLAGS.mark_as_parsed()  # grain reads absl's flags
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    log.log_to_stderr()
    host.keep_freed_memory()

    data, out = arguments.data, arguments.out
    root = lay_out_sulcus(data, out / "sulcus")
    found = {"sulcus": train_and_evaluate(config(root, 32.0, 252, 300), out / "run_sulcus")}
    found["sulcus"]["cortex_dice_without_network"] = constants(data)
    for scheme in SCHEMES:
        root = lay_out_patches(data, out / scheme, scheme)
        found[scheme] = train_and_evaluate(config(root, 24.0, 268, 100), out / f"run_{scheme}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
