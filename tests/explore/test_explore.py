"""Test `jaxcyto explore` against pyarrow, nibabel, scipy and plain counting."""

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pyarrow.parquet
import pytest
import tifffile
from click.testing import CliRunner
from minimal_brain import make_ball, replace
from pretext_run import SCALES, write_run
from scipy.spatial.distance import cdist
from segment_run import write_run as write_segment_run
from shapes import sphere

import jaxcyto.explore.run
from jaxcyto.brain.manifest import read_brain
from jaxcyto.brain.sampling.patches import load_patches
from jaxcyto.brain.surfaces.smoothing import neighbor_mean
from jaxcyto.brain.surfaces.surface import Surface
from jaxcyto.brain.surfaces.vertex_maps import vertex_means, write_maps
from jaxcyto.cli import main
from jaxcyto.config import Scales
from jaxcyto.explore.figures import nearest_figure
from jaxcyto.models import SiameseNet, UNet
from jaxcyto.predict.features import embed_brain
from jaxcyto.runs.load import load_pretext_run, save_weights

NET = SiameseNet(stem_kernel=3, stem_stride=1, widths=(4, 6, 8), features=5)


def explore(*arguments, status: int = 0):
    result = CliRunner().invoke(main, ["explore", *map(str, arguments)])
    assert result.exit_code == status, result.output
    return result


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "pretext", NET, 32)


@pytest.fixture(scope="module")
def explored(run, tiny_brain) -> tuple[Path, dict]:
    """Explore a run and return the output folder and the printed JSON."""
    printed = explore(run, tiny_brain, "--json").stdout
    return run / "explore" / tiny_brain.name, json.loads(printed)


# ---- maps ---------------------------------------------------------------------------------------


def test_means_at_vertices_are_those_of_the_walk():
    ball = sphere(10)
    rng = np.random.default_rng(0)
    face = rng.integers(0, len(ball.faces), 15)
    bary, values = rng.dirichlet([1, 1, 1], 15), rng.normal(size=(15, 2))
    sides = ball.vertices[ball.faces] - ball.vertices[np.roll(ball.faces, 1, axis=1)]
    edge = np.linalg.norm(sides, axis=2).mean()
    found = vertex_means(ball, face, bary, values, 1.5 * edge)
    stay = np.eye(len(ball.vertices))
    walk = (stay + neighbor_mean(len(ball.vertices), ball.faces).toarray()) / 2
    at = stay[ball.faces[face, bary.argmax(axis=1)]].T
    weights = walk @ walk @ at
    some = weights.any(axis=1)
    assert 20 < some.sum() < len(some) - 20
    expected = (weights @ values)[some] / weights[some].sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found[some], expected, rtol=1e-5, atol=1e-6)
    assert np.isnan(found[~some]).all()


def test_a_value_does_not_cross_to_the_other_bank():
    ball = sphere(10)
    outer = Surface(ball.vertices * 1.001, ball.faces)  # almost touching, but not connected
    both = Surface(
        np.concatenate([ball.vertices, outer.vertices]),
        np.concatenate([ball.faces, outer.faces + len(ball.vertices)]),
    )
    found = vertex_means(both, np.array([0]), np.eye(3)[:1], np.array([[3.0]]), 10.0)[:, 0]
    np.testing.assert_allclose(found[: len(ball.vertices)], 3.0)
    assert np.isnan(found[len(ball.vertices) :]).all()


@pytest.mark.parametrize(
    ("hemisphere", "structure"),
    [("left", "CortexLeft"), ("RH", "CortexRight"), ("hemi", None)],
)
def test_maps_as_nibabel_reads_them(tmp_path, hemisphere, structure):
    values = np.array([[0.5, np.nan], [1, 2], [3, -4]], np.float32)
    write_maps(tmp_path / "a.func.gii", hemisphere, ["one", "two"], values)
    image = nibabel.load(tmp_path / "a.func.gii")
    assert image.meta.get("AnatomicalStructurePrimary") == structure
    assert [array.meta["Name"] for array in image.darrays] == ["one", "two"]
    np.testing.assert_array_equal(np.stack(image.agg_data(), axis=1), values)


