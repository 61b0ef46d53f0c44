"""Recipes: a ConfigDict that names everything a run depends on, and the only ways to change, check and read one.

A recipe is data. The sections in `BUILT` name a function of a table and give its parameters,
`{"name": "resnet18", "width": 64}`; `build` calls it. All other fields are those of `configs/base.py` and nothing else.
"""

import inspect
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict, FrozenConfigDict

from cifar_jax.errors import InputError, nearest, suggestion, with_article

# The sections that name a function of a table; their other fields are its parameters.
BUILT = ("model", "proxy", "objective", "optimizer", "schedule", "loss")

# Filled in when a run starts; `load_recipe` drops them. `teacher` is what is known of the teacher of distillation.
FACTS = ("data.num_classes", "data.image_shape", "data.train_count", "teacher")
REMOVED: dict[str, Any] = {"progressive_resizing": ()}  # fields of older versions, and the value that changes nothing

Table = Mapping[str, Callable[..., Any]]
SECTION = (Mapping, ConfigDict, FrozenConfigDict)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"model": {"width": 3}} -> {"model.width": 3}; keys that are dotted already stay."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, SECTION):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def override(recipe: ConfigDict | FrozenConfigDict, changes: Mapping[str, Any]) -> ConfigDict:
    """A copy of `recipe` with `changes`, nested or dotted: override(recipe, {"optimizer.learning_rate": 0.1}).

    A built section that is given whole, with its name, replaces the old one; so does another `model.name`, because the
    parameters of one function say nothing about another. A value may be a tracer where only a number changes, so that a
    sweep can map over it.

    Raises InputError on a field that does not exist or a value of another type.
    """
    if not isinstance(recipe, SECTION):
        raise InputError(f"the recipe is {recipe!r}; give a recipe, as load_recipe returns it, or the file of one")
    changed = ConfigDict(recipe, convert_dict=True).copy_and_resolve_references()
    changed.unlock()
    flat = flatten(changes)
    for section in [name for name in BUILT if name in changed]:  # a part of a recipe has fewer
        name = flat.pop(f"{section}.name", changed[section].name)
        if isinstance(name, int | float | tuple | list):
            raise _no_name(section, name)
        given_whole = isinstance(given := changes.get(section), SECTION) and "name" in given
        if given_whole or name != changed[section].name:
            changed[section] = ConfigDict({"name": name})
    for path, value in flat.items():
        *parents, field = path.split(".")
        section = changed
        for name in parents:
            if name not in section or not isinstance(section[name], ConfigDict):
                raise _unknown_field(changed, path)
            section = section[name]
        if isinstance(section.get(field), ConfigDict) and not callable(value):
            raise InputError(
                f"recipe field '{path}' is {value!r}; it is a section of fields: {', '.join(section[field])}"
            )
        if field in section:
            value = _as_type_of(path, value, section[field])
        elif parents[:1] not in [[name] for name in BUILT]:
            raise _unknown_field(changed, path)
        with section.ignore_type():
            section[field] = tuples(value)
    return changed


def _no_name(section: str, value: Any) -> InputError:
    """The answer to a value that stands for a function of `section` and is none."""
    if hasattr(value, "init") and hasattr(value, "update"):  # optax.adam(1e-3)
        made = with_article(type(value).__name__)
        remedy = "pass the function that makes it, such as optax.adam, and set optimizer.learning_rate in the recipe"
        return InputError(f"recipe field '{section}.name' is {made}; {remedy}")
    allowed = f"it takes the name of {with_article(section)}, or a function"
    return InputError(f"recipe field '{section}.name' is {value!r}; {allowed}")


def _unknown_field(recipe: ConfigDict, path: str) -> InputError:
    """The answer to a field that does not exist, with the name that was meant, in this section or another."""
    parents = path.split(".")[:-1]
    section, prefix, word = recipe, "", path
    for name in parents:
        if name not in section or not isinstance(section[name], ConfigDict):
            word = prefix + name
            break
        section, prefix = section[name], f"{prefix}{name}."
    known = sorted(prefix + key for key in section)
    fields = [*recipe, *flatten(recipe)]
    meant = suggestion(word, known, fields if word == path else ()) or suggestion(path, (), fields)
    if word == path and f"{meant}.name" in fields:
        meant = f"{meant}.name"  # a section takes no value itself
    asked = f"; did you mean '{meant}'?" if meant else "."
    return InputError(f"recipe field '{path}' is unknown{asked} Known: {', '.join(known)}")


def _as_type_of(path: str, value: Any, default: Any) -> Any:
    """`value` as a `type(default)`, where that loses nothing: an int for a float, a number for a tuple of numbers."""
    if (
        isinstance(value, jax.Array)
        or callable(value)
        or not isinstance(default, bool | int | float | str | tuple | list)
    ):
        return value
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(default, bool) or isinstance(value, bool):
        fits = isinstance(default, bool) and isinstance(value, bool)
    elif isinstance(default, float):
        fits = isinstance(value, int | float) and not math.isnan(value)
        value = float(value) if fits else value
    elif isinstance(default, int):
        fits = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        value = int(value) if fits else value
    elif isinstance(default, tuple | list):
        numbers = all(isinstance(item, int | float) for item in (default or [""]))
        value = (value,) if numbers and isinstance(value, int | float) else value
        fits = isinstance(value, tuple | list)
        if fits and numbers:
            fits = all(isinstance(item, int | float) and not math.isnan(item) for item in value)
    else:
        fits = isinstance(value, type(default))
    if not fits:
        kind, taken = with_article(type(value).__name__), with_article(type(default).__name__)
        raise InputError(f"recipe field '{path}' is {value!r}, {kind}; it takes {taken}, such as {default!r}")
    return value


