"""The steps of training as pure functions of (state, batch), for one device.

`axis_name` names the mapped axis of `parallel.py`; with None a step is a plain function to jit or
to export. A batch on a device holds its share of the global batch. What differs between the tasks
is in `Task`.
"""

from collections.abc import Sequence
from typing import Any, Protocol, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxcyto import augment, losses
from jaxcyto.config import LossConfig, Term
from jaxcyto.metrics import Metrics
from jaxcyto.models.layers import BN_MOMENTUM
from jaxcyto.training.state.state import State

Batch = dict[str, Any]
IMAGES = ("patches", "image", "atlas")  # fields that losses do not see


class Task(Protocol):
    """What a step needs beside state and batch, all of it static; the methods are pure."""

    @property
    def model(self) -> nn.Module:
        """With the attribute `axis_name` for its batch norm."""
        ...

    @property
    def loss(self) -> LossConfig: ...

    @property
    def modes(self) -> tuple[str, ...]:
        """Statistics that evaluation uses: "eval" (stored) and maybe "train_mode" (the batch's)."""
        ...

    @property
    def scales(self) -> Any:
        """Units of inputs and outputs, for config.json."""
        ...

    @property
    def optimizer(self) -> optax.GradientTransformation: ...

    @property
    def seed(self) -> int: ...

    def inputs(self, batch: Batch, keys: jax.Array | None) -> Batch:
        """A loader's batch with normalized, augmented (keys [B], unless None) float images and
        scaled targets."""
        ...

    def forward(
        self, model: nn.Module, variables: dict[str, Any], batch: Batch, train: bool
    ) -> tuple[Batch, Any]:
        """Outputs by name, and the batch statistics after this batch."""
        ...

    def errors(self, outputs: Batch, batch: Batch) -> Metrics:
        """(sum, count) states of one batch."""
        ...

    def predictions(self, outputs: Batch, batch: Batch) -> Batch:
        """What evaluation keeps of each example: arrays [B, ...]."""
        ...


def gather(tree: Any, axis_name: str | None) -> Any:
    """The global batch on every device, in the order of the devices."""
    if axis_name is None:
        return tree
    return jax.tree.map(lambda x: jax.lax.all_gather(x, axis_name, tiled=True), tree)


