"""Test that an export replaces its run bit for bit, and that its card describes it."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pretext_run
import pytest
import segment_run
from click.testing import CliRunner
from minimal_brain import make_ball
from safetensors.numpy import load_file, save_file

from jaxcyto.brain.manifest import read_brain
from jaxcyto.cli import main
from jaxcyto.errors import InputError
from jaxcyto.models import SiameseNet, UNet
from jaxcyto.predict import open_class_map, predict_brain
from jaxcyto.runs import load as runs
from jaxcyto.runs import record
from jaxcyto.runs.export import export_run
from jaxcyto.runs.export_file import write_export
from jaxcyto.training.state.transfer import pretraining_scales

NET = SiameseNet(stem_kernel=3, stem_stride=1, widths=(4, 6, 8), features=5)
UNET = UNet(3, 3, 1, (8, 8, 8, 8))


@pytest.fixture(scope="module")
def pretext(tmp_path_factory) -> Path:
    root = pretext_run.write_run(tmp_path_factory.mktemp("runs") / "pretext", NET, 32)
    ball = make_ball(tmp_path_factory.mktemp("brains") / "ball")
    change(root / "config.json", data={"brains": [str(ball)]})
    (root / "results.json").write_text(
        '{"steps": 7, "test": {"distance_mae_mm": 4.25, "distance_mae_mm_constant": 8.5}, '
        '"skipped": {"/home/me/secret.tif": 2}}'
    )
    brain = dataclasses.replace(read_brain(ball), licence="CC|BY", citation="A\nB <i>[x](y)")
    record.add_start(root, 0, record.trained_on([brain], "pre-training"))
    return root


@pytest.fixture(scope="module")
def segment(tmp_path_factory) -> Path:
    return segment_run.write_run(tmp_path_factory.mktemp("runs") / "segment", UNET)


def change(path: Path, **tables) -> None:
    config = json.loads(path.read_text())
    for name, fields in tables.items():
        config[name] = config[name] | fields if isinstance(fields, dict) else fields
    path.write_text(json.dumps(config))


def equal(a, b) -> bool:
    """Return whether all fields of two networks except their paths are equal."""
    tables = [vars(each) | {"path": None, "weights": None} for each in (a, b)]
    leaves = [jax.tree.flatten(table.pop("variables")) for table in tables]
    same = all(x.tobytes() == y.tobytes() for x, y in zip(leaves[0][0], leaves[1][0], strict=True))
    return same and leaves[0][1] == leaves[1][1] and tables[0] == tables[1]


# ---- the round trip -----------------------------------------------------------------------------


def test_an_export_is_the_run_bit_for_bit(pretext, segment, tmp_path):
    for name, run, load in (
        ("pretext", pretext, runs.load_pretext_run),
        ("segment", segment, runs.load_segment_run),
    ):
        out = tmp_path / name
        assert export_run(run, out) == [out / "model.safetensors", out / "README.md"]
        shutil.copy(out / "model.safetensors", tmp_path / f"{name}.any")
        for place in (out, out / "model.safetensors", tmp_path / f"{name}.any"):
            assert equal(load(place), load(run))
        again = tmp_path / f"{name} again"
        export_run(out, again)
        first, second = ((each / "model.safetensors").read_bytes() for each in (out, again))
        assert first == second


def test_init_from_takes_either(pretext, tmp_path):
    export_run(pretext, tmp_path / "out")
    for place in (tmp_path / "out", tmp_path / "out/model.safetensors"):
        assert pretraining_scales(place, 64.0, {}) == pretraining_scales(pretext, 64.0, {})
        with pytest.raises(InputError, match="are val or test here"):
            pretraining_scales(place, 64.0, {"tiny/0001": None})
        found, expected = runs.load_weights(place), runs.load_weights(pretext)
        assert found.keys() == expected.keys()
        assert all(found[key].tobytes() == expected[key].tobytes() for key in found)


def test_predict_from_an_export(segment, tmp_path):
    ball = make_ball(tmp_path / "ball")
    export_run(segment, tmp_path / "out")
    reports = [predict_brain(run, ball) for run in (segment, tmp_path / "out")]
    assert reports[1].folder == tmp_path / "out/predictions/ball" and reports[1].predicted
    for name in reports[1].predicted:
        maps = [open_class_map(report.folder / f"{name}.ome.tif") for report in reports]
        height, width = maps[0].levels[0].shape
        pixels = [found.read(0, 0, height, width) for found in maps]
        np.testing.assert_array_equal(*pixels)
    assert not predict_brain(tmp_path / "out", ball).predicted  # all sections are finished


# ---- what it says -------------------------------------------------------------------------------


def test_the_card(pretext, tmp_path):
    _, path = export_run(pretext, tmp_path / "out")
    card = path.read_text()
    _, head, body = card.split("---\n", 2)
    assert "pipeline_tag: image-feature-extraction\n" in head
    for words in ("32 x 32 px at 64 um/px", "5 features", "4.25 | 8.5", "1 of tiny"):
        assert words in body
    assert "pre-training | CC\\|BY | A B &lt;i>\\[x](y)" in body  # neither a tag nor a link
    parameters = sum(
        leaf.size for key, leaf in runs.load_weights(pretext).items() if "params" in key
    )
    assert f"{parameters:,}" in body and "jax " in body


def test_folders_are_not_told(pretext, tmp_path):
    export_run(pretext, tmp_path / "out")
    for path in (tmp_path / "out").iterdir():
        data = path.read_bytes()
        assert b"secret" not in data and str(pretext.parent).encode() not in data
    assert runs.read_config(tmp_path / "out")["data"]["brains"] == ["ball"]


def test_training_records_its_brains_and_those_of_pretraining(pretext, tmp_path):
    (own,) = runs.read_trained_on(pretext)
    assert own["licence"] == "CC|BY" and own["task"] == "pre-training"
    root = shutil.copytree(pretext, tmp_path / "segment")
    (root / "environment.json").unlink()
    other = own | {"brain": "other", "task": "segmentation"}
    record.add_start(root, 0, [own, other])
    record.add_start(root, 5, [other])  # continues after the pre-training run was removed
    assert runs.read_trained_on(root) == [own, other]


def test_a_run_of_an_older_version(pretext, tmp_path):
    old = shutil.copytree(pretext, tmp_path / "old")
    (old / "environment.json").unlink()
    export_run(old, tmp_path / "out")
    (found,) = runs.read_trained_on(tmp_path / "out")
    assert found["brain"] == "ball" and found["name"]


def test_what_is_there_is_kept(pretext, tmp_path):
    export_run(pretext, tmp_path / "out")
    (tmp_path / "out" / "README.md").write_text("mine")
    result = CliRunner().invoke(main, ["export", str(pretext), str(tmp_path / "out")])
    assert result.exit_code == 2 and "already there" in result.stderr
    assert (tmp_path / "out" / "README.md").read_text() == "mine"
    card = tmp_path / "out" / "README.md"
    result = CliRunner().invoke(main, ["export", str(pretext), str(card)])
    assert result.exit_code == 2 and "name a folder" in result.stderr


@pytest.mark.parametrize("starts", ["[null]", '[{"packages": null}]', "[]"])
def test_a_run_that_does_not_say_where_it_was_trained(pretext, tmp_path, starts):
    run = shutil.copytree(pretext, tmp_path / "run")
    (run / "environment.json").write_text(starts)
    _, card = export_run(run, tmp_path / "out")
    assert "5 features" in card.read_text()


# ---- damaged and foreign ones -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, "no export of jaxcyto"),
        ({"format": "pt"}, "no export of jaxcyto"),
        ({"jaxcyto": "{"}, "metadata: damaged"),
        ({"jaxcyto": "[" * 10**5}, "metadata: damaged"),
        ({"jaxcyto": "[]"}, "metadata: damaged"),
        ({"jaxcyto": '{"format": 2}'}, "format = 2.*newer"),
        ({"jaxcyto": '{"format": 1}'}, "metadata: damaged.*config"),
        ({"jaxcyto": '{"format": 1, "config": 3}'}, "metadata: damaged.*config"),
        ({"jaxcyto": " " * (17 << 20)}, "metadata: damaged"),
    ],
)
def test_foreign_metadata(pretext, tmp_path, metadata, message):
    path = tmp_path / "model.safetensors"
    save_file(load_file(pretext / "weights.safetensors"), path, metadata)
    for place in (path, tmp_path):
        with pytest.raises(InputError, match=message) as caught:
            runs.load_pretext_run(place)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("brains", [None, 3, [3]])
def test_brains_of_a_config_that_are_none(pretext, tmp_path, brains):
    run = shutil.copytree(pretext, tmp_path / "run")
    change(run / "config.json", data={"brains": brains})
    with pytest.raises(InputError, match=r"config\.json: damaged \(data\.brains"):
        export_run(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_damaged_files(pretext, tmp_path):
    path, _ = export_run(pretext, tmp_path)
    data = path.read_bytes()
    for damaged in (b"", data[:100], data[:-1], data + b"0"):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"model\.safetensors: .*damaged"):
            runs.load_pretext_run(path)
    config, leaves = runs.read_config(pretext), runs.load_weights(pretext)
    config["model"]["features"] = 6
    about = {"results": {}, "trained_on": [], "packages": {}, "config": config}
    write_export(path, leaves, about)
    with pytest.raises(InputError, match=r"do not belong together.*get the file again"):
        runs.load_pretext_run(path)


def test_the_wrong_task_and_no_run(pretext, segment, tmp_path):
    out = tmp_path / "out"
    export_run(segment, out)
    with pytest.raises(InputError, match="segmentation run"):
        runs.load_pretext_run(out)
    with pytest.raises(InputError, match="not a pre-training run"):
        pretraining_scales(out, 16.0, {})
    with pytest.raises(InputError, match=r"no config\.json and no model\.safetensors"):
        export_run(tmp_path, tmp_path / "b")
    half = shutil.copytree(pretext, tmp_path / "half")
    (half / "weights.safetensors").unlink()
    with pytest.raises(InputError, match="not finished"):
        export_run(half, tmp_path / "c")
    assert not (tmp_path / "c").exists()
