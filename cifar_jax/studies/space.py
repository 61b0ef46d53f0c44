"""Search spaces: the values of recipe fields that `tune` tries. A space is a file, as readable as a recipe:

from cifar_jax.studies.space import alternatives, choice, integer, log_uniform, uniform

def get_space():
    return {
        "batch_size": choice(32, 64, 128),
        "model.dropout": uniform(0.0, 0.5),
        "optimizer": alternatives(
            {"name": "sgd", "learning_rate": log_uniform(1e-3, 1e-1), "momentum": 0.9},
            {"name": "adamw", "learning_rate": log_uniform(1e-4, 1e-2)},
        ),
    }
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cifar_jax.errors import InputError
from cifar_jax.recipe import override, tuples
from cifar_jax.runs.recipes import call_file, shipped_recipes
from cifar_jax.studies.definition import check_changes
from cifar_jax.studies.fields import with_defaults

KINDS = "choice(...), uniform(low, high), log_uniform(low, high), integer(low, high) or alternatives(...)"
SCALARS = (bool, int, float, str)  # what a database holds as the value of a choice


@dataclass(frozen=True)
class Choice:
    """One of several values, in no order."""

    values: tuple[Any, ...]

    def __str__(self) -> str:
        return f"choice({', '.join(map(repr, self.values))})"


@dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high`, both of them included."""

    kind: str  # the function that made it
    low: float
    high: float
    step: float | None = None
    log: bool = False

    def __str__(self) -> str:
        more = f", step={self.step}" if self.step not in (None, 1) else ""
        return f"{self.kind}({self.low}, {self.high}{more}{', log=True' if self.log and self._whole else ''})"

    @property
    def _whole(self) -> bool:
        return self.kind == "integer"


@dataclass(frozen=True)
class Alternatives:
    """Sections of a recipe, each with a name and with the fields of its own."""

    sections: tuple[Mapping[str, Any], ...]

    def __str__(self) -> str:
        shown = lambda each: "{" + ", ".join(f"{key}: {value}" for key, value in each.items()) + "}"
        listed = [shown(each) if isinstance(each, Mapping) else repr(each) for each in self.sections]
        return f"alternatives({', '.join(listed)})"


def choice(*values: Any) -> Choice:
    """One of the values."""
    return Choice(tuples(values))


def uniform(low: float, high: float, step: float | None = None) -> Range:
    """A number from `low` to `high`, or of low, low + step, ..."""
    return Range("uniform", low, high, step)


def log_uniform(low: float, high: float) -> Range:
    """A number from `low` to `high`, uniform in its logarithm: for learning rates and the like."""
    return Range("log_uniform", low, high, log=True)


def integer(low: int, high: int, step: int = 1, log: bool = False) -> Range:
    """A whole number from `low` to `high`."""
    return Range("integer", low, high, step, log)


def alternatives(*sections: Mapping[str, Any]) -> Alternatives:
    """One of several sections that a name begins, such as two optimisers with their own ranges; values that are none of
    these kinds are fixed."""
    return Alternatives(sections)


def load_space(path: str | Path) -> dict[str, Any]:
    """The space of a file. Raises InputError where it is missing or is none."""
    found = [each for each in (Path(path), shipped_recipes().parent / path) if each.is_file()]
    if not found:
        known = ", ".join(sorted(f"configs/spaces/{file.name}" for file in shipped_recipes().glob("spaces/*.py")))
        raise InputError(f"search space '{path}' is not a file; known spaces: {known}")
    return call_file(found[0], "get_space", "search space", "no .py file", "configs/spaces/cnn.py")


def check_space(recipe: Any, space: Any) -> None:
    """Raises InputError on a space that names no field of the recipe, an empty range, or values that a field does not
    take. The recipes themselves are checked with `examples`."""
    if not isinstance(space, Mapping) or not space:
        raise InputError(f"the search space is {space!r}; it is a dict of fields, each with {KINDS}")
    for path, values in space.items():
        if not isinstance(path, str):
            raise InputError(
                f"the search space has {path!r} as a field; name a field of the recipe, such as 'batch_size'"
            )
        if path == "seed" or path.startswith("seeds."):
            what = f"the search space has '{path}', and a seed is nothing to search"
            raise InputError(f"{what}; set it in the recipe, and ask for several seeds a trial with seeds=5")
        if isinstance(values, Alternatives):
            _check_alternatives(recipe, path, values)
            if clash := sorted(other for other in space if other.startswith(f"{path}.")):
                raise InputError(f"the search space has '{path}' and '{clash[0]}'; give '{clash[0]}' in alternatives")
            continue
        if isinstance(values, Mapping) and values:
            raise InputError(f"the search space has a dict for '{path}'; name the field: '{path}.{next(iter(values))}'")
        if not isinstance(values, Choice | Range):
            raise InputError(f"the search space has {values!r} for '{path}'; give {KINDS}")
        if any(isinstance(value, Mapping) for value in points(values)):
            raise InputError(f"the search space has {values} for '{path}'; sections are given by alternatives(...)")
        _check_values(path, values)
        _check_field(recipe, path, values)