# ---- features -----------------------------------------------------------------------------------


def test_the_table_holds_all_patches(explored, run, tiny_brain):
    folder, _ = explored
    brain = read_brain(tiny_brain)
    patches = load_patches(tiny_brain / "patches.npz", brain)
    table = pyarrow.parquet.read_table(folder / "patches.parquet").to_pylist()
    expected = embed_brain(load_pretext_run(run), brain, patches)
    assert len(table) == len(patches)
    for k in (0, 7, len(patches) - 1):
        row = table[k]
        assert row["patch"] == k
        assert row["section"] == brain.sections[patches.section[k]].name
        assert row["split"] == brain.sections[patches.section[k]].split
        assert row["hemisphere"] == brain.hemispheres[patches.hemisphere[k]].name
        assert row["area"] in {entry.name for entry in brain.classes}
        position = [row[f"{axis}_mm"] for axis in "xyz"]
        np.testing.assert_allclose(position, patches.position_mm[k])
        features = [row[f"feature_{number:02d}"] for number in range(5)]
        np.testing.assert_allclose(features, expected.features[k], rtol=1e-6)
        place = [row[f"predicted_{axis}_mm"] for axis in "xyz"]
        np.testing.assert_allclose(place, expected.coordinates_mm[k], rtol=1e-6)


def test_maps_of_features_and_of_distances(explored, tiny_brain):
    folder, _ = explored
    brain = read_brain(tiny_brain)
    table = pyarrow.parquet.read_table(folder / "patches.parquet").to_pydict()
    for hemisphere, structure in (("left", "CortexLeft"), ("right", "CortexRight")):
        pial = next(each.pial for each in brain.hemispheres if each.name == hemisphere)
        number = len(nibabel.load(pial).agg_data("pointset"))
        image = nibabel.load(folder / f"{hemisphere}.features.func.gii")
        assert image.meta["AnatomicalStructurePrimary"] == structure and len(image.darrays) == 5
        own = np.array(table["hemisphere"]) == hemisphere
        for k, array in enumerate(image.darrays):
            values = np.array(table[f"feature_{k:02d}"])[own]
            known = np.isfinite(array.data)
            assert len(array.data) == number and known.mean() > 0.5
            assert values.min() - 1e-6 <= array.data[known].min()
            assert array.data[known].max() <= values.max() + 1e-6
        distance = nibabel.load(folder / f"{hemisphere}.neighbors.func.gii").agg_data()
        assert len(distance) == number and np.nanmin(distance) >= 0


def test_results_are_those_printed(explored, tiny_brain):
    folder, printed = explored
    results = json.loads((folder / "results.json").read_text())
    assert results == printed
    assert results["patches"] == 240 and results["brain"] == read_brain(tiny_brain).name
    for name in ("knn", "linear", "majority"):
        assert 0 <= results["probes"]["areas"][name]["accuracy"] <= 1
    found = results["neighbors"]
    assert set(found["test"]) == set(found["all"]) and found["all"]["within"] > 50
    assert 0 < found["test"]["within"] < found["all"]["within"]
    tests = {row.name for row in read_brain(tiny_brain).sections if row.split == "test"}
    assert tests & set(found["sections"]) and len(found["sections"]) <= 24
    for path in map(Path, results["files"]):
        assert path.stat().st_size > 1000, path
        assert path.suffix != ".png" or path.read_bytes()[:4] == b"\x89PNG"


def test_features_are_computed_once(explored, run, tiny_brain, monkeypatch):
    folder, _ = explored
    calls = []
    embed = jaxcyto.explore.run.embed_brain
    monkeypatch.setattr(
        jaxcyto.explore.run, "embed_brain", lambda *a, **k: calls.append(1) or embed(*a, **k)
    )
    before = pyarrow.parquet.read_table(folder / "patches.parquet")
    explore(run, tiny_brain, "--nearest", 3)
    assert not calls
    assert pyarrow.parquet.read_table(folder / "patches.parquet").equals(before)
    for damage in (b"nonsense", b""):
        (folder / "patches.parquet").write_bytes(damage)
        explore(run, tiny_brain, "--nearest", 3)
    assert len(calls) == 2
    assert pyarrow.parquet.read_table(folder / "patches.parquet").equals(before)


