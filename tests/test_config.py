"""Test that configs load and convert to JSON, and that misspelled names are refused."""

import dataclasses
import functools
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcyto import config as C
from jaxcyto.config_io import differences, scales_from_json, to_json
from jaxcyto.errors import InputError
from jaxcyto.losses import distance_loss
from jaxcyto.training.state.optim import make_optimizer, schedule

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.py"))


def load(path: Path) -> C.Config:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_loads_and_is_json(path):
    config = load(path)
    table = json.loads(json.dumps(to_json(config)))
    first = "cross_entropy" if isinstance(config, C.SegmentConfig) else "distance_loss"
    assert table["loss"]["terms"][0]["function"] == f"jaxcyto.losses:{first}"
    assert differences(table, to_json(config)) == []
    assert "--config configs/" in path.read_text().split('"""')[1], "the docstring has the command"


def test_the_paper_is_the_default():
    config = C.Config()
    assert (config.data.patch_px, config.data.um_per_px) == (1019, 2.0)
    assert [term.weight for term in config.loss.terms] == [1.0, 10.0]
    assert config.loss.weight_decay == 0.001
    assert load(ROOT / "configs/pretrain_10pct.py").epochs == 50


def test_differences_name_the_field():
    old = to_json(C.Config())
    changed = dataclasses.replace(C.Config(), seed=4)
    changed.optim.learning_rate = 0.5
    assert differences(old, to_json(changed)) == [
        "optim.learning_rate: 0.01 -> 0.5",
        "seed: 0 -> 4",
    ]


def test_scales_survive_json():
    scales = C.Scales(distance_mm=3.5, coordinate_low_mm=(-1.5, 0.0, 2.0))
    assert scales_from_json(json.loads(json.dumps(to_json(scales)))) == scales


def test_partial_losses_keep_their_arguments():
    table = to_json(C.Term(functools.partial(distance_loss, form="huber"), 2.0))
    expected = {"function": "jaxcyto.losses:distance_loss", "form": "huber"}
    assert table["function"] == expected


def test_schedule_and_steps():
    config = C.OptimConfig(learning_rate=0.2, warmup_steps=10)
    rate = schedule(config, 110)
    assert rate(0) == 0 and float(rate(10)) == pytest.approx(0.2)
    assert float(rate(60)) == pytest.approx(0.1) and float(rate(110)) == pytest.approx(0, abs=1e-7)
    with pytest.raises(InputError, match=r"optim\.decay"):
        schedule(C.OptimConfig(decay="linear"), 10)
    assert C.total_steps(C.Config(epochs=2), 100) == 7  # 200 pairs in batches of 32
    assert C.total_steps(C.Config(steps=3), 100) == 3


def test_any_optax_optimizer_and_clipping():
    import jax.numpy as jnp

    config = C.OptimConfig(optimizer=optax.sgd, learning_rate=1.0, decay="constant", clip_norm=1.0)
    optimizer = make_optimizer(config, 10)
    params = {"w": jnp.zeros(2)}
    updates, _ = optimizer.update({"w": jnp.array([30.0, 40.0])}, optimizer.init(params), params)
    assert updates["w"].tolist() == pytest.approx([-0.6, -0.8])


