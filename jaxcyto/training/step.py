"""The steps of pre-training as pure functions of (state, batch), for one device.

`axis_name` names the mapped axis of `parallel.py`; with None a step is a plain function to jit or
to export. A batch on a device holds its share of the global batch.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxcyto import augment, losses, metrics
from jaxcyto.config import AugmentConfig, LossConfig, Scales, Term
from jaxcyto.models import SiameseNet
from jaxcyto.models.encoder import BN_MOMENTUM
from jaxcyto.training.state import State

Batch = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Task:
    """What a step needs beside state and batch: all of it static."""

    model: SiameseNet
    loss: LossConfig
    augment: AugmentConfig
    scales: Scales
    optimizer: optax.GradientTransformation
    seed: int = 0


def model_inputs(task: Task, batch: Batch, keys: jax.Array | None) -> Batch:
    """Adds scaled targets to a batch and turns its uint8 patches into normalised float.

    Args:
        task: gives the scales and the augmentation.
        batch: as the loader gives it, distances and coordinates in mm.
        keys: [B] one key an example; None: no augmentation.
    """
    scales = task.scales
    low = jnp.asarray(scales.coordinate_low_mm, jnp.float32)[None, None]
    high = jnp.asarray(scales.coordinate_high_mm, jnp.float32)[None, None]
    batch = dict(batch)
    batch["distance_target"] = batch["distance"] / scales.distance_mm
    batch["coordinate_target"] = 2 * (batch["coordinates"] - low) / (high - low) - 1
    if "all_distances" in batch:
        batch["all_distances_target"] = batch["all_distances"] / scales.distance_mm
    mean, std = scales.input_mean, scales.input_std
    if keys is None:
        patches = augment.normalise(batch["patches"], mean, std)
    else:
        options = dataclasses.asdict(task.augment)
        patches = augment.augment_patches(keys, batch["patches"], mean, std, **options)
    batch["patches"] = patches
    return batch


def outputs_mm(task: Task, outputs: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Predictions in mm: `distance` [B] and `coordinates` [B, 2, 3]."""
    return metrics.predictions_mm(
        outputs,
        distance_scale_mm=task.scales.distance_mm,
        low_mm=jnp.asarray(task.scales.coordinate_low_mm, jnp.float32),
        high_mm=jnp.asarray(task.scales.coordinate_high_mm, jnp.float32),
    )


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
    targets = {key: value for key, value in batch.items() if key != "patches"}
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

    Returns:
        The next state and metrics of this step: scalars, and (sum, count) states by name under
        "errors", all of them over the global batch.
    """
    keys = augment.example_keys(jax.random.key(task.seed), state.step, batch["index"])
    batch = model_inputs(task, batch, keys)
    model = task.model.clone(axis_name=axis_name)

    def loss_fn(params):
        outputs, updated = model.apply(
            {"params": params, "batch_stats": state.batch_stats},
            batch["patches"],
            train=True,
            mutable=["batch_stats"],
        )
        total, terms = loss_terms(task.loss.terms, outputs, batch, axis_name)
        squared_norm = losses.weight_decay(params)
        total = total + task.loss.weight_decay * squared_norm
        scalars = {"loss": total, "l2_kernels": jnp.sqrt(squared_norm)}
        scalars |= {f"loss/{name}": value for name, value in terms.items()}
        return total, (scalars, outputs, updated["batch_stats"])

    gradients, (scalars, outputs, batch_stats) = jax.grad(loss_fn, has_aux=True)(state.params)
    errors = metrics.pretext_metrics(outputs_mm(task, outputs), batch)
    if axis_name is not None:
        # outside of loss_fn: inside, pmean would change the gradients (pmap does not type them)
        gradients, scalars = jax.lax.pmean((gradients, scalars), axis_name)
        errors = jax.lax.psum(errors, axis_name)
    updates, opt_state = task.optimizer.update(gradients, state.opt_state, state.params)
    scalars["l2_gradients"] = optax.tree.norm(gradients)
    new_state = State(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        batch_stats=batch_stats,
        opt_state=opt_state,
    )
    return new_state, {"scalars": scalars, "errors": errors}


def eval_step(
    state: State, batch: Batch, *, task: Task, axis_name: str | None = None
) -> tuple[dict[str, Any], dict[str, jax.Array]]:
    """Errors of the stored statistics, and beside them those of batch statistics (train mode).

    Returns:
        (sum, count) states over the global batch, under "eval" and "train_mode"; and this device's
        predictions in mm, `distance` [b] and `coordinates` [b, 2, 3].
    """
    batch = model_inputs(task, batch, None)
    model = task.model.clone(axis_name=axis_name)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    outputs: Any = model.apply(variables, batch["patches"], train=False)
    predictions = outputs_mm(task, outputs)
    train_mode, _ = model.apply(variables, batch["patches"], train=True, mutable=["batch_stats"])
    errors = {
        "eval": metrics.pretext_metrics(predictions, batch),
        "train_mode": metrics.pretext_metrics(outputs_mm(task, train_mode), batch),
    }
    if axis_name is not None:
        errors = jax.lax.psum(errors, axis_name)
    return errors, predictions


def statistics_step(
    state: State, batch: Batch, *, task: Task, axis_name: str | None = None
) -> dict[str, Any]:
    """Batch statistics of one batch as first and second moments, to be averaged over batches."""
    batch = model_inputs(task, batch, None)
    model = task.model.clone(axis_name=axis_name)
    # from zeros, the running average after one batch is (1 - momentum) times the batch's value
    zeros = jax.tree.map(jnp.zeros_like, state.batch_stats)
    _, updated = model.apply(
        {"params": state.params, "batch_stats": zeros},
        batch["patches"],
        train=True,
        mutable=["batch_stats"],
    )
    one_batch = jax.tree.map(lambda x: x / (1.0 - BN_MOMENTUM), updated["batch_stats"])
    return to_moments(one_batch)


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
