"""Segment the test sections of a brain without a network, for the baselines of every table.

    python benchmarks/evidence/baselines.py brains/quickstart \
        --sections 0012,0025,0026,0036,0038,0053

All rows are scored on annotated pixels of the test sections (the atlas on all, the others on one
of 29):

* other cortex: the true tissue, and all cortex is called other cortex.
* atlas: the most probable class of the atlas image (atlas_alone.py).
* random forest, linear: classifiers of the gray value of a pixel, and of local means and standard
  deviations at five scales up to 0.26 mm, fitted to the named sections.
* true depth: the true tissue, and a random forest on the gray values by their true depth between
  the surfaces, averaged over a few millimeters along the cortex. No network knows depth, tissue or
  the course of the cortex, so this shows how much the six sections tell at best.

The last line on stdout is one JSON object.
"""

import argparse
import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse
from scipy.ndimage import gaussian_filter
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.evidence.atlas_alone import atlas_alone
from configs import quickstart_segment_atlas
from jaxcyto.brain.annotation.prisms import evaluate, planes, rasterize
from jaxcyto.brain.annotation.surface_labels import LabeledCortex, cut_section
from jaxcyto.brain.manifest import Brain, SectionRow, read_brain
from jaxcyto.brain.registration import registration
from jaxcyto.brain.sections.label_image import LABEL_UM, UNLABELED, section_label
from jaxcyto.brain.sections.section import open_section
from jaxcyto.brain.surfaces.surface import read_surface
from jaxcyto.data.segment_table import SegmentTable, open_windows
from jaxcyto.scores import confusion, scores

SIGMAS_UM = (16.0, 32.0, 64.0, 128.0, 256.0)  # of the Gaussian windows of the statistics
PIXELS_PER_CLASS = 4000  # at most this many pixels of each class are fitted on
DEPTHS = 16  # bins between the pial and the white surface
EVERY = 29  # annotated pixels, of which one is scored, to save time
RINGS = 2  # edges of the mesh over which profiles are averaged

Features = Callable[[Brain, SectionRow], tuple[np.ndarray, np.ndarray]]


def baselines(brain: Brain, chosen: Sequence[str], atlas: SegmentTable | None) -> dict[str, Any]:
    """Score all rows.

    Args:
        brain: the brain. Without pial and white surfaces, the row of the true depth is left out.
        chosen: names of the annotated sections that the classifiers are fitted to.
        atlas: windows of the sections with their atlas, or None to leave its row out.

    Returns:
        `test` (scores) and `confusion` of each row, by name.
    """
    other = _other_cortex(brain)
    found = {
        "other cortex": other,
        "random forest": _fitted(brain, chosen, statistics, _forest()),
        "linear": _fitted(brain, chosen, statistics, _linear()),
    }
    if all(each.pial and each.white for each in brain.hemispheres):
        cortex = whole_cortex(brain)
        by_depth = functools.partial(profiles, cortex, _neighbors(cortex))
        depth = _fitted(brain, chosen, by_depth, _forest())
        # Outside of the cortex, the true class is known.
        inside = [c.kind in ("area", "cortex") for c in brain.classes]
        found["true depth"] = np.where(np.array(inside)[:, None], depth, other)
    rows = {
        name: {"test": scores(matrix, brain.classes), "confusion": matrix.tolist()}
        for name, matrix in found.items()
    }
    if atlas is not None:
        alone = atlas_alone(atlas)
        rows["atlas"] = {key: alone[key] for key in ("test", "confusion")}
    return rows


def _forest() -> Any:
    return RandomForestClassifier(200, min_samples_leaf=5, n_jobs=-1, random_state=0)


def _linear() -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))


def _fitted(brain: Brain, chosen: Sequence[str], features: Features, model: Any) -> np.ndarray:
    """Return the confusion matrix of a classifier that is fitted to some sections."""
    rng = np.random.default_rng(0)
    parts = [features(brain, row) for row in brain.sections if row.name in chosen]
    x, y = (np.concatenate(each) for each in zip(*parts, strict=True))
    kept = np.concatenate(
        [rng.permutation(np.flatnonzero(y == k))[:PIXELS_PER_CLASS] for k in np.unique(y)]
    )
    model.fit(x[kept], y[kept])
    classes = len(brain.classes)
    total = np.zeros((classes, classes + 1), np.int64)
    for row in brain.sections:
        if row.split == "test" and row.label is not None:
            x, y = features(brain, row)
            predicted = model.predict(x[::EVERY]).astype(np.uint8)
            total += confusion(predicted, y[::EVERY], classes)
    return total


def _other_cortex(brain: Brain) -> np.ndarray:
    """Return the confusion matrix of the true tissue without areas."""
    kinds = [c.kind for c in brain.classes]
    other = kinds.index("cortex") if "cortex" in kinds else len(kinds)
    said = np.array([other if kind == "area" else k for k, kind in enumerate(kinds)], np.uint8)
    total = np.zeros((len(kinds), len(kinds) + 1), np.int64)
    for row in brain.sections:
        if row.split == "test" and row.label is not None:
            label = _read(brain, row)[1]
            label = label[label != UNLABELED][::EVERY]
            total += confusion(said[label], label, len(kinds))
    return total


