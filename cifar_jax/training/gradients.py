"""The mean loss of a batch and its gradients: accumulation over parts, float16 scaling, SAM."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from cifar_jax.training.parameter_groups import stop_gradients

Array = jax.Array
# (params, batch_stats, batch, key) -> (losses [B], next batch_stats, metrics, each [B])
Losses = Callable[[Any, Any, Any, Array], tuple[Array, Any, dict[str, Array]]]


class Result(NamedTuple):
    """What a batch gives at some parameters."""

    loss: Array  # the mean over the batch
    gradients: Any
    batch_stats: Any
    metrics: dict[str, Array]  # sums over the batch


def gradients_of(
    recipe: Any, losses: Losses, params: Any, batch_stats: Any, batch: Any, key: Array, frozen: tuple[str, ...] = ()
) -> Result:
    """The loss, its gradients and the metrics of a batch, a tree of arrays [B, ...].

    The gradients of parameters that match a pattern of `frozen` are 0. With sam.rho the gradients are those where the
    loss is about highest within rho of the weights (Foret et al. 2021, algorithm 1); the rest is that of the weights.
    """
    arguments = batch_stats, batch, key, frozen
    result = accumulated(recipe, losses, params, *arguments)
    if recipe.sam.rho:
        scale = recipe.sam.rho / jnp.maximum(optax.tree.norm(result.gradients), 1e-12)
        worst = jax.tree.map(lambda weight, gradient: weight + scale * gradient, params, result.gradients)
        result = result._replace(gradients=accumulated(recipe, losses, worst, *arguments).gradients)
    return result


def accumulated(
    recipe: Any, losses: Losses, params: Any, batch_stats: Any, batch: Any, key: Array, frozen: tuple[str, ...] = ()
) -> Result:
    """As `gradients_of` without SAM.

    The batch is taken in `gradient_accumulation` parts, one after another, and each is normalised by its own batch
    statistics. A part is not a run of neighbours but spread over the batch, and so over the devices.
    """

    def of_part(batch_stats: Any, part: Any, number: Any) -> Result:
        def mean_loss(params):
            trained = stop_gradients(params, frozen)
            each, statistics, metrics = losses(trained, batch_stats, part, jax.random.fold_in(key, number))
            return each.mean(), (statistics, {name: jnp.sum(values) for name, values in metrics.items()})

        (loss, (statistics, metrics)), gradients = value_and_gradient(recipe, batch_size(part), mean_loss, params)
        return Result(loss, gradients, statistics, metrics)

    parts = recipe.gradient_accumulation
    if parts == 1:
        return of_part(batch_stats, batch, 0)

    def body(carry, part):
        total, batch_stats = carry
        result = of_part(batch_stats, *part)
        total = jax.tree.map(lambda old, new: old + new / parts, total, (result.loss, result.gradients))
        return (total, result.batch_stats), result.metrics

    split = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)
    first = jax.eval_shape(of_part, batch_stats, jax.tree.map(lambda x: x[0], split), 0)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (first.loss, first.gradients))
    (total, batch_stats), metrics = jax.lax.scan(body, (zeros, batch_stats), (split, jnp.arange(parts)))
    loss, gradients = total
    return Result(loss, gradients, batch_stats, {name: values.sum(0) for name, values in metrics.items()})


def batch_size(batch: Any) -> int:
    return len(jax.tree.leaves(batch)[0])


def value_and_gradient(recipe: Any, count: int, mean_loss: Any, params: Any) -> tuple[tuple[Array, Any], Any]:
    """As jax.value_and_grad of `mean_loss`, a mean over `count` examples with auxiliary output.

    float16 holds nothing below 6e-8, and the gradient of a mean soon falls below that: there the gradient of the sum is
    computed, as airbench does, and divided afterwards.
    """
    loss, backward, auxiliary = jax.vjp(mean_loss, params, has_aux=True)
    scale = count if recipe.dtype == "float16" else 1
    (gradients,) = backward(jnp.full_like(loss, scale))
    return (loss, auxiliary), jax.tree.map(lambda gradient: gradient / scale, gradients)
