"""Compare jobs of two processes with two devices each with one process with four devices."""

import functools
import importlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import numpy as np
import pytest

from jaxcyto.errors import InputError
from jaxcyto.runs import load as runs
from jaxcyto.runs.metrics_file import read_metrics
from jaxcyto.training.devices import distributed, jax_private

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 240  # seconds until a job counts as hung, far more than an idle machine needs
PRETRAIN = """
import jax.numpy as jnp
from jaxcyto.config import AugmentConfig, Config, DataConfig, LossConfig, ModelConfig, Term
from jaxcyto.losses import batchwise, coordinate_loss, distance_loss


@batchwise
def all_pairs(outputs, batch):
    features = outputs["features"].reshape(-1, outputs["features"].shape[-1])
    predicted = jnp.sum(jnp.square(features[:, None] - features[None]), axis=-1)
    target = batch["all_distances_scaled"]
    use = jnp.isfinite(target) & ~jnp.eye(len(features), dtype=bool)
    error = jnp.where(use, jnp.abs(predicted - jnp.where(use, target, 0.0)), 0.0)
    return error.mean(axis=1).reshape(-1, 2).mean(axis=1)


def get_config():
    return Config(
        data=DataConfig(patch_px=32, um_per_px=64.0, batch_pairs=8, threads=2, all_distances=True),
        model=ModelConfig(stem_kernel=3, stem_stride=1, widths=(4, 4, 8)),
        augment=AugmentConfig(noise=0.1),
        loss=LossConfig(terms=(Term(distance_loss), Term(coordinate_loss), Term(all_pairs))),
        steps=6, log_every=1, eval_every=4, eval_pairs=13, batch_stats_steps=2, checkpoint_every=4,
    )
"""
SEGMENT = """
import optax
from jaxcyto.config import ModelConfig, OptimConfig, SegmentConfig, SegmentData


def get_config():
    return SegmentConfig(
        data=SegmentData(image_px=60, um_per_px=64.0, atlas=True, batch_images=8, threads=2),
        model=ModelConfig(stem_kernel=3, stem_stride=1, widths=(4, 4, 8)),
        optim=OptimConfig(optimizer=optax.adam, learning_rate=0.01),
        steps=3, log_every=1, eval_every=3, eval_images=6, batch_stats_steps=2,
    )
"""


class Jobs:
    """Runs of train.py as one or more processes, with four devices in all."""

    def __init__(self, folder: Path, brain: Path):
        self.folder, self.brain = folder, brain
        for name, text in (("pretrain", PRETRAIN), ("segment", SEGMENT)):
            (folder / f"{name}.py").write_text(text)

    def start(self, workdir, processes, *flags, config="pretrain", own=((), ())):
        """Start a job. `own` holds further flags of each process.

        The output of process i goes to `self.log(workdir, i)`.
        """
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        env = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": str(4 // processes),
            "JAX_COMPILATION_CACHE_DIR": str(self.folder / "cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        job = []
        for i in range(processes):
            command = [
                sys.executable, "train.py", "--config", str(self.folder / f"{config}.py"),
                "--workdir", str(self.folder / workdir), f"--config.data.brains=('{self.brain}',)",
                *flags, *own[i],
            ]  # fmt: skip
            if processes > 1:
                command += [f"--coordinator=127.0.0.1:{port}", f"--processes={processes}"]
                command += [f"--process={i}"]
            with self.log(workdir, i).open("w") as log:
                job.append(
                    subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log, text=True)
                )
        return job

    def log(self, workdir, process):
        return self.folder / f"{workdir}.{process}.log"

    def text(self, workdir, process):
        return self.log(workdir, process).read_text()

    def wait(self, job, workdir):
        """Return the exit statuses. If a process hangs, fail with the logs of all."""
        until = time.monotonic() + LIMIT
        try:
            return [p.wait(max(0.1, until - time.monotonic())) for p in job]
        except subprocess.TimeoutExpired:
            pytest.fail("".join(f"--- {i}\n{self.text(workdir, i)}" for i in range(len(job))))
        finally:
            for process in job:
                process.kill()

    def run(self, workdir, processes, *flags, **options):
        statuses = self.wait(self.start(workdir, processes, *flags, **options), workdir)
        assert statuses == [0] * processes, [self.text(workdir, i) for i in range(processes)]
        return self.folder / workdir

    def wait_for_step(self, job, workdir, step):
        """Wait until metrics.jsonl holds a step."""
        path, until = self.folder / workdir / "metrics.jsonl", time.monotonic() + LIMIT
        while not path.exists() or not any(line["step"] >= step for line in read_metrics(path)):
            ended = [p.poll() for p in job]
            if any(status is not None for status in ended) or time.monotonic() > until:
                pytest.fail("".join(f"--- {i}\n{self.text(workdir, i)}" for i in range(len(job))))
            time.sleep(0.1)