def _read(brain: Brain, row: SectionRow) -> tuple[np.ndarray, np.ndarray]:
    """Return the gray values float32 [h, w] and the labels [h, w] of a section at 16 um."""
    with open_section(row.image, row.pixel_um, brain.background, brain.bits) as image:
        with section_label(row, image.shape) as labels:
            label = labels.read(0, 0, *labels.shape)
            return image.read_at(LABEL_UM, 0, 0, *labels.shape).astype(np.float32), label


def statistics(brain: Brain, row: SectionRow) -> tuple[np.ndarray, np.ndarray]:
    """Return features [P, 11] and classes [P] of the annotated pixels of a section."""
    gray, label = _read(brain, row)
    features = [gray]
    for sigma in SIGMAS_UM:
        mean = gaussian_filter(gray, sigma / LABEL_UM)
        square = gaussian_filter(gray**2, sigma / LABEL_UM)
        features += [mean, np.sqrt(np.maximum(square - mean**2, 0))]
    where = label != UNLABELED
    return np.stack([feature[where] for feature in features], axis=1), label[where]


def profiles(
    cortex: LabeledCortex, near: sparse.csr_array, brain: Brain, row: SectionRow
) -> tuple[np.ndarray, np.ndarray]:
    """Return mean gray values by depth [P, DEPTHS] and classes [P] of annotated cortex pixels.

    A pixel belongs to the vertex with the largest weight at its place. The pixels of the vertex and
    of its neighbors in the mesh are averaged, so that the two walls of a sulcus do not mix.

    Args:
        cortex: the cortex.
        near: result of `_neighbors`.
        brain: the brain.
        row: the section.
    """
    gray, label = _read(brain, row)
    with open_section(row.image, row.pixel_um) as section:
        cut = cut_section(cortex, registration(row, section.shape), row.pixel_um)
    triangle = rasterize(cut, 0, *label.shape)
    at = np.nonzero(triangle >= 0)
    depth, ids, weights, _ = evaluate(cut, planes(cut), triangle[at], at[1], at[0])
    vertex = np.take_along_axis(ids, weights.argmax(axis=0)[None], axis=0)[0]
    bins = np.clip((depth * DEPTHS).astype(int), 0, DEPTHS - 1)
    value = (gray[at] - gray[at].mean()) / gray[at].std()  # stains differ between sections

    cells, size = vertex * DEPTHS + bins, len(cortex.pial) * DEPTHS
    sums = [np.bincount(cells, weight, size).reshape(-1, DEPTHS) for weight in (value, None)]
    total, count = (np.asarray(near @ each) for each in sums)
    mean = total.sum(axis=1, keepdims=True) / np.maximum(count.sum(axis=1, keepdims=True), 1)
    features = np.where(count > 0, total / np.maximum(count, 1), mean)
    inside = np.array([c.kind in ("area", "cortex") for c in brain.classes] + [False])
    kept = inside[np.minimum(label[at], len(brain.classes))]
    return features[vertex[kept]], label[at][kept]


def _neighbors(cortex: LabeledCortex) -> sparse.csr_array:
    """Return the matrix [V, V] that adds up a vertex and those at most RINGS edges away."""
    a, b, c = cortex.faces.T
    first, second = np.r_[a, b, c, b, c, a], np.r_[b, c, a, a, b, c]
    size = len(cortex.pial)
    one = sparse.csr_array((np.ones(len(first)), (first, second)), (size, size))
    near = sparse.eye_array(size, format="csr")
    for _ in range(RINGS):
        near = near + one @ near
    near.data[:] = 1.0
    return sparse.csr_array(near)


def whole_cortex(brain: Brain) -> LabeledCortex:
    """Join the pial and the white surfaces of all hemispheres. No vertex is labeled."""
    pial, white, faces, count = [], [], [], 0
    for each in brain.hemispheres:
        assert each.pial and each.white
        outer, inner = read_surface(each.pial), read_surface(each.white)
        pial.append(outer.vertices)
        white.append(inner.vertices)
        faces.append(outer.faces + count)
        count += len(outer.vertices)
    return LabeledCortex(
        np.concatenate(pial),
        np.concatenate(white),
        np.concatenate(faces),
        np.full(count, UNLABELED, np.int32),
        UNLABELED,
        UNLABELED,
    )


def main() -> None:
    """Print a table of the rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("brain", type=Path)
    parser.add_argument("--sections", required=True, help="annotated sections, such as 0001,0009")
    options = parser.parse_args()
    brain, config = read_brain(options.brain), quickstart_segment_atlas.get_config()
    table = None
    if all(row.atlas is not None for row in brain.sections if row.label is not None):
        data = dataclasses.replace(config.data, brains=(str(options.brain),), train_sections=())
        table = open_windows(data, config.model)
    found = baselines(brain, options.sections.split(","), table)
    print(f"{'':<16}{'Dice, areas':>12}{'wrong, %':>10}")
    for name, row in found.items():
        test = row["test"]
        print(f"{name:<16}{test['dice_macro_areas']:>12.3f}{test['err_seg_percent']:>10.2f}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
