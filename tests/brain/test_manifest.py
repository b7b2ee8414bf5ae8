"""Test what is read from brain.toml and the section table, and what is rejected."""

import csv
import re
import string
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from minimal_brain import TOML, make_ball, replace
from PIL import Image

from jaxcyto.brain.manifest import (
    SECTION_COLUMNS,
    Brain,
    inspect_brain,
    read_brain,
    write_splits,
    write_table,
)
from jaxcyto.brain.sections.section import open_section
from jaxcyto.errors import InputError


@pytest.fixture
def brain(tmp_path):
    return make_ball(tmp_path / "ball")


@pytest.fixture(scope="module")
def ball(tmp_path_factory):
    """Make one brain for all examples of a property. Each example restores the file it mutates."""
    return make_ball(tmp_path_factory.mktemp("brains") / "ball")


def test_everything_is_read(brain):
    found = read_brain(brain)
    assert (found.name, found.licence, found.citation) == ("ball", "CC0-1.0", "")
    assert found.background == 255 and found.root == brain.resolve()
    (hemisphere,) = found.hemispheres
    assert (hemisphere.name, hemisphere.surface, hemisphere.mid) == ("left", "mid", None)
    assert hemisphere.white == brain / "white.surf.gii"
    assert [(each.name, each.color, each.kind) for each in found.classes] == [
        ("inner", "#aa0000", "area"),
        ("outer", "#00aa00", "area"),
        ("background", "#ffffff", "background"),
    ]
    a, b, _ = found.sections
    assert (a.index, a.name, a.image, a.pixel_um, a.split) == (0, "a", brain / "a.tif", 32, "train")
    assert (a.label, a.atlas, a.coordinates) == (None, None, None)
    assert (b.label, b.atlas) == (brain / "b_label.tif", brain / "b_atlas.tif")
    # Position of pixel (column 1, row 2) in mm, computed by hand from the affine.
    np.testing.assert_allclose(a.affine @ [1, 2, 0, 1], [0.032 - 3.984, -2, 3.984 - 0.064])


def test_defaults(brain):
    replace(brain / "brain.toml", 'name = "ball"\nlicence = "CC0-1.0"\nbackground = 255\n', "")
    text = (brain / "brain.toml").read_text()
    (brain / "brain.toml").write_text(text[: text.index("[[classes]]")])
    found = read_brain(brain)
    assert (found.name, found.licence, found.background, found.classes) == ("ball", "", 255, ())


def test_a_table_of_another_program(brain):
    """Check a table with a byte order mark, CRLF, blanks, blank lines, and other columns."""
    with open(brain / "sections.csv") as file:
        rows = list(csv.DictReader(file))
    columns = ["notes", *reversed(SECTION_COLUMNS)]
    lines = [" , ".join(columns), ""]
    lines += [", ".join(["fine", *(row[c] for c in columns[1:])]) for row in rows]
    plain = read_brain(brain)
    (brain / "sections.csv").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    other = read_brain(brain)
    assert [row.label for row in other.sections] == [row.label for row in plain.sections]
    write_splits(other, ["val", "train", "test"])
    again = read_brain(brain)
    assert [row.split for row in again.sections] == ["val", "train", "test"]
    np.testing.assert_array_equal(again.sections[2].affine, plain.sections[2].affine)
    with open(brain / "sections.csv") as file:
        assert [row["notes"] for row in csv.DictReader(file)] == ["fine"] * 3


