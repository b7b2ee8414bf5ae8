"""Draw the figures of docs/results.md that need the trained networks of run.py.

    python benchmarks/evidence/pictures.py                  # size "small", seed 0

The first figure is a test section of the phantom as annotated and as segmented by two rows. The
second shows the squared distances between averaged features of neighboring patches on consecutive
test sections.
"""

import argparse
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from absl import flags
from matplotlib.figure import Figure
from matplotlib.patches import Patch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.evidence.plan import ROWS, STUDIES
from benchmarks.evidence.units import run_folder
from benchmarks.provenance import ROOT
from jaxcyto.brain.manifest import Brain, read_brain
from jaxcyto.brain.sections.label_image import UNLABELED, section_label
from jaxcyto.brain.sections.section import open_section
from jaxcyto.errors import InputError
from jaxcyto.explore.border_contrast import embed_curves, neighbor_gaps
from jaxcyto.explore.figures import neighbors_figure
from jaxcyto.explore.ribbon_walk import walk_ribbons
from jaxcyto.plots.common import GRAY, save_figures
from jaxcyto.plots.segmentation import outline
from jaxcyto.predict import open_class_map, predict_brain
from jaxcyto.predict.evaluate import section_images
from jaxcyto.predict.features import patch_areas
from jaxcyto.runs.load import load_pretext_run

LONGEST_PX = 900  # longer side of a drawn section
PANELS = 4  # number of consecutive sections


def sections_figure(
    out: Path, brain: Brain, name: str, study: str, rows: list[str], seed: int
) -> Figure:
    """Draw the annotation of a section and the prediction of each row of a study.

    Args:
        out: the folder of run.py with brains and runs.
        brain: the brain of the section.
        name: the section's name.
        study: a key of `STUDIES`.
        rows: the rows to draw.
        seed: the seed of the runs.

    Raises:
        InputError: a run does not exist.
    """
    section = next(row for row in brain.sections if row.name == name)
    panels = []
    for row in rows:
        run = run_folder(out, STUDIES[study].segmented, row, seed, f"segment_{study}")
        folder = predict_brain(run, brain.root, sections=[name]).folder
        predicted = open_class_map(folder / f"{name}.ome.tif")
        with open_section(section.image, section.pixel_um, brain.background, brain.bits) as image:
            with section_label(section, image.shape) as label:
                tissue, truth, numbers = section_images(image, label, predicted, LONGEST_PX)
        if not panels:
            assert truth is not None
            panels.append(("annotation", tissue, truth))
        how = f"pre-trained: {ROWS[row].title}" if ROWS[row].terms else "from scratch"
        panels.append((how, tissue, numbers))
    height, width = panels[0][1].shape
    figure, axes = plt.subplots(
        1, len(panels), figsize=(5 * len(panels), 5 * height / width + 1), layout="constrained"
    )
    truth = panels[0][2]
    for axis, (title, tissue, numbers) in zip(axes, panels, strict=True):
        axis.imshow(outline(tissue, numbers, brain.classes, strength=0.5), interpolation="nearest")
        if numbers is not truth:
            known = truth != UNLABELED
            title += f": {100 * (numbers[known] != truth[known]).mean():.0f} % wrong"
        axis.set_title(title)
        axis.axis("off")
    shown = [entry for entry in brain.classes if entry.kind != "background"]
    handles = [Patch(facecolor=e.color, label=e.name, edgecolor=GRAY) for e in shown]
    figure.legend(handles=handles, loc="outside lower center", ncols=8, fontsize=8, frameon=False)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--size", default="small")
    parser.add_argument(
        "--out", type=Path, help="the --out of run.py (default: runs/evidence/SIZE)"
    )
    parser.add_argument(
        "--study", choices=STUDIES, default="longest", help="study whose runs segment the section"
    )
    parser.add_argument("--rows", default="1,4", help="rows that segment the section")
    parser.add_argument("--row", choices=ROWS, default="4", help="row whose features are drawn")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    flags.FLAGS.mark_as_parsed()
    out = arguments.out or Path("runs") / "evidence" / arguments.size
    brain = read_brain(out / "brains" / "phantom")
    test = [k for k, row in enumerate(brain.sections) if row.split == "test"]
    middle = brain.sections[test[len(test) // 4]].name
    rows = arguments.rows.split(",")
    drawn = sections_figure(out, brain, middle, arguments.study, rows, arguments.seed)
    figures = {"results_sections.png": drawn}

    network = load_pretext_run(run_folder(out, "phantom", arguments.row, arguments.seed, "pretext"))
    size = {"patch_px": network.patch_px, "um_per_px": network.um_per_px}
    breaks = np.flatnonzero(np.diff(test) > 1) + 1
    shown = np.split(test, breaks)[0][:PANELS].tolist()
    curves = walk_ribbons(brain, shown, **size)
    features, usable = embed_curves(network, brain, curves)
    areas = patch_areas(brain, curves.patches)
    gaps = neighbor_gaps(features, curves.curve, areas, usable=usable)
    figures["results_neighbors.png"] = neighbors_figure(brain, curves, gaps, shown)
    save_figures(ROOT / "docs" / "figures", figures)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:  # usually a run that does not exist
        raise SystemExit(str(error)) from None
