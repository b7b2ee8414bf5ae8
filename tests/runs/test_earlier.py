"""Test that files written before the current layout of the package can still be read.

`earlier/` holds a brain with patches and pairs, a finished run of each task, an export, and a
pre-training run that was stopped after step 4 of 8. Commit 74c5367 wrote all of them.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import jaxcyto
from jaxcyto.brain import check_brain, read_brain
from jaxcyto.brain.sampling import load_pairs, load_patches
from jaxcyto.predict import predict_brain
from jaxcyto.runs import load_run, read_metrics, read_predictions

EARLIER = Path(__file__).parent / "earlier"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Copy the files and change to their folder, in which the runs were started."""
    shutil.copytree(EARLIER, tmp_path / "earlier")
    monkeypatch.chdir(tmp_path / "earlier")
    return tmp_path / "earlier"


def test_the_brain_and_what_was_sampled_from_it(folder):
    assert check_brain(folder / "brain").faults == []
    brain = read_brain(folder / "brain")
    patches = load_patches(folder / "brain/patches.npz", brain)
    pairs = load_pairs(folder / "brain/pairs.npz")
    assert (len(patches), len(pairs.first)) == (120, 200)


@pytest.mark.parametrize("run", ["pretext", "segment", "exported"])
def test_finished_runs_and_exports_load(run):
    loaded = load_run(EARLIER / run)
    assert loaded.training_sections
    image = np.full((128, 128), 120, np.uint8)
    network = jaxcyto.load(EARLIER / run)
    if run == "pretext":
        features = network.embed(image[None, :32, :32]).features
        assert features.shape == (1, 32) and np.isfinite(features).all()
    else:
        assert network.segment(image).classes.max() < 3


def test_an_export_equals_its_run(folder):
    """Check that the class maps of both are equal."""
    import tifffile

    for run in ("segment", "exported"):
        predict_brain(folder / run, folder / "brain", sections=["c"])
    maps = [next((folder / run).rglob("c.ome.tif")) for run in ("segment", "exported")]
    assert np.array_equal(*(tifffile.imread(path) for path in maps))


def test_figures_of_a_finished_run():
    found = read_predictions(EARLIER / "pretext")
    results = json.loads((EARLIER / "pretext/results.json").read_text())
    error = np.abs(found["distance_mm"] - found["predicted_distance_mm"]).mean()
    assert error == pytest.approx(results["test"]["distance_mae_mm"], rel=1e-5)
    assert read_metrics(EARLIER / "pretext/metrics.jsonl")[-1]["step"] == 8


def test_an_unfinished_run_continues_to_the_same_end(folder, config_of):
    from jaxcyto.training import train

    train(config_of(folder / "pretext.py"), folder / "unfinished")
    ours, theirs = (
        load_file(folder / run / "weights.safetensors") for run in ("unfinished", "pretext")
    )
    assert ours.keys() == theirs.keys()
    for name in ours:  # up to rounding, because another CPU may sum in another order
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.fixture
def config_of():
    """Return a function that calls `get_config()` of a config file."""
    import importlib.util

    def load(path: Path):
        spec = importlib.util.spec_from_file_location("earlier_config", path)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.get_config()

    return load
