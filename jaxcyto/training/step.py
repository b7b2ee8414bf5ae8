"""The steps of training and evaluation as pure functions of (state, batch).

A step is written from the view of one device. Its batch is the device's share of the global batch.
`axis_name` names the mapped axis of `parallel.py`, over which a step averages, sums and gathers.
With `axis_name=None` a step has no collectives and can be jitted or exported like any function.
`Task` holds what differs between pre-training and segmentation.
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
IMAGES = ("patches", "image", "atlas")  # batch fields that losses do not get


class Task(Protocol):
    """What a step needs beside state and batch.

    A task is static: it is a constant of the compiled step. Its methods are pure functions.
    """

    @property
    def model(self) -> nn.Module:
        """The network. Its attribute `axis_name` is the axis of its batch normalization."""
        ...

    @property
    def loss(self) -> LossConfig: ...

    @property
    def modes(self) -> tuple[str, ...]:
        """Modes of evaluation, "eval" first.

        "eval" uses the stored batch statistics, "train_mode" those of the batch itself.
        """
        ...

    @property
    def scales(self) -> Any:
        """The scales of inputs and outputs, a dataclass that is written to config.json."""
        ...

    @property
    def optimizer(self) -> optax.GradientTransformation: ...

    @property
    def seed(self) -> int: ...

    @property
    def constant_statistics(self) -> tuple[str, ...]:
        """The submodules of the network whose batch statistics training leaves unchanged."""
        ...

    def inputs(self, batch: Batch, keys: jax.Array | None) -> Batch:
        """Return a loader's batch with normalized float images and scaled targets.

        Args:
            batch: a batch from the loader
            keys: [B], one random key for each example, or None for no augmentation
        """
        ...

    def forward(
        self, model: nn.Module, variables: dict[str, Any], batch: Batch, train: bool
    ) -> tuple[Batch, Any]:
        """Return the outputs by name, and the batch statistics after this batch."""
        ...

    def errors(self, outputs: Batch, batch: Batch) -> Metrics:
        """Compute the (sum, count) states of one batch."""
        ...

    def predictions(self, outputs: Batch, batch: Batch) -> Batch:
        """Return what evaluation keeps of each example, arrays [B, ...]."""
        ...


def gather(tree: Any, axis_name: str | None) -> Any:
    """Gather arrays [b, ...] of all devices into [B, ...] on every device, in device order."""
    if axis_name is None:
        return tree
    return jax.tree.map(lambda x: jax.lax.all_gather(x, axis_name, tiled=True), tree)


def loss_terms(
    terms: Sequence[Term], outputs: Batch, batch: Batch, axis_name: str | None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Compute the weighted sum of the loss terms and the mean of each term.

    A term marked with `losses.batchwise` gets the gathered global batch, so its value is the same
    on all devices and does not depend on their count. Every other term is a mean over this device's
    share. The mean of these over devices is the mean over the global batch, because all shares have
    the same size.

    Args:
        terms: the terms with their weights
        outputs: outputs of the network for this device's share [b, ...]
        batch: this device's share [b, ...]
        axis_name: the mapped axis, or None for one device

    Returns:
        The weighted sum (scalar float32), and the unweighted mean of each term by name.
    """
    # Losses compare outputs with targets. Gathering the images would only cost bandwidth.
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
    """Take one step of gradient descent.

    If the optimizer is wrapped in `optax.apply_if_finite`, a step whose loss, gradient or batch
    statistics are not finite is skipped. It leaves parameters, batch statistics and the inner
    optimizer unchanged.

    Args:
        state: the state, the same on all devices
        batch: this device's share of the global batch, from the loader
        task: the task
        axis_name: the mapped axis, or None for one device

    Returns:
        The next state, and a dict of metrics over the global batch:
        * "scalars": loss, its terms and norms. If steps may be skipped, also `skipped_steps`, the
          count of skipped steps since the start of the run.
        * "errors": the task's (sum, count) states by name.
        * "checks": `loss`, `gradient` (its norm), `finite` (whether the next state is finite), and
          `skipped` (count of steps skipped in a row up to this one).
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
        # pmap does not know which values are equal on all devices, so jax.grad transposes each
        # psum into another psum. On each device it therefore returns the gradient of the sum of all
        # devices' losses with respect to this device's copy of the parameters. The mean of these
        # over devices is the gradient of the mean loss. Reduce only here, after jax.grad: a psum of
        # the loss inside loss_fn would multiply the gradient by the device count.
        gradients, scalars = jax.lax.pmean((gradients, scalars), axis_name)
        errors = jax.lax.psum(errors, axis_name)
    scalars["l2_gradients"] = optax.tree.norm(gradients)
    skips = isinstance(state.opt_state, optax.ApplyIfFiniteState)
    if skips:
        # optax.apply_if_finite checks the gradients only. Setting them to NaN makes it skip the
        # step for any of the other reasons, too.
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
    """Return whether no leaf holds an infinity or NaN, a scalar bool. Integers are ignored."""
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(x)) for x in floats]))


def eval_step(
    state: State, batch: Batch, *, task: Task, axis_name: str | None = None
) -> tuple[dict[str, Any], Batch]:
    """Compute the errors in each mode of the task, and its predictions in the mode "eval".

    Args:
        state: the state, the same on all devices
        batch: this device's share of the global batch, from the loader
        task: the task
        axis_name: the mapped axis, or None for one device

    Returns:
        (sum, count) states by mode, and the task's predictions with the `index` and `valid` of
        their examples [B, ...]. Both cover the global batch.
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
    """Compute the batch statistics of one batch as moments, which average over batches.

    Args:
        state: the state, the same on all devices. Of its batch statistics, only the constant ones
            are used.
        batch: this device's share of the global batch, from the loader
        task: the task
        axis_name: the mapped axis, or None for one device

    Returns:
        The moments of `to_moments`, over the global batch, without those of the submodules whose
        statistics are constant.
    """
    batch = task.inputs(batch, None)
    model = task.model.clone(axis_name=axis_name)
    # Batch normalization only returns running averages. Started from zeros, the average after one
    # batch is (1 - momentum) times the batch's own value, so dividing recovers that value.
    constant = {name: state.batch_stats[name] for name in task.constant_statistics}
    start = jax.tree.map(jnp.zeros_like, state.batch_stats) | constant
    _, updated = task.forward(model, {"params": state.params, "batch_stats": start}, batch, True)
    updated = {name: value for name, value in updated.items() if name not in constant}
    return to_moments(jax.tree.map(lambda x: x / (1.0 - BN_MOMENTUM), updated))


def to_moments(batch_stats: Any) -> Any:
    """Convert `mean` and `var` of each layer to `mean` and `second`.

    `second` is E[x^2] = var + mean^2. Unlike variances, it can be averaged over batches.
    """
    if "var" not in batch_stats:
        return {key: to_moments(value) for key, value in batch_stats.items()}
    mean, variance = batch_stats["mean"], batch_stats["var"]
    return {"mean": mean, "second": variance + mean**2}


def from_moments(moments: Any) -> Any:
    """Convert moments of `to_moments` back to `mean` and `var`, without negative variances."""
    if "second" not in moments:
        return {key: from_moments(value) for key, value in moments.items()}
    mean, second = moments["mean"], moments["second"]
    return {"mean": mean, "var": jnp.maximum(second - mean**2, 0.0)}
