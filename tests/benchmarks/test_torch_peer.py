"""Compare the outputs of an export in PyTorch with those of the networks here.

The tests need torch. JAXCYTO_TORCH_PYTHON names an interpreter with torch, numpy and safetensors if
this one has no torch.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pretext_run
import pytest
import segment_run

from jaxcyto.augment import normalize
from jaxcyto.models import Geometry, SiameseNet, UNet
from jaxcyto.runs.export import export_run
from jaxcyto.runs.load import load_pretext_run, load_segment_run

PYTHON = os.environ.get("JAXCYTO_TORCH_PYTHON") or (
    sys.executable if importlib.util.find_spec("torch") else None
)
PEER = Path(__file__).resolve().parents[2] / "benchmarks" / "pytorch" / "torch_net.py"
SMALL = {"stem_kernel": 3, "stem_stride": 1, "widths": (16, 32, 64, 64, 128)}
pytestmark = pytest.mark.skipif(
    PYTHON is None, reason="torch is not installed and JAXCYTO_TORCH_PYTHON is not set"
)


def by_torch(run: Path, folder: Path, images: np.ndarray, *atlas) -> dict[str, np.ndarray]:
    export_run(run, folder / "export")
    np.save(folder / "images.npy", images)
    names = ["export/model.safetensors", "images.npy", "out.npz"]
    for each in atlas:
        np.save(folder / "atlas.npy", each)
        names.append("atlas.npy")
    subprocess.run(
        [str(PYTHON), str(PEER), *(str(folder / name) for name in names)], check=True, timeout=120
    )
    with np.load(folder / "out.npz", allow_pickle=False) as file:
        return dict(file)


@pytest.mark.parametrize(("layout", "side"), [(SMALL, 128), ({}, 1019)], ids=["small", "paper"])
def test_features_and_coordinates(tmp_path, layout, side):
    net = SiameseNet(**layout)
    run = load_pretext_run(pretext_run.write_run(tmp_path / "run", net, side))
    images = np.random.default_rng(0).integers(0, 256, (2, side, side), np.uint8)
    found = by_torch(tmp_path / "run", tmp_path, images)
    mean, std = run.scales.input_mean, run.scales.input_std
    both = jax.jit(net.apply)(run.variables, normalize(images[None, ..., None], mean, std))
    for name in ("features", "coordinates_scaled"):
        expected = np.asarray(both[name][0])
        assert expected.std() > 0.1
        np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("layout", "atlas"),
    [
        (SMALL, False),
        (SMALL, True),
        ({}, False),
        (SMALL | {"decoder": "scores", "pools": (5, 9)}, False),
        (SMALL | {"decoder": "scores"}, True),
        (SMALL | {"decoder": "both", "pools": (3,)}, False),
    ],
    ids=["small", "small with an atlas", "paper", "scores", "scores with an atlas", "both"],
)
def test_logits(tmp_path, layout, atlas):
    net = UNet(3, **layout)
    sizes = Geometry.of(net)
    run = load_segment_run(segment_run.write_run(tmp_path / "run", net, atlas=atlas))
    side = sizes.smallest_valid_size + sizes.period
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (1, side, side), np.uint8)
    areas = [rng.integers(0, 256, (1, *2 * [sizes.atlas_size(side)], 2), np.uint8)] * atlas
    found = by_torch(tmp_path / "run", tmp_path, images, *areas)["logits"]
    standard = normalize(images[..., None], run.input_mean, run.input_std)
    given = [standard, *(each.astype(np.float32) / 255 for each in areas)]
    expected = np.asarray(jax.jit(net.apply)(run.variables, *given))
    assert expected.std() > 0.1 and found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