def test_splits_are_not_written_over_a_changed_table(brain):
    found = read_brain(brain)
    before = b"".join((brain / "sections.csv").read_bytes().splitlines(keepends=True)[:-1])
    (brain / "sections.csv").write_bytes(before)
    with pytest.raises(InputError, match="changed while it was in use"):
        write_splits(found, ["train", "val", "test"])
    assert (brain / "sections.csv").read_bytes() == before
    assert not list(brain.glob(".*"))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('pial = "pial.surf.gii"\n', "", "surface: the mid surface needs `mid`"),
        ('name = "left"', 'name = "left"\nsurface = "outer"', "expected one of mid, pial, white"),
        ('name = "left"', 'name = ""', r"hemispheres\[0\].name: expected a unique name"),
        ('"outer"', '"inner"', r"classes\[1\].name: expected a unique name"),
        ("#00aa00", "green", r'classes\[1\].color: expected "#rrggbb", found \'green\''),
        ('kind = "background"', 'kind = "air"', "one of area, cortex, white_matter, background"),
        ("background = 255", "background = 256", "expected a gray value 0 ... 255"),
        ("background = 255", "background = true", "expected a gray value 0 ... 255"),
        ("format = 1", "format = true", "this version reads format = 1"),
        ("background = 255", "bits = 7", "bits = 7; expected how many bits"),
        ("background = 255", "bits = 12.0", "bits = 12.0; expected how many bits"),
        ("background = 255", 'sections = "other.csv"', "sections: no file 'other.csv'"),
        ("background = 255", "sections = 3", "sections = 3; expected text"),
        ("[[hemispheres]]", "[hemispheres]", r"expected \[\[hemispheres\]\] tables"),
        ('"pial.surf.gii"', "[]", "pial: expected a file name"),
        ('"pial.surf.gii"', '"a\\u0000b"', "pial: expected a file name"),
        ('"pial.surf.gii"', f'"{"a" * 5000}"', "pial: no file"),
        ("background = 255", f"background = {'1' * 5000}", "not valid TOML"),
        ("background = 255", f"x = {'[' * 5000}{']' * 5000}", "not valid TOML"),
    ],
)
def test_faults_of_brain_toml(brain, old, new, words):
    replace(brain / "brain.toml", old, new)
    with pytest.raises(InputError, match=words) as error:
        read_brain(brain)
    assert str(brain / "brain.toml") in str(error.value)


def test_not_a_brain_folder(brain, tmp_path):
    with pytest.raises(InputError, match=r"a file; name the folder"):
        read_brain(brain / "brain.toml")
    with pytest.raises(InputError, match=r"no such folder; name a brain's folder.*docs/data\.md"):
        read_brain(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no brain\.toml here; make one as docs/data\.md"):
        read_brain(tmp_path)
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(InputError, match=r"no such folder; name a brain's folder.*docs/data\.md"):
        read_brain(loop)


def test_a_loop_of_links_is_no_file(brain):
    (brain / "a.tif").unlink()
    (brain / "a.tif").symlink_to(brain / "a.tif")
    with pytest.raises(InputError, match=r"line 2: image: no file 'a\.tif'"):
        read_brain(brain)


def test_the_folder_may_be_reached_through_a_link(brain, tmp_path):
    (tmp_path / "link").symlink_to(brain)
    found = read_brain(tmp_path / "link")
    assert found.root == brain and found.sections[0].image == brain / "a.tif"


def test_what_is_not_faulty_can_still_be_looked_at(brain):
    (brain / "white.surf.gii").unlink()
    replace(brain / "sections.csv", "a,a.tif,32", "a,a.tif,x")
    replace(brain / "sections.csv", "b,b.tif,32,0.032", "b,b.tif,32,nan")
    found, faults = inspect_brain(brain)
    assert len(faults) == 3
    assert found is not None and found.hemispheres[0].white is None
    assert [(row.index, row.name) for row in found.sections] == [(1, "b"), (2, "c")]
    assert found.sections[0].affine is None


TEXT = st.text(alphabet=string.printable, max_size=12)
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
KEYS = ("format", "name", "licence", "sections", "background", "bits", "hemispheres", "classes")
TABLE_KEYS = ("name", "pial", "white", "mid", "labels", "surface", "color", "kind")
PROPERTY = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def is_read_or_refused(root) -> bool:
    """Return whether reading gives a brain, or an InputError that names the folder."""
    try:
        return isinstance(read_brain(root), Brain)
    except InputError as error:
        return str(root) in str(error)


@PROPERTY
@given(data=st.data())
def test_mutated_bytes_give_only_input_errors(ball, data):
    name = data.draw(st.sampled_from(["brain.toml", "sections.csv"]))
    path = ball / name
    original = path.read_bytes()
    broken = bytearray(original)
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(broken)))
        end = min(len(broken), start + data.draw(st.integers(0, 20)))
        broken[start:end] = data.draw(
            st.binary(max_size=8)
            | st.sampled_from([b"e999", b"1e308", b"nan", b"\0", b'"', b"\n", b",", b"../", b"[["])
        )
    try:
        path.write_bytes(broken)
        assert is_read_or_refused(ball)
    finally:
        path.write_bytes(original)


