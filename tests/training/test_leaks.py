"""Test that held-out sections which were trained on are recognized by their content."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import tifffile
from click.testing import CliRunner

from jaxcyto.brain.manifest import read_table, write_table
from jaxcyto.brain.sections import fingerprint as fingerprint_module
from jaxcyto.cli import main
from jaxcyto.config import Config, DataConfig, ModelConfig, SegmentConfig, SegmentData
from jaxcyto.data.pair_table import open_pairs
from jaxcyto.errors import InputError
from jaxcyto.runs.export import export_run
from jaxcyto.runs.load import read_config, training_sections
from jaxcyto.runs.seen import seen
from jaxcyto.training import loop
from jaxcyto.training.pretext import open_pretraining
from jaxcyto.training.segment import open_segmentation

# One area of the tiny brain has no training pixel, which causes a warning.
pytestmark = pytest.mark.filterwarnings("ignore:no training pixel")
MODEL = ModelConfig(stem_kernel=3, stem_stride=1, widths=(4, 4, 8))


def pretraining(*brains: Path, **fields) -> Config:
    folders = tuple(map(str, brains))
    data = DataConfig(folders, patch_px=32, um_per_px=64.0, batch_pairs=8, threads=2, **fields)
    return Config(data=data, model=MODEL, steps=1, batch_stats_steps=1)


def segmentation(*brains: Path, init_from: Path | None = None, **fields) -> SegmentConfig:
    data = SegmentData(
        tuple(map(str, brains)), image_px=60, um_per_px=64.0, batch_images=8, threads=2, **fields
    )
    run = None if init_from is None else str(init_from)
    return SegmentConfig(data=data, model=MODEL, init_from=run, steps=1, batch_stats_steps=1)


@pytest.fixture(scope="module")
def pretrained(tiny_brain, tmp_path_factory) -> Path:
    """Return a finished pre-training run, and an export of it beside it."""
    folder = tmp_path_factory.mktemp("runs") / "pretrained"
    loop.train(pretraining(tiny_brain), folder)
    export_run(folder, folder.parent / "exported")
    return folder


def hold_out(brain: Path, run: Path) -> str:
    """Make a section that the run was trained on, and that is annotated, a test section."""
    trained = {name.split("/")[-1] for name in read_config(run)["training_sections"]}
    rows = [row for _, row in read_table(brain / "sections.csv", [])]
    chosen = next(row for row in rows if row["section"] in trained and row["label"])
    chosen["split"] = "test"
    write_table(brain / "sections.csv", rows)
    return chosen["section"]


def change(brain: Path) -> None:
    """Give each section of a brain other gray values."""
    for _, row in read_table(brain / "sections.csv", []):
        image = tifffile.imread(brain / row["image"])
        tifffile.imwrite(brain / row["image"], image ^ 1, tile=(64, 64))


def restore(brain: Path) -> None:
    """Store each section of a brain with another codec and tiling and under another name."""
    rows = [row for _, row in read_table(brain / "sections.csv", [])]
    for row in rows:
        image = tifffile.imread(brain / row["image"])
        (brain / row["image"]).unlink()
        row["image"] = f"stored_{row['section']}.tif"
        tifffile.imwrite(brain / row["image"], image, tile=(32, 48), compression="lzw")
    write_table(brain / "sections.csv", rows)


def forget(run: Path, target: Path) -> Path:
    """Copy a run without its fingerprints, as an earlier version wrote it."""
    shutil.copytree(run, target)
    config = read_config(run)
    del config["training_fingerprints"]
    (target / "config.json").write_text(json.dumps(config))
    return target


# ---- fine-tuning --------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["pretrained", "exported"])
@pytest.mark.parametrize("stored", ["as it was", "otherwise"])
def test_a_renamed_copy_is_refused(pretrained, tiny_brain, tmp_path, source, stored):
    brain = shutil.copytree(tiny_brain, tmp_path / "renamed")
    if stored == "otherwise":
        restore(brain)
    name = hold_out(brain, pretrained)
    config = segmentation(brain, init_from=pretrained.parent / source)
    message = rf"on 1 sections .* renamed/{name} \({tiny_brain.name}/{name} of that run\); pre-tr"
    with pytest.raises(InputError, match=message):
        open_segmentation(config, None)


def test_renamed_sections_are_refused(pretrained, tiny_brain, tmp_path):
    brain = shutil.copytree(tiny_brain, tmp_path / "renamed")
    name = hold_out(brain, pretrained)
    rows = [row for _, row in read_table(brain / "sections.csv", [])]
    for row in rows:
        row["section"] = f"new {row['section']}"
    write_table(brain / "sections.csv", rows)
    with pytest.raises(InputError, match=rf"renamed/new {name} \({tiny_brain.name}/{name} of"):
        open_segmentation(segmentation(brain, init_from=pretrained), None)


def test_another_brain_in_a_folder_of_the_same_name_is_accepted(
    pretrained, tiny_brain, tmp_path, caplog
):
    brain = shutil.copytree(tiny_brain, tmp_path / tiny_brain.name)
    hold_out(brain, pretrained)
    change(brain)
    open_segmentation(segmentation(brain, init_from=pretrained), None)
    assert "fingerprints" not in caplog.text


def test_the_same_splits_are_accepted(pretrained, tiny_brain, caplog):
    """The brain of the pre-training is opened, and the record names it for both tasks."""
    experiment = open_segmentation(segmentation(tiny_brain, init_from=pretrained), None)
    seen_before = training_sections(read_config(pretrained))
    recorded = experiment.training_fingerprints()
    assert {f"pre-training/{name}" for name in seen_before} < recorded.keys()
    assert not set(experiment.table.fingerprints(trained=False).values()) & set(recorded.values())
    assert not caplog.records


def test_an_earlier_run_is_compared_by_name(pretrained, tiny_brain, tmp_path, caplog):
    earlier = forget(pretrained, tmp_path / "earlier")
    same = shutil.copytree(tiny_brain, tmp_path / tiny_brain.name)
    name = hold_out(same, pretrained)
    with caplog.at_level(logging.WARNING, "jaxcyto"):
        with pytest.raises(InputError, match=f"{same.name}/{name}"):
            open_segmentation(segmentation(same, init_from=earlier), None)
    assert caplog.text.count("compared by name") == 1
    open_segmentation(
        segmentation(same.rename(tmp_path / "renamed"), init_from=earlier), None
    )  # not recognized, as the note says


def test_a_section_without_fingerprint_is_compared_by_name(pretrained, tiny_brain, tmp_path):
    """Its windows are empty, so its content does not tell it apart."""
    brain = shutil.copytree(tiny_brain, tmp_path / tiny_brain.name)
    name = hold_out(brain, pretrained)
    row = next(r for _, r in read_table(brain / "sections.csv", []) if r["section"] == name)
    image = tifffile.imread(brain / row["image"])
    tifffile.imwrite(brain / row["image"], image * 0 + 255, tile=(64, 64))
    with pytest.raises(InputError, match=f"{brain.name}/{name}"):
        open_segmentation(segmentation(brain, init_from=pretrained), None)


# ---- what a run records -------------------------------------------------------------------------


def test_run_and_export_record_the_same(pretrained):
    config = read_config(pretrained)
    found = config["training_fingerprints"]
    assert list(found) == config["training_sections"] and all(found.values())
    assert len(set(found.values())) == len(found)
    assert training_sections(config) == found
    assert read_config(pretrained.parent / "exported")["training_fingerprints"] == found


def test_a_run_that_continues_keeps_what_it_recorded(pretrained, tiny_brain, tmp_path):
    """The images may be stored elsewhere by then. An earlier run goes on without fingerprints."""
    run = shutil.copytree(pretrained, tmp_path / "run")
    config = read_config(run)
    config["training_fingerprints"] = dict.fromkeys(config["training_fingerprints"], "kept")
    (run / "config.json").write_text(json.dumps(config))
    loop.train(pretraining(tiny_brain), run)
    assert read_config(run)["training_fingerprints"] == config["training_fingerprints"]
    earlier = forget(pretrained, tmp_path / "earlier")
    loop.train(pretraining(tiny_brain), earlier)
    assert "training_fingerprints" not in read_config(earlier)


def test_a_section_that_training_skips_has_none(tiny_brain, tmp_path):
    brain = shutil.copytree(tiny_brain, tmp_path / "brain")
    experiment = open_pretraining(pretraining(brain, on_error="skip"), None)
    name, (_, row) = next(iter(experiment.table.training_rows.items()))
    experiment.table.brains[0].sections[row].image.write_bytes(b"damaged")
    experiment = open_pretraining(pretraining(brain, on_error="skip"), None)
    found = experiment.training_fingerprints()
    assert found[name] is None and sum(value is None for value in found.values()) == 1


def test_pairs_of_two_brains_of_one_name_are_told_apart(tiny_brain, tmp_path):
    brains = [shutil.copytree(tiny_brain, tmp_path / side / "brain") for side in ("a", "b")]
    change(brains[1])
    experiment = open_pretraining(pretraining(*brains), None)
    assert list(experiment.identity["pairs_sha256"]) == ["a/brain", "b/brain"]
    found = experiment.training_fingerprints()
    assert len(set(found.values())) == len(found) == len(experiment.identity["training_sections"])
    assert {name.rpartition("/")[0] for name in found} == {"a/brain", "b/brain"}
    with pytest.raises(InputError, match="is listed twice"):
        open_pairs(pretraining(brains[0], brains[0]).data)


# ---- several brains in a config -----------------------------------------------------------------


def test_a_copy_with_other_splits_beside_its_original_is_refused(pretrained, tiny_brain, tmp_path):
    copy = shutil.copytree(tiny_brain, tmp_path / "copy")
    open_segmentation(segmentation(tiny_brain, copy), None)
    name = hold_out(copy, pretrained)
    with pytest.raises(InputError, match=f"copy/{name} is {tiny_brain.name}/{name}"):
        open_segmentation(segmentation(tiny_brain, copy), None)
    change(copy)
    open_segmentation(segmentation(tiny_brain, copy), None)


# ---- evaluation ---------------------------------------------------------------------------------


def test_a_renamed_copy_is_no_test(tiny_brain, tmp_path):
    run = tmp_path / "segment"
    loop.train(segmentation(tiny_brain), run)
    copy = shutil.copytree(tiny_brain, tmp_path / "copy")
    name = hold_out(copy, run)
    found = CliRunner().invoke(main, ["evaluate", str(run), str(copy)])
    assert found.exit_code == 2
    assert f"copy/{name} ({tiny_brain.name}/{name} of that run)" in found.stderr
    change(copy)
    found = CliRunner().invoke(main, ["evaluate", str(run), str(copy)])
    assert found.exit_code == 0, found.output


# ---- the rule -----------------------------------------------------------------------------------


def test_a_section_of_the_pre_training_is_no_test(pretrained, tiny_brain, tmp_path):
    """A fine-tuned run remembers what its pre-training has seen, and so does its export."""
    other = shutil.copytree(tiny_brain, tmp_path / "other")
    change(other)
    loop.train(segmentation(other, init_from=pretrained), tmp_path / "run")
    export_run(tmp_path / "run", tmp_path / "exported")
    brain = shutil.copytree(tiny_brain, tmp_path / "renamed")
    name = hold_out(brain, pretrained)
    for run in ("run", "exported"):
        result = CliRunner().invoke(main, ["evaluate", str(tmp_path / run), str(brain)])
        assert result.exit_code == 2
        assert f"renamed/{name} (pre-training/{tiny_brain.name}/{name}" in " ".join(
            result.output.split()
        ).replace("pre- training", "pre-training")


def test_a_copy_within_a_brain_is_refused(tiny_brain, tmp_path):
    brain = shutil.copytree(tiny_brain, tmp_path / "brain")
    rows = [row for _, row in read_table(brain / "sections.csv", []) if row["label"]]
    train, test = (next(r for r in rows if r["split"] == split) for split in ("train", "test"))
    shutil.copyfile(brain / train["image"], brain / test["image"])
    with pytest.raises(InputError, match="have the content of a training section"):
        open_segmentation(segmentation(brain), None)


@pytest.mark.parametrize("damage", [None, ["a"], 3, {"a": 1}])
def test_damaged_fingerprints_of_a_run_that_continues_are_named(
    pretrained, tiny_brain, tmp_path, damage
):
    run = shutil.copytree(pretrained, tmp_path / "run")
    config = read_config(run) | {"training_fingerprints": damage}
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"config.json: damaged \(training_fingerprints\)"):
        loop.train(pretraining(tiny_brain), run)


def test_different_brains_of_one_name_are_not_noted(tiny_brain, tmp_path, caplog):
    """Two brains of one config have equal names of sections in different splits."""
    brains = [shutil.copytree(tiny_brain, tmp_path / side / "brain") for side in ("a", "b")]
    change(brains[1])
    rows = [row for _, row in read_table(brains[1] / "sections.csv", [])]
    for row in rows:
        row["split"] = {"train": "test", "test": "train"}.get(row["split"], row["split"])
    write_table(brains[1] / "sections.csv", rows)
    experiment = open_segmentation(segmentation(*brains), None)
    assert len(experiment.table.brains) == 2
    assert not caplog.records


def test_each_section_is_fingerprinted_once(pretrained, tiny_brain, monkeypatch):
    counted = []
    original = fingerprint_module.fingerprint

    def count(section):
        counted.append(section.path)
        return original(section)

    monkeypatch.setattr(fingerprint_module, "fingerprint", count)
    experiment = open_segmentation(segmentation(tiny_brain, init_from=pretrained), None)
    experiment.training_fingerprints()
    assert len(counted) == len(set(counted)) == len(experiment.table.sections)


def test_other_content_of_the_same_name_is_noted(caplog):
    with caplog.at_level(logging.WARNING, "jaxcyto"):
        assert seen({"brain/1": "a", "brain/2": "b"}, {"brain/1": "c", "brain/3": "d"}) == []
    assert "1 held-out sections have the names of training sections" in caplog.text


def test_seen():
    trained = {"a/1": "x", "a/2": None, "up/b/1": None}
    cases = {"c/9": "x", "a/1": "y", "a/2": "z", "a/3": "z", "b/1": None, "c/1": None}
    assert seen(trained, cases) == [("a/2", "a/2"), ("b/1", "up/b/1"), ("c/9", "a/1")]
    assert seen(trained, {"a/1": None}) == [("a/1", "a/1")]
    assert seen({}, cases) == seen(trained, {}) == []
