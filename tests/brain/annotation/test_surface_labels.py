"""Test `jaxcyto carry`, which carries labels of the surfaces into section planes."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tifffile
from click.testing import CliRunner
from minimal_brain import LABEL_PX, PIXEL_UM, RADIUS_MM, SIDE_PX, make_ball, replace
from nibabel.freesurfer.io import write_annot
from nibabel.gifti.gifti import GiftiDataArray, GiftiImage, GiftiLabel, GiftiLabelTable
from PIL import Image
from scipy.stats import norm

from jaxcyto.brain.annotation.surface_labels import carry_labels
from jaxcyto.brain.check import check_brain
from jaxcyto.brain.manifest import read_brain, write_table
from jaxcyto.brain.surfaces.smoothing import smooth
from jaxcyto.brain.surfaces.surface import Surface, write_surface
from jaxcyto.cli import main
from jaxcyto.errors import InputError
from jaxcyto.phantom import cortex as phantom_shape
from jaxcyto.phantom.make import make_phantom
from jaxcyto.phantom.settings import PRESETS

DOCS = Path(__file__).resolve().parents[3] / "docs" / "data.md"
MAP = {1: "inner", 2: "outer"}
WHITE = '\n[[classes]]\nname = "white matter"\ncolor = "#eeeeee"\nkind = "white_matter"\n'
FURTHER = '\n[[classes]]\nname = "other"\ncolor = "#eeeeee"\nkind = "cortex"\n'


@pytest.fixture
def brain(tmp_path) -> Path:
    """Make concentric spheres of 3 and 2 mm, with label 1 below z = 0 and 2 above.

    The brain has no label images yet.
    """
    root = make_ball(tmp_path / "ball")
    fine, faces = phantom_shape.icosphere(5)
    for name, radius in (("pial", RADIUS_MM), ("white", RADIUS_MM - 1)):
        write_surface(root / f"{name}.surf.gii", Surface(radius * fine, faces))
    np.savetxt(root / "areas.txt", 1 + (fine[:, 2] > 0), fmt="%d")
    replace(root / "sections.csv", "b_label.tif,b_atlas.tif", ",")
    return root


def run(*arguments):
    return CliRunner().invoke(main, [str(each) for each in arguments])


def label_of(root, name) -> np.ndarray:
    return tifffile.imread(root / "labels" / f"{name}.tif")


def label_positions(y: float) -> tuple[np.ndarray, np.ndarray]:
    """Return distance from the center and z of label pixels in mm, by hand from the affine."""
    side = (np.arange(LABEL_PX) + 0.5) * 0.016 - SIDE_PX * PIXEL_UM / 2000
    x, z = np.meshgrid(side, -side)
    return np.sqrt(x**2 + y**2 + z**2), z


def dice(a, b) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.mark.parametrize(("name", "y"), [("a", -2.0), ("b", 0.0), ("c", 2.0)])
def test_concentric_spheres(brain, name, y):
    with open(brain / "brain.toml", "a") as file:
        file.write(WHITE)
    carry_labels(brain, classes=MAP)
    label = label_of(brain, name)
    radius, z = label_positions(y)
    # Leave out pixels near the borders: polyhedra lie up to 0.01 mm within their spheres, and the
    # border between the labels lies up to half a face off z = 0.
    clear = (np.abs(radius - 3) > 0.02) & (np.abs(radius - 2) > 0.02) & (np.abs(z) > 0.15)
    expected = np.where(radius > 3, 255, np.where(radius < 2, 3, np.where(z > 0, 1, 0)))
    np.testing.assert_array_equal(label[clear], expected[clear])
    assert clear.mean() > 0.8
    for k in (0, 1):
        assert dice(label == k, expected == k) > 0.97
    assert check_brain(brain).faults == []


def test_pixels_are_not_off_by_a_half(brain):
    """Check that the ring is centered, so that mirrored sections at y = 0 agree."""
    carry_labels(brain, classes=MAP, sections=["b"])
    ring = label_of(brain, "b") < 255
    assert dice(ring, ring[::-1]) > 0.998 and dice(ring, ring[:, ::-1]) > 0.998
    assert dice(ring[1:], ring[:0:-1]) < 0.995
    assert not (brain / "labels" / "a.tif").exists()


def test_a_bent_section_shows_where_it_is(brain):
    """Check a coordinate map that is a parabola in y against the spheres at its positions."""
    side = (np.linspace(0, SIDE_PX - 1, 101) - (SIDE_PX - 1) / 2) * PIXEL_UM / 1000
    x, z = np.meshgrid(side, -side)
    y = 0.2 * z**2 - 0.5
    np.save(brain / "map.npy", np.stack([x, y, z], -1).astype(np.float32))
    table = (brain / "sections.csv").read_text()
    affine = re.search(r"^b,b\.tif,32,([^,]*),", table, re.MULTILINE)
    assert affine
    replace(brain / "sections.csv", f"b,b.tif,32,{affine[1]},", "b,b.tif,32,,map.npy")
    carry_labels(brain, classes=MAP, sections=["b"])
    label = label_of(brain, "b")
    _, z = label_positions(0.0)
    bent = np.sqrt(label_positions(0.0)[0] ** 2 + (0.2 * z**2 - 0.5) ** 2)
    clear = (np.abs(bent - 3) > 0.05) & (np.abs(bent - 2) > 0.05) & (np.abs(z) > 0.15)
    expected = np.where((bent > 3) | (bent < 2), 255, np.where(z > 0, 1, 0))
    np.testing.assert_array_equal(label[clear], expected[clear])
    flat = label_positions(0.0)[0]
    assert (np.where((flat > 3) | (flat < 2), 255, z > 0)[clear] != expected[clear]).mean() > 0.01


def test_labels_of_the_phantom_come_back(tmp_path):
    """Check that labels carried from the files on disk agree with what the phantom painted."""
    settings = dataclasses.replace(
        PRESETS["tiny"], num_sections=3, annotated_fraction=1.0, atlas=False, artifacts=0
    )
    root = make_phantom(tmp_path / "toy", settings, workers=1)
    brain = read_brain(root)
    painted = [tifffile.imread(row.label) for row in brain.sections if row.label]
    result = run("carry", root)
    assert result.exit_code == 2 and "add --overwrite" in result.stderr
    for row, before in zip(brain.sections, painted, strict=True):
        assert row.label
        np.testing.assert_array_equal(tifffile.imread(row.label), before)
    result = run("carry", root, "--overwrite")
    assert result.exit_code == 0, result.output
    assert "3 label image(s) written" in result.stdout
    for row, before in zip(brain.sections, painted, strict=True):
        after = label_of(root, row.name)
        for number in np.unique(before):
            assert dice(after == number, before == number) > 0.99, (row.name, number)
    assert check_brain(root).faults == []


def test_what_has_no_class(brain):
    """Check labels without a class: they become kind `cortex` if it exists, or none by `LABEL=`."""
    carry_labels(brain, classes={2: "outer"}, sections=["b"])
    assert set(np.unique(label_of(brain, "b"))) == {1, 255}
    with open(brain / "brain.toml", "a") as file:
        file.write(FURTHER)
    carry_labels(brain, classes={2: "outer"}, sections=["b"], overwrite=True)
    assert set(np.unique(label_of(brain, "b"))) == {1, 3, 255}
    printed = run("carry", brain, "--map", "2=outer", "--map", "1=", "--overwrite").stdout
    assert set(np.unique(label_of(brain, "b"))) == {1, 255}
    assert "label 1, 5185 vertices: not annotated" in printed
    assert "label 2, 5057 vertices: outer" in printed
    assert "outside of pial: not annotated" in printed


def test_background_needs_both_hemispheres(brain):
    """Check that `background` needs two hemispheres, and one without labels is not annotated."""
    far = phantom_shape.icosphere(3)
    for name, radius in (("pial", 1.0), ("white", 0.5)):
        surface = Surface(radius * far[0] + [-3.4, 0, 3.4], far[1])
        write_surface(brain / f"r{name}.gii", surface)
    right = (
        '[[hemispheres]]\nname = "right"\npial = "rpial.gii"\nwhite = "rwhite.gii"\n\n[[classes]]'
    )
    replace(brain / "brain.toml", "[[classes]]", right)
    assert "outside of pial: background" in carry_labels(brain, classes=MAP)
    label = label_of(brain, "b")
    radius, _ = label_positions(0.0)
    step = (np.arange(LABEL_PX) + 0.5) * 0.016 - SIDE_PX * PIXEL_UM / 2000
    other = np.hypot(*np.meshgrid(step + 3.4, -step - 3.4))
    assert (label[(radius > 3.02) & (other > 1.02)] == 2).all()
    assert (label[other < 0.97] == 255).all() and (label[radius < 1.97] == 255).all()


def test_names_of_a_label_file_are_classes(brain):
    """Check that names in GIFTI label tables and FreeSurfer .annot files select classes."""
    areas = np.loadtxt(brain / "areas.txt").astype(np.int32)
    names = ["unknown", "inner", "outer"]
    colors = np.array([[9, 9, 9, 0, 0], [200, 0, 0, 0, 0], [0, 200, 0, 0, 0]])
    write_annot(str(brain / "x.annot"), areas, colors, names, fill_ctab=True)
    array = GiftiDataArray(areas, "NIFTI_INTENT_LABEL", "NIFTI_TYPE_INT32")
    table = GiftiLabelTable()
    for key, name in enumerate(names):
        table.labels.append(GiftiLabel(key))
        table.labels[-1].label = name
    image = GiftiImage(darrays=[array], labeltable=table)
    (brain / "x.gii").write_bytes(image.to_bytes())
    carry_labels(brain, classes=MAP)
    expected = label_of(brain, "b")
    for old, new in (("areas.txt", "x.annot"), ("x.annot", "x.gii")):
        replace(brain / "brain.toml", old, new)
        printed = carry_labels(brain, overwrite=True)
        assert re.search(r"label 1 \(inner\), \d+ vertices: inner", printed)
        np.testing.assert_array_equal(label_of(brain, "b"), expected)


def test_atlas_images(brain):
    """Check atlas values: 0 and 255 without smoothing, else a smoothed edge across z = 0."""
    result = run("carry", brain, "--map", "1=inner", "--map", "2=outer", "--into", "atlas")
    assert result.exit_code == 0 and "3 atlas image(s)" in result.stdout
    atlas = tifffile.imread(brain / "atlas" / "b.tif")
    radius, z = label_positions(0.0)
    cortex = (radius > 2.02) & (radius < 2.97)
    assert atlas.shape == (2, LABEL_PX, LABEL_PX)
    for channel, side in ((0, z < -0.15), (1, z > 0.15)):
        assert (atlas[channel][cortex & side] == 255).all()
        assert (atlas[1 - channel][cortex & side] == 0).all()
    assert (atlas[:, (radius > 3) | (radius < 1.98)] == 0).all()

    carry_labels(brain, classes=MAP, into="atlas", fwhm_mm=1.5, overwrite=True)
    atlas = tifffile.imread(brain / "atlas" / "b.tif").astype(int)
    assert (np.abs(atlas.sum(0)[cortex] - 255) <= 1).all()
    # On the mid surface of radius 2.5 mm, the smoothed edge is the normal distribution function of
    # the arc length from the equator.
    arc = 2.5 * np.arcsin(z[cortex] / radius[cortex])
    sigma = 1.5 / np.sqrt(8 * np.log(2))
    np.testing.assert_allclose(atlas[1][cortex] / 255, norm.cdf(arc / sigma), atol=0.04)
    assert check_brain(brain).faults == []


@pytest.mark.parametrize("fwhm_mm", [0.5, 2.0])
def test_smoothing_is_that_of_heat_on_the_sphere(fwhm_mm):
    """Smooth z, an eigenfunction of the sphere's Laplacian with eigenvalue 2 / R^2."""
    vertices, faces = phantom_shape.icosphere(4)
    found = smooth(Surface(2.5 * vertices, faces), vertices[:, 2:], fwhm_mm)
    time = fwhm_mm**2 / (8 * np.log(2)) / 2
    np.testing.assert_allclose(found, np.exp(-2 * time / 2.5**2) * vertices[:, 2:], atol=4e-3)


