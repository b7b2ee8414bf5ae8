"""Test segmentation on a tiny brain: a whole run, transfer of weights, resuming, evaluation."""

import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tifffile
from click.testing import CliRunner
from sklearn.metrics import confusion_matrix, f1_score

from jaxcyto.brain.manifest import read_brain, read_table, write_table
from jaxcyto.cli import main
from jaxcyto.config import (
    AugmentConfig,
    Config,
    DataConfig,
    InputScales,
    LossConfig,
    ModelConfig,
    OptimConfig,
    SegmentConfig,
    SegmentData,
)
from jaxcyto.data.segment_table import open_windows
from jaxcyto.errors import InputError
from jaxcyto.metrics import segmentation_scores
from jaxcyto.models import UNet
from jaxcyto.runs import load as runs
from jaxcyto.runs.export import export_run
from jaxcyto.runs.metrics_file import read_metrics
from jaxcyto.scores import confusion
from jaxcyto.training import loop
from jaxcyto.training.devices import parallel
from jaxcyto.training.segment import SegmentTask, open_segmentation
from jaxcyto.training.state.optim import make_optimizer
from jaxcyto.training.state.state import init_state
from jaxcyto.training.state.transfer import transfer
from jaxcyto.training.step import train_step

# One area of the tiny brain has no training pixel, which causes a warning.
pytestmark = pytest.mark.filterwarnings("ignore:no training pixel")
MODEL = ModelConfig(stem_kernel=3, stem_stride=1, widths=(4, 4, 8))


@pytest.fixture(scope="session")
def pretrained(tiny_brain, tmp_path_factory):
    """Return a finished pre-training run of three steps."""
    folder = tmp_path_factory.mktemp("runs") / "pretrained"
    data = DataConfig((str(tiny_brain),), patch_px=32, um_per_px=64.0, batch_pairs=8, threads=2)
    loop.train(Config(data=data, model=MODEL, steps=3, eval_every=9, batch_stats_steps=2), folder)
    return folder


@pytest.fixture
def config(tiny_brain):
    return SegmentConfig(
        data=SegmentData(
            (str(tiny_brain),), image_px=60, um_per_px=64.0, atlas=True, batch_images=8, threads=2
        ),
        model=MODEL,
        optim=OptimConfig(optimizer=optax.adam, learning_rate=0.01),
        steps=6,
        log_every=1,
        eval_every=4,
        eval_images=4,
        batch_stats_steps=2,
        checkpoint_every=4,
    )


def trained(brain, folder, atlas):
    data = SegmentData((str(brain),), image_px=60, um_per_px=64.0, batch_images=8, threads=2)
    data.atlas = atlas
    optim = OptimConfig(optimizer=optax.adam, learning_rate=0.01)
    settings = {"steps": 25, "eval_every": 99, "batch_stats_steps": 4}
    results = loop.train(SegmentConfig(data=data, model=MODEL, optim=optim, **settings), folder)
    return folder, results


@pytest.fixture(scope="module")
def finished(tiny_brain, tmp_path_factory):
    """Return the folder and results of a finished segmentation run without an atlas."""
    return trained(tiny_brain, tmp_path_factory.mktemp("runs") / "segment", atlas=False)


@pytest.fixture(scope="module")
def finished_with_atlas(tiny_brain, tmp_path_factory):
    """Return the same for a run with an atlas."""
    return trained(tiny_brain, tmp_path_factory.mktemp("runs") / "atlas", atlas=True)


def comparable(workdir):
    """Return the lines of metrics.jsonl without times and rates."""
    return [
        {k: v for k, v in line.items() if k != "time" and not k.startswith("speed/")}
        for line in read_metrics(workdir / "metrics.jsonl")
    ]


# ---- runs ----------------------------------------------------------------------------------------


