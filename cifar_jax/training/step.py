"""The training step and the epoch, as pure functions of a recipe: no I/O, no clock, no device is named.

Everything is built from the recipe inside the traced function, which costs nothing at run time. Randomness is a
function of the recipe's seeds and the step, so a resumed run is the same run.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from cifar_jax.training.averaging import average_epoch, average_step
from cifar_jax.training.gradients import batch_size, gradients_of
from cifar_jax.training.keys import Purpose, key
from cifar_jax.training.objectives import Batch, objective_of
from cifar_jax.training.parameter_groups import frozen_patterns
from cifar_jax.training.schedules import learning_rate, steps_per_epoch
from cifar_jax.training.selection import select
from cifar_jax.training.state import TrainState, apply_in_training, model
from cifar_jax.training.update import optimizer

Array = jax.Array
Recipe = Any  # ConfigDict or FrozenConfigDict
Constrain = Callable[[Any], Any]  # places a batch, a tree of arrays [B, ...], on devices


class Phase(NamedTuple):
    """What holds over some epochs and is compiled into their steps."""

    frozen: tuple[str, ...] = ()  # patterns of the parameters that get no gradient


TRAIN_ALL = Phase()


def phase_of(recipe: Recipe, epoch: int) -> Phase:
    """What holds in an epoch, counted from 0."""
    return Phase(frozen_patterns(recipe.groups, epoch))


def identity(tree: Any) -> Any:
    return tree


def train_step(
    recipe: Recipe,
    state: TrainState,
    batch: Batch,
    *,
    phase: Phase = TRAIN_ALL,
    constrain: Constrain = identity,
    context: Any = None,
) -> tuple[TrainState, dict[str, Array]]:
    """One optimiser step -> (the next state, sums).

    The parameters of `phase.frozen` and those of groups whose learning-rate factor is 0 get no gradient, and have no
    part in the norms of clipping and SAM. `context` is that of the objective. The sums are "loss_sum", one sum for each
    metric of the objective ("correct" for classification), "count", and the "learning_rate" of the step; they are over
    the batch as the model saw it: selected, augmented and with dropout.
    """
    # Keys
    inputs_key, model_key = jax.random.split(jax.random.fold_in(key(recipe, Purpose.STEP), state.step))
    # Inputs
    objective = objective_of(recipe)
    inputs, proxy = objective.prepare(recipe, batch, inputs_key), state.proxy
    if recipe.selection.share:
        chosen, proxy = select(recipe, state, inputs["inputs"], inputs["targets"])
        inputs = constrain(jax.tree.map(lambda array: array[chosen], inputs))

    # Gradients
    def losses(params, batch_stats, part, part_key):
        apply = lambda inputs, batch_stats, key: apply_in_training(model(recipe), params, batch_stats, inputs, key)
        return objective.losses(recipe, apply, batch_stats, part, context, part_key)

    frozen = phase.frozen or frozen_patterns(recipe.groups, 0)
    result = gradients_of(recipe, losses, state.params, state.batch_stats, inputs, model_key, frozen)
    # Update: the optimiser is built with the learning rate of this step
    updates, opt_state = optimizer(recipe, state.step).update(result.gradients, state.opt_state, state.params)
    latest = {"params": optax.apply_updates(state.params, updates), "batch_stats": result.batch_stats}
    # Averages
    latest, average = average_step(recipe, state.step + 1, latest, state.average)
    count = batch_size(inputs)
    sums = {"loss_sum": result.loss * count, **result.metrics, "count": jnp.int32(count)}
    sums["learning_rate"] = learning_rate(recipe, state.step)
    return TrainState(state.step + 1, latest["params"], latest["batch_stats"], opt_state, average, proxy), sums


def order_of_epoch(recipe: Recipe, epoch: Array, count: int) -> Array:
    """The batches of an epoch: positions int32 [steps, B] of `count` images, each at most once."""
    steps = steps_per_epoch(recipe)
    order = jax.random.permutation(jax.random.fold_in(key(recipe, Purpose.ORDER), epoch), count)
    return order[: steps * recipe.batch_size].reshape(steps, recipe.batch_size)


def train_steps(
    recipe: Recipe,
    state: TrainState,
    images: Array,
    labels: Array,
    batches: Array,
    *,
    phase: Phase = TRAIN_ALL,
    constrain: Constrain = identity,
    context: Any = None,
    positions: Array | None = None,
) -> tuple[TrainState, dict[str, Array]]:
    """A step for each row of `batches`, int32 [steps, B]: positions in images uint8 [N, H, W, C] and labels int32 [N].
    Where these are not the whole data set, `positions` are those in it, of the same shape.

    Returns the state and train_step's sums, each [steps].
    """

    def body(state, rows):
        chosen, known = rows if positions is not None else (rows, rows)
        epoch = state.step // steps_per_epoch(recipe)
        seen, answers, places = constrain((images[chosen], labels[chosen], known))
        batch = Batch(seen, answers, places, epoch)
        return train_step(recipe, state, batch, phase=phase, constrain=constrain, context=context)

    return jax.lax.scan(body, state, batches if positions is None else (batches, positions))


def train_epoch(
    recipe: Recipe,
    state: TrainState,
    images: Array,
    labels: Array,
    *,
    phase: Phase = TRAIN_ALL,
    constrain: Constrain = identity,
    context: Any = None,
) -> tuple[TrainState, dict[str, Array]]:
    """Every image of uint8 [N, H, W, C] at most once, in an order that depends on the seed and the epoch.

    Returns the state and train_step's sums, each [steps].
    """
    batches = order_of_epoch(recipe, state.step // steps_per_epoch(recipe), len(images))
    options = {"phase": phase, "constrain": constrain, "context": context}
    state, sums = train_steps(recipe, state, images, labels, batches, **options)
    return end_epoch(recipe, state, images, batches, constrain), sums


def end_epoch(recipe: Recipe, state: TrainState, images: Array, batches: Array, constrain: Constrain) -> TrainState:
    """The state after the last step of an epoch, with the average over epochs where the recipe keeps one."""
    return average_epoch(recipe, state, images, batches, constrain) if recipe.average.start_epoch else state
