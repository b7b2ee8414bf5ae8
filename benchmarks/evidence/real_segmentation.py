"""Segmentation on real tissue: a sulcus with a manual cortex mask, and ten small patches.

    python benchmarks/evidence/real_segmentation.py --data DATA --out runs/real_segmentation

DATA holds histology/columns_cut300 and histology/spitzer_histoseg_patches (where they come from:
docs/real_segmentation.md). Trains the small network on the CPU three times: on the left part of the
sulcus, tested on its right third; on patches with gray and white matter; on patches with V1.
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

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from jaxcyto.brain.manifest import AreaClass, write_table
from jaxcyto.brain.sections.label_image import LABEL_UM, UNLABELED, expected_shape
from jaxcyto.brain.sections.resample import resample, source_range
from jaxcyto.config import ModelConfig, OptimConfig, SegmentConfig, SegmentData, small
from jaxcyto.predict.evaluate import evaluate_brain
from jaxcyto.scores import confusion, scores, scores_table
from jaxcyto.training import log, loop
from jaxcyto.utils.runtime import keep_freed_memory

COLUMNS_UM = 8.0  # px of columns_cut300: not stated anywhere, assumed (see the docs)
PATCHES_UM = 39.0  # px of spitzer_histoseg_patches
CORTEX = AreaClass("cortex", "#c8553d", "cortex")
GRAY = AreaClass("gray matter", "#c8553d", "cortex")
WHITE = AreaClass("white matter", "#e9e6df", "white_matter")
BACKGROUND = AreaClass("background", "#ffffff", "background")
OTHER = dataclasses.replace(BACKGROUND, name="not cortex")
SULCUS = (OTHER, CORTEX)
SCHEMES = {
    "gmwm": (BACKGROUND, GRAY, WHITE),
    "v1": (dataclasses.replace(BACKGROUND, name="not V1"), AreaClass("V1", "#aa2030", "area")),
}
# Of each part of the sulcus its image and the annotated piece of it, rows and columns in px. The
# test shows the whole sulcus, as one would segment it; of the right third training sees no pixel.
# 42 px (0.34 mm) between annotated pieces are annotated in neither. The folds, on which settings
# were chosen, do the same within the left part.
Part = tuple[tuple[slice, slice], tuple[slice, slice]]
WHOLE, LEFT = (slice(0, 1932), slice(0, 1024)), (slice(0, 1932), slice(0, 682))
PARTS: dict[str, dict[str, Part]] = {
    "sulcus": {
        "train": (LEFT, (slice(0, 1932), slice(0, 640))),
        "test": (WHOLE, (slice(0, 1932), slice(682, 1024))),
    },
    "upper": {
        "train": ((slice(640, 1932), slice(0, 682)), (slice(682, 1932), slice(0, 640))),
        "val": (LEFT, (slice(0, 640), slice(0, 640))),
    },
    "lower": {
        "train": ((slice(0, 1292), slice(0, 682)), (slice(0, 1250), slice(0, 640))),
        "val": (LEFT, (slice(1292, 1932), slice(0, 640))),
    },
}
TEST_PATCHES = (3, 4)  # of five; gmwm_train_3 is entirely white


def label_image(label: np.ndarray, pixel_um: float) -> np.ndarray:
    """Labels on the 16 um grid: the number that covers most of each pixel, the lowest of equals."""
    height, width = expected_shape(label.shape, pixel_um)
    ratio = LABEL_UM / pixel_um
    rows, columns = (np.arange(*source_range(0, n, ratio)) for n in (height, width))
    rows, columns = (
        np.clip(k, 0, n - 1) for k, n in zip((rows, columns), label.shape, strict=True)
    )
    needed = label[np.ix_(rows, columns)]
    numbers = np.unique(label)
    shares = [
        resample(np.where(needed == number, 255, 0).astype(np.uint8), 0, 0, height, width, ratio)
        for number in numbers
    ]
    return numbers[np.argmax(shares, axis=0)]


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


def lay_out_sulcus(data: Path, root: Path, parts: str = "sulcus") -> Path:
    """Some of `PARTS` as sections of their own."""
    image, mask = sulcus(data)
    sections = []
    for split, (shown, annotated) in PARTS[parts].items():
        label = np.full_like(mask, UNLABELED)
        label[annotated] = mask[annotated]
        sections.append((split, split, image[shown], label[shown]))
    return write_brain(root, "a sulcus (columns_cut300)", SULCUS, COLUMNS_UM, sections)


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

    `all`: everything is cortex. `gray`: cortex is what is darker than a threshold, after a blur of
    0.16 mm; the threshold is the best one on the training part.
    """
    image, mask = sulcus(data)
    smooth = gaussian_filter(image.astype(float), 160 / COLUMNS_UM)
    train, test = (PARTS["sulcus"][split][1] for split in ("train", "test"))

    def dice(cortex: np.ndarray, where: tuple[slice, slice]) -> float:
        matrix = confusion(cortex[where].astype(np.uint8), mask[where], len(SULCUS))
        return scores(matrix, SULCUS)["dice"][CORTEX.name]

    best = max(range(100, 250, 2), key=lambda threshold: dice(smooth < threshold, train))
    return {"all": dice(np.ones_like(mask), test), "gray": dice(smooth < best, test)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Segmentation of real tissue, small network.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/real_segmentation"))
    parser.add_argument(
        "--fold", choices=["upper", "lower"], help="Only this one, to choose settings; no test."
    )
    parser.add_argument("--um-per-px", type=float, default=32.0, help="of the sulcus")
    parser.add_argument("--steps", type=int, default=150, help="of the sulcus")
    arguments = parser.parse_args()
    for name in ("columns_cut300", "spitzer_histoseg_patches"):
        if not (arguments.data / "histology" / name).is_dir():
            parser.error(
                f"--data {arguments.data}: holds no histology/{name}; see docs/real_segmentation.md"
            )
    flags.FLAGS.mark_as_parsed()  # grain reads absl's flags
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    log.log_to_stderr()
    keep_freed_memory()

    data, out = arguments.data, arguments.out
    name = arguments.fold or "sulcus"
    root, run = lay_out_sulcus(data, out / name, name), out / f"run_{name}"
    settings = config(root, arguments.um_per_px, 252, arguments.steps)
    if arguments.fold:
        loop.train(settings, run)
        print(json.dumps(evaluate_brain(run, root, "val")["test"]))
        return
    found = {"sulcus": train_and_evaluate(settings, run)}
    found["sulcus"]["cortex_dice_without_network"] = constants(data)
    for scheme in SCHEMES:
        root = lay_out_patches(data, out / scheme, scheme)
        found[scheme] = train_and_evaluate(config(root, 24.0, 268, 100), out / f"run_{scheme}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