def test_a_whole_run(config, pretrained, tmp_path, capsys):
    config.init_from = str(pretrained)
    results = loop.train(config, tmp_path)
    assert json.loads((tmp_path / "results.json").read_text()) == results
    test = results["test"]
    assert {"dice_macro_areas", "dice_macro", "err_seg_percent", "dice"} <= test.keys()
    confusion = np.array(results["confusion"])
    assert (
        test["pixels"] == confusion.sum() == sum(s["pixels"] for s in results["sections"].values())
    )
    np.testing.assert_allclose(
        test["err_seg_percent"], 100 * (1 - np.trace(confusion) / confusion.sum())
    )
    assert "wrong, %" in capsys.readouterr().out
    for figure in ("curves.png", "confusion.png"):
        assert (tmp_path / "figures" / figure).stat().st_size > 10_000
    # The scaling of the input is taken over with the weights.
    scales = [runs.read_config(folder)["scales"] for folder in (pretrained, tmp_path)]
    assert scales[1] == {key: scales[0][key] for key in ("input_mean", "input_std")}
    lines = comparable(tmp_path)
    assert [line["step"] for line in lines if "train/loss" in line] == list(range(1, 7))
    assert [line["step"] for line in lines if "val/err_seg_percent" in line] == [4, 6]


def test_exports_stand_for_their_runs(config, pretrained, finished, tiny_brain, tmp_path):
    """Training from an export, and commands on one, give the same results as with its run."""
    folders = {"pretrained": pretrained, "finished": finished[0]}
    for name, run in folders.items():
        export_run(run, tmp_path / name)
        folders[name] = (run, tmp_path / name)
    trained = []
    for source in folders["pretrained"]:
        folder = tmp_path / f"from {source.parent.name}"
        loop.train(dataclasses.replace(config, init_from=str(source)), folder)
        trained.append({k: v.tobytes() for k, v in runs.load_weights(folder).items()})
    assert trained[0] == trained[1]
    for command, name in (("explore", "pretrained"), ("evaluate", "finished")):
        printed = []
        for source in folders[name]:
            result = CliRunner().invoke(main, [command, str(source), str(tiny_brain), "--json"])
            assert result.exit_code == 0, result.output
            printed.append(result.stdout.replace(str(source), "RUN"))
        assert printed[0] == printed[1]
        assert len(json.loads(printed[0])) > 0


def test_the_test_scores_every_annotated_pixel(finished, tiny_brain):
    """The scored pixels are all annotated pixels of the test sections on the output grid."""
    data = SegmentData((str(tiny_brain),), image_px=60, um_per_px=64.0)
    table = open_windows(data, MODEL)
    assert finished[1]["test"]["pixels"] == table.class_pixels("test").sum() > 1000
    of_table = {each.row.name for each in table.sections if each.row.split == "test"}
    assert finished[1]["sections"].keys() == of_table


def test_resumes_bit_identical(config, tmp_path):
    config.optim.decay = "constant"  # a decay would depend on the number of steps of the run
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    wanted = loop.train(config, whole)
    loop.train(dataclasses.replace(config, steps=4), parts)
    assert loop.train(config, parts) == wanted
    assert comparable(parts) == comparable(whole)
    a, b = (runs.load_weights(folder) for folder in (whole, parts))
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_changed_annotation_ends_a_run(config, tiny_brain, tmp_path):
    """A run must not continue, because test pixels might have become training pixels."""
    brain = shutil.copytree(tiny_brain, tmp_path / "brain")
    config.data.brains, config.steps = (str(brain),), 1
    loop.train(config, tmp_path / "run")
    table = brain / "sections.csv"
    table.write_text(table.read_text().replace(",exclude", ",train", 1))
    with pytest.raises(InputError, match=r"annotation may put training data into the test"):
        loop.train(config, tmp_path / "run")


def test_changed_weights_or_optimizer_end_a_run(config, pretrained, finished):
    """A run cannot continue with other initial weights or another optimizer."""
    config.data.atlas = False
    with pytest.raises(InputError, match=r"started with init_from = None"):
        loop.train(dataclasses.replace(config, init_from=str(pretrained)), finished[0])
    config.optim.optimizer = optax.sgd
    with pytest.raises(InputError, match=r"of another network or optimizer") as raised:
        loop.train(config, finished[0])
    assert len(str(raised.value)) < 1000


def test_run_of_the_other_task_is_refused(config, pretrained):
    with pytest.raises(InputError, match="other task"):
        loop.train(config, pretrained)


# ---- score maps ----------------------------------------------------------------------------------


@pytest.fixture
def scoring(config, pretrained):
    """Return a config with score maps on the pre-trained layers."""
    config.init_from = str(pretrained)
    config.data = dataclasses.replace(config.data, atlas=False, image_px=60)
    config.model = dataclasses.replace(MODEL, decoder="scores", pools=(3,))
    config.encoder_statistics, config.fit_head = "stored", True
    return config


