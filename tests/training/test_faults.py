"""Test faults of a run: kills, damaged checkpoints, a full disk, signals, a second run."""

import contextlib
import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest
import tensorstore as ts

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.robustness import kill
from jaxcyto.errors import InputError
from jaxcyto.runs.metrics_file import read_metrics
from jaxcyto.training.lock import locked
from jaxcyto.training.log import MetricsWriter
from jaxcyto.training.signals import Interrupted, Stop
from jaxcyto.training.state.checkpoint import Checkpoints
from jaxcyto.training.state.state import State

ROOT = Path(__file__).resolve().parents[2]
# A C call that no signal interrupts: locking a mutex twice waits forever.
BLOCK = """
import ctypes
mutex = ctypes.create_string_buffer(64)
def block(*_):
    print("blocked", flush=True)
    lock = ctypes.CDLL(None).pthread_mutex_lock
    lock(mutex), lock(mutex)
"""


def state(step, width=3):
    params = {"layer": {"kernel": np.random.default_rng(step).normal(size=(40, width))}}
    params = jax.tree.map(lambda x: x.astype(np.float32), params)
    return State(np.array(step, np.int32), params, {}, optax.adam(0.1).init(params))


def save(folder, *steps):
    with Checkpoints(folder) as checkpoints:
        for step in steps:
            checkpoints.save(step, state(step))


def same(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


@contextlib.contextmanager
def python(code, *arguments, cache=None):
    """Start a Python process, and wait until it has printed a line."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    pipe, environment = subprocess.PIPE, kill.environment(cache)
    with subprocess.Popen(command, cwd=ROOT, stdout=pipe, env=environment, text=True) as process:
        try:
            process.stdout.readline()
            yield process
        finally:
            process.kill()


# ---- whole runs ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tiny_brain, tmp_path_factory):
    """Return a config file, the folder of an uninterrupted run, and a compilation cache."""
    folder = tmp_path_factory.mktemp("faults")
    config = kill.write_config(folder / "config.py", "pretext", tiny_brain)
    kill.finish(config, folder / "whole", folder / "cache")
    return config, folder / "whole", folder / "cache"


def test_killed_run_ends_as_the_uninterrupted_one(run, tmp_path):
    """A run that is killed and resumed ends like an uninterrupted run.

    `python benchmarks/robustness/kill.py` tests more kills, in more phases, for both tasks.
    """
    config, whole, cache = run
    landed = []
    for wanted in ("checkpoint", "validation"):
        process = kill.start(config, tmp_path / "parts", cache)
        landed.append(kill.kill_in(wanted, process, tmp_path / "parts"))
    assert None not in landed, kill.log_tail(tmp_path / "parts")
    kill.finish(config, tmp_path / "parts", cache)
    assert kill.differences(whole, tmp_path / "parts") == []
    errors = {
        line["step"]: line["val/distance_mae_mm"]
        for line in kill.lines(whole)
        if "val/distance_mae_mm" in line
    }
    # The best checkpoint is kept, even if the run resumed after it.
    for folder in (whole, tmp_path / "parts"):
        assert (folder / f"checkpoints/{min(errors, key=errors.__getitem__)}").is_dir()


def test_disk_full(run, tmp_path):
    """A full tmpfs gives a message and status 1. With more space, the run continues."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("no mount namespaces here")
    config, whole, cache = run
    size = sum(path.stat().st_size for path in (whole / "checkpoints").rglob("*"))
    disk = tmp_path / "disk"
    disk.mkdir()
    script = f"""
        mount -t tmpfs -o size={size // 1024}k none {disk}
        {sys.executable} train.py --config {config} --workdir {disk}/run; echo status $?
        ls {disk}/run/checkpoints
        mount -o remount,size=200m {disk}
        {sys.executable} train.py --config {config} --workdir {disk}/run; echo status $?
        cp -r {disk}/run {tmp_path}/parts
    """
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script],
        cwd=ROOT, env=kill.environment(cache), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert [line for line in done.stdout.splitlines() if line.startswith("status")] == [
        "status 1",
        "status 0",
    ], done.stderr
    assert f"error: {disk}/run/" in done.stderr and os.strerror(errno.ENOSPC) in done.stderr
    assert "Traceback" not in done.stderr
    assert "resuming at step" in done.stderr
    assert kill.differences(whole, tmp_path / "parts") == []


def test_signal_in_a_validation_that_does_not_return(run, tmp_path):
    """The step before is already saved, and the next start repeats the validation."""
    config, whole, cache = run
    code = f"""{BLOCK}
import runpy
from absl import flags
flags.FLAGS.mark_as_parsed()
from jaxcyto.training import loop, pretext, signals as stop
stop.GRACE_SECONDS = 3.0
pretext.PretextExperiment.validate = block
loop.train(runpy.run_path({str(config)!r})["get_config"](), {str(tmp_path / "parts")!r})
"""
    with python(code, cache=cache) as process:
        time.sleep(0.5)  # from the printed line to the C call
        before = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 128 + signal.SIGTERM
    assert time.monotonic() - before < 10
    with Checkpoints(tmp_path / "parts/checkpoints") as checkpoints:
        assert checkpoints.latest() == kill.EVAL_EVERY
    kill.finish(config, tmp_path / "parts", cache)
    assert kill.differences(whole, tmp_path / "parts") == []