@pytest.mark.parametrize(
    ("old", "new", "options", "words"),
    [
        ("", "", (), "none has the name of a label (1, 2); map labels to classes"),
        ("", "", ("--map", "7=inner"), "no vertex has this label; labels are 1, 2"),
        ("", "", ("--map", "1=hOc1"), "brain.toml lists inner, outer, background"),
        ("", "", ("--map", "inner"), "expected LABEL=CLASS"),
        ("", "", ("--map", "1=inner", "--section", "z"), "no section 'z'"),
        ("", "", ("--map", "1=inner", "--fwhm-mm", "2"), "--fwhm-mm is for --into atlas"),
        ('labels = "areas.txt"\n', "", ("--map", "1=inner"), "labels: none given"),
        ('"pial.surf.gii"', '"pial.surf.gii"\nmid = "pial.surf.gii"', ("--map", "1="), "none has"),
        (
            'pial = "pial.surf.gii"\nwhite = "white.surf.gii"',
            'mid = "pial.surf.gii"',
            ("--map", "1=inner"),
            "needs pial and white",
        ),
    ],
)
def test_mistakes_end_in_one_message(brain, old, new, options, words):
    if old:
        replace(brain / "brain.toml", old, new)
    before = {path: path.read_bytes() for path in brain.iterdir()}
    result = run("carry", brain, *options)
    assert result.exit_code == 2 and isinstance(result.exception, SystemExit), result.output
    assert words in result.stderr and not result.stdout
    assert {path: path.read_bytes() for path in brain.iterdir()} == before


