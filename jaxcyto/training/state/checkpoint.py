"""Write and read checkpoints with orbax: asynchronous, atomic, and verified by a checksum.

orbax does not detect flipped bits in its data files, so each checkpoint contains a SHA-256 of its
leaves. A start recomputes it. A damaged checkpoint is moved aside, and the run continues from the
one before. The newest checkpoints and the best one are kept.

Of several processes, process 0 alone calls orbax, with `active_processes` = {0}. Then orbax neither
waits for the other processes nor uses their devices. If it synchronized them, each would have to
make the same calls in the same order, which is not so after process 0 has skipped a damaged
checkpoint. And collectives in orbax's threads would interleave with those of the training steps in
another order on each process. In both cases all would hang.

The V1 API reads, but cannot write: its `Checkpointer` refuses `active_processes`, and its functions
compare the path of all processes by a collective (orbax-checkpoint 0.12.8). So the older
`orbax.Checkpointer` writes, in a thread of this file. The format is the same.
"""

import contextlib
import hashlib
import itertools
import math
import os
import re
import shutil
import textwrap
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as orbax
from orbax.checkpoint import v1 as ocp

from jaxcyto.errors import InputError
from jaxcyto.training.devices import distributed
from jaxcyto.training.log import logger
from jaxcyto.training.state.optim import match_skipping
from jaxcyto.training.state.state import State

Leaves = dict[str, np.ndarray]
DIGEST = "sha256"  # name of the checksum among the leaves
STEP_NAME = re.compile(r"0|[1-9][0-9]{0,11}")  # name of a checkpoint's folder
TEMPORARY = ".orbax-checkpoint-tmp"  # orbax's mark of a folder that is not, or not yet, whole
# Largest plausible ratio of array bytes to file bytes, for arrays of more than SMALL_BYTES in all.
# Trained parameters hardly compress, so their ratio is about 1.
EXPANDS, SMALL_BYTES = 100, 2**25


