"""Test sampling: ribbon lengths in closed form, uniformity, tissue, splits, files, real data."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxcyto.brain.manifest import SPLITS, Brain, read_brain
from jaxcyto.brain.registration import AffineRegistration
from jaxcyto.brain.sampling.patches import load_patches
from jaxcyto.brain.sampling.ribbon import CutSurface
from jaxcyto.brain.sampling.sampling import PatchSettings, sample_patches
from jaxcyto.brain.sampling.splits import assign_splits, blocks, split_distances_mm
from jaxcyto.brain.surfaces.surface import Surface, hemisphere_surface, write_surface
from jaxcyto.errors import InputError

PIXEL_UM = 100.0


def ball(radius: float, steps: int = 48) -> Surface:
    """Return a sphere of latitudes and longitudes around z."""
    theta = np.linspace(0, np.pi, steps + 1)[1:-1]
    phi = np.linspace(0, 2 * np.pi, 2 * steps, endpoint=False)
    ring = np.stack(
        [
            np.outer(np.sin(theta), np.cos(phi)),
            np.outer(np.sin(theta), np.sin(phi)),
            np.outer(np.cos(theta), np.ones_like(phi)),
        ],
        -1,
    ).reshape(-1, 3)
    vertices = radius * np.concatenate([ring, [[0, 0, 1], [0, 0, -1]]])
    number = np.arange(len(ring)).reshape(len(theta), -1)
    a, b, c, d = number[:-1], np.roll(number, -1, 1)[:-1], number[1:], np.roll(number, -1, 1)[1:]
    top, low = number[0], number[-1]
    pole = np.full_like(top, len(ring))
    faces = [(a, c, d), (a, d, b), (pole, top, np.roll(top, -1)), (pole + 1, np.roll(low, -1), low)]
    return Surface(vertices, np.concatenate([np.stack(f, -1).reshape(-1, 3) for f in faces]))


def coronal(y: float, size=200) -> np.ndarray:
    """Return the affine of a coronal section of `size` px centered at x = z = 0.

    Columns run along +x and rows along -z.
    """
    pixel = PIXEL_UM / 1000
    middle = pixel * (size - 1) / 2
    return np.array([[pixel, 0, 0, -middle], [0, 0, 0, y], [0, -pixel, 0, middle]])


def make_brain(root: Path, positions, splits=None, gray=120, extra="", affines=None) -> Brain:
    """Write two concentric spheres (pial 8, white 6 mm) and dark discs of 8.5 mm as sections."""
    root.mkdir(parents=True, exist_ok=True)
    write_surface(root / "pial.gii", ball(8))
    write_surface(root / "white.gii", ball(6))
    lines = ["section,image,pixel_um,affine,split"]
    for number, y in enumerate(positions):
        affine = coronal(y) if affines is None else affines[number]
        row, column = np.mgrid[:200, :200]
        radius = np.hypot(row - 99.5, column - 99.5) * PIXEL_UM / 1000
        image = np.where(radius**2 + y**2 < 8.5**2, gray, 255).astype(np.uint8)
        Image.fromarray(image).save(root / f"{number}.png")
        text = " ".join(str(float(value)) for value in affine.ravel())
        lines.append(f"s{number},{number}.png,{PIXEL_UM},{text},{splits[number] if splits else ''}")
    (root / "sections.csv").write_text("\n".join(lines) + "\n")
    (root / "brain.toml").write_text(
        f'format = 1\n{extra}[[hemispheres]]\nname = "L"\npial = "pial.gii"\nwhite = "white.gii"\n'
    )
    return read_brain(root)


@pytest.fixture(scope="module")
def brain(tmp_path_factory) -> Brain:
    return make_brain(tmp_path_factory.mktemp("brain"), [-3.0, 0.5, 4.0], ["train", "val", "test"])


@pytest.mark.parametrize("height", [0.0, 0.01, 3.3, -6.9])
@pytest.mark.parametrize("tilt", [0.0, 0.7])
def test_a_plane_cuts_a_sphere_in_a_circle(height, tilt):
    turn = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    plane = AffineRegistration(np.column_stack([turn @ coronal(height)]))
    surface = ball(7, 96)
    everything = np.ones(len(surface.faces), bool)
    # The axis by which faces are sorted may differ from the normal of the plane.
    segments = CutSurface(surface, everything, np.array([0.0, 1.0, 0.0])).cut(plane)
    circumference = 2 * np.pi * np.sqrt(7**2 - height**2)
    np.testing.assert_allclose(segments.length_mm.sum(), circumference, rtol=5e-3)
    assert np.abs(plane.to_px(segments.points_mm.reshape(-1, 3))[2]).max() < 1e-9
    rebuilt = segments.bary @ surface.vertices[surface.faces[segments.face]]
    np.testing.assert_allclose(rebuilt, segments.points_mm, atol=1e-12)
    # The curve is closed, so every end is the end of two segments.
    ends = np.round(segments.points_mm[segments.length_mm > 1e-9].reshape(-1, 3), 6)
    assert (np.unique(ends, axis=0, return_counts=True)[1] % 2 == 0).all()


def test_no_cut_beside_the_surface():
    surface = ball(7)
    cut = CutSurface(surface, np.ones(len(surface.faces), bool), np.array([0.0, 1.0, 0.0]))
    assert len(cut.cut(AffineRegistration(coronal(7.1))).face) == 0


def test_patches_lie_where_they_say(brain):
    patches = sample_patches(brain, PatchSettings(num_patches=1000, patch_px=20, um_per_px=100))
    assert len(patches) == 1000
    surface = hemisphere_surface(brain.hemispheres[0])
    corners = surface.vertices[surface.faces[patches.face]]
    on_surface = np.einsum("nk,nkd->nd", patches.bary, corners)
    np.testing.assert_allclose(on_surface, patches.position_mm, atol=1e-4)
    for index, row in enumerate(brain.sections):
        own = patches.section == index
        column, line = patches.center_px[own].T
        mm = AffineRegistration(row.affine).to_mm(column, line)
        np.testing.assert_allclose(mm, patches.position_mm[own], atol=1e-5)
        assert (patches.split[own] == SPLITS.index(row.split)).all()
    assert (patches.bary >= 0).all()
    # Patches are uniform per millimeter: sections and angles get as many as their length requires,
    # with a difference of a patch or so.
    lengths = 2 * np.pi * np.sqrt(49 - np.array([-3.0, 0.5, 4.0]) ** 2)
    expected = 1000 * lengths / lengths.sum()
    assert np.abs(np.bincount(patches.section) - expected).max() < 3
    own = patches.position_mm[patches.section == 0]
    angle = np.unwrap(np.arctan2(own[:, 0], own[:, 2]))
    steps = np.abs(np.diff(angle))  # consecutive patches are neighbors on the ribbon
    assert steps.max() < 2.1 * 2 * np.pi / len(own)
    assert abs(steps.sum() - 2 * np.pi) < 4 * np.pi / len(own)


def test_same_seed_same_patches_whatever_the_workers(brain):
    settings = {"num_patches": 60, "patch_px": 20, "um_per_px": 100}
    one = sample_patches(brain, PatchSettings(**settings, seed=3), workers=1)
    two = sample_patches(brain, PatchSettings(**settings, seed=3), workers=2)
    other = sample_patches(brain, PatchSettings(**settings, seed=4))
    assert np.array_equal(one.center_px, two.center_px)
    assert not np.array_equal(one.center_px, other.center_px)


def test_spacing_and_depth(brain):
    settings = {"patch_px": 20, "um_per_px": 100}
    by_spacing = sample_patches(brain, PatchSettings(spacing_mm=1.0, **settings))
    lengths = 2 * np.pi * np.sqrt(49 - np.array([-3.0, 0.5, 4.0]) ** 2)
    assert abs(len(by_spacing) - lengths.sum()) < 2
    deep = sample_patches(brain, PatchSettings(num_patches=200, depth=0.75, **settings))
    np.testing.assert_allclose(np.linalg.norm(deep.position_mm, axis=1), 6.5, atol=0.02)
    # The point that carries the distances lies on the mid surface, radially outward.
    surface = hemisphere_surface(brain.hemispheres[0])
    carried = np.einsum("nk,nkd->nd", deep.bary, surface.vertices[surface.faces[deep.face]])
    np.testing.assert_allclose(carried, deep.position_mm * 7 / 6.5, atol=0.02)


def test_windows_without_tissue_are_drawn_again(tmp_path):
    brain = make_brain(tmp_path, [0.0], ["train"])
    image = np.asarray(Image.open(tmp_path / "0.png")).copy()
    image[:, :100] = 255  # the left half is missing
    Image.fromarray(image).save(tmp_path / "0.png")
    with pytest.warns(UserWarning, match="on background"):
        patches = sample_patches(
            brain, PatchSettings(num_patches=300, patch_px=20, um_per_px=100, min_tissue=0.6)
        )
    assert len(patches) == 300
    assert patches.center_px[:, 0].min() > 95
    assert patches.settings["without_tissue"] > 200
    image[:] = 255
    Image.fromarray(image).save(tmp_path / "0.png")
    with pytest.raises(InputError, match="tissue"):
        sample_patches(brain, PatchSettings(num_patches=300, patch_px=20, um_per_px=100))


def test_what_the_image_does_not_cover_is_not_sampled(tmp_path):
    shifted = coronal(0.0)
    shifted[0, 3] += 10  # the image begins at x = 0
    brain = make_brain(tmp_path, [0.0], ["train"], affines=[shifted])
    Image.fromarray(np.full((200, 200), 100, np.uint8)).save(tmp_path / "0.png")
    patches = sample_patches(brain, PatchSettings(num_patches=100, patch_px=20, um_per_px=100))
    assert patches.center_px.min() > -1 and patches.center_px.max() < 200
    np.testing.assert_allclose(patches.settings["ribbon_mm"], np.pi * 7, rtol=0.02)


def test_thin_cortex_is_left_out(tmp_path):
    brain = make_brain(tmp_path, [0.0], ["train"])
    white = ball(6)
    squeeze = white.vertices[:, 0] > 0
    white.vertices[squeeze] *= 7.9 / 6
    write_surface(tmp_path / "white.gii", white)
    patches = sample_patches(brain, PatchSettings(num_patches=100, patch_px=20, um_per_px=100))
    assert patches.position_mm[:, 0].max() < 0.6
    everywhere = sample_patches(
        brain, PatchSettings(num_patches=100, patch_px=20, um_per_px=100, min_thickness_mm=0)
    )
    assert everywhere.position_mm[:, 0].max() > 6


def test_no_overlap_says_by_how_much(tmp_path):
    brain = make_brain(tmp_path, [9.5, 12.0], ["train", "test"])
    with pytest.raises(InputError, match=r"misses it by 2\.50 mm") as error:
        sample_patches(brain, PatchSettings(num_patches=10, patch_px=20, um_per_px=100))
    assert "-70.01 + 0.02 s" in str(error.value) and "2.5 mm" in str(error.value)
    away = coronal(0.0)
    away[0, 3] += 100
    beside = make_brain(tmp_path / "b", [0.0], affines=[away])
    with pytest.raises(InputError, match="no image covers"):
        sample_patches(
            beside, PatchSettings(num_patches=10, patch_px=20, um_per_px=100, split_axis="z")
        )


@pytest.mark.parametrize("number", [12, 40, 200])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_splits_are_blocks_with_gaps(tmp_path, number, seed):
    positions = np.random.default_rng(seed).permutation(np.linspace(-7, 7, number) * 5)
    brain = make_brain_table(tmp_path, positions)
    write_surface(tmp_path / "pial.gii", ball(104))
    write_surface(tmp_path / "white.gii", ball(100))
    ribbon = np.sqrt(102**2 - positions**2)  # a section through the mid sphere: 2 pi times this
    done = assign_splits(brain, seed=seed)
    names = np.array([row.split for row in done.sections])
    assert [row.split for row in read_brain(tmp_path).sections] == names.tolist()
    for a in ("train", "val", "test"):
        assert (names == a).any()
        for b in ("train", "val", "test"):
            if a < b:
                gap = np.abs(positions[names == a][:, None] - positions[names == b]).min()
                assert gap >= 2 - 1e-6
    kept = (names != "exclude").sum()
    assert kept >= 0.69 * number  # gaps take at most 30 %
    used = ribbon[names != "exclude"].sum()
    shares = [ribbon[names == split].sum() / used for split in ("train", "val", "test")]
    np.testing.assert_allclose(shares, [0.7, 0.1, 0.2], atol=0.11)
    ordered = names[np.argsort(positions)]
    test_blocks = (np.diff(np.r_[False, ordered == "test"].astype(int)) == 1).sum()
    assert test_blocks >= (3 if number == 200 else 1)
    again = assign_splits(brain, seed=seed)
    assert [row.split for row in again.sections] == names.tolist()
    assert assign_splits(done).sections == done.sections  # a filled column is kept


def make_brain_table(root: Path, positions) -> Brain:
    """Write a brain like `make_brain`, but all sections share one image file."""
    make_brain(root, [0.0])
    text = ["section,image,pixel_um,affine,split"]
    for number, y in enumerate(positions):
        affine = " ".join(str(float(value)) for value in coronal(y).ravel())
        text.append(f"s{number},0.png,{PIXEL_UM},{affine},")
    (root / "sections.csv").write_text("\n".join(text) + "\n")
    return read_brain(root)


def test_sections_beyond_the_cortex_do_not_count(tmp_path):
    """Half of the sections miss the sphere on one side, and every split still gets ribbon."""
    brain = make_brain_table(tmp_path, np.linspace(-6.5, 20, 80))
    patches = sample_patches(
        assign_splits(brain), PatchSettings(num_patches=200, patch_px=20, um_per_px=100)
    )
    assert set(np.unique(patches.split)) == {0, 1, 2}


def test_too_thin_and_partly_filled_are_refused(tmp_path):
    thin = make_brain_table(tmp_path / "a", np.linspace(0, 3, 30))
    with pytest.raises(InputError, match="by hand"):
        assign_splits(thin)
    partly = make_brain(tmp_path / "b", [-3.0, 0.5, 4.0], ["train", "", "test"])
    with pytest.raises(InputError, match="s1"):
        assign_splits(partly)
    with pytest.raises(InputError, match="assign_splits"):
        sample_patches(partly, PatchSettings(num_patches=10))


def test_blocks_keep_gap_and_shares():
    rng = np.random.default_rng(0)
    for _ in range(50):
        position = np.sort(rng.uniform(0, 100, 300))
        parts = rng.dirichlet(np.full(3, 5.0))
        found = blocks(position, rng.uniform(0.5, 1.5, 300), parts, 3.0)
        assert found is not None
        used = [position[found == block] for block in range(3)]
        assert used[1].min() - used[0].max() >= 3 - 1e-6
        assert used[2].min() - used[1].max() >= 3 - 1e-6
        shares = np.bincount(found[found >= 0]) / (found >= 0).sum()
        np.testing.assert_allclose(shares, parts, atol=0.06)


def test_split_along_an_axis(tmp_path):
    brain = make_brain(tmp_path, [-2.0, 2.0])
    patches = sample_patches(
        brain, PatchSettings(num_patches=400, patch_px=20, um_per_px=100, split_axis="x")
    )
    x = patches.position_mm[:, 0]
    train, val, test = (x[patches.split == split] for split in range(3))
    gap = patches.settings["gap_mm"]
    assert gap >= 2.0
    assert val.min() - train.max() >= gap and test.min() - val.max() >= gap
    shares = np.bincount(patches.split, minlength=3) / 400
    np.testing.assert_allclose(shares, [0.7, 0.1, 0.2], atol=0.03)
    assert split_distances_mm(patches)["train-test"] > 2 * gap
    filled = make_brain(tmp_path / "f", [-2.0, 2.0], ["train", "test"])
    with pytest.raises(InputError, match="rules"):
        sample_patches(filled, PatchSettings(num_patches=10, split_axis="x"))
    with pytest.raises(InputError, match="no room"):
        sample_patches(
            brain, PatchSettings(num_patches=10, patch_px=80, um_per_px=100, split_axis="x")
        )


def test_split_distance_closed_form(brain):
    patches = sample_patches(brain, PatchSettings(num_patches=900, patch_px=20, um_per_px=100))
    # The cuts are circles in parallel planes, with radii sqrt(49 - y^2) at y = -3, 0.5, 4.
    radius = np.sqrt(49 - np.array([-3.0, 0.5, 4.0]) ** 2)
    expected = {
        "train-val": np.hypot(3.5, radius[0] - radius[1]),
        "train-test": np.hypot(7, radius[0] - radius[2]),
        "val-test": np.hypot(3.5, radius[1] - radius[2]),
    }
    found = split_distances_mm(patches)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=0.03)


def test_saved_and_loaded(brain, tmp_path):
    patches = sample_patches(brain, PatchSettings(num_patches=50, patch_px=20, um_per_px=100))
    path = tmp_path / "patches.npz"
    patches.save(path)
    again = load_patches(path, brain)
    for field in dataclasses.fields(patches):
        saved, loaded = getattr(patches, field.name), getattr(again, field.name)
        assert np.array_equal(saved, loaded) if isinstance(saved, np.ndarray) else saved == loaded
    assert [path.name] == [each.name for each in tmp_path.iterdir()]  # no temporary file is left
    first = dataclasses.replace(brain.sections[0], split="test")
    changed = dataclasses.replace(brain, sections=(first, *brain.sections[1:]))
    with pytest.raises(InputError, match="split of section s0"):
        load_patches(path, changed)
    fewer = dataclasses.replace(brain, sections=brain.sections[1:])
    with pytest.raises(InputError, match="other sections"):
        load_patches(path, fewer)
    whole = path.read_bytes()
    for content in (b"", b"PK", whole[:300], whole[:-10]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"patches\.npz"):
            load_patches(path)
    np.savez(path, format="jaxcyto patches 1", section=np.zeros(3))
    with pytest.raises(InputError, match="not a readable file"):
        load_patches(path)
    with pytest.raises(InputError, match="no such file"):
        load_patches(tmp_path / "none.npz")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_patches": 5, "spacing_mm": 1.0},
        {"num_patches": 0},
        {"spacing_mm": -1.0},
        {"spacing_mm": 1e6},
        {"spacing_mm": 1e-9},
        {"num_patches": 5, "depth": 1.5},
        {"num_patches": 5, "patch_px": 0},
        {"num_patches": 5, "split_axis": "w"},
    ],
)
def test_bad_settings_are_refused(brain, settings):
    with pytest.raises(InputError):
        sample_patches(brain, PatchSettings(**settings))


@pytest.fixture(scope="module")
def real_brain(shared_data, tmp_path_factory):
    """Return a function that writes the real left hemisphere and the section at y = 2.80 mm.

    The section can be misplaced in y.
    """
    folder = shared_data / "histology/bigbrain_sections"
    place = json.loads((folder / "y+2.80_registration.json").read_text())
    pixel = place["um_per_px"] / 1000

    def make(shift_mm=0.0) -> Brain:
        root = tmp_path_factory.mktemp("real")
        for name in ("pial", "white"):
            source = shared_data / f"bigbrain/surf/tpl-bigbrain_hemi-L_desc-{name}.surf.gii"
            shutil.copy(source, root / f"{name}.gii")
        shutil.copy(folder / "y+2.80_image_81um.png", root / "section.png")
        affine = [pixel, 0, 0, place["x0_mm"], 0, 0, 0, place["y_mm"] + shift_mm]
        affine += [0, -pixel, 0, place["z0_mm"]]
        (root / "sections.csv").write_text(
            "section,image,pixel_um,affine,split\n"
            f"y2.80,section.png,{place['um_per_px']},{' '.join(map(str, affine))},\n"
        )
        (root / "brain.toml").write_text(
            'format = 1\n[[hemispheres]]\nname = "L"\npial = "pial.gii"\nwhite = "white.gii"\n'
        )
        return read_brain(root)

    return make


def test_real_section(real_brain):
    brain = real_brain()
    settings = {"patch_px": 128, "um_per_px": 40, "split_axis": "z"}
    patches = sample_patches(brain, PatchSettings(num_patches=2000, **settings))
    assert len(patches) == 2000
    assert patches.position_mm[:, 0].max() < 0.5  # the left hemisphere only
    np.testing.assert_allclose(patches.position_mm[:, 1], 2.79672, atol=1e-4)
    # Patches lie in the cortical ribbon: the mid surface has tissue, darker than white matter.
    image = np.asarray(Image.open(brain.sections[0].image)).astype(float)
    column, row = np.rint(patches.center_px).astype(int).T
    here = np.array(
        [np.median(image[r - 1 : r + 2, c - 1 : c + 2]) for c, r in zip(column, row, strict=True)]
    )
    assert np.mean(here < 245) > 0.98
    assert 180 < np.median(here) < 210  # white matter lies at 215 ... 230
    distance = split_distances_mm(patches)
    assert min(distance.values()) >= patches.settings["gap_mm"] > 5
    with pytest.warns(UserWarning, match=r"origin \(-72\.5\)"):
        sample_patches(real_brain(2.5), PatchSettings(num_patches=500, **settings))