def test_accumulated_steps_are_one_update_by_the_mean_gradient():
    """Clipping follows the mean, the schedule counts updates, and other steps change nothing."""
    import jax.numpy as jnp

    config = C.OptimConfig(optimizer=optax.sgd, learning_rate=1.0, clip_norm=1.0)
    optimizer = make_optimizer(dataclasses.replace(config, accumulate=2), 8)
    plain = make_optimizer(config, 4)
    params = {"w": jnp.zeros(2)}
    state, expected = optimizer.init(params), plain.init(params)
    for update in range(4):
        first, second = jnp.array([60.0, 0.0]), jnp.array([0.0, 80.0 + update])
        nothing, state = optimizer.update({"w": first}, state, params)
        found, state = optimizer.update({"w": second}, state, params)
        wanted, expected = plain.update({"w": (first + second) / 2}, expected, params)
        assert nothing["w"].tolist() == [0.0, 0.0]
        np.testing.assert_allclose(found["w"], wanted["w"], rtol=1e-6)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.optim.learning_rat=1", "did you mean 'learning_rate'"),
        ("--config.learning_rate=1", "did you mean --config.optim.learning_rate?"),
        ("--config.steps=many", "--config.steps=many: expected a whole number"),
        ("--config.loss.terms[7].weight=0", "--config.loss.terms[7].weight: there is no such item"),
        ("--config.data.brains=('a','b'", "write tuples as"),
        ("--confg.steps=1", "confg"),
        ("--steps=1", "unknown flag --steps; did you mean --config.steps?"),
        ("steps=1", "flags start with --"),
    ],
)
def test_misspelled_overrides_end_in_one_line(tmp_path, argument, message):
    assert message in refused("configs/quickstart.py", tmp_path, argument)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (None, "--config {path}: no such file"),
        ("number = int('a')", "{path}:1: ValueError: invalid literal"),
        ("def get_config(:\n", "{path}:1: invalid syntax"),
        ("\nimport no_such_module", "{path}:2: ModuleNotFoundError: No module named"),
        ("def get_config():\n    return 1 / 0", "{path}:2: ZeroDivisionError: division by zero"),
        ("def get_config():\n    return dict(**1)", "{path}:2: TypeError: "),  # absl wraps these
        ("def get_config():\n    return 1", "{path}: get_config() returns 1, not a Config"),
        # names that have moved
        (
            "from jaxcyto.brain.phantom import make_phantom",
            "{path}:1: jaxcyto.brain.phantom has moved: import make_phantom from "
            "jaxcyto.phantom.make",
        ),
        (
            "from jaxcyto.brain import phantom_plan",
            "jaxcyto.brain.phantom_plan has moved: import it from jaxcyto.phantom.settings",
        ),
        (
            "from jaxcyto.config import to_json",
            "jaxcyto.config.to_json has moved: import it from jaxcyto.config_io",
        ),
        (
            "from jaxcyto.runs import WEIGHTS",
            "jaxcyto.runs.WEIGHTS has moved: import it from jaxcyto.runs.load",
        ),
        ("from jaxcyto.runs import NOTHING", "ImportError: cannot import name 'NOTHING'"),
        (
            "from jaxcyto import features",
            "jaxcyto.features has moved: import it from jaxcyto.predict",
        ),
        (
            "from jaxcyto.input import (\n    PairSource,\n    iterate,\n)",
            "has moved: import PairSource from jaxcyto.data.pair_batches and iterate from "
            "jaxcyto.data.loading",
        ),
        (
            "from jaxcyto.brain.phantom import PRESETS, make_phantom",
            "import PRESETS from jaxcyto.phantom.settings and make_phantom from "
            "jaxcyto.phantom.make",
        ),
        (
            "from jaxcyto.brain.label_images import IGNORE, LABEL_UM",
            "import IGNORE (renamed), LABEL_UM from jaxcyto.brain.sections.label_image",
        ),
        ("import jaxcyto.brain.carry", "import it from jaxcyto.brain.annotation.surface_labels"),
        ("from jaxcyto.cli import plural", "ImportError: cannot import name 'plural'"),
    ],
)
def test_faulty_config_file_ends_in_one_line(tmp_path, code, message):
    path = tmp_path / "faulty.py"
    if code is not None:
        path.write_text(code)
    assert message.format(path=path) in refused(path, tmp_path / "run")


@pytest.mark.parametrize("name", ["quickstart", "configs/quikstart.py"])
def test_a_config_that_is_not_there_is_guessed(tmp_path, name):
    assert "did you mean configs/quickstart.py?" in refused(name, tmp_path)


def test_missing_flags_are_named_with_an_example():
    command = [sys.executable, "train.py", "--workdir=x"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --config missing, as in: python train.py --config ")


# Fork for each start of train.py, because imports take most of its time.
STARTS = """
import json, os, runpy, sys, warnings
import absl.app, grain, ml_collections, optax
import configs.quickstart, jaxcyto.training.loop

for line in sys.stdin:
    sys.argv = json.loads(line)
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about forks, which is safe as no thread has started
        child = os.fork()
    if child == 0:
        os.dup2(write, 2)
        code = 0
        try:
            runpy.run_path("train.py", run_name="__main__")
        except SystemExit as stop:
            code = stop.code
        sys.stderr.flush()
        os._exit(code)
    os.close(write)
    said = os.fdopen(read).read()
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said]), flush=True)
"""


@functools.cache
def starts() -> subprocess.Popen:
    """Start a process that runs train.py on request. It ends when this process closes its input."""
    command = [sys.executable, "-c", STARTS]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True)


def refused(config, workdir, *arguments) -> str:
    """Run train.py, check that it ends with status 2, and return its one line of output."""
    process = starts()
    assert process.stdin is not None and process.stdout is not None
    argv = ["train.py", "--config", str(config), f"--workdir={workdir}", *arguments]
    print(json.dumps(argv), file=process.stdin, flush=True)
    code, said = json.loads(process.stdout.readline())
    assert code == 2, said
    assert "Traceback" not in said
    assert len(said.strip().splitlines()) == 1
    return said


def test_the_quickstart_makes_no_phantom_where_a_brain_is_misspelled(tmp_path):
    missing = tmp_path / "mien"
    message = refused("configs/quickstart.py", tmp_path / "run", f"--config.data.brains={missing}")
    assert "no such folder; name a brain's folder" in message and not missing.exists()


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_scales_convert_and_return(array):
    scales = C.Scales(
        distance_mm=40.0,
        coordinate_low_mm=(-70.0, -100.0, -40.0),
        coordinate_high_mm=(10.0, 70.0, 80.0),
    )
    scaled = array(np.array([[-1.0, 1.0, 0.0], [0.0, -1.0, 1.0]], np.float32))
    mm = scales.coordinates_to_mm(scaled)
    np.testing.assert_allclose(mm, [[-70.0, 70.0, 20.0], [-30.0, -100.0, 80.0]], rtol=1e-6)
    assert mm.dtype == np.float32
    np.testing.assert_allclose(scales.coordinates_from_mm(mm[None, None]), scaled[None, None])
    assert scales.distance_to_mm(0.25) == 10.0 and scales.distance_from_mm(10.0) == 0.25
