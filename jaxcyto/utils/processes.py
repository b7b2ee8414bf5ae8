"""Set up worker processes."""

import multiprocessing
import os
import threading


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
