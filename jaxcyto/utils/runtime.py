"""Configure the compilation cache and malloc for this process, before JAX starts.

`keep_programs` enables JAX's persistent compilation cache. It adds a default folder, a size limit
and the repair of entries that a full disk or a kill truncated. The key of an entry covers the
program, the versions of jaxlib and the compiler, XLA_FLAGS, and the device including a CPU's
instruction set. Machines of different kinds can therefore share the folder.
"""

import ctypes
import glob
import logging
import os
import re
import warnings
from pathlib import Path
from typing import Any

FOLDER = "JAX_COMPILATION_CACHE_DIR"  # JAX reads this and the variables of LIMITS on import
LIMITS = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1"}
MAX_BYTES = 1 << 30  # some hundred executables of 0.1 to 5 MB
FAILED = re.compile(r"Error (reading|writing) persistent compilation cache entry for '(.+?)': (.*)")

logger = logging.getLogger("jaxcyto")
# Constants of glibc's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8


def keep_programs() -> Path | None:
    """Enable JAX's persistent compilation cache. Call before importing JAX.

    The folder is jaxcyto/programs under XDG_CACHE_HOME or ~/.cache. It must belong to the user, and
    nobody else may have write permission. If the user has set JAX_COMPILATION_CACHE_DIR, the cache
    is left to JAX. Child processes inherit the setting.

    Returns:
        The folder. None if JAX_COMPILATION_CACHE_DIR is set, or if the folder is unsafe or not
        writable, in which case every program is compiled again.
    """
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME", ""))
        folder = (base if base.is_absolute() else Path.home() / ".cache") / "jaxcyto" / "programs"
        if os.environ.get(FOLDER, str(folder)) != str(folder):  # equal in a child or a second call
            _mend(None)
            return None
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = folder.stat()
        if status.st_uid != os.geteuid() or status.st_mode & 0o022:  # entries are executed
            return None
        if not os.access(folder, os.W_OK | os.X_OK):
            return None
        remove_oldest(folder, MAX_BYTES)
    except (OSError, RuntimeError):  # RuntimeError: no home folder
        return None
    os.environ[FOLDER] = str(folder)
    for name, value in LIMITS.items():
        os.environ.setdefault(name, value)
    _mend(folder)
    return folder


def remove_oldest(folder: Path, max_bytes: int) -> None:
    """Remove the least recently used entries until the rest takes at most `max_bytes`.

    JAX's own limit (`jax_compilation_cache_max_size`) needs another package and disables the cache
    without it.
    """
    entries = []
    for path in folder.glob("*-cache"):
        try:
            stat = path.stat()
        except FileNotFoundError:  # another process has removed it
            continue
        # Many file systems update the access time once a day, some never.
        entries.append((max(stat.st_atime, stat.st_mtime), stat.st_size, path))
    total = sum(size for _, size, _ in entries)
    for _, size, path in sorted(entries):
        if total <= max_bytes:
            return
        path.unlink(missing_ok=True)
        total -= size


def _mend(folder: Path | None) -> None:
    """Remove cache entries that JAX warns about, so that JAX writes them again.

    JAX writes entries in place. After a kill, on a full disk or during a write by another process
    it can therefore read a truncated entry. JAX then compiles the program but never replaces the
    entry.

    Args:
        folder: the folder of the cache. None leaves the entries.
    """
    show = warnings.showwarning
    if show.__name__ == "show_or_mend":  # a second call
        return

    def show_or_mend(message: Warning | str, category: type[Warning], *where: Any) -> None:
        failed = FAILED.match(str(message))
        if failed is None or folder is None:
            show(message, category, *where)
            return
        doing, program, why = failed.groups()
        logger.warning(
            "%s %s in %s: %s; the program is compiled again", doing, program, folder, why
        )
        try:
            for path in folder.glob(f"{glob.escape(program)}-*-cache"):
                path.unlink(missing_ok=True)
        except OSError:
            pass

    warnings.showwarning = show_or_mend


def keep_freed_memory() -> bool:
    """Set glibc's malloc to keep freed memory instead of returning it to the system.

    XLA:CPU allocates the buffers of each step again. By default malloc maps large buffers, faults
    them in page by page and unmaps them each time. With this setting a step of the small network
    was 12 % faster on two cores. It has no effect on buffers in an accelerator's memory.

    Returns:
        Whether the C library accepted the settings. Only glibc does.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    settings = {
        M_MMAP_MAX: 0,
        M_TRIM_THRESHOLD: 2**31 - 1,
        M_TOP_PAD: 256 << 20,
        M_ARENA_MAX: 1,
    }
    return all(mallopt(option, value) == 1 for option, value in settings.items())
