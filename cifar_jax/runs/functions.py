"""Functions and modules of the caller's in place of the names in a recipe."""

from collections.abc import Mapping
from typing import Any

import optax
from ml_collections import ConfigDict

from cifar_jax.errors import InputError
from cifar_jax.recipe import override


def with_functions(recipe: Any, functions: Mapping[str, Any]) -> ConfigDict:
    """The recipe with the caller's functions in place of the names; an optimiser keeps the learning rate."""
    given: dict[str, Any] = {}
    for section, function in functions.items():
        if function is not None:
            given["augment" if section == "augment" else f"{section}.name"] = function
    if isinstance(given.get("optimizer.name"), optax.GradientTransformation):
        raise InputError(
            "optimizer is an optax.GradientTransformation; pass the function that makes one, such as optax.adam, and"
            " set its parameters in the recipe: optimizer.learning_rate is scheduled at each step"
        )
    if "optimizer.name" in given:
        given["optimizer.learning_rate"] = recipe.optimizer.learning_rate
    return override(recipe, given)
