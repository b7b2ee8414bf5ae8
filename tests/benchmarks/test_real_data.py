"""Test sampling, pairing and training on real data: BigBrain's left hemisphere and one section."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from jaxcyto.brain.check import check_brain
from jaxcyto.brain.manifest import read_brain
from jaxcyto.brain.prepare import pair_brain, sample_brain
from jaxcyto.brain.sampling.patches import load_patches
from jaxcyto.brain.sections.section import open_section
from jaxcyto.config import Config, DataConfig, ModelConfig
from jaxcyto.data.pair_batches import PairSource
from jaxcyto.data.pair_table import open_pairs
from jaxcyto.training import loop

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def example():
    path = ROOT / "benchmarks" / "evidence" / "real_section.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def brain(shared_data, example, tmp_path_factory):
    root = example.lay_out(shared_data, tmp_path_factory.mktemp("real") / "brain")
    sample_brain(root, num_patches=2000, patch_px=128, um_per_px=40.0, split_axis="z")
    return root


def test_brain_has_no_fault(brain):
    report = check_brain(brain)
    assert report.faults == []
    assert any("163842 vertices" in fact for fact in report.facts)


def test_points_sit_in_the_left_cortical_ribbon(brain):
    """Check that all points are on the left, inside of the tissue and close to its edge."""
    patches = load_patches(brain / "patches.npz", read_brain(brain))
    assert len(patches) >= 2000
    assert patches.position_mm[:, 0].max() < 0
    np.testing.assert_allclose(patches.position_mm[:, 1], 2.7967, atol=1e-3)
    row = read_brain(brain).sections[0]
    with open_section(row.image, row.pixel_um) as section:
        image = section.read(0, 0, *section.shape)
    tissue = ndimage.binary_closing(ndimage.median_filter(image, 5) < 248, iterations=2)
    column, line = np.rint(patches.center_px).astype(int).T
    assert tissue[line, column].mean() > 0.97
    to_edge_mm = ndimage.distance_transform_edt(tissue)[line, column] * row.pixel_um / 1000
    # The mid surface lies half a cortex (1 to 2 mm) below the surface of a gyrus. In a closed
    # sulcus the nearest background may be further away.
    assert np.median(to_edge_mm) < 2.5 and np.quantile(to_edge_mm, 0.9) < 7


def test_a_wrong_registration_is_noticed(shared_data, example, tmp_path):
    """Shift the section by 2.5 mm in z, which puts many points outside of the tissue."""
    root = example.lay_out(shared_data, tmp_path / "brain")
    table = (root / "sections.csv").read_text()
    z0 = json.loads(
        (shared_data / "histology/bigbrain_sections/y+2.80_registration.json").read_text()
    )["z0_mm"]
    (root / "sections.csv").write_text(table.replace(str(z0), str(z0 + 2.5)))
    with pytest.warns(UserWarning, match=r"off|tissue"):
        sample_brain(root, num_patches=500, patch_px=128, um_per_px=40.0, split_axis="z")


def test_pairs_and_a_few_steps(brain, tmp_path):
    """Pair a few patches, and train two steps on real pixels."""
    patches = load_patches(brain / "patches.npz", read_brain(brain))
    few = np.flatnonzero(np.arange(len(patches)) % 20 == 0)  # every solve costs seconds
    names = [field.name for field in dataclasses.fields(patches) if field.name != "settings"]
    thin = dataclasses.replace(patches, **{name: getattr(patches, name)[few] for name in names})
    thin.save(brain / "few.npz")
    pairs = pair_brain(brain, patches_file="few.npz", out="few_pairs.npz", method="heat")
    straight = np.linalg.norm(
        thin.position_mm[pairs.first] - thin.position_mm[pairs.second], axis=1
    )
    assert (pairs.distance_mm >= straight - 0.05).all()
    config = Config(
        data=DataConfig(
            brains=(str(brain),), pairs="few_pairs.npz", patch_px=128, um_per_px=40.0, batch_pairs=8
        ),
        model=ModelConfig(stem_kernel=3, stem_stride=1, widths=(4, 4, 4, 4, 8)),
        steps=2,
        log_every=1,
        batch_stats_steps=1,
    )
    table = open_pairs(config.data)
    left, right = table.first[0], table.second[0]
    source = PairSource(table, config.data)
    assert source.read_patch(left).std() > 3 and source.read_patch(right).std() > 3
    results = loop.train(config, tmp_path / "run")
    assert results["test"]["distance_mae_mm_constant"] > 0