def test_sections_beyond_the_cortex_are_left_out(brain):
    replace(brain / "sections.csv", " 0 0 0 2.0 ", " 0 0 0 4.0 ")
    assert "2 label image(s) written, 1 without cortex" in carry_labels(brain, classes=MAP)
    assert read_brain(brain).sections[2].label is None
    with pytest.raises(InputError, match=r"no section meets a surface\n.*misses it by 1\.0"):
        carry_labels(brain, classes=MAP, sections=["c"])
    assert not list(brain.glob(".*"))


def test_a_brain_of_sections_alone(tmp_path):
    """Check that a brain without hemispheres can be checked, but not sampled, paired or carried."""
    root = make_ball(tmp_path / "ball")
    text = (root / "brain.toml").read_text()
    (root / "brain.toml").write_text(re.sub(r"\[\[hemispheres\]\].*?\n\n", "", text, flags=re.S))
    assert read_brain(root).hemispheres == ()
    report = check_brain(root)
    assert report.faults == [] and report.warnings == []
    assert "0 hemisphere(s), 3 section(s)" in report.facts[0]
    for command in (("sample", root, "--patches", 9), ("pair", root), ("carry", root)):
        result = run(*command)
        assert result.exit_code == 2 and not result.stdout
        assert re.fullmatch(r"error: .*brain\.toml: hemispheres: none given.*\n", result.stderr)
    replace(root / "sections.csv", ",train", ",")
    replace(root / "sections.csv", ",train", ",")
    replace(root / "sections.csv", ",test", ",")
    assert any("fill it in by hand" in fact for fact in check_brain(root).facts)
    assert "none given" in run("sample", root, "--patches", 9).stderr


