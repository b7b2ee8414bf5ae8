"""Settings of the process, made before JAX starts: the compilation cache and malloc.

`keep_programs` sets JAX's persistent compilation cache, with what it leaves open: a folder, a
bound, and entries that a full disk or a kill has cut off. The key of an entry covers the program,
the versions of jaxlib and compiler, XLA_FLAGS and the device, of a CPU with its instruction set:
what another machine that shares the folder has compiled is not found here.
"""

import ctypes
import glob
import logging
import os
import re
import warnings
from pathlib import Path
from typing import Any

FOLDER = "JAX_COMPILATION_CACHE_DIR"  # read by JAX when it is imported, as are the others
LIMITS = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1"}
MAX_BYTES = 1 << 30  # some hundred programs of 0.1 to 5 MB
FAILED = re.compile(r"Error (reading|writing) persistent compilation cache entry for '(.+?)': (.*)")

logger = logging.getLogger("jaxcyto")
# glibc's malloc.h
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8


def keep_programs() -> Path | None:
    """Has JAX look for compiled programs in a folder, and keep them there; before JAX is imported.

    The folder is jaxcyto/programs under XDG_CACHE_HOME or ~/.cache; it must be the user's own, and
    nobody else may write to it. If JAX_COMPILATION_CACHE_DIR is set, that folder is the user's
    choice, and all is left to JAX. Children of this process inherit the setting.

    Returns:
        The folder; None if JAX_COMPILATION_CACHE_DIR is set, or if the folder is not safe or cannot
        be written: then everything is compiled anew.
    """
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME", ""))
        folder = (base if base.is_absolute() else Path.home() / ".cache") / "jaxcyto" / "programs"
        if os.environ.get(FOLDER, str(folder)) != str(folder):  # the same: a child, a second call
            _mend(None)
            return None
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = folder.stat()
        if status.st_uid != os.geteuid() or status.st_mode & 0o022:  # what lies there is run
            return None
        if not os.access(folder, os.W_OK | os.X_OK):
            return None
        remove_oldest(folder, MAX_BYTES)
    except (OSError, RuntimeError):  # RuntimeError: there is no home
        return None
    os.environ[FOLDER] = str(folder)
    for name, value in LIMITS.items():
        os.environ.setdefault(name, value)
    _mend(folder)
    return folder


def remove_oldest(folder: Path, max_bytes: int) -> None:
    """Removes the entries that were not used for longest, until all of them take `max_bytes`.

    Done here because JAX's own bound (`jax_compilation_cache_max_size`) needs another package, and
    without it there is no cache at all.
    """
    found = []
    for path in folder.glob("*-cache"):
        try:
            stat = path.stat()
        except FileNotFoundError:  # another process removes them, too
            continue
        # many file systems note a reading once a day, some never
        found.append((max(stat.st_atime, stat.st_mtime), stat.st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= max_bytes:
            return
        path.unlink(missing_ok=True)
        total -= size


def _mend(folder: Path | None) -> None:
    """Removes entries that JAX warns of, so that they are written again; None: leaves them.

    JAX writes in place: another process, or a later one after a kill or on a full disk, may read a
    part. It then compiles, but never replaces what is there.
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
            "%s %s in %s: %s; it is compiled, nothing else is lost", doing, program, folder, why
        )
        try:
            for path in folder.glob(f"{glob.escape(program)}-*-cache"):
                path.unlink(missing_ok=True)
        except OSError:
            pass

    warnings.showwarning = show_or_mend


def keep_freed_memory() -> bool:
    """Asks glibc to keep freed memory instead of handing it back to the system.

    XLA:CPU allocates the buffers of every step anew; large ones are otherwise mapped, faulted in
    page by page and unmapped each time. The small network's step became 12 % faster on two cores.
    Of no use where the buffers live on an accelerator.

    Returns:
        Whether the C library took the settings (others than glibc do not).
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