class Checkpoints:
    """The `checkpoints/` folder of a run. Use it as a context manager, whose exit waits for writes.

    Of several processes, only process 0 reads and writes. In the others, this object only knows the
    steps.

    Attributes:
        best: step with the lowest validation error, if any. Its checkpoint is kept beside the
            newest ones.
    """

    def __init__(self, folder: Path, *, keep: int = 2):
        """Open or create the folder, and read the newest intact checkpoint.

        Args:
            folder: the folder of the checkpoints
            keep: count of newest checkpoints that are kept

        Raises:
            InputError: there are checkpoints, but all are damaged.
        """
        folder = folder.resolve()  # with a relative path, orbax loses checkpoints without an error
        self.best: int | None = None
        self._folder, self._keep = folder, keep
        self._writing: Future[None] | None = None  # the last save
        self._leaves: Leaves = {}  # of the newest checkpoint, until `restore` returns them
        if distributed.is_first():
            self._latest, self._leaves = _newest_intact(folder)
            folder.mkdir(parents=True, exist_ok=True)
            _clear(folder)
            self._orbax = _writer()
            self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._latest: int | None = distributed.from_first(lambda: self._latest)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def latest(self) -> int | None:
        """Return the step of the newest checkpoint, or None."""
        return self._latest

    def save(self, step: int, state: State) -> None:
        """Start to write a checkpoint, after the write before it has finished.

        The state is copied to the host before this returns, so the next step may donate its
        buffers.

        Args:
            step: steps that the state has taken. If it is the newest checkpoint's, nothing is done.
            state: the state

        Raises:
            OSError: this write or the one before it failed, for example on a full disk.
        """
        if self._latest == step:
            return
        if distributed.is_first():
            with self._os_errors():
                self._wait()
            # `device_get` may return views of buffers on the CPU, so this copies.
            leaves = {name: np.array(leaf) for name, leaf in _named(jax.device_get(state)).items()}
            self._writing = self._thread.submit(self._write, step, leaves, self.best)
        self._latest = step

    def _write(self, step: int, leaves: Leaves, best: int | None) -> None:
        """Write a checkpoint, then remove those that are no longer kept."""
        leaves[DIGEST] = _digest(leaves)
        # orbax writes to a temporary folder and renames it at the end.
        state = orbax.args.PyTreeSave(leaves)
        self._orbax.save(self._folder / str(step), args=orbax.args.Composite(state=state))
        for old in _steps(self._folder)[: -self._keep]:
            if old != best:
                _remove(self._folder / str(old))

    def close(self) -> None:
        """Wait until everything is written.

        Raises:
            OSError: the last write failed.
        """
        if distributed.is_first():
            try:
                with self._os_errors():
                    self._wait()
            finally:
                self._thread.shutdown()
                self._orbax.close()

    def _wait(self) -> None:
        """Wait until the last write is done, and raise its error."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def restore(self, like: State) -> State:
        """Return the state of the newest checkpoint, as numpy arrays.

        Call it at most once, because it gives up the leaves in order to free their memory.

        Args:
            like: a state of the same structure, of which only shapes and types are used

        Raises:
            InputError: the checkpoint does not have the leaves, shapes and types of `like`.
        """
        leaves, self._leaves = self._leaves, {}
        return self._as_state(leaves, self._latest, like)

    def restore_step(self, step: int, like: State) -> State:
        """Return the state of the checkpoint of one step, as numpy arrays.

        Raises:
            InputError: it is missing or damaged, or does not have the leaves, shapes and types of
                `like`.
        """
        try:
            leaves = _read(self._folder / str(step), step)
        except _Damaged as error:
            raise InputError(
                f"{self._folder / str(step)}: the checkpoint with the lowest validation error "
                f"cannot be read ({error}); set weights = 'last' or start in a new --workdir"
            ) from None
        return self._as_state(leaves, step, like)

    def _as_state(self, leaves: Leaves, step: int | None, like: State) -> State:
        wanted = _named(jax.eval_shape(lambda: like))
        leaves = match_skipping(leaves, wanted.keys())
        for name in [*wanted, *sorted(leaves.keys() - wanted.keys())]:
            has, needs = _shape(leaves.get(name)), _shape(wanted.get(name))
            if has != needs:
                raise InputError(
                    f"{self._folder}: the checkpoint of step {step} is of another network "
                    f"or optimizer: {name} is {has}, but this config needs {needs}; give the "
                    "config of this run, or another --workdir"
                )
        return jax.tree.unflatten(jax.tree.structure(like), [leaves[name] for name in wanted])

    @contextlib.contextmanager
    def _os_errors(self) -> Iterator[None]:
        """Turn exceptions of orbax back into the OSError that caused them.

        A failed write in orbax's C++ code is raised as a ValueError, whose text contains the error
        code. Other errors hide an OSError in their chain of causes.
        """
        try:
            yield
        except Exception as error:
            cause: BaseException | None = error
            while cause is not None:
                code = re.search(r"os_error_code='(\d+)'", str(cause))
                errno = int(code[1]) if code else getattr(cause, "errno", None)
                if errno is not None:
                    raise OSError(errno, os.strerror(errno), str(self._folder)) from error
                cause = cause.__cause__ or cause.__context__
            raise


class _Damaged(Exception):
    """A damaged checkpoint. The message describes what is wrong with it."""


def _writer() -> Any:
    """Return orbax's writer of a folder that holds one tree, `state`."""
    # Any, because pyright rejects correct calls of orbax.
    alone: Any = orbax.options.MultiprocessingOptions(primary_host=0, active_processes={0})
    tree = orbax.PyTreeCheckpointHandler(use_zarr3=True, multiprocessing_options=alone)
    options = orbax.CompositeOptions(multiprocessing_options=alone)
    handler = orbax.CompositeCheckpointHandler(composite_options=options, state=tree)
    return orbax.Checkpointer(handler, multiprocessing_options=alone)


def _reader() -> Any:
    """Return the context in which process 0 reads."""
    context: Any = ocp.Context()
    context.multiprocessing.active_processes = {0}
    return context


def _steps(folder: Path) -> list[int]:
    """Return the steps of all checkpoints, the newest last."""
    return sorted(int(path.name) for path in folder.glob("*") if STEP_NAME.fullmatch(path.name))


def _remove(path: Path) -> None:
    """Remove a checkpoint, so that a kill at any moment leaves all or nothing under its name."""
    free = (path.with_name(f"{path.name}{TEMPORARY}-removed{k or ''}") for k in itertools.count())
    _delete(path.rename(next(target for target in free if not target.exists())))


def _clear(folder: Path) -> None:
    """Remove what a killed process was writing or removing."""
    for path in folder.glob(f"*{TEMPORARY}*"):
        _delete(path)


