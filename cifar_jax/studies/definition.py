"""What a study consists of: a recipe, arms that change it, and seeds. Pure functions; nothing is read or written.

arms = ablation_arms(recipe, [{"augment.flip": 0}, {"model.dropout": 0, "loss.label_smoothing": 0}])
arms = grid_arms(recipe, {"model.activation": ["relu", "gelu"], "optimizer.learning_rate": [0.01, 0.1]})
"""

import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cifar_jax.errors import InputError
from cifar_jax.recipe import FACTS, differences, flatten, freeze, override, tuples
from cifar_jax.runs.fingerprint import differences as function_differences
from cifar_jax.runs.identity import FREE_FIELDS, fixed_fields
from cifar_jax.studies.fields import plain, typed, with_defaults
from cifar_jax.studies.records import label
from cifar_jax.training.keys import FOLLOW

BASE = "base"  # the name of the arm that changes nothing
OF_DATA = ("data.name", "data.path", "data.test_share", "data.validation_share", "data.validation", "data.seed")


@dataclass(frozen=True)
class StudyArm:
    """A recipe of the study. `changes` are those that the user named, dotted."""

    name: str
    changes: Mapping[str, Any]
    folder: str  # of its runs, below that of the study

    def recipe(self, base: Any, seed: int) -> Any:
        """The arm's recipe with a seed."""
        return freeze(override(base, {**self.changes, "seed": seed}))

    def key(self, base: Any) -> tuple[str, ...]:
        """What the arm is, whatever its name: each effective difference from the base recipe."""
        return tuple(sorted(f"{path}={value!r}" for path, value in effective(base, self.changes).items()))


