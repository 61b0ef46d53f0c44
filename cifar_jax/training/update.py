"""The optimiser of a recipe: parameter groups, weight-decay factors, clipping, and the learning rate of a step."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from cifar_jax.errors import InputError
from cifar_jax.recipe import build, override, parameters
from cifar_jax.training.optimizers import OPTIMIZERS
from cifar_jax.training.parameter_groups import ParameterGroup, grouped
from cifar_jax.training.schedules import learning_rate, steps_per_epoch


def optimizer(recipe: Any, step: jax.Array | int, section: str = "model") -> optax.GradientTransformation:
    """The gradient transformation of optimiser step `step`, with the learning rate of that step, for the parameters of
    recipe.model, or of recipe.proxy."""
    chosen = recipe.optimizer
    groups, field = (recipe.groups, "groups") if section == "model" else (recipe.selection.groups, "selection.groups")

    def make(group: ParameterGroup) -> optax.GradientTransformation:
        rate = learning_rate(recipe, step, group.epochs)
        changes: dict[str, Any] = {"optimizer.learning_rate": rate * group.learning_rate_factor}
        if (factor := group.weight_decay_factor) != 1:
            known = parameters(OPTIMIZERS.get(chosen.name, chosen.name))
            decay = chosen.get("weight_decay", known.get("weight_decay"))
            if decay is None:
                raise InputError(f"{field} holds a weight-decay factor of {factor}; the optimizer has no decay")
            changes["optimizer.weight_decay"] = decay * factor
        made = build(OPTIMIZERS, override(recipe, changes).optimizer, "optimizer")
        if not group.epochs:
            return made
        return _until(made, jnp.asarray(step) < group.epochs * steps_per_epoch(recipe))

    transformation = grouped(groups, make, field)
    if recipe.gradient_clip_norm:
        transformation = optax.chain(optax.clip_by_global_norm(recipe.gradient_clip_norm), transformation)
    return transformation


def _until(transformation: optax.GradientTransformation, going: jax.Array) -> optax.GradientTransformation:
    """No updates where `going` is False; Muon's normalisation of the weights would otherwise go on at rate 0."""
    stop = optax.stateless_with_tree_map(lambda update, _: jnp.where(going, update, jnp.zeros_like(update)))
    return optax.chain(transformation, stop)
