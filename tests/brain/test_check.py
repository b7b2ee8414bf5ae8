"""Test that `jaxcyto check` passes good brains and gives one message for each kind of fault."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from click.testing import CliRunner
from minimal_brain import LABEL_PX, make_ball, replace
from PIL import Image

from jaxcyto.brain.check import check_brain
from jaxcyto.brain.manifest import read_brain, write_table
from jaxcyto.brain.prepare import pair_brain, sample_brain
from jaxcyto.brain.sections.label_image import label_counts, open_label
from jaxcyto.brain.surfaces.surface import Surface, read_surface, write_surface
from jaxcyto.cli import main
from jaxcyto.errors import InputError


@pytest.fixture(scope="module")
def ball(tmp_path_factory) -> Path:
    """Make the minimal brain with patches and pairs."""
    root = make_ball(tmp_path_factory.mktemp("brains") / "ball")
    sample_brain(root, num_patches=60, patch_px=8, um_per_px=64.0)
    pair_brain(root, method="exact", workers=1, all_distances=True)
    return root


@pytest.fixture
def brain(ball, tmp_path) -> Path:
    """Copy the minimal brain, so that a test can break it."""
    return shutil.copytree(ball, tmp_path / "ball")


def run_check(root: Path):
    result = CliRunner().invoke(main, ["check", str(root)])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    return result


def test_good_brains_pass_without_a_warning(ball, tiny_brain):
    for root, counts in ((ball, "60 patches"), (tiny_brain, "240 patches")):
        result = run_check(root)
        assert result.exit_code == 0, result.stderr
        assert "fault" not in result.stderr and "warning" not in result.stderr
        assert counts in result.stdout and "no fault found" in result.stdout


def test_facts(ball):
    facts = "\n".join(check_brain(ball).facts)
    assert "ball: 1 hemisphere(s), 3 section(s), 3 class(es)" in facts
    assert "label images: 1, 20 % of their pixels annotated" in facts  # rows 100 ... 199 of 500
    # The mid surface is a sphere of radius 2.5 mm. Cut at y = -2, 0 and 2 mm it gives circles of
    # radius 1.5, 2.5 and 1.5 mm.
    found = float(facts.split("the sections cut ")[1].split(" mm")[0])
    assert found == pytest.approx(2 * np.pi * (1.5 + 2.5 + 1.5), rel=0.03)
    assert "patches_distances" not in facts and "pairs.npz: 60 pairs of patches.npz" in facts


def unlink(name: str) -> Callable[[Path], None]:
    return lambda root: (root / name).unlink()


def table(old: str, new: str) -> Callable[[Path], None]:
    return lambda root: replace(root / "sections.csv", old, new)


def toml(old: str, new: str) -> Callable[[Path], None]:
    return lambda root: replace(root / "brain.toml", old, new)


def truncate(name: str, share: float = 0.6) -> Callable[[Path], None]:
    def mutate(root: Path) -> None:
        data = (root / name).read_bytes()
        (root / name).write_bytes(data[: int(share * len(data))])

    return mutate


def label(values: np.ndarray, name: str = "b_label.tif", **options) -> Callable[[Path], None]:
    def mutate(root: Path) -> None:
        if name.endswith(".png"):
            Image.fromarray(values).convert(options["mode"]).save(root / name)
            replace(root / "sections.csv", "b_label.tif", name)
        else:
            tifffile.imwrite(root / name, values, **options)

    return mutate


def outside_link(root: Path) -> None:
    target = root.parent / "elsewhere.tif"
    shutil.move(root / "a.tif", target)
    (root / "a.tif").symlink_to(target)


def nan_vertex(root: Path) -> None:
    path = root / "white.surf.gii"
    surface = read_surface(path)
    text = "\n".join(" ".join(map(str, v)) for v in surface.vertices.tolist()[:-1])
    faces = "\n".join("3 " + " ".join(map(str, f)) for f in surface.faces.tolist())
    counts = f"element vertex {len(surface.vertices)}\n" + "".join(
        f"property float {axis}\n" for axis in "xyz"
    )
    counts += f"element face {len(surface.faces)}\nproperty list uchar int vertex_indices\n"
    path.write_text(f"ply\nformat ascii 1.0\n{counts}end_header\n{text}\nnan 0 0\n{faces}\n")


def index_out_of_range(root: Path) -> None:
    path = root / "white.surf.gii"
    surface = read_surface(path)
    text = "\n".join(" ".join(map(str, v)) for v in surface.vertices.tolist())
    faces = "\n".join("3 " + " ".join(map(str, f)) for f in surface.faces.tolist()[:-1])
    counts = f"{len(surface.vertices)} {len(surface.faces)} 0"
    path.write_text(f"OFF\n{counts}\n{text}\n{faces}\n3 0 1 5000\n")


def other_mesh(root: Path) -> None:
    surface = read_surface(root / "white.surf.gii")
    write_surface(root / "white.surf.gii", Surface(surface.vertices, surface.faces[::-1].copy()))


def moved_surface(root: Path) -> None:
    for name in ("pial.surf.gii", "white.surf.gii"):
        surface = read_surface(root / name)
        write_surface(root / name, Surface(surface.vertices + 0.1, surface.faces))


def far_away(root: Path) -> None:
    for y in ("-2.0", "0.0", "2.0"):
        replace(root / "sections.csv", f"0 0 0 {y}", f"0 0 0 {float(y) + 70}")
    for name in ("patches.npz", "pairs.npz"):
        (root / name).unlink()


def partly_filled(root: Path) -> None:
    replace(root / "sections.csv", "3.984,,,,train\nb", "3.984,,,,\nb")
    for name in ("patches.npz", "pairs.npz"):
        (root / name).unlink()


def damaged_patches(root: Path) -> None:
    truncate("patches.npz")(root)
    (root / "pairs.npz").unlink()


def foreign_patches(root: Path) -> None:
    arrays = dict(np.load(root / "patches.npz"))
    arrays["settings"] = str(arrays["settings"]).replace(
        '"sections_sha256": "', '"sections_sha256": "0'
    )
    np.savez(root / "patches.npz", **arrays)
    (root / "pairs.npz").unlink()


def changed_patches(root: Path) -> None:
    arrays = dict(np.load(root / "patches.npz"))
    np.savez(root / "patches.npz", **arrays | {"center_px": arrays["center_px"] + 1})


def renamed_damaged_pairs(root: Path) -> None:
    arrays = dict(np.load(root / "pairs.npz"))
    np.savez(root / "other.npz", **arrays | {"distance_mm": arrays["distance_mm"] * np.nan})


def wrong_pairs(root: Path) -> None:
    arrays = dict(np.load(root / "pairs.npz"))
    split = np.load(root / "patches.npz")["split"]
    other = np.flatnonzero(split != split[arrays["first"][0]])[0]
    arrays["second"][0] = other
    np.savez(root / "pairs.npz", **arrays)


def both_placements(root: Path) -> None:
    np.save(root / "map.npy", np.zeros((2, 2, 3), np.float32))
    replace(root / "sections.csv", "3.984,,,,", "3.984,map.npy,,,")


def flat_map(root: Path) -> None:
    np.save(root / "map.npy", np.zeros((2, 2, 3), np.float32))
    rows = (root / "sections.csv").read_text().splitlines()
    rows[1] = "a,a.tif,32,,map.npy,,,train"
    (root / "sections.csv").write_text("\n".join(rows))
    for name in ("patches.npz", "pairs.npz"):
        (root / name).unlink()


def cut_pyramid(root: Path) -> None:
    whole, path = tifffile.imread(root / "a.tif"), root / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        writer.write(whole, tile=(64, 64), subifds=1)
        end = path.stat().st_size
        writer.write(whole[::2, ::2], tile=(64, 64), subfiletype=1)
    path.write_bytes(path.read_bytes()[:end])


def five_channels(root: Path) -> None:
    whole = np.stack([tifffile.imread(root / "a.tif")] * 5, -1)
    tifffile.imwrite(root / "a.tif", whole, photometric="minisblack", planarconfig="contig")


IDS = np.zeros((LABEL_PX, LABEL_PX), np.uint8)
RGB = np.zeros((LABEL_PX, LABEL_PX, 3), np.uint8)
COLORS = np.zeros((3, 256), np.uint16)
RAW = "plain gray values"
PAIR, SAMPLE = "run `jaxcyto pair` again", "run `jaxcyto sample` again"

# For each fault: how to make it, and the words of its one message, which name file, field and
# remedy.
BROKEN: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "no brain.toml": (unlink("brain.toml"), ("no brain.toml here", "docs/data.md")),
    "bad toml": (toml('name = "ball"', 'name = "ball'), ("brain.toml: not valid TOML", "line 2")),
    "unknown field": (
        toml("background = 255", "backgroud = 255"),
        ("brain.toml", "unknown field 'backgroud'", "known: format"),
    ),
    "wrong type": (toml('"CC0-1.0"', "3"), ("brain.toml: licence = 3", "expected text")),
    "no format": (toml("format = 1", "format = 2"), ("brain.toml: format = 2", "format = 1")),
    "unknown kind": (  # with an unknown kind, the number of atlas channels cannot be checked
        toml('"#00aa00"', '"#00aa00"\nkind = "arae"'),
        ("classes[1].kind = 'arae'; one of area, cortex",),
    ),
    "path upwards": (
        table("a.tif", "../a.tif"),
        ("sections.csv: line 2: image", "leaves the brain's folder", "relative path"),
    ),
    "absolute path": (
        table("a.tif", "/etc/hostname"),
        ("sections.csv: line 2: image", "leaves the brain's folder", "relative path"),
    ),
    "link to elsewhere": (
        outside_link,
        ("sections.csv: line 2: image: 'a.tif'", "leaves the brain's folder"),
    ),
    "missing image": (unlink("c.tif"), ("sections.csv: line 4: image: no file 'c.tif'", "add it")),
    "image is a zarr": (
        lambda root: (
            (root / "c.tif").unlink(),
            (root / "c.zarr").mkdir(),
            table("c.tif", "c.zarr")(root),
        ),
        ("sections.csv: line 4: image: 'c.zarr' is a folder", "convert an OME-Zarr to OME-TIFF"),
    ),
    "bits": (toml("background = 255", "bits = 24"), ("brain.toml: bits = 24", "8 ... 16")),
    "pyramid cut off": (cut_pyramid, ("a.tif", "page 2 begins at byte", "truncated: copy")),
    "five channels": (five_channels, ("a.tif: 5 channels", "export the stained channel")),
    "empty image": (lambda root: (root / "a.tif").write_bytes(b""), ("a.tif: the file is empty",)),
    "missing surface": (
        unlink("white.surf.gii"),
        ("brain.toml: hemispheres[0].white: no file 'white.surf.gii'", "add it"),
    ),
    "truncated image": (truncate("a.tif"), ("a.tif", "truncated", "copy or export it again")),
    "not an image": (
        lambda root: (root / "a.tif").write_text("no image"),
        ("a.tif: not a readable TIFF, PNG or JPEG",),
    ),
    "vertex not finite": (nan_vertex, ("white.surf.gii", "not finite", "export")),
    "triangle out of range": (index_out_of_range, ("white.surf.gii", "5000", "damaged")),
    "not vertex-matched": (
        other_mesh,
        ("pial.surf.gii", "white.surf.gii", "not vertex-matched", "give `mid`"),
    ),
    "labels of another surface": (
        lambda root: (root / "areas.txt").write_text("1\n2\n"),
        ("areas.txt: 2 labels", "300 vertices", "take the file made for this one"),
    ),
    "affine of 11 numbers": (
        table("0.032 0 0", "0.032 0"),
        ("sections.csv: line 2: affine: 11 words", "expected 12 numbers"),
    ),
    "affine in um": (
        table("0.032 0 0 -3.984  0 0 0 -2.0  0 -0.032", "32 0 0 -3984  0 0 0 -2000  0 -32"),
        ("sections.csv: line 2: affine: a pixel spans", "px to mm"),
    ),
    "affine is a line": (
        table("0 -0.032 0 3.984", "-0.032 0 0 3.984"),
        ("sections.csv: line 2: affine: maps the image onto a line", "steps"),
    ),
    "affine and map": (
        both_placements,
        ("sections.csv: line 2: affine, coordinates", "fill one of them"),
    ),
    "map of one point": (flat_map, ("map.npy", "pixel_um = 32", "corner to corner")),
    "section twice": (
        table("b,b.tif", "a,b.tif"),
        ("sections.csv: line 3: section 'a'", "twice", "unique name"),
    ),
    "misspelled column": (
        table(",label,", ",labels,"),
        ("sections.csv: line 1: column 'labels'", "write 'label'"),
    ),
    "semicolons": (
        lambda root: (root / "sections.csv").write_text("section;image;pixel_um\n"),
        ("sections.csv: line 1: missing column", "with commas between"),
    ),
    "too few cells": (
        table("a,a.tif,", "a.tif,"),
        ("sections.csv: line 2: 7 cells; 8 as in line 1 needed",),
    ),
    "pixel size": (table("a.tif,32", "a.tif,32um"), ("line 2: pixel_um = '32um'", "micrometers")),
    "wrong split": (
        table("3.984,,,,train\nb", "3.984,,,,tst\nb"),
        ("line 2: split = 'tst'", "train"),
    ),
    "partly filled split": (
        partly_filled,
        ("sections.csv: split: empty for 1 of 3", "fill in all of them, or none"),
    ),
    "label of another size": (
        label(IDS[:-2]),
        ("b_label.tif has 498 x 500 px", "500 x 500 px at 16 um", "rasterize"),
    ),
    "unknown class": (
        label(IDS + 7),
        ("b_label.tif holds [7]", "brain.toml lists 3 classes", "add the classes"),
    ),
    "palette label": (
        label(IDS, photometric="palette", colormap=COLORS),
        ("b_label.tif", "a palette image", RAW),
    ),
    "rgb label": (label(RGB, photometric="rgb"), ("b_label.tif", "3 samples a pixel", RAW)),
    "inverted label": (label(IDS, photometric="miniswhite"), ("inverted values", RAW)),
    "16 bit label": (label(IDS.astype(np.uint16)), ("uint16 of 16 bits", RAW)),
    "jpeg label": (label(IDS, compression="jpeg"), ("compressed with loss", RAW)),
    "palette png": (label(IDS, "b.png", mode="P"), ("b.png", "a palette of", RAW)),
    "one bit png": (label(IDS, "b.png", mode="1"), ("b.png", "gray of 1 bits", RAW)),
    "truncated label": (truncate("b_label.tif"), ("b_label.tif", "copy or export")),
    "atlas channels": (
        label(RGB, "b_atlas.tif", photometric="rgb"),
        ("b_atlas.tif has 3 channels", "each of the 2 areas of brain.toml"),
    ),
    "atlas size": (
        label(np.zeros((2, 400, LABEL_PX), np.uint8), "b_atlas.tif", photometric="minisblack"),
        ("b_atlas.tif has 2 channels of 400 x 500 px", "500 x 500 px at 16 um"),
    ),
    "atlas of floats": (
        label(
            np.zeros((2, LABEL_PX, LABEL_PX), np.float32), "b_atlas.tif", photometric="minisblack"
        ),
        ("b_atlas.tif", "float32", "expected uint8"),
    ),
    "truncated atlas": (truncate("b_atlas.tif"), ("b_atlas.tif", "truncated")),
    "far from the surface": (
        far_away,
        (
            "sections.csv: affine: no section meets any surface",
            "misses it by 65.5",
            "-70.01 + 0.02 s",
        ),
    ),
    "damaged patches": (damaged_patches, ("patches.npz: not a readable", SAMPLE)),
    "patches of another brain": (foreign_patches, ("patches.npz: drawn from other", SAMPLE)),
    "surface moved since": (moved_surface, ("patches.npz", "off the surface", SAMPLE)),
    "damaged pairs": (truncate("pairs.npz"), ("pairs.npz: not a readable", PAIR)),
    "pairs of other patches": (changed_patches, ("pairs.npz: made from another", PAIR)),
    "pairs under another name": (renamed_damaged_pairs, ("other.npz", "not finite", PAIR)),
    "pair across splits": (wrong_pairs, ("pairs.npz: pairs patches of different split", PAIR)),
    "garbled distances": (
        lambda root: (root / "patches_distances.npy").write_bytes(
            (root / "patches_distances.npy").read_bytes().replace(b"'descr'", b"'de\x11cr", 1)
        ),
        (
            "patches_distances.npy: no distances between all patches",
            "pair BRAIN --all-distances",
        ),
    ),
    "zip of another kind": (
        lambda root: (root / "pairs.npz").write_bytes(
            (root / "pairs.npz")
            .read_bytes()
            .replace(b"PK\1\2\x14\3\x14", b"PK\1\2\x14\3\x9f")
            .replace(b"PK\1\2\x2d\3\x2d", b"PK\1\2\x2d\3\x9f")
        ),
        ("pairs.npz: not a readable", PAIR),
    ),
    "other distances": (
        lambda root: np.save(root / "patches_distances.npy", np.zeros((3, 3), np.float32)),
        ("patches_distances.npy: float32 [3, 3]", "pair BRAIN --all-distances"),
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_each_fault_has_its_message(brain, case):
    mutate, words = BROKEN[case]
    mutate(brain)
    result = run_check(brain)
    assert result.exit_code == 1
    assert f"1 fault(s) in {brain}" in result.stderr, result.stderr
    fault = result.stderr.split("fault: ", 1)[1]
    for word in words:
        assert word in fault
    assert "no fault found" not in result.stdout


def test_all_faults_at_once(brain):
    """Check that faults of brain.toml, the table, images, labels and surfaces are all reported."""
    cases = ("unknown field", "missing image", "truncated image", "unknown class")
    cases += ("vertex not finite", "atlas channels", "labels of another surface")
    for case in cases[:-1]:
        BROKEN[case][0](brain)
    result = run_check(brain)
    assert result.exit_code == 1
    assert f"{len(cases) - 1} fault(s)" in result.stderr, result.stderr
    for case in cases[:-1]:
        for word in BROKEN[case][1]:
            assert word in result.stderr
    with pytest.raises(InputError, match=r"(?s)backgroud.*c\.tif"):
        read_brain(brain)


def test_warnings_do_not_fail(brain):
    table("a.tif,32", "a.tif,36")(brain)  # still within a factor of two of the affine
    toml('licence = "CC0-1.0"', "")(brain)
    (brain / "notes.npz").write_bytes(b"nothing")
    for name in ("patches.npz", "pairs.npz"):
        (brain / name).unlink()
    replace(brain / "sections.csv", "0 0 0 2.0", "0 0 0 9.0")
    result = run_check(brain)
    assert result.exit_code == 0
    warned = [line for line in result.stderr.splitlines() if line.startswith("warning: ")]
    assert len(warned) == 3, result.stderr
    for word in ("licence", "notes.npz", "is pixel_um right? (1 section: a)"):
        assert sum(word in line for line in warned) == 1
    assert "no cut in 1 section: c" in result.stdout


def test_unused_bits_are_seen(brain):
    """Write two sections as a camera of 12 bits would, and read them right with `bits`."""
    gray = {name: tifffile.imread(brain / f"{name}.tif") for name in "abc"}

    def write(names: str, shift: int) -> list[str]:
        for name in names:
            tifffile.imwrite(brain / f"{name}.tif", gray[name].astype(np.uint16) << shift)
        return [line for line in check_brain(brain).warnings if "images of 16 bits" in line]

    assert write("abc", 8) == []
    [warning] = write("ab", 4)
    for word in ("below 4096", "0 ... 15", "2 sections: a, b", "over the full range"):
        assert word in warning
    [warning] = write("c", 4)
    assert "camera of 12 bits took them, write bits = 12 into" in warning
    toml("background = 255", "background = 255\nbits = 12")(brain)
    report = check_brain(brain)
    assert not report.warnings and not report.faults
    assert read_brain(brain).bits == 12


def test_sections_off_the_tissue_are_seen(brain):
    """Shift sections along x by half a radius, so that the ribbon lies off the tissue."""
    text = (brain / "sections.csv").read_text()
    (brain / "sections.csv").write_text(text.replace("-3.984", "-2.484"))
    for name in ("patches.npz", "pairs.npz"):
        (brain / name).unlink()
    report = check_brain(brain)
    assert not report.faults
    assert [line for line in report.warnings if "% of the ribbon lies on background" in line]


def test_the_origin_trap_is_seen_on_real_sections(shared_data, tmp_path):
    """Check BigBrain sections in place, and 2.5 mm off in y, the usual error with its volumes.

    Only the shifted sections give a warning.
    """
    surfaces = shared_data / "bigbrain" / "surf"
    sections = shared_data / "histology" / "bigbrain_sections"
    rows = []
    for name, image in (("B20_1081", "B20_1081_image"), ("y+2.80", "y+2.80_image_81um")):
        shutil.copy(sections / f"{image}.png", tmp_path)
        at = json.loads((sections / f"{name}_registration.json").read_text())
        mm = at["um_per_px"] / 1000
        affine = f"{mm} 0 0 {at['x0_mm']} 0 0 0 {at['y_mm']} 0 {-mm} 0 {at['z0_mm']}"
        row = {"section": name, "image": f"{image}.png", "pixel_um": str(1000 * mm)}
        rows.append(row | {"affine": affine, "y": str(at["y_mm"])})
    for side in ("pial", "white"):
        shutil.copy(surfaces / f"tpl-bigbrain_hemi-L_desc-{side}.surf.gii", tmp_path / side)
    (tmp_path / "brain.toml").write_text(
        'format = 1\nlicence = "CC BY-NC-SA 4.0"\n'
        '[[hemispheres]]\nname = "left"\npial = "pial"\nwhite = "white"\n'
    )
    for shift_mm, words in ((0, ""), (-2.5, "-72.5"), (2.5, "-72.5")):
        moved = [
            row | {"affine": row["affine"].replace(row["y"], str(float(row["y"]) + shift_mm))}
            for row in rows
        ]
        write_table(tmp_path / "sections.csv", moved)
        report = check_brain(tmp_path)
        assert not report.faults
        assert len(report.warnings) == bool(shift_mm)
        assert words in "".join(report.warnings)


def test_many_faults_are_cut_short_for_readers_and_listed_by_check(brain):
    lines = (brain / "sections.csv").read_text().splitlines()
    lines += [f"s{n},none{n}.tif,32,1 0 0,,,," for n in range(30)]
    (brain / "sections.csv").write_text("\n".join(lines))
    with pytest.raises(InputError) as error:
        read_brain(brain)
    assert len(str(error.value).splitlines()) == 21
    assert "and 40 more" in str(error.value)
    assert len(check_brain(brain).faults) == 60


@pytest.mark.parametrize("name", ["a.tif", "a.png"])
def test_label_numbers_are_those_written(tmp_path, name):
    """Check that label images are read without gray conversion, and that counts are complete."""
    values = np.random.default_rng(0).integers(0, 256, (300, 500), np.uint8)
    if name.endswith("png"):
        Image.fromarray(values).save(tmp_path / name)
    else:
        tifffile.imwrite(tmp_path / name, values, tile=(64, 64), compression="lzw")
    with open_label(tmp_path / name) as image:
        np.testing.assert_array_equal(image.read(0, 0, 300, 500), values)
        assert image.read(-1, -1, 1, 1)[0, 0] == 255
        np.testing.assert_array_equal(
            label_counts(image), np.bincount(values.ravel(), minlength=256)
        )


def test_label_counts_in_bands(tmp_path, monkeypatch):
    values = np.random.default_rng(1).integers(0, 5, (37, 50), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", values)
    monkeypatch.setattr("jaxcyto.brain.sections.label_image.BAND_PX", 333)
    with open_label(tmp_path / "a.tif") as image:
        np.testing.assert_array_equal(
            label_counts(image), np.bincount(values.ravel(), minlength=256)
        )
