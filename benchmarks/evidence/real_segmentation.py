"""Segment real tissue: a sulcus with a manual cortex mask, and ten small patches.

    python benchmarks/evidence/real_segmentation.py --data DATA --out runs/real_segmentation

DATA holds histology/columns_cut300 and histology/spitzer_histoseg_patches, whose sources are in
docs/real_segmentation.md. The script trains the small network on the CPU three times. The first run
trains on the left part of the sulcus and is tested on its right third. The others use patches with
labels of gray and white matter and patches with labels of V1. Every test part is scored twice, on
the windows of training and by `jaxcyto evaluate` on maps of whole sections. The script prints
tables, and the last line on stdout is one JSON object.
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

# pixel size of columns_cut300, an assumption: no source states it (docs/real_segmentation.md)
COLUMNS_UM = 8.0
PATCHES_UM = 39.0  # pixel size of spitzer_histoseg_patches
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
# The image of each part of the sulcus and the annotated region within it, as rows and columns in
# px. The test image is the whole sulcus, as a user would segment it. Training sees no pixel of the
# right third. A gap of 42 px (0.34 mm) between the annotated regions is annotated in neither. The
# folds, on which settings were chosen, divide the left part in the same way.
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
    """Resample class indices to the grid of label images, 16 um.

    Each output pixel gets the class that covers most of it, the lowest class index in a tie.

    Args:
        label: class indices, uint8 [H, W].
        pixel_um: their pixel size.
    """
    height, width = expected_shape(label.shape, pixel_um)
    ratio = LABEL_UM / pixel_um
    rows, columns = (np.arange(*source_range(0, n, ratio)) for n in (height, width))
    rows, columns = (
        np.clip(k, 0, n - 1) for k, n in zip((rows, columns), label.shape, strict=True)
    )
    needed = label[np.ix_(rows, columns)]
    classes = np.unique(label)
    shares = [
        resample(np.where(needed == index, 255, 0).astype(np.uint8), 0, 0, height, width, ratio)
        for index in classes
    ]
    return classes[np.argmax(shares, axis=0)]


def write_brain(
    root: Path,
    name: str,
    classes: tuple[AreaClass, ...],
    pixel_um: float,
    sections: list[tuple[str, str, np.ndarray, np.ndarray]],
) -> Path:
    """Write a brain folder without surfaces.

    Args:
        root: the folder, which is made.
        name: name of the brain.
        classes: classes of the label images.
        pixel_um: pixel size of the images.
        sections: name, split, image uint8 [H, W] and class indices uint8 [H, W] of each section.

    Returns:
        The folder.
    """
    root.mkdir(parents=True, exist_ok=True)
    rows, mm = [], pixel_um / 1000
    # sections.csv requires an affine, which has no effect without surfaces
    affine = f"{mm} 0 0 0  0 0 0 0  0 {-mm} 0 0"
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
    """Read the image and the cortex mask (1 in cortex, else 0), both uint8 [1932, 1024]."""
    folder = data / "histology/columns_cut300"
    return read(folder / "cut_300.tif"), (read(folder / "cortex_mask.png") > 0).astype(np.uint8)


def lay_out_sulcus(data: Path, root: Path, parts: str = "sulcus") -> Path:
    """Write a brain folder with the parts `PARTS[parts]` of the sulcus as sections."""
    image, mask = sulcus(data)
    sections = []
    for split, (shown, annotated) in PARTS[parts].items():
        label = np.full_like(mask, UNLABELED)
        label[annotated] = mask[annotated]
        sections.append((split, split, image[shown], label[shown]))
    return write_brain(root, "a sulcus (columns_cut300)", SULCUS, COLUMNS_UM, sections)


def lay_out_patches(data: Path, root: Path, scheme: str) -> Path:
    """Write a brain folder with the five patches of a label scheme ("gmwm" or "v1").

    The split is by patch, see `TEST_PATCHES`.
    """
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
    """Return the config of a short run without pre-training."""
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
    """Train in the folder `run`, score on windows and on maps, and print and return the scores."""
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
    """Return the Dice of cortex on the test part that two rules reach without a network.

    The rule `all` labels everything as cortex. The rule `gray` blurs the image by 0.16 mm and
    labels pixels darker than a threshold, which is the best one on the training part.
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
    parser = argparse.ArgumentParser(description="Segment real tissue with the small network.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/real_segmentation"))
    parser.add_argument(
        "--fold",
        choices=["upper", "lower"],
        help="run only this fold of the sulcus, to choose settings without the test part",
    )
    parser.add_argument("--um-per-px", type=float, default=32.0, help="resolution of the sulcus")
    parser.add_argument("--steps", type=int, default=150, help="training steps on the sulcus")
    arguments = parser.parse_args()
    for name in ("columns_cut300", "spitzer_histoseg_patches"):
        if not (arguments.data / "histology" / name).is_dir():
            parser.error(
                f"--data {arguments.data}: no folder histology/{name}. "
                "See docs/real_segmentation.md."
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
