"""What every worker process does first."""

import multiprocessing
import os
import threading


def leave_with_parent() -> None:
    """Ends this process when its parent is gone.

    A parent killed outright cannot tell its workers, which would wait for work forever.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