def test_other_weights_are_other_features(run, tiny_brain, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    explore(copy, tiny_brain, "--nearest", 0)
    table = copy / "explore" / tiny_brain.name / "patches.parquet"
    before = pyarrow.parquet.read_table(table)
    other = load_pretext_run(copy)
    other.variables["params"]["features"]["bias"][:] += 1
    save_weights(copy, other.variables)
    explore(copy, tiny_brain, "--nearest", 0)
    after = pyarrow.parquet.read_table(table)
    moved = np.array(after["feature_02"]) - np.array(before["feature_02"])
    np.testing.assert_allclose(moved, 1, atol=1e-4)


def test_the_nearest_patches_are_those_of_scipy(explored, run, tiny_brain):
    folder, _ = explored
    page = Path(explore(run, tiny_brain, "--nearest", 17).stdout.strip())
    assert page == folder / "nearest_17.png" and page.read_bytes()[:4] == b"\x89PNG"
    brain = read_brain(tiny_brain)
    patches = load_patches(tiny_brain / "patches.npz", brain)
    table = pyarrow.parquet.read_table(folder / "patches.parquet").to_pydict()
    features = np.stack([table[f"feature_{k:02d}"] for k in range(5)], axis=1)
    areas = np.array(table["area"], object)
    scale = SCALES["distance_mm"]
    figure = nearest_figure(brain, patches, features, 17, areas, Scales(distance_mm=scale))
    shown = [axis.get_title().split("\n") for axis in figure.axes]
    distance = cdist(features, features[17:18], "sqeuclidean")[:, 0]
    assert [int(title[0].split(":")[0]) for title in shown] == np.argsort(distance)[:24].tolist()
    for title in shown[1:]:
        number = int(title[0].split(":")[0])
        assert title[1] == areas[number]
        assert title[2].endswith(f"predicted {distance[number] * scale:.1f} mm")


def test_one_section_that_training_has_seen(run, tiny_brain, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    name = next(row.name for row in read_brain(tiny_brain).sections if row.split == "test")
    replace(copy / "config.json", "tiny/0001", f"{tiny_brain.name}/{name}")
    result = explore(copy, tiny_brain, "--section", name)
    assert "20 nearest" in result.stdout and "AUC" in result.stdout
    seen = f"trained on 1 section(s) that are test sections now ({tiny_brain.name}/{name})"
    assert seen in result.stderr
    results = json.loads((copy / "explore" / tiny_brain.name / "results.json").read_text())
    assert results["neighbors"]["sections"] == [name]
    assert results["seen"] == [f"{tiny_brain.name}/{name}"]


def test_a_brain_without_labels(run, tmp_path):
    root = make_ball(tmp_path / "ball")
    replace(root / "brain.toml", 'labels = "areas.txt"\n', "")
    sampled = CliRunner().invoke(
        main, ["sample", str(root), "--patches", "40", "--patch-px", "32", "--um-per-px", "64"]
    )
    assert sampled.exit_code == 0, sampled.output
    printed = explore(run, root).stdout
    assert "area: not probed" in printed and "position (ridge)" in printed
    folder = run / "explore" / "ball"
    assert "area" not in pyarrow.parquet.read_schema(folder / "patches.parquet").names
    results = json.loads((folder / "results.json").read_text())
    assert results["neighbors"]["all"]["auc"] is None
    explore(run, root, "--nearest", 0)


def test_labels_without_names_are_mapped(run, tmp_path):
    root = make_ball(tmp_path / "ball")
    arguments = ["--patches", "60", "--patch-px", "32", "--um-per-px", "64"]
    assert CliRunner().invoke(main, ["sample", str(root), *arguments]).exit_code == 0
    assert "--map" in explore(run, root, status=2).stderr
    copy = shutil.copytree(run, tmp_path / "run")
    explore(copy, root, "--map", "1=inner", "--map", "2=outer")
    table = pyarrow.parquet.read_table(copy / "explore" / "ball" / "patches.parquet").to_pydict()
    z, area = np.array(table["z_mm"]), np.array(table["area"])
    assert (area[z > 0.5] == "outer").all() and (area[z < -0.5] == "inner").all()


# ---- predictions --------------------------------------------------------------------------------


def test_predicted_classes_as_table_and_labels(tiny_brain, tmp_path):
    brain = read_brain(tiny_brain)
    classes = [
        {"name": entry.name, "color": entry.color, "kind": entry.kind} for entry in brain.classes
    ]
    net = UNet(len(classes), 3, 1, (4, 4, 4))
    run = write_segment_run(tmp_path / "run", net, um_per_px=64.0, classes=classes)
    results = json.loads(explore(run, tiny_brain, "--json").stdout)
    assert results["failures"] == [] and results["predicted"] == 240
    columns = pyarrow.parquet.read_table(results["files"][0]).to_pydict()
    for k in range(0, 240, 30):
        row = next(row for row in brain.sections if row.name == columns["section"][k])
        numbers = tifffile.imread(run / "predictions" / tiny_brain.name / f"{row.name}.ome.tif")
        out_um = 64.0 * 2
        y, x = (
            int((columns[name][k] + 0.5) * row.pixel_um / out_um)
            for name in ("row_px", "column_px")
        )
        assert columns["predicted"][k] == classes[numbers[y, x]]["name"]
    test = np.array(columns["split"]) == "test"
    right = np.array(columns["area"])[test] == np.array(columns["predicted"])[test]
    assert results["accuracy"]["accuracy"] == pytest.approx(right.mean())
    left = nibabel.load(run / "predictions" / tiny_brain.name / "left.label.gii")
    assert left.meta["AnatomicalStructurePrimary"] == "CortexLeft"
    printed = explore(run, tiny_brain).stdout
    assert "240 of 240 patches have a predicted class" in printed
    assert "for pre-training runs" in explore(run, tiny_brain, "--nearest", 1, status=2).output


# ---- mistakes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--nearest", "240"), "holds patches 0 ... 239"),
        (("--section", "nowhere"), "nowhere"),
        (("--patches-file", "others.npz"), "others.npz: no such file"),
    ],
)
def test_a_mistake_ends_in_one_message(run, tiny_brain, arguments, message):
    stderr = explore(run, tiny_brain, *arguments, status=2).stderr
    assert message in stderr and stderr.count("error:") == 1


