"""Predict, score and draw the annotated sections of a brain.

Scores are computed on the output grid of the network, as for the test windows of `train.py`. The
class of a grid pixel is the majority of the label image's pixels in it (see `data/windows.py`).
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jaxcyto.brain.manifest import SectionRow, read_brain
from jaxcyto.brain.sections.fingerprint import brain_fingerprints
from jaxcyto.brain.sections.label_image import LABEL_UM, check_numbers, majority, section_label
from jaxcyto.brain.sections.section import Section, open_section
from jaxcyto.errors import InputError
from jaxcyto.plots.common import save_figures
from jaxcyto.plots.segmentation import confusion_matrices, section_figure
from jaxcyto.predict import ClassMap, open_class_map, predict_brain
from jaxcyto.runs.load import SegmentRun, load_segment_run
from jaxcyto.runs.seen import seen
from jaxcyto.scores import confusion, scores, sum_sections
from jaxcyto.utils.files import write_json
from jaxcyto.utils.progress import Progress

BAND_ROWS = 1024  # rows of a map that are scored at once
FIGURE_PX = 1000  # maximum length of the longest side of a section in its figure


def evaluate_brain(
    run_folder: Path, brain_folder: Path, split: str, progress: Progress | None = None
) -> dict[str, Any]:
    """Score a run on the annotated sections of a split.

    Sections that are not predicted yet are predicted first. The function writes results.json and
    confusion.png to RUN/evaluation/BRAIN/SPLIT, and a figure of each section with annotation,
    prediction and differences to the subfolder sections.

    Args:
        run_folder: folder of a finished segmentation run.
        brain_folder: folder of a brain with the classes of the run.
        split: "train", "val" or "test".
        progress: called with (map px done, total) during prediction.

    Returns:
        The results, see `scores.sum_sections`.

    Raises:
        InputError: the classes of the run and the brain differ, the split has no annotated pixel
            or was trained on, or a section cannot be read.
    """
    run, brain = load_segment_run(run_folder), read_brain(brain_folder)
    of_brain, of_run = ([f"{c.name} ({c.kind})" for c in x.classes] for x in (brain, run))
    if of_brain != of_run:
        raise InputError(
            f"{brain.root}/brain.toml: classes {', '.join(of_brain) or 'none'}; but {run.path} "
            f"was trained for {', '.join(of_run)}; the same are needed, in the same order"
        )
    rows = [row for row in brain.sections if row.split == split and row.label is not None]
    if not rows:
        table = brain.root / brain.section_table
        raise InputError(f"{table}: no section has both a label and the split {split}")
    held_out = {} if split == "train" else brain_fingerprints(brain, rows)
    if same := seen(run.training_sections, held_out):
        named = ", ".join(f"{name} ({other} of that run)" for name, other in same[:5])
        raise InputError(
            f"{run.path}: was trained on {named}, in {brain.root} now of the split {split}: no "
            "fair test; train again, or correct the section table"
        )
    report = predict_brain(
        run_folder, brain_folder, sections=[row.name for row in rows], progress=progress
    )
    if report.failures:
        raise InputError("\n".join(report.failures))
    folder = evaluation_folder(run.path, brain.root, split)
    folder.mkdir(parents=True, exist_ok=True)
    by_section = {}
    for row in rows:
        predicted = open_class_map(report.folder / f"{row.name}.ome.tif")
        with open_section(row.image, row.pixel_um, brain.background, brain.bits) as image:
            with section_label(row, image.shape) as label:
                matrix = section_confusion(row, label, predicted, run)
                figure = _section_figure(image, label, predicted, run)
        wrong = scores(matrix, run.classes)["err_seg_percent"]
        wrong = "nothing annotated" if wrong is None else f"{wrong:.1f} % of the annotated px wrong"
        figure.suptitle(f"section {row.name}: {wrong}")
        by_section[row.name] = matrix
        save_figures(folder / "sections", {f"{row.name}.png": figure})
    results = sum_sections(by_section, run.classes)
    if not results["test"]["pixels"]:
        raise InputError(
            f"{brain.root / brain.section_table}: no pixel of the split {split} is annotated; "
            "annotate one, or give another --split"
        )
    total = np.array(results["confusion"])
    figure = confusion_matrices([(run.path.name, total)], run.classes)
    save_figures(folder, {"confusion.png": figure})
    write_json(folder / "results.json", results)
    return results


def compare(
    results: dict[str, dict[str, Any]], run_folder: Path, brain_folder: Path, split: str
) -> Path:
    """Draw the confusion matrices of several runs side by side and return the path.

    Args:
        results: results of `evaluate_brain` for each run, by a title.
        run_folder: folder of the run to whose evaluation folder the figure is written.
        brain_folder: folder of the brain that was evaluated.
        split: split that was evaluated.
    """
    run = load_segment_run(run_folder)
    matrices = [(title, np.array(each["confusion"])) for title, each in results.items()]
    folder = evaluation_folder(run.path, brain_folder, split)
    figure = confusion_matrices(matrices, run.classes)
    save_figures(folder, {"confusion_compared.png": figure})
    return folder / "confusion_compared.png"


def evaluation_folder(run_folder: Path, brain_folder: Path, split: str) -> Path:
    """Return the folder of the scores and figures of a run on a split of a brain."""
    return run_folder / "evaluation" / Path(os.path.realpath(brain_folder)).name / split


def section_confusion(
    row: SectionRow, label: Section, predicted: ClassMap, run: SegmentRun
) -> np.ndarray:
    """Count the annotated pixels of a section by annotated and predicted class.

    Returns:
        Confusion matrix, int64 [C, C + 1]. The last column counts pixels without prediction.

    Raises:
        InputError: an image is damaged, or the label image holds values that are not classes.
    """
    classes, factor = len(run.classes), round(predicted.pixel_um / LABEL_UM)
    total = np.zeros((classes, classes + 1), np.int64)
    width = predicted.shape[1]
    for top in range(0, predicted.shape[0], BAND_ROWS):
        band = label.read(factor * top, 0, factor * BAND_ROWS, factor * width)
        check_numbers(row, np.bincount(band.ravel(), minlength=256), classes)
        truth = majority(band, factor)
        total += confusion(predicted.read(top, 0, *truth.shape), truth, classes)
    return total


def section_images(
    image: Section, label: Section | None, predicted: ClassMap, longest: int
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Read the tissue, annotation and prediction of a whole section on the same grid.

    The grid is that of the first pyramid level of the class map with sides of at most `longest` px.

    Args:
        image: section image.
        label: label image, or None.
        predicted: class map.
        longest: maximum length of the longest side in px.

    Returns:
        Tissue, annotation (None without a label image) and prediction, each uint8 [h, w].
    """
    level = next(
        (k for k, each in enumerate(predicted.levels) if max(each.shape) <= longest),
        len(predicted.levels) - 1,
    )
    shape, pixel_um = predicted.levels[level].shape, predicted.pixel_um * 2**level
    factor = round(pixel_um / LABEL_UM)
    truth = None
    if label is not None:
        truth = majority(label.read(0, 0, factor * shape[0], factor * shape[1]), factor)
    tissue = image.read_at(pixel_um, 0, 0, *shape)
    return tissue, truth, predicted.read(0, 0, *shape, level=level)


def _section_figure(image: Section, label: Section, predicted: ClassMap, run: SegmentRun) -> Figure:
    tissue, truth, numbers = section_images(image, label, predicted, FIGURE_PX)
    assert truth is not None
    return section_figure(tissue, truth, numbers, run.classes)