@PROPERTY
@given(
    table=st.dictionaries(st.sampled_from(KEYS), VALUE, max_size=3),
    inner=st.dictionaries(st.sampled_from(TABLE_KEYS), VALUE, max_size=3),
    where=st.sampled_from(["hemispheres", "classes"]),
)
def test_any_toml_values_give_only_input_errors(ball, table, inner, where):
    """Check well-formed TOML with values of any type at the top level and in the tables."""
    document = {
        "format": 1,
        "hemispheres": [{"name": "left", "pial": "pial.surf.gii", "white": "white.surf.gii"}],
        "classes": [{"name": "inner", "color": "#aa0000"}],
    }
    document[where][0] |= without_none(inner)
    try:
        (ball / "brain.toml").write_text(tomli_w.dumps(document | without_none(table)))
        assert is_read_or_refused(ball)
    finally:
        (ball / "brain.toml").write_text(TOML)


def without_none(value):
    """Remove None from nested values, because TOML has no null."""
    if isinstance(value, dict):
        return {key: without_none(v) for key, v in value.items() if v is not None}
    return [without_none(v) for v in value if v is not None] if isinstance(value, list) else value


CELL = st.text(max_size=10) | st.lists(
    st.floats(width=64) | st.floats(-1, 1) | st.just(0.032), min_size=12, max_size=12
).map(lambda numbers: " ".join(map(repr, numbers)))


@PROPERTY
@given(rows=st.lists(st.dictionaries(st.sampled_from(SECTION_COLUMNS), CELL), max_size=3))
def test_any_cells_give_only_input_errors(ball, rows):
    original = (ball / "sections.csv").read_bytes()
    good = {"section": "a", "image": "a.tif", "pixel_um": "32"}
    try:
        write_table(ball / "sections.csv", [good | row for row in rows])
        assert is_read_or_refused(ball)
    finally:
        (ball / "sections.csv").write_bytes(original)


DATA_MD = Path(__file__).resolve().parents[2] / "docs" / "data.md"


def code_blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", DATA_MD.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("number", [0, 1])
def test_the_documented_brain_toml_is_read(tmp_path, number):
    text = code_blocks("toml")[number]
    names = ["a.tif", *re.findall(r'"(surfaces/[^"]+)"', text)]
    (tmp_path / "surfaces").mkdir()
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / "brain.toml").write_text(text)
    row = {"section": "a", "image": "a.tif", "pixel_um": "2"}
    affine = re.search(r"^ {4}(0\.002 .*)$", DATA_MD.read_text(), re.MULTILINE)
    assert affine
    write_table(tmp_path / "sections.csv", [row | {"affine": affine[1]}])
    found = read_brain(tmp_path)
    assert [each.name for each in found.hemispheres] == ["left", "right"]
    assert [each.kind for each in found.classes[:2]] == [["area", "cortex"], []][number]
    np.testing.assert_allclose(found.sections[0].affine @ [500, 1000, 0, 1], [-59, 12, 53])


def test_the_documented_bigbrain_layout_works(tmp_path, monkeypatch):
    """Run the script of docs/data.md on a small image, and check the row printed above it."""
    (row,) = csv.DictReader(code_blocks("csv")[0].splitlines())
    printed = np.array(row["affine"].split(), float).reshape(3, 4)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "downloads").mkdir()
    pixels = np.arange(600, dtype=np.uint8).reshape(30, 20)
    Image.fromarray(pixels).save(tmp_path / "downloads" / "pm1081o.png")
    exec(compile(code_blocks("python")[-1], "docs/data.md", "exec"), {})
    root = tmp_path / "brains" / "bigbrain"
    (root / "surfaces").mkdir()
    (root / "brain.toml").write_text(code_blocks("toml")[1])
    for name in re.findall(r'"(surfaces/[^"]+)"', code_blocks("toml")[1]):
        (root / name).touch()
    (found,) = read_brain(root).sections
    with open_section(found.image) as section:
        np.testing.assert_array_equal(section.read(0, 0, 30, 20), pixels)
    # The last row of both images lies half a voxel above the origin.
    for affine, height in ((found.affine, 30), (printed, 5711)):
        np.testing.assert_allclose(
            affine @ [0, height - 1, 0, 1], [-70.666601, -48.39, -58.777701], atol=3e-4
        )