def test_a_run_of_another_size_and_no_run(tiny_brain, tmp_path):
    other = write_run(tmp_path / "other", NET, 32, um_per_px=16.0)
    assert "um_per_px = 64" in explore(other, tiny_brain, status=2).stderr
    assert "not the folder of a run" in explore(tmp_path, tiny_brain, status=2).stderr


def test_the_page_of_the_docs(explored, run, tiny_brain, tmp_path, monkeypatch, capsys):
    """Check that the Python code of docs/explore.md runs and prints what the page shows."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "brains").mkdir()
    (tmp_path / "brains/quickstart").symlink_to(tiny_brain)
    shutil.copytree(run, tmp_path / "runs/quickstart")
    shutil.copytree(explored[0], tmp_path / "runs/quickstart/explore/quickstart")
    monkeypatch.chdir(tmp_path)
    page = Path(__file__).parents[2] / "docs" / "explore.md"
    blocks = page.read_text().split("```python\n")[1:]
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block.split("```")[0], str(page), "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("240 patches,") and printed[1].startswith("CortexLeft")
    assert printed[2].startswith("(240, 5)")
    first, same = printed[3].removeprefix("[").removesuffix("]").split("] [")
    np.testing.assert_allclose(*(np.array(x.split(), float) for x in (first, same)), rtol=1e-3)