def test_a_head_alone(scoring, pretrained, tmp_path):
    """The pre-trained layers stay as they are, and the head beats the most frequent class."""
    scoring.steps = 0
    results = loop.train(scoring, tmp_path / "head")
    matrix = np.array(results["confusion"])
    wrong = results["test"]["err_seg_percent"]
    assert wrong < 100 * (1 - matrix.sum(axis=1).max() / matrix.sum())
    own, taken = (runs.load_weights(run) for run in (tmp_path / "head", pretrained))
    for name in own:
        if name.split("/")[1] == "encoder":
            np.testing.assert_array_equal(own[name], taken[name], err_msg=name)
    assert list((pretrained / "features").rglob("*.npz"))


def test_a_head_is_fitted_again_in_the_same_folder(scoring, tmp_path, tiny_brain):
    scoring.steps = 0
    loop.train(scoring, tmp_path)
    before = (tmp_path / "weights.safetensors").read_bytes()
    train = [row.name for row in read_brain(tiny_brain).sections if row.split == "train"]
    scoring.data.train_sections, scoring.test = tuple(train[6:10]), False
    results = loop.train(scoring, tmp_path)
    assert "test" not in results and results["steps"] == 0
    assert (tmp_path / "weights.safetensors").read_bytes() != before


def test_stored_statistics_stay(scoring, pretrained, tmp_path):
    """Fine-tuning changes the kernels, but not the statistics."""
    scoring.encoder_rate = 1.0
    loop.train(scoring, tmp_path)
    own, taken = (runs.load_weights(run) for run in (tmp_path, pretrained))
    name = "encoder/block1/{}"
    for leaf in ("bn1/mean", "bn2/var"):
        key = f"batch_stats/{name.format(leaf)}"
        np.testing.assert_array_equal(own[key], taken[key])
    key = f"params/{name.format('conv1/kernel')}"
    assert not np.array_equal(own[key], taken[key])


def test_a_head_needs_score_maps_and_pre_training(scoring, tmp_path):
    scoring.steps, scoring.init_from = 0, None
    with pytest.raises(InputError, match=r"steps = 0: .*init_from"):
        loop.train(scoring, tmp_path)
    scoring.model = MODEL
    with pytest.raises(InputError, match="needs model\\.decoder"):
        loop.train(scoring, tmp_path)


# ---- the step ------------------------------------------------------------------------------------


def test_devices_agree(config):
    """Compare three steps on one device and on eight, with augmentation and an atlas."""
    config.augment = AugmentConfig(noise=0.1)
    config.optim = OptimConfig(optimizer=optax.sgd, learning_rate=0.01)  # linear in the gradient
    experiment = open_segmentation(config, None)
    batches = experiment.train_batches(1)
    start = jax.device_get(experiment.init_state(fresh=True))  # a step deletes its input
    one, eight = start, parallel.replicate(start)
    single = jax.jit(functools.partial(train_step, task=experiment.task))
    mapped = parallel.pmap_train(train_step, task=experiment.task)
    for k in range(3):
        one, measured_one = single(one, batches[k])
        eight, measured_eight = mapped(eight, parallel.split_over_devices(batches[k]))

    def close(x, y):
        np.testing.assert_allclose(x, y, rtol=0, atol=2e-5 * max(np.abs(y).max(), 1e-3))

    measured = measured_one, measured_eight
    np.testing.assert_allclose(*(each["scalars"]["loss"] for each in measured), rtol=1e-5)
    one, eight = jax.device_get((one, eight))
    jax.tree.map(close, eight.batch_stats, one.batch_stats)
    moves = [jax.tree.map(np.subtract, each.params, start.params) for each in (one, eight)]
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(moves[0]))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0.01, atol=1e-5), *moves)
    matrices = [np.asarray(each["errors"]["confusion"][0]) for each in measured]
    assert matrices[0].sum() == matrices[1].sum() == (batches[2]["label"] != 255).sum()
    assert np.abs(matrices[0] - matrices[1]).sum() <= 4  # logits that tie up to rounding


