"""Lock the run folder, so that only one process at a time trains in it."""

import contextlib
import errno
import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from jaxcyto.errors import InputError
from jaxcyto.training.log import logger


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Hold the lock of a run folder.

    The file `WORKDIR/lock` names this process, but the lock itself is a POSIX lock of the kernel.
    The kernel releases it when the process ends, however it ends, and child processes do not
    inherit it. On network file systems it works between all hosts whose mounts support locks. If
    the file system has no locks, a warning is logged and the run continues.

    Args:
        workdir: the run folder, which must exist.

    Raises:
        InputError: another process holds the lock (the message names it), or `lock` is not a
            regular file.
    """
    path = workdir / "lock"
    # O_NOFOLLOW: writing through a symbolic link would overwrite the file it points to.
    # O_NONBLOCK: opening a named pipe would wait for its other end.
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        raise InputError(f"{path}: cannot be opened: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError(f"{path}: not a regular file; remove it, or give another --workdir")
    with os.fdopen(descriptor, "r+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                file.seek(0)
                holder = file.read(200).strip() or "another process"
                raise InputError(
                    f"--workdir {workdir}: in use by {holder!a}; stop that run, or give another "
                    "folder"
                ) from None
            logger.warning(
                "%s: this file system does not support locks (%s); make sure that no second run "
                "uses the folder",
                path,
                error.strerror,
            )
        file.seek(0)
        file.truncate()
        started = time.strftime("%Y-%m-%d %H:%M:%S %z")
        file.write(f"process {os.getpid()} on {socket.gethostname()}, since {started}\n")
        file.flush()
        yield