@pytest.fixture(scope="module")
def jobs(tmp_path_factory, tiny_brain):
    return Jobs(tmp_path_factory.mktemp("jobs"), tiny_brain)


@pytest.fixture(scope="module")
def one(jobs):
    return jobs.run("one", 1)


@pytest.fixture(scope="module")
def two(jobs):
    return jobs.run("two", 2, own=((), (f"--workdir={jobs.folder / 'elsewhere'}",)))


def assert_same_run(a, b, tolerance=1e-4):
    """Compare metrics of all steps, weights and results, up to rounding."""

    def lines(folder):
        return read_metrics(folder / "metrics.jsonl")

    assert [line["step"] for line in lines(a)] == [line["step"] for line in lines(b)]
    for x, y in zip(lines(a), lines(b), strict=True):
        assert x.keys() == y.keys()
        keys = [key for key in x if key != "time" and not key.startswith("speed/")]
        np.testing.assert_allclose([x[k] for k in keys], [y[k] for k in keys], rtol=tolerance)
    weights = runs.load_weights(a), runs.load_weights(b)
    assert weights[0].keys() == weights[1].keys()
    for name, x in weights[0].items():
        np.testing.assert_allclose(
            weights[1][name], x, atol=tolerance * np.abs(x).max(), err_msg=name
        )
    results = [json.loads((folder / "results.json").read_text())["test"] for folder in (a, b)]
    assert results[0].keys() == results[1].keys()
    for key, value in results[0].items():
        if isinstance(value, float | list):
            np.testing.assert_allclose(results[1][key], value, rtol=tolerance, err_msg=key)


# ---- the same results ----------------------------------------------------------------------------


def test_two_processes_train_like_one(one, two, jobs):
    """The runs are the same, with a batch-wise loss. Process 1 writes no files."""
    assert_same_run(one, two)
    assert not (jobs.folder / "elsewhere").exists()
    assert sorted(p.name for p in (two / "figures").iterdir()) == sorted(
        p.name for p in (one / "figures").iterdir()
    )
    logs = [jobs.text("two", i) for i in range(2)]
    assert "mean error on the test pairs" in logs[0] and "step 6/6" in logs[0]
    assert "mean error on the test pairs" not in logs[1] and "step 6/6" not in logs[1]


def test_two_processes_keep_patches_like_one(one, jobs):
    """With `data.on_device`, each process keeps all training patches on its devices."""
    kept = jobs.run("kept", 2, "--config.data.on_device=True")
    assert_same_run(one, kept)
    for process in range(2):
        assert jobs.text("kept", process).count("training patches on each device") == (process == 0)


def test_two_processes_segment_like_one(jobs):
    a = jobs.run("segment1", 1, config="segment")
    b = jobs.run("segment2", 2, config="segment")
    assert_same_run(a, b, 1e-3)  # Adam divides by small gradients, which amplifies rounding
    confusion = [json.loads((f / "results.json").read_text())["confusion"] for f in (a, b)]
    assert np.sum(confusion[0]) == np.sum(confusion[1]) > 1000


@pytest.mark.parametrize("writers", [2, 1])
def test_checkpoint_resumes_on_another_number_of_processes(writers, one, two, jobs):
    """One process resumes a run of two, and the reverse, after the newest checkpoint is damaged."""
    written, name = (one, two)[writers - 1], f"resumed{writers}"
    parts = jobs.folder / name
    shutil.copytree(written, parts)
    for path in (parts / "checkpoints/6").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:-1])
    (parts / "weights.safetensors").unlink()
    jobs.run(name, 3 - writers)
    assert "resuming at step 4" in jobs.text(name, 0)
    assert (parts / "damaged/6").exists()
    assert_same_run(one, parts)


# ---- ends ----------------------------------------------------------------------------------------


def test_stop_and_death(jobs):
    """SIGTERM stops both processes. If one of them is killed, the other exits, too.

    The run is stopped by SIGTERM to process 1, resumed, stopped by SIGKILL to process 1, resumed,
    and stopped by SIGKILL to process 0.
    """
    flags = ("--config.steps=100000", "--config.eval_every=100000", "--config.log_every=5")
    flags += ("--config.checkpoint_every=20",)
    folder = jobs.folder / "long"
    job = jobs.start("long", 2, *flags)
    jobs.wait_for_step(job, "long", 10)
    job[1].send_signal(signal.SIGTERM)
    assert jobs.wait(job, "long") == [143, 143], jobs.text("long", 0) + jobs.text("long", 1)
    newest = max(int(p.name) for p in (folder / "checkpoints").iterdir())
    assert newest >= read_metrics(folder / "metrics.jsonl")[-1]["step"]

    for victim in (1, 0):
        job = jobs.start("long", 2, *flags)
        jobs.wait_for_step(job, "long", newest + 45)
        assert f"resuming at step {newest} " in jobs.text("long", 0)
        job[victim].kill()
        killed = time.monotonic()
        statuses = jobs.wait(job, "long")
        assert time.monotonic() - killed < 60
        assert statuses[1 - victim] == distributed.LOST, jobs.text("long", 1 - victim)
        last = jobs.text("long", 1 - victim).splitlines()[-1]
        assert last.startswith("error: ") and "another process of the job has died" in last
        newest = max(int(p.name) for p in (folder / "checkpoints").iterdir() if p.name.isdecimal())


