"""Set up worker processes."""

import multiprocessing
import os
import sys
import threading

from jaxcyto.errors import InputError

UNGUARDED = (
    "worker processes could not start, because each of them runs the program's main file again: "
    'put what starts them below `if __name__ == "__main__":`, or use workers = 1'
)


def check_main() -> None:
    """Check that worker processes can run the program's main file, as spawned processes do.

    A worker that arrives here while it runs this file ends at once, because it would start workers
    without end. Its parent then reports UNGUARDED.

    Raises:
        InputError: the program was read from standard input.
    """
    # True while a spawned process runs the main file. Without this attribute, which is private,
    # multiprocessing itself stops such a worker, with a long message of its own.
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        sys.exit(1)
    main = sys.modules["__main__"]
    file = getattr(main, "__file__", None)
    if getattr(main, "__spec__", None) is None and file and not os.path.isfile(file):
        raise InputError(
            f"worker processes cannot start, because each of them runs the program's main file "
            f"again, and {file} is none: save the program as a file, or use workers = 1"
        )


def leave_with_parent() -> None:
    """End this process when its parent ends. Each worker calls this first.

    A parent that is killed by SIGKILL cannot stop its workers, which would wait for work forever.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
