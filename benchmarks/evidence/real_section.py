"""Pre-train on a real section: one coronal section of BigBrain's left hemisphere at 81 um.

    python benchmarks/evidence/real_section.py --data DATA --out runs/real_section

DATA holds bigbrain/surf/tpl-bigbrain_hemi-L_desc-{pial,white}.surf.gii and
histology/bigbrain_sections/y+2.80_{image_81um.png,registration.json} (docs/real_section.md says
where they come from). The script copies them into a brain folder, samples 2,400 patches of 128 px
at 40 um/px (5 mm), pairs them and trains the small network on the CPU. It prints the error on a
part of the cortical ribbon that is held out with a gap, beside the error of always predicting the
training median. The last line on stdout is one JSON object.
"""

import argparse
import json
import shutil
import sys
import warnings
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import optax
import tomli_w
from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from jaxcyto.brain.figures import SPLIT_COLORS
from jaxcyto.brain.manifest import SPLITS, read_brain, write_table
from jaxcyto.brain.prepare import describe_pairs, describe_patches, pair_brain, sample_brain
from jaxcyto.brain.sampling.patches import Patches
from jaxcyto.brain.sections.section import open_section
from jaxcyto.config import Config, DataConfig, OptimConfig, small
from jaxcyto.data.pair_table import open_pairs
from jaxcyto.training import log, loop

SURFACE = "tpl-bigbrain_hemi-L_desc-{}.surf.gii"


def lay_out(data: Path, root: Path) -> Path:
    """Copy surfaces and section into a brain folder, and write brain.toml and sections.csv.

    Args:
        data: the folder described above.
        root: the brain folder, which is made.

    Returns:
        The brain folder.
    """
    root.mkdir(parents=True, exist_ok=True)
    for side in ("pial", "white"):
        shutil.copy(data / "bigbrain/surf" / SURFACE.format(side), root / f"lh.{side}.surf.gii")
    sections = data / "histology/bigbrain_sections"
    shutil.copy(sections / "y+2.80_image_81um.png", root / "section.png")
    placed = json.loads((sections / "y+2.80_registration.json").read_text())
    mm = placed["um_per_px"] / 1000
    affine = [[mm, 0, 0, placed["x0_mm"]], [0, 0, 1, placed["y_mm"]], [0, -mm, 0, placed["z0_mm"]]]
    row = {"section": "y+2.80", "image": "section.png", "pixel_um": str(placed["um_per_px"])}
    row["affine"] = " ".join(str(number) for line in affine for number in line)
    write_table(root / "sections.csv", [row])
    left = {"name": "left", "pial": "lh.pial.surf.gii", "white": "lh.white.surf.gii"}
    table = {
        "format": 1,
        "name": "BigBrain, section at y = +2.80 mm",
        "licence": "CC BY-NC-SA 4.0",
        "citation": "Amunts et al., Science 2013, 10.1126/science.1235381",
        "background": 255,
        "hemispheres": [left],
    }
    (root / "brain.toml").write_text(tomli_w.dumps(table))
    return root


def draw_points(root: Path, patches: Patches, path: Path) -> None:
    """Draw the sampled points on the section image, colored by split, into the file `path`."""
    row = read_brain(root).sections[0]
    with open_section(row.image, row.pixel_um) as section:
        image = section.read(0, 0, *section.shape)
    figure, axis = plt.subplots(figsize=(13, 9.5), layout="constrained")
    axis.imshow(image, cmap="gray")
    for index, split in enumerate(SPLITS):
        chosen = patches.center_px[patches.split == index]
        axis.scatter(*chosen.T, s=3, color=SPLIT_COLORS[split], label=f"{len(chosen)} {split}")
    axis.legend(markerscale=4)
    axis.set_axis_off()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Pre-train on a real section and test on a held-out part of its ribbon."
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/real_section"))
    parser.add_argument("--patches", type=int, default=2400)
    parser.add_argument("--pairs", type=int, default=7200)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--split-axis", default="z", choices=["x", "z"])
    arguments = parser.parse_args()
    for name in ("bigbrain/surf", "histology/bigbrain_sections"):
        if not (arguments.data / name).is_dir():
            parser.error(f"--data {arguments.data}: no folder {name}. See docs/real_section.md.")
    flags.FLAGS.mark_as_parsed()  # grain reads absl's flags
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    log.log_to_stderr()

    out = arguments.out / f"split_{arguments.split_axis}"
    root = lay_out(arguments.data, out / "brain")
    patches = sample_brain(
        root,
        num_patches=arguments.patches,
        patch_px=128,
        um_per_px=40.0,
        split_axis=arguments.split_axis,
    )
    print(describe_patches(patches))
    draw_points(root, patches, out / "points.png")
    print(describe_pairs(pair_brain(root, num_pairs=arguments.pairs, method="heat")))
    config = Config(
        data=DataConfig(brains=(str(root),), patch_px=128, um_per_px=40.0, batch_pairs=16),
        model=small(),
        optim=OptimConfig(optimizer=optax.adam, learning_rate=0.002, warmup_steps=30),
        steps=arguments.steps,
        log_every=10,
        eval_every=250,
        batch_stats_steps=30,
        checkpoint_every=250,
    )
    results = loop.train(config, out / "run")
    table = open_pairs(config.data)
    distance = table.distance_mm[table.of_split("test")]
    # The held-out ribbon may be shorter than the training ribbon. The training median is then a
    # poor constant prediction, so the held-out pairs' own median is shown, too.
    own = float(np.abs(distance - np.median(distance)).mean())
    print(f"for comparison, the held-out pairs' own median: {own:.2f} mm")
    x = patches.position_mm[:, 0]
    figures = results["test"] | {
        "distance_mae_mm_own_median": own,
        "patches": len(patches),
        "pairs": results["pairs"],
        "steps": results["steps"],
        "x_range_mm": [float(np.min(x)), float(np.max(x))],
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
