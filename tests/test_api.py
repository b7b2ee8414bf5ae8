"""Test that the Python interface gives the same results as the commands and is documented."""

import dataclasses
import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import pretext_run
import pytest
import segment_run
import tifffile

import jaxcyto
from jaxcyto.brain.manifest import read_brain
from jaxcyto.brain.sections.section import open_section
from jaxcyto.models import SiameseNet, UNet
from jaxcyto.predict import Outputs, open_class_map, predict_brain
from jaxcyto.predict.features import embed
from jaxcyto.runs.export import export_run
from jaxcyto.runs.load import load_pretext_run
from jaxcyto.training.maps import MapReader

NET = SiameseNet(stem_kernel=3, stem_stride=1, widths=(4, 6, 8), features=5)
UNET = UNet(3, 3, 1, (8, 8, 8, 8))


@pytest.fixture(scope="module")
def pretext(tmp_path_factory) -> Path:
    return pretext_run.write_run(tmp_path_factory.mktemp("runs") / "pretext", NET, 32)


@pytest.fixture(scope="module")
def segment(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("runs") / "segment"
    return segment_run.write_run(root, UNET, um_per_px=32.0)


# ---- import -------------------------------------------------------------------------------------


def test_jax_is_imported_on_first_use():
    code = (
        "import sys, jaxcyto; assert not {'jax', 'numpy', 'flax'} & set(sys.modules); "
        "assert set(jaxcyto.__all__) <= set(dir(jaxcyto)); jaxcyto.load; "
        "assert 'jax' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_no_other_names():
    with pytest.raises(AttributeError, match="attribute lod"):
        _ = jaxcyto.lod


def public() -> list[tuple[str, object]]:
    """List every function, class, method and property of the public API."""
    found: list[tuple[str, object]] = []
    for name in jaxcyto.__all__:
        value = getattr(jaxcyto, name)
        if name == "__version__":
            continue
        found.append((name, value))
        if inspect.isclass(value):
            own = {key: each for key, each in vars(value).items() if not key.startswith("_")}
            if name in ("Embedding", "Segmentation"):  # their fields are attributes
                own = {}
            found += [(f"{name}.{key}", each) for key, each in own.items()]
    return found


@pytest.mark.parametrize(("name", "value"), public(), ids=lambda x: x if type(x) is str else "")
def test_the_docstring_names_every_argument(name, value):
    text = inspect.getdoc(value)
    assert text and len(text.splitlines()[0]) > 15
    if inspect.isclass(value):
        fields = getattr(value, "_fields", ())
        assert all(f"{field}:" in text for field in fields)
        if "__init__" in vars(value):
            value = vars(value)["__init__"]
            text = inspect.getdoc(value) or ""
        else:
            return
    if inspect.isfunction(value):
        arguments = [each for each in inspect.signature(value).parameters if each != "self"]
        assert all(f"    {argument}: " in text for argument in arguments)
        returns = inspect.signature(value).return_annotation
        if returns not in (inspect.Signature.empty, None, "Network"):
            assert "Returns:" in text
        assert "Raises:" in text or name == "Network"


# ---- arrays -------------------------------------------------------------------------------------


@pytest.mark.parametrize("exported", [False, True])
def test_embed_is_that_of_whole_brains(pretext, tmp_path, exported):
    path = export_run(pretext, tmp_path / "out")[0] if exported else pretext
    net = jaxcyto.load(path)
    assert net.task == "pre-training" and net.patch_px == 32 and net.um_per_px == 64
    patches = np.random.default_rng(0).integers(0, 256, (70, 32, 32), np.uint8)
    expected = embed(load_pretext_run(pretext), patches)
    found = net.embed(patches)
    np.testing.assert_array_equal(found.features, expected.features)
    np.testing.assert_array_equal(found.coordinates_mm, expected.coordinates_mm)
    few = net.embed(patches[:3]).features
    np.testing.assert_allclose(few, expected.features[:3], rtol=1e-4, atol=1e-5)
    assert net.embed(patches[:0]).features.shape == (0, 5)


def test_segment_is_the_map_of_predict(segment, tiny_brain):
    net, brain = jaxcyto.load(segment), read_brain(tiny_brain)
    row = brain.sections[len(brain.sections) // 2]
    predict = {"sections": [row.name], "outputs": Outputs(probabilities=True)}
    report = predict_brain(segment, tiny_brain, **predict)
    path = report.folder / f"{row.name}.ome.tif"
    expected = open_class_map(path)
    with open_section(row.image, row.pixel_um, brain.background) as section:
        image = section.read(0, 0, *section.shape)
    found = net.segment(
        image, pixel_um=row.pixel_um, background=brain.background, probabilities=True
    )
    assert expected.pixel_um == net.out_um == 64 and net.task == "segmentation"
    height, width = expected.levels[0].shape
    np.testing.assert_array_equal(found.classes, expected.read(0, 0, height, width))
    assert len(np.unique(found.classes)) > 1
    assert found.probabilities is not None and found.probabilities.shape == (3, height, width)
    total = found.probabilities.astype(int).sum(axis=0)
    assert abs(total - 255).max() <= 2
    assert net.segment(image, pixel_um=row.pixel_um).probabilities is None
    assert [entry.name for entry in net.classes] == ["inner", "outer", "background"]


def test_mistakes_are_said_in_one_message(pretext, segment, tmp_path):
    features, areas = jaxcyto.load(pretext), jaxcyto.load(segment)
    gray = np.zeros((2, 32, 32), np.uint8)
    for call, words in (
        (lambda: features.segment(gray[0]), "init_from"),
        (lambda: areas.embed(gray), "segmentation network"),
        (lambda: features.embed(gray[0]), r"uint8 \[32, 32\], expected uint8 \[N, s, s\]"),
        (lambda: features.embed(gray / 255), "float64"),
        (lambda: features.embed(gray[:, :30]), "30 x 32 px.*takes 32 x 32 px at 64"),
        (lambda: areas.segment(np.zeros((32, 32, 3), np.uint8)), r"expected uint8 \[H, W\]"),
        (lambda: areas.segment(np.zeros((0, 32), np.uint8)), r"\[0, 32\]"),
        (lambda: areas.segment(gray[0], pixel_um=-1), "pixel size -1"),
        (lambda: areas.segment(gray[0], background=256), "background = 256"),
        (lambda: jaxcyto.load(tmp_path), r"no config\.json"),
        (lambda: areas.patch_px, "segmentation network"),
        (lambda: features.classes, "pre-training network"),
    ):
        with pytest.raises(jaxcyto.InputError, match=words):
            call()


@pytest.fixture(scope="module")
def with_atlas(tiny_brain, tmp_path_factory) -> Path:
    classes = [dataclasses.asdict(each) for each in read_brain(tiny_brain).classes]
    root = tmp_path_factory.mktemp("runs") / "atlas"
    net = UNet(len(classes), 3, 1, (8, 8, 8, 8))
    return segment_run.write_run(root, net, um_per_px=32.0, classes=classes, atlas=True)


def test_segment_with_an_atlas_is_the_map_of_predict(with_atlas, tiny_brain):
    net, brain = jaxcyto.load(with_atlas), read_brain(tiny_brain)
    row = brain.sections[len(brain.sections) // 2]
    predict = {"sections": [row.name], "outputs": Outputs(probabilities=True)}
    report = predict_brain(with_atlas, tiny_brain, **predict)
    assert report.predicted == [row.name]
    with open_section(row.image, row.pixel_um, brain.background) as section:
        image = section.read(0, 0, *section.shape)
    atlas = tifffile.imread(row.atlas)
    options = {"pixel_um": row.pixel_um, "background": brain.background, "probabilities": True}
    found = net.segment(image, atlas=atlas, **options)
    expected = tifffile.imread(report.folder / f"{row.name}.probabilities.ome.tif")
    np.testing.assert_array_equal(found.probabilities, expected)
    np.testing.assert_array_equal(
        found.classes,
        open_class_map(report.folder / f"{row.name}.ome.tif").read(0, 0, *expected.shape[1:]),
    )
    # The probabilities decide, and each channel has its place.
    for other in (0 * atlas, atlas[::-1]):
        assert (net.segment(image, atlas=other, **options).probabilities != expected).any()


def test_mistakes_with_an_atlas_are_said_in_one_message(segment, with_atlas):
    without, net = jaxcyto.load(segment), jaxcyto.load(with_atlas)
    image, atlas = np.zeros((64, 96), np.uint8), np.zeros((6, 128, 192), np.uint8)
    needed = r"expected uint8 \[6, 128, 192\]: .* \(255 = 1\), in pixels of 16 um"
    for network, given, words in (
        (without, atlas, r"segment was trained without an atlas\. Leave `atlas` out"),
        (net, None, r"missing, but .* trained with one\. Give uint8 \[6, 128, 192\]"),
        (net, atlas[:5], rf"uint8 \[5, 128, 192\], {needed}"),
        (net, atlas[:, ::2, ::2], rf"uint8 \[6, 64, 96\], {needed}"),
        (net, np.moveaxis(atlas, 0, 2), rf"uint8 \[128, 192, 6\], {needed}"),
        (net, atlas[0], rf"uint8 \[128, 192\], {needed}"),
        (net, atlas / 255, rf"float64 \[6, 128, 192\], {needed}"),
    ):
        with pytest.raises(jaxcyto.InputError, match=words) as caught:
            network.segment(image, atlas=given)
        assert "\n" not in str(caught.value)


# ---- a head from a few annotations --------------------------------------------------------------


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> Path:
    """Write a pre-training run whose output pixels have 128 um."""
    net = SiameseNet(stem_kernel=3, stem_stride=1, widths=(4, 6, 8, 8), features=5)
    return pretext_run.write_run(tmp_path_factory.mktemp("runs") / "wide", net, 64, um_per_px=64.0)


def annotated(brain):
    """Return images at 64 um/px and labels of two training sections, with the classes."""
    rows = [row for row in brain.sections if row.split == "train" and row.label is not None][8:10]
    images, labels = [], []
    for row in rows:
        labels.append(tifffile.imread(row.label))
        height, width = (4 * round(side / 4) for side in labels[-1].shape)
        section = open_section(row.image, row.pixel_um, brain.background)
        images.append(section.read_at(64.0, 0, 0, height // 4, width // 4))
    return images, labels


def test_a_head_is_fitted_to_annotations(wide, tiny_brain):
    brain = read_brain(tiny_brain)
    images, labels = annotated(brain)
    net = jaxcyto.load(wide)
    fitted = net.fit_head(images, labels, brain.classes)
    assert fitted.task == "segmentation"
    assert fitted.classes == brain.classes
    found = fitted.segment(images[0]).classes
    label = labels[0][4::8, 4::8]  # at the centers of output pixels
    height, width = (min(pair) for pair in zip(label.shape, found.shape, strict=True))
    label, found = label[:height, :width], found[:height, :width]
    right = np.mean(label[label != 255] == found[label != 255])
    most = np.bincount(label[label != 255]).max() / np.sum(label != 255)
    assert right > most + 0.05


def test_maps_of_images_in_memory_are_computed_once(wide, tiny_brain, monkeypatch):
    brain = read_brain(tiny_brain)
    images, labels = annotated(brain)
    net = jaxcyto.load(wide)
    computed = []
    original = MapReader._compute

    def compute(reader, image, row, column):
        computed.append((row, column))
        return original(reader, image, row, column)

    monkeypatch.setattr(MapReader, "_compute", compute)
    net.fit_head(images, labels, brain.classes)
    first = len(computed)
    half = [label.copy() for label in labels]
    half[0][:, ::2] = 255
    net.fit_head(images, half, brain.classes)
    assert len(computed) == first > 0
    net.fit_head(images, labels, brain.classes, background=0)  # windows extend beyond the images
    assert len(computed) == 2 * first


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda images, labels: (images[:1], labels), "1 images and 2 label images"),
        (lambda images, labels: ([], []), "0 images"),
        (lambda images, labels: (images, [labels[0][:-9], labels[1]]), r"labels of images\[0\]"),
        (lambda images, labels: (images, [1.0 * each for each in labels]), "float64"),
        (lambda images, labels: ([images[0][0], images[1]], labels), r"images\[0\]: uint8"),
    ],
)
def test_mistakes_in_annotations_are_said(wide, tiny_brain, change, words):
    brain = read_brain(tiny_brain)
    images, labels = change(*annotated(brain))
    with pytest.raises(jaxcyto.InputError, match=words):
        jaxcyto.load(wide).fit_head(images, labels, brain.classes)


def test_a_segmentation_network_fits_no_head(segment):
    with pytest.raises(jaxcyto.InputError, match="this is a segmentation network"):
        jaxcyto.load(segment).fit_head([], [], [])
