"""Checkpoints by orbax: asynchronous, atomic, proven by a checksum; the newest and the best stay.

orbax gives back data in which a bit has flipped, so each checkpoint carries a digest of its leaves,
which a start recomputes. A damaged checkpoint is moved aside and the one before it continues.
"""

import contextlib
import hashlib
import math
import os
import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from jaxcyto.errors import InputError
from jaxcyto.training.devices import distributed
from jaxcyto.training.log import logger
from jaxcyto.training.state.optim import match_skipping
from jaxcyto.training.state.state import State

Leaves = dict[str, np.ndarray]
DIGEST = "sha256"  # its name among the leaves
STEP_NAME = re.compile(r"0|[1-9][0-9]{0,11}")  # of a checkpoint's folder
EXPANDS, SMALL_BYTES = 100, 2**25  # arrays to files, at most (unless small); trained ones: about 1


class Checkpoints:
    """The `checkpoints/` folder of a run. Use as a context manager: leaving waits for writes.

    Of several processes the first reads and writes; in the others this knows the steps only.

    `best`: the step with the lowest validation error, which is kept beside the newest `keep`.
    """

    def __init__(self, folder: Path, *, keep: int = 2):
        """Opens or makes `folder`, and finds the newest checkpoint that is intact.

        Raises:
            InputError: there are checkpoints, but all are damaged.
        """
        folder = folder.resolve()  # orbax loses checkpoints of relative paths without an error
        self.best: int | None = None
        self._folder, self._keep = folder, keep
        self._writing: Any = None  # orbax's answer to the last save
        self._found: Leaves = {}
        self._checkpointer: Any = None
        if distributed.is_first():
            with distributed.as_if_alone():
                self._latest, self._found = _newest_intact(folder)
                self._checkpointer = self._open()
        self._latest: int | None = distributed.from_first(lambda: self._latest)

    def _open(self) -> Any:
        # orbax's own annotations do not fit each other
        always: Any = ocp.training.save_decision_policies.FixedIntervalPolicy(1)
        policy: Any = self
        path: Any = self._folder
        return ocp.training.Checkpointer(
            path,
            save_decision_policy=always,
            preservation_policy=policy,
            cleanup_tmp_directories=True,
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def latest(self) -> int | None:
        """Step of the newest checkpoint, or None."""
        return self._latest

    def save(self, step: int, state: State) -> None:
        """Starts writing; the state is copied to the host before this returns.

        In a job of several processes it returns when all is written (see `as_if_alone`).

        Raises:
            OSError: this or the write before it failed, as on a full disk.
        """
        if self._latest == step:
            return
        if self._checkpointer is not None:
            self._start(step, state)
        self._latest = step

    def _start(self, step: int, state: State) -> None:
        leaves = {name: np.asarray(leaf) for name, leaf in _named(jax.device_get(state)).items()}
        leaves[DIGEST] = _digest(leaves)
        with self._os_errors(), distributed.as_if_alone():
            self._wait()
            self._writing = self._checkpointer.save_checkpointables_async(step, {"state": leaves})
            if not distributed.is_alone():
                self._wait()

    def close(self) -> None:
        """Returns when all is written; raises as `save`."""
        if self._checkpointer is None:
            return
        with self._os_errors(), distributed.as_if_alone():
            try:
                self._wait()
            finally:
                self._checkpointer.close()

    def _wait(self) -> None:
        """Until the last write is done; orbax keeps a thread and its files for one not asked."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def restore(self, like: State) -> State:
        """The state of the newest checkpoint, as numpy arrays; once.

        Raises:
            InputError: the checkpoint does not have the leaves and shapes of `like`.
        """
        found, self._found = self._found, {}
        return self._as_state(found, self._latest, like)

    def restore_step(self, step: int, like: State) -> State:
        """Return the state of the checkpoint of one step, as numpy arrays.

        Raises:
            InputError: it is gone or damaged, or does not have the leaves and shapes of `like`.
        """
        with distributed.as_if_alone():
            try:
                leaves = _read(self._folder / str(step), step)
            except _Damaged as error:
                raise InputError(
                    f"{self._folder / str(step)}: the checkpoint with the lowest validation error "
                    f"cannot be read ({error}); set weights = 'last' or start in a new --workdir"
                ) from None
        return self._as_state(leaves, step, like)

    def _as_state(self, found: Leaves, step: int | None, like: State) -> State:
        wanted = _named(jax.eval_shape(lambda: like))
        found = match_skipping(found, wanted.keys())
        for name in [*wanted, *sorted(found.keys() - wanted.keys())]:
            has, needs = _shape(found.get(name)), _shape(wanted.get(name))
            if has != needs:
                raise InputError(
                    f"{self._folder}: the checkpoint of step {step} is of another network "
                    f"or optimizer: {name} is {has}, but this config's is {needs}; give the "
                    "config of this run, or another --workdir"
                )
        return jax.tree.unflatten(jax.tree.structure(like), [found[name] for name in wanted])

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """orbax's policy: which checkpoints, sorted by step, are to stay."""
        del context
        first = len(checkpoints) - self._keep
        return [k >= first or info.step == self.best for k, info in enumerate(checkpoints)]

    @contextlib.contextmanager
    def _os_errors(self) -> Iterator[None]:
        """Turns what orbax makes of a failed write, often a ValueError, into the OSError it was."""
        try:
            yield
        except Exception as error:
            cause: BaseException | None = error
            while cause is not None:
                code = re.search(r"os_error_code='(\d+)'", str(cause))
                number = int(code[1]) if code else getattr(cause, "errno", None)
                if number is not None:
                    raise OSError(number, os.strerror(number), str(self._folder)) from error
                cause = cause.__cause__ or cause.__context__
            raise


class _Damaged(Exception):
    """Says what is wrong with a checkpoint."""


def _newest_intact(folder: Path) -> tuple[int | None, Leaves]:
    """Step and leaves of the newest checkpoint that is whole; newer ones are moved aside.

    Raises:
        InputError: there are checkpoints, but none is whole.
    """
    steps = [int(path.name) for path in folder.glob("*") if STEP_NAME.fullmatch(path.name)]
    damaged: dict[Path, str] = {}
    for step in sorted(steps, reverse=True):
        try:
            leaves = _read(folder / str(step), step)
        except _Damaged as error:
            damaged[folder / str(step)] = str(error)
            continue
        for path, reason in damaged.items():
            logger.warning(
                "%s: damaged (%s); moved to %s, the one of step %d is used",
                path,
                reason,
                _move_aside(path),
                step,
            )
        return step, leaves
    if damaged:
        reasons = "; ".join(f"{path.name}: {reason}" for path, reason in damaged.items())
        raise InputError(
            f"{folder}: no checkpoint is intact ({reasons}); bring back a copy of one, or remove "
            "the folder to start from the first step"
        )
    return None, {}


def _read(path: Path, step: int) -> Leaves:
    """The leaves of a checkpoint.

    Raises:
        _Damaged: they are not those that were saved.
    """
    try:
        _check_size(path)
        leaves = dict(ocp.load_checkpointables(str(path))["state"])
        leaves = {str(name): np.asarray(leaf) for name, leaf in leaves.items()}
    except Exception as error:  # orbax raises many kinds, the first of which says most
        while error.__context__ is not None and isinstance(error.__context__, Exception):
            error = error.__context__
        raise _Damaged(textwrap.shorten(f"{type(error).__name__}: {error}", 200)) from None
    digest = leaves.pop(DIGEST, None)
    if digest is None or not np.array_equal(digest, _digest(leaves)):
        raise _Damaged("its values do not fit its checksum")
    if "step" not in leaves or leaves["step"] != step:
        raise _Damaged("it holds another step")
    return leaves


def _check_size(path: Path) -> None:
    """Looks at what the headers count, by which orbax allocates; too much ends the interpreter.

    Raises:
        ValueError: it is more than can be in the files.
    """
    held = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    counted = 0
    for leaf in ocp.checkpointables_metadata(str(path)).metadata["state"].values():
        chunk = leaf.storage_metadata.chunk_shape
        counted += max(math.prod(leaf.shape), math.prod(chunk)) * leaf.dtype.itemsize
    if counted > max(SMALL_BYTES, EXPANDS * held):
        raise ValueError(f"its headers count {counted} bytes, but its files have {held}")


def _move_aside(path: Path) -> Path:
    """Moves a checkpoint to a folder beside that of the checkpoints, under a name not taken."""
    folder = path.parent.with_name("damaged")
    folder.mkdir(exist_ok=True)
    taken = {entry.name for entry in folder.iterdir()}
    names = (f"{path.name}-{k}" if k else path.name for k in range(len(taken) + 1))
    target = folder / next(name for name in names if name not in taken)
    path.rename(target)
    return target


def _named(tree: Any) -> dict[str, Any]:
    """Leaves by their path, such as `params/encoder/block1/conv1/kernel`."""
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in paths}


def _digest(leaves: Leaves) -> np.ndarray:
    """SHA-256 of names, types, shapes and values, uint8 [32]."""
    total = hashlib.sha256()
    for name, leaf in sorted(leaves.items()):
        total.update(f"{name} {_shape(leaf)}\n".encode())
        total.update(np.ascontiguousarray(leaf).view(np.uint8).data)
    return np.frombuffer(total.digest(), np.uint8)


def _shape(leaf: Any) -> str:
    return "missing" if leaf is None else f"{leaf.dtype} {list(leaf.shape)}"
