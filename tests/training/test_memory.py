"""Check that checkpoints leak no resources. benchmarks/scale/memory.py measures memory."""

import dataclasses
import os
import threading

import jax.numpy as jnp
import pytest

from jaxcyto.training.state.checkpoint import Checkpoints
from jaxcyto.training.state.state import State


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files in /proc")
def test_checkpoints_leave_no_thread_and_no_open_file(tmp_path):
    """With such a leak, the process could open no more files after some hundred checkpoints."""
    state = State(jnp.zeros((), jnp.int32), {"kernel": jnp.ones((8, 8))}, {}, ())
    held = {}
    with Checkpoints(tmp_path / "checkpoints", keep=2) as checkpoints:
        for step in range(1, 41):
            checkpoints.save(step, dataclasses.replace(state, step=jnp.int32(step)))
            held[step] = threading.active_count(), len(os.listdir("/proc/self/fd"))
    for early, late in zip(held[10], held[40], strict=True):
        # A write in progress has some of its own. A leak of one per checkpoint would add 30.
        assert late < early + 15