def _delete(path: Path) -> None:
    """Remove a folder, a file, or a link but not its target.

    A failure, for example of a network disk, is logged. It costs space, but no training.
    """
    try:
        if path.is_dir() and not path.is_symlink():  # `rmtree` refuses links
            shutil.rmtree(path)
        else:
            path.unlink()
    except OSError as error:
        logger.warning("%s: cannot be removed: %s; remove it by hand", path, error.strerror)


def _newest_intact(folder: Path) -> tuple[int | None, Leaves]:
    """Return step and leaves of the newest intact checkpoint, and move newer ones aside.

    Returns:
        (None, {}) if there are no checkpoints.

    Raises:
        InputError: there are checkpoints, but none is intact. They are then not moved, so the next
            start fails, too, and does not begin from the first step.
    """
    damaged: dict[Path, str] = {}
    for step in reversed(_steps(folder)):
        try:
            leaves = _read(folder / str(step), step)
        except _Damaged as error:
            damaged[folder / str(step)] = str(error)
            continue
        for path, reason in damaged.items():
            logger.warning(
                "%s: damaged (%s); moved to %s, continuing from the one of step %d",
                path,
                reason,
                _move_aside(path),
                step,
            )
        return step, leaves
    if damaged:
        reasons = "; ".join(f"{path.name}: {reason}" for path, reason in damaged.items())
        raise InputError(
            f"{folder}: no checkpoint is intact ({reasons}); restore one from a copy, or remove "
            "the folder to start from the first step"
        )
    return None, {}


def _read(path: Path, step: int) -> Leaves:
    """Read the leaves of a checkpoint, and verify them.

    Args:
        path: folder of the checkpoint
        step: step that its name gives

    Raises:
        _Damaged: the leaves cannot be read, or are not those that were saved.
    """
    try:
        with _reader():
            _check_size(path)
            leaves = dict(ocp.load_checkpointables(str(path))["state"])
        leaves = {str(name): np.asarray(leaf) for name, leaf in leaves.items()}
    except Exception as error:
        # orbax raises many kinds of exceptions. The first of a chain is the most specific one.
        while error.__context__ is not None and isinstance(error.__context__, Exception):
            error = error.__context__
        raise _Damaged(textwrap.shorten(f"{type(error).__name__}: {error}", 200)) from None
    digest = leaves.pop(DIGEST, None)
    if digest is None or not np.array_equal(digest, _digest(leaves)):
        raise _Damaged("its values do not match its checksum")
    if "step" not in leaves or leaves["step"] != step:
        raise _Damaged("it holds another step")
    return leaves


def _check_size(path: Path) -> None:
    """Check that the sizes in the headers of a checkpoint are plausible.

    orbax allocates arrays and chunks by the sizes in the headers, before it reads any data. A
    damaged header can ask for terabytes. The failed allocation happens in C++ and ends the
    interpreter without an exception, so this must run before orbax loads the checkpoint.

    Raises:
        ValueError: the arrays are larger than the files can hold.
    """
    held = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    counted = 0
    for leaf in ocp.checkpointables_metadata(str(path)).metadata["state"].values():
        chunk = leaf.storage_metadata.chunk_shape
        counted += max(math.prod(leaf.shape), math.prod(chunk)) * leaf.dtype.itemsize
    if counted > max(SMALL_BYTES, EXPANDS * held):
        raise ValueError(f"its headers count {counted} bytes, but its files have {held}")


def _move_aside(path: Path) -> Path:
    """Move a checkpoint to the folder `damaged` beside its own, under a free name.

    Returns:
        The new path.
    """
    folder = path.parent.with_name("damaged")
    folder.mkdir(exist_ok=True)
    taken = {entry.name for entry in folder.iterdir()}
    names = (f"{path.name}-{k}" if k else path.name for k in range(len(taken) + 1))
    target = folder / next(name for name in names if name not in taken)
    path.rename(target)
    return target


def _named(tree: Any) -> dict[str, Any]:
    """Return the leaves of a tree by path, such as `params/encoder/block1/conv1/kernel`."""
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in paths}


def _digest(leaves: Leaves) -> np.ndarray:
    """Compute the SHA-256 of names, types, shapes and values, uint8 [32]."""
    total = hashlib.sha256()
    for name, leaf in sorted(leaves.items()):
        total.update(f"{name} {_shape(leaf)}\n".encode())
        total.update(np.ascontiguousarray(leaf).view(np.uint8).data)
    return np.frombuffer(total.digest(), np.uint8)


def _shape(leaf: Any) -> str:
    return "missing" if leaf is None else f"{leaf.dtype} {list(leaf.shape)}"