def test_inputs_move_together_and_have_the_units_of_the_network():
    """Image, label and atlas undergo the same of the eight symmetries, computed by NumPy."""
    net, loss = UNet(num_classes=3, stem_kernel=3, stem_stride=1, widths=(4, 4)), LossConfig()
    options = AugmentConfig(brightness=0.0, contrast=0.0, blur_px=0.0)  # flips and rotations
    task = SegmentTask(net, loss, options, InputScales(100.0, 50.0), optax.sgd(0.1))
    rng, count = np.random.default_rng(0), 16
    sides = {"image": (12, 1), "atlas": (8, 2), "label": (6,)}
    batch = {
        name: rng.integers(256, size=(count, side, side, *channels), dtype=np.uint8)
        for name, (side, *channels) in sides.items()
    }
    wanted = {
        "image": (batch["image"].astype(float) - 100) / 50,
        "atlas": batch["atlas"].astype(float) / 255,
        "label": batch["label"],
    }
    plain = task.inputs(batch, None)
    moved = task.inputs(batch, jax.random.split(jax.random.key(0), count))
    for name, value in wanted.items():
        np.testing.assert_allclose(plain[name], value, rtol=1e-6, err_msg=name)
    found = []
    for i in range(count):
        fitting = [
            {
                (turns, mirrored)
                for turns in range(4)
                for mirrored in (False, True)
                if np.allclose(moved[name][i], symmetric(value[i], turns, mirrored), rtol=1e-6)
            }
            for name, value in wanted.items()
        ]
        assert len(fitting[0]) == 1 and fitting[1:] == fitting[:-1]
        found += fitting[0]
    assert len(set(found)) > 4


def symmetric(image, turns, mirrored):
    return np.rot90(image[::-1] if mirrored else image, turns)


def test_batches_do_not_depend_on_the_weights(config, pretrained):
    baseline = open_segmentation(config, None)
    config.init_from = str(pretrained)
    tuned = open_segmentation(config, None)
    for k in (0, 3):
        a, b = (experiment.train_batches(5)[k] for experiment in (baseline, tuned))
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def test_a_loss_that_is_not_finite_names_the_places(config, tmp_path):
    config.scales = InputScales(0.0, 1e-38)
    with pytest.raises(FloatingPointError, match=r"at step 1; section \w+ of .* label image"):
        loop.train(config, tmp_path)


# ---- transfer ------------------------------------------------------------------------------------


def unet_state(optimizer, widths=MODEL.widths, rate=1.0):
    net = UNet(num_classes=3, stem_kernel=3, stem_stride=1, widths=widths)
    optimizer = make_optimizer(OptimConfig(optimizer=optimizer, decay="constant"), 10, rate)
    return net, optimizer, init_state(net, (jnp.zeros((1, 60, 60, 1)),), optimizer, seed=0)


def test_transfer_takes_the_encoder_with_its_statistics(pretrained):
    _, _, state = unet_state(optax.sgd)
    weights = runs.load_weights(pretrained)
    new, table = transfer(state, pretrained)
    for kind, tree in (("params", new.params), ("batch_stats", new.batch_stats)):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            name = "/".join([kind, *(entry.key for entry in path)])
            old = functools.reduce(dict.get, [e.key for e in path], getattr(state, kind))
            if path[0].key == "encoder":
                np.testing.assert_array_equal(leaf, weights[name])
                assert f"taken    {name} " in table
            else:
                np.testing.assert_array_equal(leaf, old)
                assert f"new      {name} " in table
    assert np.abs(new.batch_stats["encoder"]["block1"]["bn1"]["mean"]).max() > 0
    assert "skipped  params/features/kernel " in table
    encoder = sum(
        x.size for x in jax.tree.leaves((new.params["encoder"], new.batch_stats["encoder"]))
    )
    assert f"{encoder} values taken" in table


def test_mismatch_names_the_leaf(pretrained):
    _, _, state = unet_state(optax.sgd, widths=(4, 6, 8))
    with pytest.raises(InputError, match=r"block2/bn1/mean is float32 \[4\], but .* \[6\]"):
        transfer(state, pretrained)
    _, _, state = unet_state(optax.sgd, widths=(4, 4))
    with pytest.raises(InputError, match=r"block3/bn1/mean is not in this network"):
        transfer(state, pretrained)


@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_frozen_and_slower_encoder(rate):
    """With SGD, updates of the encoder are scaled by `rate`, and others do not change."""
    moves = {}
    for each in (1.0, rate):
        _, optimizer, state = unet_state(optax.sgd, rate=each)
        ones = jax.tree.map(jnp.ones_like, state.params)
        moves[each], _ = optimizer.update(ones, state.opt_state, state.params)
    for name, tree in moves[rate].items():
        factor = rate if name == "encoder" else 1.0
        jax.tree.map(
            lambda a, b, f=factor: np.testing.assert_allclose(a, f * b, rtol=1e-6),
            tree,
            moves[1.0][name],
        )


