"""Test the loop on a tiny brain: a whole run, resuming, signals, a loss that is not finite."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp
from PIL import Image
from safetensors.numpy import load_file

from jaxcyto.brain.prepare import pair_brain
from jaxcyto.config import AugmentConfig, Config, DataConfig, LossConfig, ModelConfig, Term
from jaxcyto.data.pair_table import open_pairs
from jaxcyto.errors import InputError
from jaxcyto.losses import coordinate_loss, distance_loss
from jaxcyto.models.cpu import kernels
from jaxcyto.runs.metrics_file import read_metrics
from jaxcyto.runs.pair_predictions import read_predictions
from jaxcyto.training import loop
from jaxcyto.training.log import MetricsWriter
from jaxcyto.training.pretext import open_pretraining
from jaxcyto.training.state.checkpoint import Checkpoints
from jaxcyto.training.state.optim import schedule
from jaxcyto.utils.median import geometric_median

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def config(tiny_brain):
    return Config(
        data=DataConfig(
            brains=(str(tiny_brain),), patch_px=32, um_per_px=64.0, batch_pairs=8, threads=2
        ),
        model=ModelConfig(stem_kernel=3, stem_stride=1, widths=(4, 4, 8)),
        augment=AugmentConfig(noise=0.1),
        steps=6,
        log_every=1,
        eval_every=4,
        eval_pairs=16,
        batch_stats_steps=2,
        checkpoint_every=4,
    )


def final_state(workdir, config):
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        assert checkpoints.latest() == config.steps
    return ocp.load_checkpointables(workdir / "checkpoints" / str(config.steps))["state"]


def comparable(workdir):
    """Return the lines of metrics.jsonl without times and rates."""
    return [
        {k: v for k, v in line.items() if k != "time" and not k.startswith("speed/")}
        for line in read_metrics(workdir / "metrics.jsonl")
    ]


def test_a_whole_run(config, tmp_path, capsys):
    results = loop.train(config, tmp_path / "run")
    assert json.loads((tmp_path / "run/results.json").read_text()) == results
    test = results["test"]
    assert set(test) >= {
        "distance_mae_mm",
        "distance_mae_mm_constant",
        "coordinate_mae_mm",
        "coordinate_mae_mm_constant",
        "coordinate_mae_mm_per_axis",
    }
    assert len(test["coordinate_mae_mm_per_axis"]) == 3
    assert f"{test['distance_mae_mm_constant']:.2f}" in capsys.readouterr().out
    found = read_predictions(tmp_path / "run")
    distance = np.abs(found["distance_mm"] - found["predicted_distance_mm"]).mean()
    offset = found["coordinates_mm"] - found["predicted_coordinates_mm"]
    assert distance == pytest.approx(test["distance_mae_mm"], rel=1e-5)
    error = np.linalg.norm(offset, axis=-1).mean()
    assert error == pytest.approx(test["coordinate_mae_mm"], rel=1e-5)
    table = open_pairs(config.data)
    np.testing.assert_array_equal(np.sort(found["pair"]), table.of_split("test"))
    train, test_pairs = table.of_split("train"), table.of_split("test")
    constant = np.abs(table.distance_mm[test_pairs] - np.median(table.distance_mm[train])).mean()
    assert constant == pytest.approx(test["distance_mae_mm_constant"], rel=1e-5)
    ends = [np.stack([table.first[p], table.second[p]], axis=1) for p in (train, test_pairs)]
    center = geometric_median(table.coordinates_mm[np.unique(ends[0])])
    offset = table.coordinates_mm[ends[1]] - center
    constant = np.sqrt((offset**2).sum(axis=-1)).mean()
    assert constant == pytest.approx(test["coordinate_mae_mm_constant"], rel=1e-5)
    per_axis = np.abs(offset).mean(axis=(0, 1))
    np.testing.assert_allclose(test["coordinate_mae_mm_per_axis_constant"], per_axis, rtol=1e-5)
    correlation = np.corrcoef(found["predicted_distance_mm"], found["distance_mm"])[0, 1]
    assert correlation == pytest.approx(test["distance_correlation"], rel=1e-3)
    spread = found["predicted_distance_mm"].std() / found["distance_mm"].std()
    assert spread == pytest.approx(test["distance_spread"], rel=1e-4)
    starts = json.loads((tmp_path / "run/environment.json").read_text())
    assert [start["step"] for start in starts] == [0]
    for name in ("curves", "points", "pairs", "distance", "coordinates"):
        image = np.asarray(Image.open(tmp_path / f"run/figures/{name}.png").convert("L"))
        assert image.std() > 5, f"{name}.png is blank"
    steps = [line["step"] for line in read_metrics(tmp_path / "run/metrics.jsonl")]
    assert steps == sorted(steps) and steps[-1] == 6
    table = json.loads((tmp_path / "run/config.json").read_text())
    assert table["scales"]["distance_mm"] > 0


def test_weights_hold_the_statistics_of_training_batches(config, tmp_path):
    """Compare the first layer with the moments of its inputs, computed by a plain convolution."""
    loop.train(config, tmp_path)
    leaves = load_file(tmp_path / "weights.safetensors")
    experiment = open_pretraining(config, None)
    batches = experiment.train_batches(seed=0)
    patches = np.concatenate([batches[k]["patches"] for k in range(config.batch_stats_steps)])
    scales = experiment.task.scales
    gray = (patches.astype(float) - scales.input_mean) / scales.input_std
    kernel = leaves["params/encoder/block1/conv1/kernel"].astype(float)
    windows = np.lib.stride_tricks.sliding_window_view(gray[..., 0], (3, 3), axis=(2, 3))
    outputs = np.einsum("npyxij,ijc->npyxc", windows, kernel[:, :, 0])
    for name, wanted in (("mean", outputs.mean((0, 1, 2, 3))), ("var", outputs.var((0, 1, 2, 3)))):
        found = leaves[f"batch_stats/encoder/block1/bn1/{name}"]
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3, err_msg=name)


def test_stopped_and_resumed_is_uninterrupted(config, tmp_path, monkeypatch):
    """A run that SIGTERM stops after step 3 resumes and ends bit for bit as without it."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    loop.train(config, whole)
    write = MetricsWriter.write

    def write_then_signal(self, step, values):
        write(self, step, values)
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(MetricsWriter, "write", write_then_signal)
        with pytest.raises(loop.Interrupted) as stopped:
            loop.train(config, parts)
    assert stopped.value.signum == signal.SIGTERM
    with Checkpoints(parts / "checkpoints") as checkpoints:
        assert checkpoints.latest() in (3, 4)
    with (parts / "metrics.jsonl").open("a") as file:  # what a kill after a later step leaves
        file.write('{"step": 5, "train/loss": 0.0}\n{"step": 6, "tra')
    loop.train(config, parts)
    jax.tree.map(
        np.testing.assert_array_equal, final_state(whole, config), final_state(parts, config)
    )
    assert comparable(whole) == comparable(parts)
    results = [json.loads((folder / "results.json").read_text()) for folder in (whole, parts)]
    assert results[0] == results[1]