@dataclass(frozen=True)
class Definition:
    """All that decides the results of a study."""

    command: str  # "ablate" or "sweep"
    recipe: Mapping[str, Any]  # to_json of the base recipe
    arms: tuple[StudyArm, ...]
    seeds: tuple[int, ...]
    functions: Mapping[str, Any]  # fingerprints of the caller's functions
    data: Mapping[str, str]  # split -> digest
    context: str | None = None  # digest of the objective's arrays

    def to_json(self) -> dict[str, Any]:
        arms = [{**vars(arm), "changes": plain(arm.changes)} for arm in self.arms]
        return {**vars(self), "arms": arms, "seeds": list(self.seeds)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Definition":
        of = lambda changes: {path: tuples(value) for path, value in changes.items()}
        arms = tuple(StudyArm(arm["name"], of(arm["changes"]), arm["folder"]) for arm in values["arms"])
        own = {name: values[name] for name in ("command", "recipe", "functions", "data")}
        # A study that began before there was a context has none.
        return cls(**own, arms=arms, seeds=tuple(values["seeds"]), context=values.get("context"))


def ablation_arms(recipe: Any, changes: Sequence[Mapping[str, Any]], names: Sequence[str] = ()) -> list[StudyArm]:
    """The recipe itself, and an arm for each set of changes; `names` are those of the arms, "" where the changes name
    it.

    Raises InputError on a field that is unknown or of another type, a change that changes nothing, and equal arms.
    """
    for change in changes:
        check_changes(recipe, change)
        if not change or not effective(recipe, change):
            shown = ", ".join(f"{path}={value!r}" for path, value in flatten(change).items())
            raise InputError(f"the change '{shown}' changes nothing in this recipe; give another value")
    return named(recipe, [{}, *changes], ["", *names])


def changes_to(recipe: Any, other: Any) -> dict[str, Any]:
    """The changes that make another recipe of this one, but for the seed, the fields that decide the images and those
    that change no result: these follow the recipe."""
    before, after = with_defaults(recipe), with_defaults(other)
    kept = ("seed", *OF_DATA, *FREE_FIELDS, *FACTS)
    changed = [path for path in after if path not in kept and before.get(path) != after[path]]
    # A section of another name begins without parameters: those that the other recipe sets, and no defaults.
    renamed = tuple(path.removesuffix("name") for path in changed if path.endswith(".name"))
    given = [path for path in flatten(other) if path.startswith(renamed)]
    changed = [path for path in changed if not path.startswith(renamed)]
    changes = {path: tuples(after[path]) for path in [*given, *changed]}
    found = with_defaults(override(recipe, typed(recipe, changes)))
    if wrong := [path for path in {**found, **after} if path not in kept and found.get(path) != after.get(path)]:
        raise InputError(f"the recipes differ in '{wrong[0]}', which changes of fields cannot tell; add it to one")
    return changes


def grid_arms(recipe: Any, grid: Mapping[str, Sequence[Any]]) -> list[StudyArm]:
    """An arm for each combination of the values, the last field varying fastest.

    Raises InputError on an empty grid, a field that is unknown or of another type, and equal arms.
    """
    if not grid:
        raise InputError("the grid is empty; give at least one field with its values")
    for path, values in grid.items():
        if isinstance(values, str) or not isinstance(values, Sequence):
            raise InputError(f"the values of '{path}' are {values!r}; give a list of values")
        if not values:
            raise InputError(f"the grid has no values for '{path}'; give at least one")
        for value in values:
            check_changes(recipe, {path: value})
    if len(grid) == 1 and not any(effective(recipe, {path: value}) for path in grid for value in grid[path]):
        raise InputError(f"the grid changes nothing in this recipe: {', '.join(grid)} has that value; give others")
    combinations = itertools.product(*grid.values())
    return named(recipe, [dict(zip(grid, values, strict=True)) for values in combinations])


def check_changes(recipe: Any, changes: Mapping[str, Any]) -> None:
    """Raises InputError where a study cannot change a field, or `override` and `build` refuse it."""
    override(recipe, changes)
    for path, value in changes.items():
        if isinstance(value, Mapping) and "name" in value:
            raise InputError(f"the change of '{path}' replaces a whole section; name its fields, '{path}.name' first")
    for path, value in flatten(changes).items():
        if callable(value):
            raise InputError(
                f"'{path}' is a function, which no table of a study can name; give it as {path}=... to fit"
            )
        if path == "seed":
            raise InputError("arms cannot change 'seed'; a study takes a number of seeds")
        if path in OF_DATA:
            raise InputError(f"'{path}' decides which images a run is compared on, so arms cannot change it")
        if path in FREE_FIELDS:
            raise InputError(f"'{path}' changes no result, so a study of it compares nothing; change another field")


def effective(recipe: Any, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The fields whose value the changes alter, where an absent parameter has its default."""
    changed = override(recipe, typed(recipe, flatten(changes)))
    before, after = with_defaults(recipe), with_defaults(changed)
    paths = before.keys() | after.keys()
    return {path: after.get(path) for path in sorted(paths) if before.get(path) != after.get(path)}


def named(recipe: Any, changes: Sequence[Mapping[str, Any]], names: Sequence[str] = ()) -> list[StudyArm]:
    """Arms with names and folders. Raises InputError where two are equal."""
    arms: dict[tuple[str, ...], StudyArm] = {}
    for change, given in itertools.zip_longest(changes, names):
        values = with_defaults(override(recipe, typed(recipe, flatten(change))))
        change = {path: tuples(values.get(path, value)) for path, value in flatten(change).items()}
        name = given or label(change) or BASE
        arm = StudyArm(name, change, f"runs/{folder_name(name)}")
        if other := arms.get(arm.key(recipe)):
            raise InputError(f"the arms '{other.name}' and '{arm.name}' are the same; leave one out")
        arms[arm.key(recipe)] = arm
    return list(arms.values())


def folder_name(name: str) -> str:
    """`name` with the characters that every file system takes, and of a length that it takes; no two names share one,
    because a name that loses characters gets its digest."""
    safe = re.sub(r"[^\w.=,+-]+", "_", name.replace(", ", ","))
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return safe if safe == name.replace(", ", ",") and len(safe) <= 80 else f"{safe[:60].strip('_')}-{digest}"


def seeds_of(recipe: Any, arms: Sequence[StudyArm], count: int) -> tuple[int, ...]:
    """recipe.seed, recipe.seed + 1, ... Raises InputError unless there is at least one, and where the seeds of an arm
    are all set, so that its runs would be equal."""
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise InputError(f"the number of seeds is {count!r}; it is a whole number, at least 1")
    for arm in arms if count > 1 else ():
        if all(seed != FOLLOW for seed in arm.recipe(recipe, recipe.seed).seeds.values()):
            what = "seeds.weights, seeds.order and seeds.augmentation are all set"
            raise InputError(f"arm '{arm.name}': {what}, so its {count} runs would be equal; ask for 1 seed")
    return tuple(range(recipe.seed, recipe.seed + count))


def extended(stored: Definition, wanted: Definition, folder: Any, recipe: Any) -> Definition:
    """The stored study with the seeds and arms that are new, in the order that is wanted.

    Raises InputError where anything else differs: the folder then holds another study.
    """
    refuse = lambda what: InputError(f"'{folder}' holds another study ({what}); name another folder")
    if stored.command != wanted.command:
        raise refuse(f"of '{stored.command}'")
    if changed := differences(fixed_fields(stored.recipe), fixed_fields(wanted.recipe)):
        raise refuse("; ".join(changed))
    if changed := function_differences(stored.functions, wanted.functions):
        raise refuse("; ".join(changed))
    if stored.context != wanted.context:
        raise refuse("of another context of the objective")
    for split in sorted(stored.data.keys() | wanted.data.keys()):
        known, digest = stored.data.get(split, "none"), wanted.data.get(split, "none")
        if known != digest:
            raise refuse(f"its data has digest {known} in split '{split}', and the data set now has {digest}")
    if missing := [seed for seed in stored.seeds if seed not in wanted.seeds]:
        shown = ", ".join(map(str, missing))
        raise refuse(f"it has the seeds {shown} too; seeds can be added, not taken away")
    known_arms = {arm.key(recipe): arm for arm in stored.arms}
    wanted_arms = {arm.key(recipe): arm for arm in wanted.arms}
    if gone := [arm.name for key, arm in known_arms.items() if key not in wanted_arms]:
        raise refuse(f"it has the arm '{gone[0]}' too; arms can be added, not taken away")
    arms = tuple(known_arms.get(key, arm) for key, arm in wanted_arms.items())
    return replace(wanted, recipe=stored.recipe, arms=arms)


def find_arms(arms: Sequence[StudyArm], name: str) -> list[StudyArm]:
    """The arm of that name. Raises InputError, with all names, where there is none."""
    found = [arm for arm in arms if arm.name == name]
    if not found:
        raise InputError(f"the study has no arm '{name}'; its arms are {'; '.join(arm.name for arm in arms)}")
    return found