# ---- signals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_first_signal_raises_unless_held(signum):
    # Background jobs of a shell ignore SIGINT, so the handler is not always the default one.
    before = signal.getsignal(signum)
    with pytest.raises(Interrupted) as stopped, Stop():
        signal.raise_signal(signum)
        pytest.fail("went on")
    assert stopped.value.signum == signum
    reached = False
    with pytest.raises(Interrupted), Stop() as stop:
        with stop.held():
            signal.raise_signal(signum)
            reached = True
        pytest.fail("went on")
    assert reached
    assert signal.getsignal(signum) is before


def test_second_signal_ends_at_once():
    """A second signal ends the process, even while its main thread waits in C.

    A signal that is repeated within SAME_SECONDS counts as one.
    """
    code = f"""{BLOCK}
from jaxcyto.training.signals import Stop
with Stop() as stop, stop.held():
    block()
"""
    with python(code) as process:
        for _ in range(2):
            process.send_signal(signal.SIGINT)
            time.sleep(0.1)
        time.sleep(0.8)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 128 + signal.SIGTERM


# ---- checkpoints ---------------------------------------------------------------------------------


# Once one of orbax's parallel reads has failed, errors of the others cannot be delivered, so Python
# reports them as unraisable. train.py hides these reports, too.
ORBAX_READS_ON = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def empty(path):
    path.write_bytes(b"")


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@ORBAX_READS_ON
@pytest.mark.parametrize("damage", [empty, cut, flip, Path.unlink])
def test_each_damaged_file_of_the_newest_checkpoint(damage, tmp_path, caplog):
    """A damaged file either leaves the state intact, or the checkpoint before is used."""
    save(tmp_path / "good/checkpoints", 1, 2)
    newest = tmp_path / "good/checkpoints/2"
    files = sorted(path.relative_to(newest) for path in newest.rglob("*") if path.is_file())
    assert len(files) > 8
    used = []
    for name in files:
        root = tmp_path / "bad"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(tmp_path / "good", root)
        damage(root / "checkpoints/2" / name)
        caplog.clear()
        with Checkpoints(root / "checkpoints") as checkpoints:
            step = checkpoints.latest()
            same(checkpoints.restore(state(0)), state(step))
            used.append(step)
            if step == 1:
                assert "checkpoints/2: damaged" in caplog.text
                assert (root / "damaged/2").is_dir()
            checkpoints.save(step + 1, state(step + 1))
        with Checkpoints(root / "checkpoints") as checkpoints:
            assert checkpoints.latest() == step + 1
            same(checkpoints.restore(state(0)), state(step + 1))
    assert used.count(1) >= (1 if damage is flip else 3)


@pytest.fixture(autouse=True)
def heard(monkeypatch):
    """Let caplog see messages of jaxcyto, whose logger may not propagate after `log_to_stderr`."""
    monkeypatch.setattr("jaxcyto.training.log.logger.propagate", True)


@ORBAX_READS_ON
def test_no_intact_checkpoint_is_an_error(tmp_path):
    save(tmp_path / "checkpoints", 1, 2)
    for step in (1, 2):
        (tmp_path / f"checkpoints/{step}/state/_METADATA").unlink()
    for _ in range(2):  # the second start must not begin from scratch either
        with pytest.raises(InputError, match=r"no checkpoint is intact \(2: .*; 1: "):
            Checkpoints(tmp_path / "checkpoints")


@pytest.mark.parametrize("field", ["shape", "chunk_shape"])
def test_lying_header_of_a_checkpoint_allocates_nothing(field, tmp_path, caplog):
    """A header that asks orbax for 4 TiB is found before the allocation ends the interpreter."""
    save(tmp_path / "checkpoints", 1, 2)
    base = f"file://{tmp_path}/checkpoints/2/state/"
    store: Any = ts.KvStore.open({"driver": "ocdbt", "base": base}).result()
    name = "params/layer/kernel/zarr.json"
    text = store.read(name).result().value.decode()
    header, huge = json.loads(text), [2**20, 2**20]
    header["chunk_grid"]["configuration"]["chunk_shape"] = huge
    header["codecs"][0]["configuration"]["chunk_shape"] = huge
    if field == "shape":
        header["shape"] = huge
    store.write(name, json.dumps(header)).result()
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.latest() == 1
    assert "checkpoints/2: damaged (ValueError: its headers count 4398" in caplog.text


def test_folders_not_named_as_a_checkpoint_are_left_alone(tmp_path):
    save(tmp_path / "checkpoints", 1)
    for name in ("007", "\N{ARABIC-INDIC DIGIT NINE}", "best"):
        (tmp_path / "checkpoints" / name).mkdir()
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.latest() == 1
        checkpoints.save(2, state(2))


