"""One run, one folder: a lock that ends with the process that holds it."""

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
    """Holds `WORKDIR/lock`, whose content names this process.

    The lock is the kernel's and not the file: it is gone with the process, however that ends, and
    no child inherits it. On network file systems it holds among all hosts whose mounts support
    locks; where it cannot be taken at all, a warning says so and the run goes on.

    Raises:
        InputError: another process has it, which is named; or `lock` is no plain file.
    """
    path = workdir / "lock"
    try:  # a link would empty the file that it leads to, a pipe would wait
        number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        raise InputError(f"{path}: cannot be opened: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise InputError(f"{path}: not a file; remove it, or give another --workdir")
    with os.fdopen(number, "r+") as file:
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
                "%s: this file system has no locks (%s); take care that no second run uses the "
                "folder",
                path,
                error.strerror,
            )
        file.seek(0)
        file.truncate()
        started = time.strftime("%Y-%m-%d %H:%M:%S %z")
        file.write(f"process {os.getpid()} on {socket.gethostname()}, since {started}\n")
        file.flush()
        yield
