"""Averages of the weights: a moving average (EMA), stochastic weight averaging (SWA), lookahead."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from cifar_jax.models.kernels import at_least_float32
from cifar_jax.training.keys import Purpose, key
from cifar_jax.training.schedules import steps_per_epoch
from cifar_jax.training.state import TrainState, apply_in_training, model, model_inputs

Array = jax.Array


def average_step(recipe: Any, step: Array, latest: Any, average: Any) -> tuple[Any, Any]:
    """After an optimiser step, `step` of them done: (latest weights, average), each {"params", "batch_stats"}."""
    if recipe.average.decay:
        average = optax.incremental_update(latest, average, 1 - recipe.average.decay)
    if recipe.lookahead.steps:
        latest, average = lookahead(recipe, step, latest, average)
    return latest, average


def lookahead(recipe: Any, step: Array, fast: Any, slow: Any) -> tuple[Any, Any]:
    """Zhang et al. 2019: after every lookahead.steps steps the slow weights move towards the fast ones, which continue
    from there; batch statistics belong to their weights and do the same. -> (fast, slow).

    The slow weights keep (1 - pull) * (progress of the run) ** power of themselves: power 0 is the paper's, 3
    airbench's.
    """
    progress = step.astype(jnp.float32) / (recipe.epochs * steps_per_epoch(recipe))
    kept = (1 - recipe.lookahead.pull) * progress**recipe.lookahead.power
    due = step % recipe.lookahead.steps == 0
    slow = jax.tree.map(lambda new, old: jnp.where(due, kept * old + (1 - kept) * new, old), fast, slow)
    return jax.tree.map(lambda new, old: jnp.where(due, old, new), fast, slow), slow


def average_epoch(
    recipe: Any, state: TrainState, images: Array, batches: Array, constrain: Callable[[Any], Any]
) -> TrainState:
    """Izmailov et al. 2018: the state after an epoch, its average the mean of the weights at the ends of the epochs
    from average.start_epoch on; before that epoch, the latest weights.

    Averaged weights need their batch statistics measured again: by a forward pass over the epoch's batches (int32
    [steps, B]), not augmented, with dropout, as running averages that start at the latest weights' statistics (of
    which 0.9 ** steps remains, where the norms keep 0.9 at each step). That costs about a third of an epoch in models
    with batch normalisation, and nothing in others.
    """
    epoch = state.step // steps_per_epoch(recipe)  # the number of the one that has just ended, from 1
    weight = 1 / jnp.maximum(epoch - recipe.average.start_epoch + 1, 1).astype(jnp.float32)
    params = optax.incremental_update(state.params, state.average["params"], weight)

    def measure(batch_stats, chosen):
        dropout_key = jax.random.fold_in(key(recipe, Purpose.STEP), state.step)
        inputs = model_inputs(recipe, constrain(images[chosen]).astype(at_least_float32(recipe.dtype)) / 255)
        return apply_in_training(model(recipe), params, batch_stats, inputs, dropout_key)[1], None

    batch_stats = state.batch_stats
    if batch_stats:
        measured = lambda: jax.lax.scan(measure, state.batch_stats, batches)[0]
        batch_stats = jax.lax.cond(epoch > recipe.average.start_epoch, measured, lambda: state.batch_stats)
    return state.replace(average={"params": params, "batch_stats": batch_stats})
