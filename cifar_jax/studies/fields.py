"""Fields of recipes as plain values, with the defaults of parameters that a recipe leaves out."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from cifar_jax.models import MODELS
from cifar_jax.recipe import Table, flatten, override, parameters, to_json
from cifar_jax.training.losses import LOSSES
from cifar_jax.training.objectives import OBJECTIVES
from cifar_jax.training.optimizers import OPTIMIZERS
from cifar_jax.training.schedules import SCHEDULES

TABLES: dict[str, Table] = {
    "model": MODELS,
    "proxy": MODELS,
    "objective": OBJECTIVES,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "loss": LOSSES,
}


def plain(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted changes as plain values: functions by their names, tuples as lists."""
    return {path: to_json(ConfigDict({"value": value}))["value"] for path, value in changes.items()}


def with_defaults(recipe: Any) -> dict[str, Any]:
    """The recipe, flat and as plain values, with the default of each parameter that a built section leaves out."""
    flat = flatten(to_json(recipe))
    for section, table in TABLES.items():
        name = recipe[section].name if section in recipe else None
        if isinstance(name, str) and name in table:
            known = {f"{section}.{field}": value for field, value in parameters(table[name]).items()}
            defaults = {path: value for path, value in known.items() if value is not None and path not in flat}
            flat |= plain({path: value for path, value in defaults.items() if not callable(value)})
    return flat


def typed(recipe: Any, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Flat changes, with integers as floats where the parameter, which the recipe need not hold, has a float."""
    names = {path: value for path, value in changes.items() if path.endswith(".name")}
    known = with_defaults(override(recipe, names))
    is_float = lambda path, value: type(value) is int and type(known.get(path)) is float
    return {path: float(value) if is_float(path, value) else value for path, value in changes.items()}
