"""Set up eight fake CPU devices, strict rank promotion, and the data that tests share."""

import os
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "agg")

import jax
import pytest
from absl import flags

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
# All tests and workers share one compilation cache. Child processes inherit it by the environment.
CACHE = Path(__file__).resolve().parents[1] / ".pytest_cache" / "jax"
SECONDS = "0.2"  # programs that compile faster are not cached
jax.config.update(
    "jax_compilation_cache_dir", os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
)
jax.config.update(
    "jax_persistent_cache_min_compile_time_secs",
    float(os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", SECONDS)),
)
if not flags.FLAGS.is_parsed():  # grain reads absl flags, which only app.run parses
    flags.FLAGS.mark_as_parsed()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of real data beside the checkout, or skip the test if it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data beside the checkout ({folder.name} folder absent)")
    return folder


@pytest.fixture(scope="session")
def tiny_brain(tmp_path_factory) -> Path:
    """Make a small phantom with patches of 32 px at 64 um/px, pairs and all distances."""
    from jaxcyto.brain.prepare import pair_brain, sample_brain
    from jaxcyto.phantom.make import make_phantom
    from jaxcyto.phantom.settings import PRESETS

    root = make_phantom(tmp_path_factory.mktemp("brains") / "tiny", PRESETS["tiny"], workers=1)
    sample_brain(root, num_patches=240, patch_px=32, um_per_px=64.0)
    pair_brain(root, num_pairs=480, method="heat", all_distances=True, workers=1)
    return root