def test_finished_run_is_evaluated_again_not_trained(config, tmp_path):
    first = loop.train(config, tmp_path)
    before = comparable(tmp_path)
    assert loop.train(config, tmp_path) == first
    assert comparable(tmp_path) == before
    saved = json.loads((tmp_path / "config.json").read_text())
    del saved["optim"]["accumulate"]  # like a config.json of a version without this field
    (tmp_path / "config.json").write_text(json.dumps(saved))
    loop.train(config, tmp_path)
    written = (tmp_path / "config.json").read_bytes()
    config.optim = dataclasses.replace(config.optim, learning_rate=0.3)
    with pytest.raises(InputError, match=r"finished .* \(optim\.learning_rate: .* -> 0\.3\)"):
        loop.train(config, tmp_path)
    assert (tmp_path / "config.json").read_bytes() == written


def test_weights_of_the_best_validation(config, tmp_path, monkeypatch):
    """The best weights equal those of a run that ends at that step. results.json names the step."""
    from jaxcyto.training.pretext import PretextExperiment

    def validate(self, evaluator, state):
        return {"val/distance_mae_mm": 1.0 if int(state.step) == 4 else 2.0}

    config.optim.decay = "constant"
    monkeypatch.setattr(PretextExperiment, "validate", validate)
    last = loop.train(config, tmp_path / "run")
    assert last["weights"] == {"from": "last", "step": 6}
    shorter = dataclasses.replace(config, steps=4)
    loop.train(shorter, tmp_path / "shorter")
    best = loop.train(dataclasses.replace(config, weights="best"), tmp_path / "run")
    assert best["weights"] == {"from": "best", "step": 4} and best["steps"] == 6
    found, expected = (
        load_file(tmp_path / run / "weights.safetensors") for run in ("run", "shorter")
    )
    assert found.keys() == expected.keys()
    for name, leaf in expected.items():
        np.testing.assert_array_equal(found[name], leaf, err_msg=name)
    shutil.rmtree(tmp_path / "run/checkpoints/4")
    with pytest.raises(InputError, match=r"checkpoints/4: .* cannot be read .* weights = 'last'"):
        loop.train(dataclasses.replace(config, weights="best"), tmp_path / "run")


