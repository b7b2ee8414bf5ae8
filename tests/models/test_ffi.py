"""Test calls from XLA into Python: structures, errors, signals, and the end of the process."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcyto.models.cpu import ffi
from jaxcyto.models.cpu import kernels as cpu
from jaxcyto.models.layers import conv

pytestmark = pytest.mark.skipif(not cpu.available(), reason="no oneDNN here")
# How a process ends while its program still runs, and the exit status.
ENDINGS = {
    "held": ("result = program(x)", 0),
    "dropped": ("program(x)", 0),
    "left": ("program(x); sys.exit(3)", 3),
    "failed": ("result = program(x); raise ValueError", 1),
}


def c_structures():
    """Parse the types of the fields of each structure from XLA's header, in order."""
    text = Path(jax.ffi.include_dir(), "xla", "ffi", "api", "c_api.h").read_text()
    text = re.sub(r"//.*", "", text).replace("_XLA_FFI_API_STRUCT_FIELD(", "void* (")
    found = {}
    for name, body in re.findall(r"struct XLA_FFI_(\w+) \{(.*?)\n\}", text, re.DOTALL):
        fields = (re.sub(r"\s*\*\s*", "* ", line).split() for line in body.split(";"))
        found[name] = [" ".join(words[:-1]) for words in fields if words]
    return found


def test_structures_are_those_of_the_header():
    """Check offset and size of each field against the header. Later fields are not read."""
    header = c_structures()
    # All other types are int or enums, which have 4 bytes.
    scalars = {"size_t": 8, "int64_t": 8, "XLA_FFI_Handler_Traits": 4}

    def laid_out(name):
        """Return (offset, size) of each field, and the size of the structure, aligned to 8."""
        at, fields = 0, []
        for kind in header[name]:
            inner = kind.removeprefix("XLA_FFI_")
            if "*" in kind:
                size = 8
            elif inner in header:
                size = laid_out(inner)[1]
            else:
                size = scalars.get(kind, 4)
            at += -at % min(size, 8)
            fields.append((at, size))
            at += size
        return fields, at + -at % 8

    # JAX 0.11 has the same structure under the second name.
    extension = "InternalExtension" if "InternalExtension" in header else "Extension_Base"
    ours = {
        extension: ffi._Extension, "Api_Version": ffi._Version,
        "Metadata": ffi._Metadata, "Metadata_Extension": ffi._MetadataExtension,
        "Buffer": ffi._Buffer, "Args": ffi._Held, "Rets": ffi._Held, "ByteSpan": ffi._Text,
        "Scalar": ffi._Scalar, "Attrs": ffi._Attributes, "Error_Create_Args": ffi._ErrorCreate,
        "Api": ffi._Api, "CallFrame": ffi._CallFrame,
    }  # fmt: skip
    for name, structure in ours.items():
        fields = [getattr(structure, field[0]) for field in structure._fields_]
        found = [(each.offset, each.size) for each in fields]
        assert found == laid_out(name)[0][: len(found)], name


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("no memory")])
def test_nothing_passes_through_XLA(error, monkeypatch):
    """Check that any exception, KeyboardInterrupt included, becomes an error of the program."""

    def interrupted(*_):
        raise error

    monkeypatch.setattr(cpu, "_made_gradient", interrupted)
    x, kernel = jnp.ones((2, 9, 9, 4)), jnp.ones((3, 3, 4, 8))
    pull = jax.jit(jax.grad(lambda kernel: conv(x, kernel).sum()))
    with pytest.raises(Exception, match=f"_gradient: {str(error) or 'Keyboard'}"):
        jax.block_until_ready(pull(kernel))
    monkeypatch.undo()
    assert pull(kernel).max() == 2 * 7 * 7


def test_other_dtypes_are_refused():
    x, kernel = jnp.ones((2, 9, 9, 4), jnp.bfloat16), jnp.ones((3, 3, 4, 8))
    with pytest.raises(Exception, match="jaxcyto_block: an argument or result is not float32"):
        jax.block_until_ready(cpu.convolve(x, kernel, 1))


def test_interrupts_wait_for_the_work(monkeypatch):
    """Check that `_run` returns only after the work, because XLA then reuses the memory."""
    done = []
    lock = ffi.threading.Lock

    class Interrupting:
        def __init__(self):
            self.lock, self.times = lock(), 0

        def acquire(self):
            self.times += 1
            if self.times in (2, 3):
                raise KeyboardInterrupt
            return self.lock.acquire()

        def release(self):
            self.lock.release()

    monkeypatch.setattr(ffi.threading, "Lock", Interrupting)
    with pytest.raises(KeyboardInterrupt):
        ffi._run(lambda: (ffi.time.sleep(0.2), done.append(True)))
    assert done == [True]


def test_one_thread_does_all_work(monkeypatch):
    """Check that one thread calls oneDNN. OpenMP has a team of threads for each calling thread."""
    seen, execute = set(), cpu.onednn.Primitive.execute

    def seeing(self):
        seen.add(ffi.threading.get_native_id())
        execute(self)

    monkeypatch.setattr(cpu.onednn.Primitive, "execute", seeing)
    kernel = jnp.ones((3, 3, 4, 8))
    split = jax.pmap(lambda x: conv(x, kernel).sum())
    found = [split(jnp.ones((8, 2, 40, 40, 4))) for _ in range(5)]
    np.testing.assert_array_equal(jnp.stack(found), 36 * 8 * 2 * 38 * 38)
    assert seen == {ffi._worker.native_id}


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_process_ends_while_a_program_runs(ending):
    """Check that a process ends, although JAX waits for programs while it holds the GIL."""
    last, status = ENDINGS[ending]
    code = f"""
import sys
import jax, jax.numpy as jnp
from jaxcyto.models.layers import conv
x, kernel = jnp.ones((4, 100, 100, 16)), jnp.full((3, 3, 16, 16), 0.1)
step = lambda n, total: total + jnp.tanh(conv(x * n, kernel)).sum()
program = jax.jit(lambda x: jax.lax.fori_loop(0, 300, step, 0.0)).lower(x).compile()
print("compiled", flush=True)
{last}
"""
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (status, "compiled\n"), done.stderr
    assert ("ValueError" in done.stderr) == (ending == "failed")
