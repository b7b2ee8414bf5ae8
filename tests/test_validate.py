"""Test that a bad config gives one message with a line per field, before data is made."""

import dataclasses

import pytest

from jaxcyto import config as C
from jaxcyto.errors import InputError
from jaxcyto.losses import distance_loss
from jaxcyto.training import loop
from jaxcyto.validate import validate


def good() -> C.Config:
    return C.Config(data=C.DataConfig(brains=("brains/x",)))


def faults(config) -> list[str]:
    """Return one line for each fault of a config."""
    try:
        validate(config)
    except InputError as error:
        return str(error).splitlines()
    return []


def test_defaults_are_valid():
    assert faults(good()) == []
    small = dataclasses.replace(good(), model=C.small())
    assert len(faults(small)) == 1  # the patches are too large for the small network
    small.data.patch_px = 128
    assert faults(small) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", -1),
        ("epochs", float("inf")),
        ("steps", 0),
        ("batch_stats_steps", -1),
        ("log_every", 0),
        ("eval_pairs", -1),
        ("keep", 0),
        ("data.batch_pairs", 0),
        ("data.threads", -1),
        ("data.um_per_px", 0.0),
        ("data.brains", ()),
        ("data.pairs", "../pairs.npz"),
        ("data.patch_px", 2000),
        ("model.widths", (8, 0)),
        ("model.features", 0),
        ("model.dtype", "float16"),
        ("augment.blur_px", 1.0),
        ("augment.contrast", -1.0),
        ("optim.learning_rate", -1.0),
        ("optim.clip_norm", 0.0),
        ("optim.decay", "linear"),
        ("optim.warmup_steps", -5),
        ("loss.terms", ()),
        ("loss.terms", (C.Term(distance_loss, float("nan")),)),
        ("scales", C.Scales(distance_mm=0.0)),
    ],
)
def test_each_field_out_of_range_is_named(field, value, tmp_path):
    assert field in refused(good(), field, value, tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", None),
        ("eval_images", 0),
        ("encoder_rate", -0.1),
        ("init_from", ""),
        ("data.brains", ()),
        ("data.image_px", 2000),  # between 1897 and 2025
        ("data.batch_images", 0),
        ("data.train_sections", "0012"),
        ("data.um_per_px", float("nan")),
        ("scales", C.InputScales(input_std=0.0)),
        ("loss.weight_decay", -1.0),
    ],
)
def test_each_field_of_a_segmentation_out_of_range_is_named(field, value, tmp_path):
    config = C.SegmentConfig(data=C.SegmentData(brains=("brains/x",)))
    assert field in refused(config, field, value, tmp_path)


def test_defaults_of_a_segmentation_are_valid():
    config = C.SegmentConfig(data=C.SegmentData(brains=("brains/x",)))
    assert faults(config) == []
    config.scales, config.init_from = C.InputScales(), "runs/x"
    with pytest.raises(InputError, match="init_from are taken"):
        validate(config)


def refused(config, field, value, tmp_path) -> str:
    """Start a run with this value, and return its message after checking that no data is made."""
    *parents, last = field.split(".")
    target = config
    for parent in parents:
        target = getattr(target, parent)
    setattr(target, last, value)
    config.prepare = lambda _: pytest.fail("data was prepared for an invalid config")
    with pytest.raises(InputError) as caught:
        loop.train(config, tmp_path / "run")
    return str(caught.value)


def test_all_faults_at_once():
    config = good()
    config.steps, config.data.threads = 0, 0
    with pytest.raises(InputError, match=r"(?s)steps.*data\.threads|data\.threads.*steps"):
        validate(config)


def test_workdir_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    config = good()
    config.data.batch_pairs = 8
    with pytest.raises(InputError, match="--workdir"):
        loop.train(config, tmp_path / "file")