def parameters(function: Callable[..., Any]) -> dict[str, Any]:
    """The parameters by name, each with its default; where it has none, with an example of its type, or None."""
    accepted = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.default is not inspect.Parameter.empty:
            accepted[name] = parameter.default
        elif parameter.kind is not inspect.Parameter.VAR_KEYWORD:
            accepted[name] = parameter.annotation() if parameter.annotation in (bool, int, float, str) else None
    return {name: default for name, default in accepted.items() if name not in ("name", "parent")}


def build(table: Table, section: Any, kind: str, **given: Any) -> Any:
    """Calls the function that `section.name` names in `table` with the section's parameters and those of `given` that
    it takes. `section.name` may be the function itself; an object with `apply` (a Linen module), or one that cannot be
    called, is the result.

    Raises InputError on a name or a parameter that is unknown, or a parameter of another type.
    """
    function = section.name
    if isinstance(function, str):
        if function not in table and "." in function:
            raise InputError(f"{kind} '{function}' is no part of cifar_jax; pass the function itself: {kind}=...")
        if function not in table:
            raise InputError(f"{kind} '{function}' is unknown{nearest(function, list(table))}")
        function = table[function]
    elif not callable(function) or (hasattr(function, "apply") and not inspect.isclass(function)):
        return function
    signature = inspect.signature(function).parameters
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in signature.values())
    allowed = {name: default for name, default in parameters(function).items() if name not in given}
    chosen = {name: value for name, value in given.items() if takes_any or name in signature}
    for name, value in section.items():
        if name in allowed:
            chosen[name] = _as_type_of(f"{kind}.{name}", value, allowed[name])
        elif name != "name":
            field = f"recipe field '{kind}.{name}' is unknown to {kind} '{section.name}'"
            raise InputError(field + nearest(f"{kind}.{name}", [f"{kind}.{known}" for known in allowed]))
    for name, parameter in signature.items():
        if name in allowed and name not in chosen and parameter.default is inspect.Parameter.empty:
            raise InputError(f"{kind} '{section.name}' needs a value for '{kind}.{name}'; set it in the recipe")
    return function(**chosen)


def resolve(recipe: ConfigDict | FrozenConfigDict, facts: Mapping[str, Any]) -> FrozenConfigDict:
    """The recipe of one run, frozen: with the facts that a user does not set, dotted like `FACTS`."""
    resolved = ConfigDict(recipe, convert_dict=True).copy_and_resolve_references()
    resolved.unlock()
    for path, value in facts.items():
        section, _, field = path.rpartition(".")
        place = resolved[section] if section else resolved
        with place.ignore_type():
            place[field] = ConfigDict(value) if isinstance(value, SECTION) else tuples(value)
    return freeze(resolved)


def without_facts(recipe: ConfigDict) -> ConfigDict:
    """The fields of a run's recipe.json that a user could have set.

    Raises InputError where a field that was removed holds another value than the one that changes nothing.
    """
    kept = ConfigDict(recipe, convert_dict=True).copy_and_resolve_references().unlock()
    for path, default in REMOVED.items():
        if (value := flatten(kept).get(path, default)) != default:
            raise InputError(f"recipe field '{path}' is {value!r}; it was removed, only {default!r} can still be read")
    for path in (*FACTS, *REMOVED):
        section, _, field = path.rpartition(".")
        place = kept[section] if section else kept
        if field in place:
            del place[field]
    return kept


def freeze(recipe: ConfigDict | FrozenConfigDict) -> FrozenConfigDict:
    """The recipe that nothing can change any more: what functions take."""
    return FrozenConfigDict(recipe)


def to_json(recipe: ConfigDict | FrozenConfigDict) -> dict[str, Any]:
    """The recipe as plain values. A function that stands in it becomes "module.name", which no table holds."""

    def plain(value: Any) -> Any:
        if isinstance(value, ConfigDict | FrozenConfigDict):
            return {key: plain(value[key]) for key in value}
        if isinstance(value, tuple | list):
            return [plain(item) for item in value]
        if callable(value) or not isinstance(value, bool | int | float | str | dict | None):
            owner = value if hasattr(value, "__qualname__") else type(value)
            return f"{owner.__module__}.{owner.__qualname__}"
        return value

    return plain(recipe)


def from_json(values: Mapping[str, Any]) -> ConfigDict:
    """The inverse of `to_json` for recipes without functions."""
    return ConfigDict(json.loads(json.dumps(values), object_hook=_in_section))


def _in_section(section: dict[str, Any]) -> dict[str, Any]:
    return {key: tuples(value) for key, value in section.items()}


def tuples(value: Any) -> Any:
    """Lists as tuples, within each other too: what a frozen recipe holds."""
    return tuple(tuples(item) for item in value) if isinstance(value, list | tuple) else value


def differences(old: ConfigDict | FrozenConfigDict, new: ConfigDict | FrozenConfigDict) -> list[str]:
    """One line a field that differs: "optimizer.learning_rate: 0.1 -> 0.2"."""
    before, after = flatten(to_json(old)), flatten(to_json(new))
    return [
        f"{path}: {before.get(path, 'absent')} -> {after.get(path, 'absent')}"
        for path in sorted(before.keys() | after.keys())
        if before.get(path, "absent") != after.get(path, "absent")
    ]