def test_the_best_weights_need_validation_data(config, tmp_path, monkeypatch):
    from jaxcyto.training.pretext import PretextExperiment

    monkeypatch.setattr(PretextExperiment, "can_validate", False)
    with pytest.raises(InputError, match="weights = 'best' needs validation data"):
        loop.train(dataclasses.replace(config, weights="best"), tmp_path / "run")
    assert not (tmp_path / "run/config.json").exists()


def test_the_learning_rate_is_logged(config, tmp_path):
    config.optim.warmup_steps = 2
    loop.train(config, tmp_path / "run")
    rates = {
        line["step"]: line["train/learning_rate"]
        for line in read_metrics(tmp_path / "run/metrics.jsonl")
        if "train/learning_rate" in line
    }
    expected = schedule(config.optim, config.steps)
    assert rates == {step: pytest.approx(float(expected(step - 1))) for step in range(1, 7)}
    assert rates[1] == 0.0 < rates[2] < rates[3] > rates[6]


def test_a_start_reads_each_file_of_pairs_and_patches_once(config, tmp_path, monkeypatch):
    opened = []
    real = open

    def counted(path, *arguments, **options):
        opened.append(str(path))
        return real(path, *arguments, **options)

    monkeypatch.setattr("builtins.open", counted)
    open_pairs(config.data)
    for name in ("pairs.npz", "patches.npz"):
        assert sum(path.endswith(name) for path in opened) == 1, name


