"""Eight fake CPU devices, strict rank promotion, and the optional folder of real data."""

import os

os.environ.setdefault("MPLBACKEND", "agg")

from pathlib import Path

import jax
import pytest
from absl import flags

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
if not flags.FLAGS.is_parsed():  # grain reads absl flags, which only app.run parses
    flags.FLAGS.mark_as_parsed()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data kept beside the checkout; absent on most machines."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data beside the checkout ({folder.name} folder absent)")
    return folder