def _check_field(recipe: Any, path: str, values: Any) -> None:
    """Raises InputError where a field does not take the values, or only the ends of a range of them."""
    for value in points(values):
        check_changes(recipe, {path: value})
    for value in _between(values):
        try:
            check_changes(recipe, {path: value})
        except InputError as error:
            what = f"the search space's {values} for '{path}' has fractions, and the field takes whole numbers"
            raise InputError(f"{what}; give integer(low, high)") from error


def _between(values: Any) -> tuple[float, ...]:
    """A number inside a range, which a field of whole numbers refuses unless the range is of such."""
    if not isinstance(values, Range) or values.kind == "integer":
        return ()
    return (values.low + (values.step or (values.high - values.low) / math.pi),)


def _check_alternatives(recipe: Any, path: str, values: Alternatives) -> None:
    names = [section.get("name") for section in values.sections if isinstance(section, Mapping)]
    if len(values.sections) < 2 or len(names) < len(values.sections) or len({*names, None}) <= len(names):
        raise InputError(f"alternatives of '{path}' are {values}; give two or more sections, each with another name")
    for section in values.sections:
        fixed = {f"{path}.name": section["name"]}
        check_changes(recipe, fixed)
        for field, inner in section.items():
            if isinstance(inner, Alternatives):
                what = f"alternatives of '{path}' hold alternatives for '{field}'"
                raise InputError(f"{what}; give each combination as a section of its own")
            if isinstance(inner, Choice | Range):
                _check_values(f"{path}.{field}", inner)
            _check_field(override(recipe, fixed), f"{path}.{field}", inner)


def _check_values(path: str, values: Choice | Range) -> None:
    """Raises InputError on a range or a choice that cannot be drawn from."""
    fault = ""
    if isinstance(values, Choice):
        if not values.values:
            fault = "has no values; give at least one"
        elif any(isinstance(value, float) and not math.isfinite(value) for value in values.values):
            fault = "has a value that is not finite"
        elif any(_equal(*pair) for pair in itertools.combinations(values.values, 2)):
            fault = "has a value twice; give each once"
    elif not all(isinstance(end, int | float) and math.isfinite(end) for end in (values.low, values.high)):
        fault = "has an end that is no finite number"
    elif not isinstance(values.step, int | float | None) or not math.isfinite(values.step or 0):
        fault = "has a step that is no number"
    elif values.low >= values.high:
        fault = "is empty: the first number must be below the second"
    elif values.log and values.low <= 0:
        fault = "is logarithmic: its numbers must be above 0"
    elif values.step is not None and not 0 < values.step <= values.high - values.low:
        fault = "has a step that leaves one value or none"
    elif values.kind == "integer" and not all(
        float(number).is_integer() for number in (values.low, values.high, values.step or 1)
    ):
        fault = "has an end or a step that is no whole number"
    elif values.log and values.step not in (None, 1):
        fault = "is logarithmic, where a step means nothing; leave one of them out"
    elif not _is_on_grid(values, values.high):
        reached = values.low + (values.high - values.low) // (values.step or 1) * (values.step or 1)
        fault = f"has steps that do not meet its end; end it at {reached:.6g}"
    if fault:
        raise InputError(f"the search space's {values} for '{path}' {fault}")


def _equal(one: Any, other: Any) -> bool:
    """Whether two values of a choice are the same to a recipe: 64 and 64.0, but not 1 and True."""
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def _is_on_grid(values: Range, number: float) -> bool:
    """Whether low, low + step, ... meets the number, but for rounding."""
    steps = (number - values.low) / (values.step or (1 if values.kind == "integer" else math.inf))
    return abs(steps - round(steps)) < 1e-6


def points(values: Any) -> tuple[Any, ...]:
    """Values to check: all of a choice, the ends of a range, and a fixed one."""
    if isinstance(values, Choice):
        return values.values
    return (values.low, values.high) if isinstance(values, Range) else (values,)