def test_the_recipe_for_a_probabilistic_volume(brain, monkeypatch):
    """Run the script of docs/data.md on a NIfTI whose two areas are linear in x and z."""
    block = DOCS.read_text().partition("\n# Atlas images from a probabilistic volume\n")[2]
    code = block.partition("```python\n")[2].partition("```")[0]
    assert "map_coordinates" in code
    affine = np.array([[-0.5, 0, 0, 5], [0, 0.5, 0, -5], [0, 0, 0.5, -5], [0, 0, 0, 1]])
    voxel = np.moveaxis(np.indices((21, 21, 21)), 0, -1)
    x, _, z = np.moveaxis(voxel @ affine[:3, :3].T + affine[:3, 3], -1, 0)
    volume = np.stack([0.5 + x / 10, 0.5 + z / 10], -1).astype(np.float32)
    (brain.parent / "brains").mkdir()
    shutil.move(brain, brain.parent / "brains" / "mybrain")
    nib.Nifti1Image(volume, affine).to_filename(brain.parent / "areas.nii.gz")
    monkeypatch.chdir(brain.parent)
    exec(compile(code, "docs/data.md", "exec"), {})
    root = brain.parent / "brains" / "mybrain"
    assert check_brain(root).faults == []
    side = (np.arange(LABEL_PX) + 0.5) * 0.016 - SIDE_PX * PIXEL_UM / 2000
    x, z = np.meshgrid(side, -side)
    for row in read_brain(root).sections:
        assert row.atlas
        expected = 255 * np.stack([0.5 + x / 10, 0.5 + z / 10])
        np.testing.assert_allclose(tifffile.imread(row.atlas), expected, atol=0.51)


