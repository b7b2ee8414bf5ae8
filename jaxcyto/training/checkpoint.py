"""Checkpoints by orbax: asynchronous, atomic; the newest and the best are kept."""

import textwrap
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from jaxcyto.errors import InputError
from jaxcyto.training.state import State


class Checkpoints:
    """The `checkpoints/` folder of a run. Use as a context manager: leaving waits for writes."""

    def __init__(self, folder: Path, *, keep: int = 2):
        """Opens or makes `folder`; keeps the newest `keep` and the best by `error` (lowest)."""
        # orbax's own annotations do not fit each other
        policies: Any = ocp.training.preservation_policies
        always: Any = ocp.training.save_decision_policies.FixedIntervalPolicy(1)
        path: Any = folder.resolve()  # orbax loses checkpoints of relative paths without an error
        self._checkpointer = ocp.training.Checkpointer(
            path,
            save_decision_policy=always,
            preservation_policy=policies.AnyPreservationPolicy(
                [
                    policies.LatestN(keep),
                    policies.BestN(
                        get_metric_fn=lambda metrics: -metrics["error"],
                        n=1,
                        keep_checkpoints_without_metrics=False,
                    ),
                ]
            ),
            cleanup_tmp_directories=True,
        )
        self._folder = folder

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: Any) -> None:
        self._checkpointer.close()

    def latest(self) -> int | None:
        """Step of the newest checkpoint, or None."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def save(self, step: int, state: State, error: float | None = None) -> None:
        """Starts writing; the state is copied to the host before this returns.

        Args:
            step: the state's step.
            state: replicated over the local devices.
            error: of the validation, for keeping the best; None before the first validation.
        """
        if self.latest() == step:
            return
        self._checkpointer.save_checkpointables_async(
            step,
            {"state": jax.device_get(state)},
            metrics=None if error is None else {"error": error},
        )

    def restore(self, step: int, like: State) -> State:
        """The state of a step, as numpy arrays.

        Raises:
            InputError: the checkpoint does not have the leaves and shapes of `like`.
        """
        wanted = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), jax.eval_shape(lambda: like))
        where = f"{self._folder}: the checkpoint of step {step}"
        remedy = "give the config of this run, or another --workdir"
        try:
            loaded = self._checkpointer.load_checkpointables(step, {"state": wanted})["state"]
        except Exception as error:  # orbax raises many kinds
            raise InputError(
                f"{where} is damaged, or of another network or optimizer "
                f"({type(error).__name__}: {textwrap.shorten(str(error), 200)}); "
                f"{remedy}, or remove its folder to continue from the one before"
            ) from error
        # orbax gives back whatever shapes it finds
        for (path, found), expected in zip(
            jax.tree_util.tree_leaves_with_path(loaded), jax.tree.leaves(wanted), strict=True
        ):
            if found.shape != expected.shape or found.dtype != expected.dtype:
                raise InputError(
                    f"{where}: {jax.tree_util.keystr(path)} is {found.dtype} {list(found.shape)}, "
                    f"but this config's network has {expected.dtype} "
                    f"{list(expected.shape)}; {remedy}"
                )
        return loaded