def test_checkpoint_of_another_network_is_not_damage(tmp_path):
    save(tmp_path / "checkpoints", 1)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        with pytest.raises(InputError, match=r"params/layer/kernel is float32 \[40, 3\], but"):
            checkpoints.restore(state(0, width=4))
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        with pytest.raises(InputError, match=r"opt_state/0/count is int32 \[\], but .* missing"):
            checkpoints.restore(state(0).replace(opt_state=optax.sgd(0.1).init({})))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["1"]


def test_best_is_kept_and_may_be_damaged(tmp_path):
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.best = 2
        for step in range(1, 6):
            checkpoints.save(step, state(step))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["2", "4", "5"]
    for path in (tmp_path / "checkpoints/2").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        same(checkpoints.restore(state(0)), state(5))
        checkpoints.save(6, state(6))


def test_unfinished_write_is_cleared_away(tmp_path):
    save(tmp_path / "checkpoints", 1, 2)
    shutil.copytree(tmp_path / "checkpoints/2", tmp_path / "checkpoints/3.orbax-checkpoint-tmp")
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.latest() == 2
        checkpoints.save(3, state(3))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["2", "3"]


def test_a_link_is_removed_without_its_target(tmp_path):
    """A checkpoint may have been moved to another disk."""
    folder, elsewhere = tmp_path / "checkpoints", tmp_path / "elsewhere"
    save(folder, 1, 2)
    (folder / "1").rename(elsewhere)
    (folder / "1").symlink_to(elsewhere)
    (folder / "2.orbax-checkpoint-tmp").symlink_to(elsewhere)
    save(folder, 3)
    assert sorted(path.name for path in folder.iterdir()) == ["2", "3"]
    assert (elsewhere / "state").is_dir()


# ---- lock and log --------------------------------------------------------------------------------


def test_second_run_on_a_folder_is_refused(tmp_path):
    code = """
import pathlib, sys, time
from jaxcyto.training.lock import locked
with locked(pathlib.Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(100)
"""
    with python(code, tmp_path) as process:
        holder = f"process {process.pid} on {socket.gethostname()}"
        with pytest.raises(InputError, match=holder), locked(tmp_path):
            pass
    with locked(tmp_path):  # the file of the killed process is still there, but its lock is not
        assert f"process {os.getpid()} " in (tmp_path / "lock").read_text()


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_lock_that_is_no_plain_file_is_refused(kind, tmp_path):
    run, treasure = tmp_path / "run", tmp_path / "treasure"
    run.mkdir()
    treasure.write_text("precious")
    lock = run / "lock"
    {"link": lambda: lock.symlink_to(treasure), "pipe": lambda: os.mkfifo(lock)}.get(
        kind, lock.mkdir
    )()
    with pytest.raises(InputError, match=str(lock)), locked(run):
        pass
    assert treasure.read_text() == "precious"


def test_unreadable_lines_of_the_log_are_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(
        b'{"step": 1, "a": 2.0}\n\0\0\n[1]\n{"a": 1}\n\xff\n{"step": 2}\n'
        b'{"step": 2, "a": NaN}\n{"step": 2, "a": 1%s}\n{"step": 3, "' % (b"0" * 400)
    )
    assert read_metrics(path) == [{"step": 1, "a": 2.0}, {"step": 2}]
    writer = MetricsWriter(tmp_path, 1)
    writer.write(2, {"a": 1.5})
    writer.close()
    assert [line["step"] for line in read_metrics(path)] == [1, 2]


def test_full_disk_names_the_log(tmp_path):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    writer = MetricsWriter.__new__(MetricsWriter)
    writer._path, writer._board = tmp_path / "metrics.jsonl", None
    writer._file = writer._path.open("ab", buffering=0)
    with pytest.raises(OSError, match=r"No space left on device.*metrics\.jsonl"):
        writer.write(1, {"a": 1.0})
    writer.close()


def test_a_removal_that_was_cut_off_leaves_no_damaged_checkpoint(tmp_path, monkeypatch):
    """A kill while an old checkpoint is deleted leaves no part of it under its name."""
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda path: (path / "state/_METADATA").unlink())
        save(tmp_path / "checkpoints", 1, 2, 3)
    found = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert found == ["1.orbax-checkpoint-tmp-removed", "2", "3"]
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.latest() == 3
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["2", "3"]


def test_saving_does_not_wait_for_the_write(tmp_path, monkeypatch):
    """The state is copied before `save` returns, and the next `save` raises the error."""
    may, written = threading.Event(), []

    def write(self, step, leaves, best):
        assert may.wait(60)
        written.append((step, leaves["params/layer/kernel"].copy()))
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(Checkpoints, "_write", write)
    first = state(1)
    kernel = first.params["layer"]["kernel"]
    expected = kernel.copy()
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(1, first)
    kernel[:] = 0.0  # as the next step may reuse the buffer
    assert not written
    may.set()
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save(2, state(2))
    np.testing.assert_array_equal(written[0][1], expected)
    checkpoints.close()
