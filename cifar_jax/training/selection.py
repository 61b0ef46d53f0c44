"""Training on the hardest images of each batch, which a smaller model, the proxy, finds (airbench96, Jordan 2024)."""

from typing import Any

import jax
import optax

from cifar_jax.recipe import build
from cifar_jax.training.gradients import value_and_gradient
from cifar_jax.training.keys import Purpose, key
from cifar_jax.training.losses import LOSSES
from cifar_jax.training.parameter_groups import frozen_patterns, stop_gradients
from cifar_jax.training.state import TrainState, apply_in_training, model
from cifar_jax.training.update import optimizer

Array = jax.Array


def select(recipe: Any, state: TrainState, inputs: Array, targets: Array) -> tuple[Array, Any]:
    """The images of a batch on which the proxy's loss is highest: their positions int32 [selection.share * B], and the
    proxy, which trains on them once every `selection.every` steps.
    """
    count = round(recipe.selection.share * len(inputs))
    dropout_key = jax.random.fold_in(jax.random.fold_in(key(recipe, Purpose.STEP), state.step), 1)

    def hardest(params):
        trained = stop_gradients(params, frozen_patterns(recipe.selection.groups, 0))
        module = model(recipe, "proxy")
        logits, batch_stats = apply_in_training(module, trained, state.proxy["batch_stats"], inputs, dropout_key)
        losses = build(LOSSES, recipe.loss, "loss", logits=logits, targets=targets)
        chosen = jax.lax.top_k(jax.lax.stop_gradient(losses), count)[1]
        return losses[chosen].mean(), (chosen, batch_stats)

    def learn(params, opt_state):
        (_, (chosen, batch_stats)), gradients = value_and_gradient(recipe, count, hardest, params)
        updates, opt_state = optimizer(recipe, state.step, "proxy").update(gradients, opt_state, params)
        params = optax.apply_updates(params, updates)
        return chosen, {"params": params, "batch_stats": batch_stats, "opt_state": opt_state}

    def look(params, opt_state):
        chosen, batch_stats = hardest(params)[1]
        return chosen, {"params": params, "batch_stats": batch_stats, "opt_state": opt_state}

    due = state.step % recipe.selection.every == 0
    return jax.lax.cond(due, learn, look, state.proxy["params"], state.proxy["opt_state"])