def loss_terms(
    terms: Sequence[Term], outputs: Batch, batch: Batch, axis_name: str | None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The weighted sum of the terms and each term's own mean.

    Terms marked batch-wise see the whole gathered batch, so their value does not depend on the
    number of devices; the other terms are this device's share, averaged afterwards.
    """
    # images stay where they are: a loss of outputs and targets does not need them
    targets = {key: value for key, value in batch.items() if key not in IMAGES}
    shared = (outputs, targets)
    if any(losses.is_batchwise(term.function) for term in terms):
        shared = gather(shared, axis_name)
    groups = [(outputs, targets), shared]
    means: dict[str, jax.Array] = {}
    total = jnp.zeros((), jnp.float32)
    for coupled, seen in enumerate(groups):
        chosen = [term for term in terms if losses.is_batchwise(term.function) == bool(coupled)]
        values = losses.term_means(chosen, *seen)
        for term, value in zip(chosen, values.values(), strict=True):
            total = total + term.weight * value
        means |= values
    return total, means


def train_step(
    state: State, batch: Batch, *, task: Task, axis_name: str | None = None
) -> tuple[State, dict[str, Any]]:
    """One step of gradient descent.

    If the optimizer is one of `optax.apply_if_finite`, a step whose loss, gradient or batch
    statistics are not finite leaves parameters, statistics and the inner optimizer as they were;
    `scalars` then holds `skipped_steps`, those of the whole run.

    Returns:
        The next state and metrics of this step: "scalars"; (sum, count) states by name under
        "errors", all of them over the global batch; and under "checks" the loss, the gradient's
        norm, whether the next state is `finite`, and the number of steps `skipped` in a row.
    """
    keys = augment.example_keys(jax.random.key(task.seed), state.step, batch["index"])
    batch = task.inputs(batch, keys)
    model = task.model.clone(axis_name=axis_name)

    def loss_fn(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        outputs, batch_stats = task.forward(model, variables, batch, True)
        total, terms = loss_terms(task.loss.terms, outputs, batch, axis_name)
        squared_norm = losses.weight_decay(params)
        total = total + task.loss.weight_decay * squared_norm
        scalars = {"loss": total, "l2_kernels": jnp.sqrt(squared_norm)}
        scalars |= {f"loss/{name}": value for name, value in terms.items()}
        return total, (scalars, outputs, batch_stats)

    gradients, (scalars, outputs, batch_stats) = jax.grad(loss_fn, has_aux=True)(state.params)
    errors = task.errors(outputs, batch)
    if axis_name is not None:
        # outside of loss_fn: inside, pmean would change the gradients (pmap does not type them)
        gradients, scalars = jax.lax.pmean((gradients, scalars), axis_name)
        errors = jax.lax.psum(errors, axis_name)
    scalars["l2_gradients"] = optax.tree.norm(gradients)
    skips = isinstance(state.opt_state, optax.ApplyIfFiniteState)
    if skips:
        # the optimizer looks at the gradients alone: let them tell of everything else
        good = all_finite((scalars["loss"], scalars["l2_gradients"], batch_stats))
        gradients = jax.tree.map(lambda x: jnp.where(good, x, jnp.nan), gradients)
        batch_stats = jax.tree.map(
            lambda new, old: jnp.where(good, new, old), batch_stats, state.batch_stats
        )
    updates, opt_state = task.optimizer.update(gradients, state.opt_state, state.params)
    counters = cast(Any, opt_state)
    if skips:
        scalars["skipped_steps"] = counters.total_notfinite
    new_state = State(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        batch_stats=batch_stats,
        opt_state=opt_state,
    )
    checks = {
        "loss": scalars["loss"],
        "gradient": scalars["l2_gradients"],
        "finite": all_finite(new_state),
        "skipped": counters.notfinite_count if skips else jnp.zeros((), jnp.int32),
    }
    return new_state, {"scalars": scalars, "errors": errors, "checks": checks}


def all_finite(tree: Any) -> jax.Array:
    """Whether no leaf holds an infinity or NaN."""
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(x)) for x in floats]))


def eval_step(
    state: State, batch: Batch, *, task: Task, axis_name: str | None = None
) -> tuple[dict[str, Any], Batch]:
    """Errors in the modes of the task, and its predictions with the stored statistics.

    Returns:
        (sum, count) states by mode; and the task's predictions, `index` and `valid` of the
        examples, both over the global batch.
    """
    batch = task.inputs(batch, None)
    model = task.model.clone(axis_name=axis_name)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    outputs = {
        mode: task.forward(model, variables, batch, mode == "train_mode")[0] for mode in task.modes
    }
    errors: Any = {mode: task.errors(outputs[mode], batch) for mode in task.modes}
    if axis_name is not None:
        errors = jax.lax.psum(errors, axis_name)
    kept = task.predictions(outputs["eval"], batch)
    kept |= {key: batch[key] for key in ("index", "valid")}
    return errors, gather(kept, axis_name)


def statistics_step(
    state: State, batch: Batch, *, task: Task, axis_name: str | None = None
) -> dict[str, Any]:
    """Batch statistics of one batch as first and second moments, to be averaged over batches."""
    batch = task.inputs(batch, None)
    model = task.model.clone(axis_name=axis_name)
    # from zeros, the running average after one batch is (1 - momentum) times the batch's value
    zeros = jax.tree.map(jnp.zeros_like, state.batch_stats)
    _, updated = task.forward(model, {"params": state.params, "batch_stats": zeros}, batch, True)
    return to_moments(jax.tree.map(lambda x: x / (1.0 - BN_MOMENTUM), updated))


def to_moments(batch_stats: Any) -> Any:
    """`mean`, `var` -> `mean`, E[x^2], which average over batches."""
    if "var" not in batch_stats:
        return {key: to_moments(value) for key, value in batch_stats.items()}
    mean, variance = batch_stats["mean"], batch_stats["var"]
    return {"mean": mean, "second": variance + mean**2}


def from_moments(moments: Any) -> Any:
    """The inverse of `to_moments`."""
    if "second" not in moments:
        return {key: from_moments(value) for key, value in moments.items()}
    mean, second = moments["mean"], moments["second"]
    return {"mean": mean, "var": jnp.maximum(second - mean**2, 0.0)}