def test_hoc1_meets_v1_drawn_by_hand(shared_data, tmp_path):
    """Compare hOc1 of the left surface with a manual mask of V1 on BigBrain section 1081.

    The mask covers 312 px of 563 um in the gray matter drawn on the same section, and 97 px outside
    of it. No label of the cortex could therefore exceed a Dice of 0.87 over all pixels. We compare
    within the pixels drawn as gray, which show where along the cortex the area lies.
    """
    folder, histology = shared_data / "bigbrain", shared_data / "histology" / "bigbrain_sections"
    for kind in ("pial", "white"):
        file = folder / "surf" / f"tpl-bigbrain_hemi-L_desc-{kind}.surf.gii"
        shutil.copy(file, tmp_path / f"{kind}.gii")
    file = folder / "labels" / "tpl-bigbrain_hemi-L_desc-vcatlas_hOc.label.gii"
    shutil.copy(file, tmp_path / "areas.gii")
    shutil.copy(histology / "B20_1081_image.png", tmp_path / "image.png")
    place = json.loads((histology / "B20_1081_registration.json").read_text())
    step = place["um_per_px"] / 1000
    affine = f"{step} 0 0 {place['x0_mm']} 0 0 0 {place['y_mm']} 0 {-step} 0 {place['z0_mm']}"
    row = {"section": "1081", "image": "image.png", "pixel_um": f"{place['um_per_px']}"}
    write_table(tmp_path / "sections.csv", [row | {"affine": affine}])
    (tmp_path / "brain.toml").write_text(
        'format = 1\n[[hemispheres]]\nname = "left"\npial = "pial.gii"\nwhite = "white.gii"\n'
        'labels = "areas.gii"\n[[classes]]\nname = "hOc1"\ncolor = "#aa2030"\n' + WHITE + FURTHER
    )
    assert "label 1 (hOc1), 5316 vertices: hOc1" in carry_labels(tmp_path)
    label = label_of(tmp_path, "1081")
    row, column = (((np.arange(n) + 0.5) * step / 0.016).astype(int) for n in place["shape"])
    carried = label[np.ix_(row, column)]  # at the centers of the drawings' pixels

    tissue = np.array(Image.open(histology / "B20_1081_gmwm.png"))
    v1 = np.array(Image.open(histology / "B20_1081_v1.png")) > 0
    # the gap between the hemispheres lies at x = 1 ... 4 mm here
    left = np.zeros(v1.shape, bool)
    left[:, np.arange(v1.shape[1]) * step + place["x0_mm"] < 2] = True
    gray = left & (tissue == 128)
    assert dice((carried == 0) & gray, v1 & gray) > 0.85
    assert dice((carried == 0) & left, v1 & left) > 0.78
    assert dice(np.isin(carried, (0, 2)) & left, gray) > 0.89
    assert dice((carried == 1) & left, left & (tissue == 255)) > 0.94