def test_processes_must_have_the_same_config(jobs):
    job = jobs.start("unlike", 2, own=((), ("--config.optim.learning_rate=0.02",)))
    assert jobs.wait(job, "unlike") == [2, 2]
    for process in range(2):
        text = jobs.text("unlike", process)
        assert "error: " in text and "optim.learning_rate: 0.01 -> 0.02" in text
        assert "Traceback" not in text
    assert not (jobs.folder / "unlike/config.json").exists()


def test_the_first_process_waits_for_the_checks_of_the_others(monkeypatch):
    """A fast process 0 must not write anything before a slow process has compared its config."""
    store: dict[str, str] = {}
    store_client = types.SimpleNamespace(
        key_value_set=store.__setitem__,
        key_value_dir_get=lambda folder: [
            x for x in store.items() if x[0].startswith(f"{folder}/")
        ],
    )
    monkeypatch.setattr(jax_private, "key_value_store", lambda: store_client)
    first, second = distributed._Peers(), distributed._Peers()
    first.index, second.index, first.count, second.count = 0, 1, 2, 2
    monkeypatch.setattr(distributed, "_peers", first)
    for value in range(2):  # each check has its own confirmations
        check = functools.partial(distributed.check_same, "config", {"steps": value})
        waiting = threading.Thread(target=check, daemon=True)
        waiting.start()
        waiting.join(distributed.POLL_S)
        assert waiting.is_alive()
        second.confirm()
        waiting.join(LIMIT)
        assert not waiting.is_alive()


# ---- flags and clusters --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("host:1", None, None), "belong together"),
        ((None, 2, None), "belong together"),
        ((None, 2, 0), "belong together"),
        (("host:1", 2, 2), "--process 2 of --processes 2; expected 0 ... 1"),
        (("host:1", 2, -1), "expected 0 ... 1"),
        (("host:1", 0, 0), "--processes 0"),
        (("host", 2, 1), "expected HOST:PORT"),
        (("http://host:1", 2, 1), "expected HOST:PORT"),
    ],
)
def test_flags_that_contradict(flags, message):
    with pytest.raises(InputError, match=message):
        distributed.join(*flags)


STEP = {
    "SLURM_JOB_ID": "77", "SLURM_STEP_NODELIST": "node[1-2]", "SLURM_NTASKS": "2",
    "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_STEP_NUM_TASKS": "2",
}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "joins"),
    [
        ({}, True),
        ({"SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1"}, False),  # srun -n 1
        ({"SLURM_STEP_NUM_TASKS": None}, False),  # in a batch script, without srun
        ({"SLURM_STEP_NODELIST": None, "SLURM_PROCID": None}, False),  # in the shell of salloc
        (dict.fromkeys(STEP), False),  # a laptop
    ],
)
def test_slurm_is_found(changed, joins, monkeypatch):
    for key, value in (STEP | changed).items():
        if value is None:
            monkeypatch.delenv(key, raising=False)
        else:
            monkeypatch.setenv(key, value)
    asked = []
    monkeypatch.setattr(distributed, "_initialize", lambda *flags: asked.append(flags) or 1 / 0)
    if joins:
        with pytest.raises(ZeroDivisionError):
            distributed.join()
        assert asked == [(None, None, None)]
    else:
        distributed.join()
        distributed.join(None, 1, None)
        assert not asked and distributed.is_alone()


def test_private_parts_that_jax_has_moved_are_named(monkeypatch):
    """A pod must not train as so many jobs of one process because a method has another name."""
    words = r"version .* does not have .* \(--processes 1\)"
    clusters = importlib.import_module("jax._src.clusters")
    kind = types.SimpleNamespace(name=jax_private.TPU_PODS[0], is_env_present=lambda: True)
    with monkeypatch.context() as patch:
        patch.setattr(clusters.ClusterEnv, "_cluster_types", [kind])
        with pytest.raises(InputError, match=words):
            jax_private.on_tpu_pod()
        kind.get_process_count = lambda: 2
        assert jax_private.on_tpu_pod()
        patch.delattr(clusters.ClusterEnv, "_cluster_types")
        with pytest.raises(InputError, match=words):
            jax_private.on_tpu_pod()
    monkeypatch.delattr("jax._src.distributed.global_state")
    with pytest.raises(InputError, match=words):
        jax_private.key_value_store()


def test_jax_names_its_clusters_as_this_file_expects():
    clusters = importlib.import_module("jax._src.clusters")
    names = {kind.name for kind in clusters.ClusterEnv._cluster_types}
    assert names >= set(jax_private.TPU_PODS)
    assert not jax_private.on_tpu_pod()