def test_the_rate_of_the_encoder_is_that_of_the_config(config, pretrained):
    """One step of SGD moves the encoder by `encoder_rate` times what the gradient says."""
    config.init_from, moves = str(pretrained), {}
    config.optim = OptimConfig(optimizer=optax.sgd, decay="constant")
    for rate in (1.0, 0.1, 0.0):
        experiment = open_segmentation(dataclasses.replace(config, encoder_rate=rate), None)
        state = experiment.init_state(fresh=True)
        ones = jax.tree.map(jnp.ones_like, state.params)
        optimizer = experiment.task.optimizer
        moves[rate], _ = optimizer.update(ones, state.opt_state, state.params)
    for rate in (0.1, 0.0):
        for name, tree in moves[rate].items():
            factor = rate if name == "encoder" else 1.0
            for found, whole in zip(*map(jax.tree.leaves, (tree, moves[1.0][name])), strict=True):
                np.testing.assert_allclose(found, factor * whole, rtol=1e-6)


def test_bad_init_from(config, finished, tiny_brain, tmp_path):
    config.init_from = str(tmp_path)
    with pytest.raises(InputError, match=r"holds no config\.json"):
        open_segmentation(config, None)
    config.init_from = str(finished[0])
    with pytest.raises(InputError, match="not a pre-training run; give one"):
        open_segmentation(config, None)


def test_init_from_another_resolution_or_unfinished(config, pretrained, tmp_path):
    run = shutil.copytree(pretrained, tmp_path / "run")
    config.init_from = str(run)
    path = run / "config.json"
    path.write_text(path.read_text().replace('"um_per_px": 64.0', '"um_per_px": 2.0'))
    with pytest.raises(InputError, match=r"trained at 2 um/px, but data\.um_per_px = 64"):
        open_segmentation(config, None)
    shutil.copy(pretrained / "config.json", path)
    weights = run / runs.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-7])
    experiment = open_segmentation(config, None)
    with pytest.raises(InputError, match=r"weights\.safetensors: damaged"):
        experiment.init_state(fresh=True)
    weights.unlink()
    with pytest.raises(InputError, match=r"not finished"):
        experiment.init_state(fresh=True)


# ---- evaluation of maps --------------------------------------------------------------------------


def test_evaluation_of_maps_is_that_of_training(finished, tiny_brain, tmp_path):
    """`evaluate` predicts maps tile by tile and scores them as the test of training does.

    Differences come from rounding between tile sizes, and from pixels far from any tissue.
    """
    folder, results = finished
    found = CliRunner().invoke(main, ["evaluate", str(folder), str(tiny_brain)])
    assert found.exit_code == 0, found.output
    where = folder / "evaluation" / tiny_brain.name / "test"
    again = json.loads((where / "results.json").read_text())
    assert again["test"]["pixels"] == results["test"]["pixels"]
    near = np.array(again["confusion"])[:, :-1] - np.array(results["confusion"])
    assert np.abs(near).sum() / 2 <= 1e-3 * results["test"]["pixels"]
    assert again["sections"].keys() == results["sections"].keys()
    for name in (*(f"sections/{name}" for name in results["sections"]), "confusion"):
        assert (where / f"{name}.png").stat().st_size > 10_000
    arguments = ["evaluate", str(folder), str(tiny_brain), "--json", "--against"]
    same = CliRunner().invoke(main, [*arguments, str(folder)])
    assert same.exit_code == 2 and "the same run" in same.stderr
    other = shutil.copytree(folder, tmp_path / "other", ignore=lambda *_: ["checkpoints"])
    found = CliRunner().invoke(main, [*arguments, str(other)])
    assert found.exit_code == 0, found.output
    scored = json.loads(found.stdout)
    assert scored[str(folder)] == again and scored.keys() == {str(folder), str(other)}
    assert scored[str(other)]["test"] == again["test"]
    assert (where / "confusion_compared.png").stat().st_size > 10_000


