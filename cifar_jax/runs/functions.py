"""Functions and modules of the caller's in place of the names in a recipe."""

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from cifar_jax.errors import InputError
from cifar_jax.recipe import freeze, override
from cifar_jax.runs.fingerprint import differences, fingerprint


def with_functions(recipe: Any, functions: Mapping[str, Any]) -> ConfigDict:
    """The recipe with the caller's functions in place of the names; an optimiser keeps the learning rate."""
    given: dict[str, Any] = {}
    for section, function in functions.items():
        if function is not None:
            given["augment" if section == "augment" else f"{section}.name"] = function
    if "optimizer.name" in given:
        given["optimizer.learning_rate"] = recipe.optimizer.learning_rate
    return override(recipe, given)


def check_replaced(paths: Iterable[str], functions: Mapping[str, Any]) -> None:
    """Raises InputError where a study changes a field in whose place `with_functions` puts a function: all its runs
    would be equal."""
    for path in sorted(paths):
        section = path.partition(".")[0]
        if functions.get(section) is not None and path != "optimizer.learning_rate":
            raise InputError(
                f"'{path}' changes nothing, because {section}=... takes the place of that section; change another field"
            )


def with_known_functions(
    recipe: Any, known: Mapping[str, Any], functions: Mapping[str, Any], owner: str
) -> FrozenConfigDict:
    """The recipe with those of the caller's functions that a run was trained with; `known` are their fingerprints.

    A function that is another one is used all the same, and a warning says what differs.
    """
    given = {name: function for name, function in functions.items() if name in known}
    for name, function in given.items():
        old, new = known[name], fingerprint(function)
        if old["digest"] != new["digest"]:
            changed = "; ".join(differences({name: old}, {name: new}))
            warnings.warn(f"{owner} was trained with another {name} ({changed})", stacklevel=4)
    return freeze(with_functions(recipe, given))
