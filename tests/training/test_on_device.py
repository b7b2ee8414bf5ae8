"""Test `data.on_device`: the same batches and the same run, and a limit on memory."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxcyto.config import Config, DataConfig, ModelConfig
from jaxcyto.data.pair_batches import PairSource
from jaxcyto.data.pair_table import open_pairs
from jaxcyto.errors import InputError
from jaxcyto.training import loop
from jaxcyto.training.devices import parallel
from jaxcyto.training.devices.on_device import ResidentSource, take_patches
from jaxcyto.training.pretext import open_pretraining


@pytest.fixture
def config(tiny_brain):
    return Config(
        data=DataConfig(
            brains=(str(tiny_brain),), patch_px=32, um_per_px=64.0, batch_pairs=16, threads=2
        ),
        model=ModelConfig(stem_kernel=3, stem_stride=1, widths=(4, 4, 8)),
        steps=3,
        log_every=1,
        eval_every=3,
        eval_pairs=16,
        batch_stats_steps=2,
        checkpoint_every=3,
    )


def on_device(config, **fields):
    return dataclasses.replace(
        config, data=dataclasses.replace(config.data, on_device=True, **fields)
    )


def test_batches_are_those_from_disk(config):
    streamed = open_pretraining(config, None)
    kept = open_pretraining(on_device(config), None)
    batches = [each.train_batches(5, for_steps=True) for each in (streamed, kept)]
    for k in (0, 1, 40):
        expected, found = (each[k] for each in batches)
        assert "patches" not in found
        placed = parallel.split_over_devices(found) | kept.resident
        found = jax.pmap(take_patches)(placed)
        assert found.keys() == expected.keys()
        for key, value in parallel.join_devices(found).items():
            np.testing.assert_array_equal(value, expected[key], err_msg=key)
    # Batches that re-estimate statistics are read from disk in both cases.
    assert "patches" in kept.train_batches(5)[0]


def test_a_run_is_the_same_run(config, tmp_path):
    one = loop.train(config, tmp_path / "disk")
    other = loop.train(on_device(config), tmp_path / "device")
    assert one["test"] == other["test"]
    # The run may continue with patches from disk.
    loop.train(dataclasses.replace(config, steps=4), tmp_path / "device")


def test_what_does_not_fit_is_refused(config, monkeypatch):
    monkeypatch.setattr(parallel, "free_bytes", lambda: 1000.0)
    table = open_pairs(config.data)
    with pytest.raises(InputError, match=r"data\.on_device: .* training patches take .* GiB"):
        ResidentSource(PairSource(table, config.data), table, 2)


def test_skipping_is_refused(config, tmp_path):
    with pytest.raises(InputError, match=r"data\.on_error"):
        loop.train(on_device(config, on_error="skip"), tmp_path / "run")