def test_evaluation_with_an_atlas_is_that_of_training(finished_with_atlas, tiny_brain):
    folder, results = finished_with_atlas
    found = CliRunner().invoke(main, ["evaluate", str(folder), str(tiny_brain), "--json"])
    assert found.exit_code == 0, found.output
    again = json.loads(found.stdout)
    near = np.array(again["confusion"])[:, :-1] - np.array(results["confusion"])
    assert again["test"]["pixels"] == results["test"]["pixels"]
    assert np.abs(near).sum() / 2 <= 1e-3 * results["test"]["pixels"]


def test_confusion_is_that_of_scikit_learn():
    """Compare with scikit-learn, with pixels that have no prediction or no annotation (255)."""
    rng = np.random.default_rng(0)
    predicted, label = rng.choice([0, 1, 2, 255], (2, 30, 40)).astype(np.uint8)
    found = confusion(predicted, label, 3)
    truth, guess = label[label != 255], predicted[label != 255]
    wanted = confusion_matrix(truth, guess, labels=[0, 1, 2, 255])[:3]
    np.testing.assert_array_equal(found, wanted)
    scores = segmentation_scores(found, "abc", [True, True, False])
    np.testing.assert_allclose(scores["err_seg_percent"], 100 * (1 - (truth == guess).mean()))
    dice = f1_score(truth, guess, labels=[0, 1, 2], average=None)
    np.testing.assert_allclose(list(scores["dice"].values()), dice)


def test_trained_sections_are_no_test(finished, tiny_brain, tmp_path):
    """A section must not become a test section after the run was trained on it."""
    brain = shutil.copytree(tiny_brain, tmp_path / tiny_brain.name)
    table = brain / "sections.csv"
    table.write_text(table.read_text().replace(",train", ",test"))
    found = CliRunner().invoke(main, ["evaluate", str(finished[0]), str(brain)])
    assert found.exit_code == 2 and "was trained on" in found.stderr
    found = CliRunner().invoke(main, ["evaluate", str(finished[0]), str(brain), "--split", "val"])
    assert "was trained on" not in found.stderr


def test_pretraining_on_the_test_is_refused(config, pretrained, tiny_brain, tmp_path):
    brain = shutil.copytree(tiny_brain, tmp_path / tiny_brain.name)
    seen = runs.read_config(pretrained)["training_sections"][0]
    rows = (brain / "sections.csv").read_text().splitlines()
    chosen = next(i for i, row in enumerate(rows) if seen == f"{brain.name}/{row.split(',')[0]}")
    rows[chosen] = rows[chosen].removesuffix(",train") + ",test"
    (brain / "sections.csv").write_text("\n".join(rows) + "\n")
    config.data.brains, config.init_from = (str(brain),), str(pretrained)
    with pytest.raises(InputError, match=f"trained on 1 sections .* {seen}"):
        open_segmentation(config, None)


def test_config_of_another_network_is_refused(finished, tmp_path):
    run = shutil.copytree(finished[0], tmp_path / "run")
    path = run / "config.json"
    table = json.loads(path.read_text())
    table["classes"].pop()
    path.write_text(json.dumps(table))
    with pytest.raises(InputError, match=r"do not belong together: .*classifier"):
        runs.load_segment_run(run)


def test_evaluation_says_what_is_wrong(finished, pretrained, tiny_brain, tmp_path):
    def message(*arguments) -> str:
        found = CliRunner().invoke(main, ["evaluate", *map(str, arguments)])
        assert found.exit_code == 2
        return found.stderr

    assert "a pre-training run" in message(pretrained, tiny_brain)
    brain = shutil.copytree(tiny_brain, tmp_path / "brain")
    table = brain / "sections.csv"
    table.write_text(table.read_text().replace(",test", ",exclude"))
    assert "no section has both a label and the split test" in message(finished[0], brain)
    rows = [row for _, row in read_table(table, [])]
    row = rows[-1]
    with tifffile.TiffFile(brain / row["label"]) as tiff:
        shape = tiff.pages[0].shape
    tifffile.imwrite(brain / row["label"], np.full(shape, 255, np.uint8))
    row["split"] = "test"
    write_table(table, rows)
    assert "no pixel of the split test is annotated" in message(finished[0], brain)
    toml = brain / "brain.toml"
    toml.write_text(toml.read_text().replace("white matter", "WM"))
    assert "was trained for" in message(finished[0], brain)


def test_training_draws_learn(finished):
    """After 25 steps the network segments background and most of the white matter."""
    dice = finished[1]["test"]["dice"]
    assert dice["background"] > 0.85 and dice["white matter"] > 0.5
