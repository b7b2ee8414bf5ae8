"""Test that the compilation cache is reused, limited in size, and optional."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxcyto.utils import runtime as compilation

ROOT = Path(__file__).resolve().parents[2]
# Prints the events of JAX's cache while a small program is compiled and run.
PROGRAM = """
import json, sys
from jaxcyto.utils.runtime import keep_programs
folder = keep_programs()
import jax
events = []
jax.monitoring.register_event_listener(lambda event, **_: events.append(event.split("/")[-1]))
value = jax.jit(lambda x: (x * 3 + 1).sum())(jax.numpy.arange(4.0)).item()
print(json.dumps({
    "folder": folder and str(folder), "value": value, "set": jax.config.jax_compilation_cache_dir,
    "hits": events.count("cache_hits"), "misses": events.count("cache_misses"),
}))
"""


def run(code=PROGRAM, **changes):
    """Run code without the cache settings of the tests. Return its JSON output and its stderr."""
    env = {key: value for key, value in os.environ.items() if "CACHE" not in key}
    env |= {"JAX_PLATFORMS": "cpu", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    env |= {key: str(value) for key, value in changes.items()}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout or "null"), done.stderr


def test_programs_are_found_again_and_damaged_ones_written_again(tmp_path):
    first, _ = run(XDG_CACHE_HOME=tmp_path)
    folder = tmp_path / "jaxcyto" / "programs"
    assert first["folder"] == first["set"] == str(folder)
    assert first["hits"] == 0 and first["misses"] > 0
    assert folder.stat().st_mode & 0o077 == 0  # no other user may write code there
    entries = sorted(folder.glob("*-cache"))
    second, said = run(XDG_CACHE_HOME=tmp_path)
    assert (second["hits"], second["misses"]) == (first["misses"], 0)
    assert second["value"] == first["value"] and not said
    whole = {path: path.read_bytes() for path in entries}
    for number, (path, content) in enumerate(whole.items()):
        # truncated, emptied, and zeroed as after a power failure
        damaged = (content[: len(content) // 2], b"", bytes(len(content)))
        path.write_bytes(damaged[number % 3])
    third, said = run(XDG_CACHE_HOME=tmp_path)
    assert third["value"] == first["value"] and third["hits"] == 0
    assert said.count("the program is compiled again") == len(said.splitlines()) > 0
    fourth, said = run(XDG_CACHE_HOME=tmp_path)
    assert fourth["hits"] == len(entries) and not said


def test_programs_with_convolutions_are_kept(tmp_path):
    """Cache programs that call oneDNN, too. The next process resolves the calls by name."""
    code = PROGRAM.replace(
        "value = jax.jit(lambda x: (x * 3 + 1).sum())(jax.numpy.arange(4.0)).item()",
        """
from jaxcyto.models.layers import conv
x, kernel = jax.numpy.ones((2, 20, 20, 3)), jax.numpy.ones((3, 3, 3, 8))
value = jax.jit(jax.grad(lambda kernel: conv(x, kernel).sum()))(kernel).sum().item()
""",
    )
    first, _ = run(code, XDG_CACHE_HOME=tmp_path)
    second, said = run(code, XDG_CACHE_HOME=tmp_path)
    assert first["value"] == second["value"] == 2 * 18 * 18 * 8 * 27
    assert first["misses"] > 0 and not said
    assert (second["hits"], second["misses"]) == (first["misses"], 0)


def test_another_instruction_set_is_another_program(tmp_path):
    """Check that the fingerprint of the device, a part of the key, covers the instruction set."""
    code = """
import jax
from jax._src.lib import xla_client
topology = xla_client.get_topology_for_devices(jax.devices())
ours = topology.serialize()
other = ours.replace(b"+sse4.2,", b"-sse4.2,").replace(b"+neon,", b"-neon,")
print(other != ours, topology.deserialize(other).fingerprint() != topology.fingerprint())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["True", "True"], done.stderr


def test_a_folder_of_ones_own_is_left_to_jax(tmp_path):
    found, said = run(XDG_CACHE_HOME=tmp_path / "x", JAX_COMPILATION_CACHE_DIR=tmp_path / "own")
    assert found["folder"] is None and found["set"] == str(tmp_path / "own") and not said
    assert list((tmp_path / "own").glob("*-cache")) and not (tmp_path / "x").exists()


def test_a_folder_that_others_may_write_to_is_not_trusted(tmp_path):
    folder = tmp_path / "jaxcyto" / "programs"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    found, said = run(XDG_CACHE_HOME=tmp_path)
    assert found["folder"] is None and not said and not list(folder.iterdir())


@pytest.mark.parametrize("broken", ["file", "read-only", "proc"])
def test_without_a_folder_everything_is_compiled(tmp_path, broken):
    base = tmp_path / "base"
    if broken == "file":
        base.write_text("")
    elif broken == "read-only":
        if os.geteuid() == 0:
            pytest.skip("root may write everywhere")
        base.mkdir(mode=0o500)
    else:
        base = Path("/proc/nothing")
    found, said = run(XDG_CACHE_HOME=base)
    assert found["folder"] is None and found["set"] is None and found["misses"] == 0
    assert found["value"] == 22.0 and not said


def test_the_longest_unused_go_first(tmp_path):
    for age, name in enumerate(("new", "read", "old")):
        path = tmp_path / f"{name}-cache"
        path.write_bytes(bytes(100))
        day = 1_700_000_000 - 86_400 * age
        os.utime(path, (day, day))
    os.utime(tmp_path / "read-cache", (1_700_000_001, 0))  # written first, read last
    (tmp_path / "other.txt").write_bytes(bytes(1000))
    compilation.remove_oldest(tmp_path, 250)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "new-cache",
        "other.txt",
        "read-cache",
    ]
    compilation.remove_oldest(tmp_path, 100)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.txt", "read-cache"]