def examples(space: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Changes that together hold each of `points` at least once, with the first of all others."""
    first: dict[str, Any] = {}
    single: list[dict[str, Any]] = []
    for path, values in space.items():
        if isinstance(values, Alternatives):
            found = [_points_of_section(path, section) for section in values.sections]
            whole = [{field: each[0] for field, each in fields.items()} for fields in found]
            first |= whole[0]
            pairs = zip(whole, found, strict=True)
            single += [own | {field: value} for own, fields in pairs for field in fields for value in fields[field]]
        else:
            first[path] = points(values)[0]
            single += [{path: value} for value in points(values)[1:]]
    sections = {path for path, values in space.items() if isinstance(values, Alternatives)}
    kept = lambda change: {
        path: value
        for path, value in first.items()
        if not any(path.startswith(f"{section}.") and f"{section}.name" in change for section in sections)
    }
    every = [first, *({**kept(change), **change} for change in single)]
    return list({repr(sorted(each.items())): each for each in every}.values())


def _points_of_section(path: str, section: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    return {f"{path}.{field}": points(values) for field, values in section.items()}


def suggest(space: Mapping[str, Any], trial: Any) -> dict[str, Any]:
    """Field -> value, drawn by a trial of Optuna, whose parameters have the names of the fields; in alternatives
    "optimizer.adamw.learning_rate"."""
    changes: dict[str, Any] = {}
    for path, values in space.items():
        if not isinstance(values, Alternatives):
            changes[path] = _draw(trial, path, values)
            continue
        by_name = {section["name"]: section for section in values.sections}
        name = trial.suggest_categorical(f"{path}.name", list(by_name))
        changes[f"{path}.name"] = name
        for field, inner in by_name[name].items():
            if field != "name":
                changes[f"{path}.{field}"] = _draw(trial, f"{path}.{name}.{field}", inner)
    return changes


def _draw(trial: Any, name: str, values: Any) -> Any:
    if isinstance(values, Choice):
        known = {value if type(value) in SCALARS else repr(value): value for value in values.values}
        return known[trial.suggest_categorical(name, list(known))]
    if not isinstance(values, Range):
        return values
    if values.kind == "integer":
        step = int(values.step or 1)
        return trial.suggest_int(name, int(values.low), int(values.high), step=step, log=values.log)
    return trial.suggest_float(name, values.low, values.high, step=values.step, log=values.log)


def parameters_of(space: Mapping[str, Any], recipe: Any) -> dict[str, Any]:
    """The parameters of Optuna by which `suggest` draws the recipe's own values.

    Raises InputError, naming a field and its value, where the space does not have them.
    """
    flat, found = with_defaults(recipe), {}
    for path, values in space.items():
        if not isinstance(values, Alternatives):
            found[path] = _own(path, values, flat.get(path))
            continue
        by_name = {section["name"]: section for section in values.sections}
        found[f"{path}.name"] = name = _own(f"{path}.name", Choice(tuple(by_name)), flat.get(f"{path}.name"))
        for field, inner in by_name[name].items():
            kinds = inner if isinstance(inner, Choice | Range) else Choice((inner,))
            own = _own(f"{path}.{field}", kinds, flat.get(f"{path}.{field}"))
            if inner is kinds:
                found[f"{path}.{name}.{field}"] = own
    return found


def _own(path: str, values: Choice | Range, value: Any) -> Any:
    """A value of a recipe as a parameter of Optuna."""
    if isinstance(values, Choice):
        for each in values.values:
            if _equal(each, tuples(value)):
                return each if type(each) in SCALARS else repr(each)
    elif (
        isinstance(value, int | float)
        and values.low <= value <= values.high
        and (values.step is None or _is_on_grid(values, value))
    ):
        return value
    raise InputError(f"{path}={value!r} is not in {values}")


def by_field(space: Mapping[str, Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of Optuna by the fields of the recipe that they set: those of alternatives share a field."""
    found = {}
    for name, value in parameters.items():
        field = name
        for path, values in space.items():
            for section in values.sections if isinstance(values, Alternatives) else ():
                field = field.replace(f"{path}.{section['name']}.", f"{path}.", 1)
        found[field] = value
    return found


def searched_fields(space: Mapping[str, Any]) -> set[str]:
    """The fields of the recipe that the space changes."""
    inside = lambda path, values: {f"{path}.{field}" for section in values.sections for field in section}
    return set().union(*(inside(*item) if isinstance(item[1], Alternatives) else {item[0]} for item in space.items()))


def ranges(space: Mapping[str, Any]) -> dict[str, Choice | Range]:
    """Name of each parameter of Optuna -> its values."""
    found: dict[str, Choice | Range] = {}
    for path, values in space.items():
        if isinstance(values, Alternatives):
            found[f"{path}.name"] = Choice(tuple(section["name"] for section in values.sections))
            for section in values.sections:
                found |= ranges({f"{path}.{section['name']}.{field}": inner for field, inner in section.items()})
        elif isinstance(values, Choice | Range):
            found[path] = values
    return found


def to_json(space: Mapping[str, Any]) -> dict[str, Any]:
    """The space as JSON, for the workers of a search."""
    kinds = {Choice: "choice", Range: "range", Alternatives: "alternatives"}
    whole = lambda values: {key: _plain(value) for key, value in vars(values).items()}
    return {path: {kinds[type(values)]: whole(values)} for path, values in space.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {
            key: to_json({key: inner})[key] if isinstance(inner, Choice | Range) else inner
            for key, inner in value.items()
        }
    return value


def from_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `to_json`."""
    return {path: _read(value) for path, value in values.items()}


def _read(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return tuples(value)
    ((kind, fields),) = value.items()
    if kind == "alternatives":
        return Alternatives(tuple({key: _read(inner) for key, inner in each.items()} for each in fields["sections"]))
    return Choice(tuples(fields["values"])) if kind == "choice" else Range(**fields)


def describe(space: Mapping[str, Any]) -> dict[str, str]:
    """Field -> its values as they are written in a space."""
    return {path: str(values) for path, values in space.items()}