@pytest.mark.parametrize(
    ("page", "term"), [("docs/losses.md", "close_pairs_loss"), ("README.md", "near_pairs")]
)
def test_documented_loss_runs_through_the_command(page, term, tiny_brain, tmp_path):
    """Run a user's own loss, as a page shows it, with one command and with oneDNN's kernels."""
    text = (ROOT / page).read_text()
    for name in ("my_losses", "my_config"):
        blocks = re.findall(rf"```python\n# {name}\.py[^\n]*\n(.*?)```", text, re.DOTALL)
        (tmp_path / f"{name}.py").write_text("\n\n".join(blocks))
    overrides = {
        "data.brains": str(tiny_brain), "data.patch_px": 32, "data.um_per_px": 64.0,
        "data.batch_pairs": 8, "model.widths": "(4,4,8)", "steps": 1, "batch_stats_steps": 1,
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "train.py", "--config", str(tmp_path / "my_config.py"),
         f"--workdir={tmp_path / 'run'}", *(f"--config.{k}={v}" for k, v in overrides.items())],
        cwd=ROOT, capture_output=True, text=True, timeout=200, env=os.environ | {"XLA_FLAGS": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    line = read_metrics(tmp_path / "run/metrics.jsonl")[0]
    assert line[f"train/loss/{term}"] >= 0


def test_loss_that_is_not_finite_stops_with_step_and_pairs(config, tmp_path):
    def explode(outputs, batch):
        return jnp.full(batch["distance_mm"].shape, jnp.inf) * outputs["features"][:, 0, 0]

    config.loss = LossConfig(terms=(Term(distance_loss), Term(explode)))
    with pytest.raises(FloatingPointError, match=r"step 1; pairs \[\d+.*learning_rate"):
        loop.train(config, tmp_path)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.latest() is None


def test_accumulation_resumes_in_the_middle_of_an_update(config, tmp_path):
    optim = dataclasses.replace(config.optim, accumulate=3)
    config = dataclasses.replace(config, optim=optim, steps=9, eval_every=9, checkpoint_every=4)
    loop.train(config, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for step in (8, 9):
        shutil.rmtree(tmp_path / "cut/checkpoints" / str(step))
    loop.train(config, tmp_path / "cut")
    whole, cut = (final_state(tmp_path / name, config) for name in ("whole", "cut"))
    jax.tree.map(np.testing.assert_array_equal, whole, cut)
    config.optim = dataclasses.replace(optim, accumulate=1)
    with pytest.raises(InputError, match=r"optim\.accumulate = 3, not 1"):
        loop.train(config, tmp_path / "cut")
    config.optim = dataclasses.replace(optim, accumulate=2)
    with pytest.raises(InputError, match=r"optim\.accumulate = 2 does not divide the 9 steps"):
        loop.train(config, tmp_path / "other")


def test_other_network_on_an_old_run_is_refused(config, tmp_path):
    loop.train(config, tmp_path)
    config.model = ModelConfig(stem_kernel=3, stem_stride=1, widths=(4, 8, 8))
    before = (tmp_path / "config.json").read_text()
    with pytest.raises(InputError, match=r"checkpoint of step 6.*--workdir"):
        loop.train(config, tmp_path)
    assert (tmp_path / "config.json").read_text() == before


def test_finite_loss_with_broken_gradient_is_not_saved(config, tmp_path):
    def broken(outputs, batch):
        return 0 * jnp.sqrt(jnp.sum(0 * outputs["features"] ** 2, axis=(1, 2)))

    config.loss = LossConfig(terms=(Term(distance_loss), Term(broken)))
    config.checkpoint_every = 1
    with pytest.raises(FloatingPointError, match="gradient's norm nan at step 1"):
        loop.train(config, tmp_path)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.latest() is None


def test_new_pairs_on_an_old_run_are_refused(config, tiny_brain, tmp_path):
    """A run must not continue, because a new split may put training patches into the test."""
    root = tmp_path / "brain"
    shutil.copytree(tiny_brain, root)
    config.data.brains, config.steps = (str(root),), 1
    loop.train(config, tmp_path / "run")
    before = (tmp_path / "run/config.json").read_text()
    pair_brain(root, num_pairs=480, method="heat", workers=1, seed=1)
    with pytest.raises(InputError, match="started on other data"):
        loop.train(config, tmp_path / "run")
    assert (tmp_path / "run/config.json").read_text() == before


def test_batch_must_divide_over_devices(config, tmp_path):
    config.data = dataclasses.replace(config.data, batch_pairs=9)
    with pytest.raises(InputError, match=r"batch_pairs = 9 .* 8 devices"):
        loop.train(config, tmp_path)


def test_the_config_switches_onednn_off_and_on(config, tmp_path):
    config.data = dataclasses.replace(config.data, batch_pairs=9)  # ends the run before its data
    try:
        for config.onednn in (False, True):
            with pytest.raises(InputError, match="batch_pairs"):
                loop.train(config, tmp_path)
            assert kernels.switched_off() == (not config.onednn)
    finally:
        kernels.switch(True)


def test_single_losses_by_weight(config, tmp_path):
    """A term with weight 0 is logged but does not contribute to the loss."""
    config.loss = LossConfig(terms=(Term(distance_loss, 1.0), Term(coordinate_loss, 0.0)))
    config.steps, config.eval_every = 2, 100
    loop.train(config, tmp_path)
    line = read_metrics(tmp_path / "metrics.jsonl")[0]
    assert line["train/loss/coordinate_loss"] > 0
    expected = line["train/loss/distance_loss"] + 0.001 * line["train/l2_kernels"] ** 2
    assert line["train/loss"] == pytest.approx(expected, rel=1e-5)
