"""What makes a run the one that it is: its recipe, the caller's functions, its data, the arrays of its objective."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from cifar_jax.recipe import SECTION, flatten, to_json
from cifar_jax.runs.files import digest_of_json

# Fields that may differ between a run and the call that resumes it: they, and where images lie, change no result.
FREE_FIELDS = (
    "checkpoint.every_epochs",
    "checkpoint.every_minutes",
    "evaluation.batch_size",
    "part_steps",
    "data.path",
)
# Fields that configs/base.py did not have from the start, each with the value that does what was done before: a recipe
# that has it, and one of an older version that lacks the field, are the same. A new field gets a line here.
LATER_FIELDS = {
    "data.image_size": 32,
    "data.resize_mode": "stretch",
    "data.test_share": 0.2,
    "data.validation_share": 0.1,
    "augment.vertical_flip": 0.0,
}


@dataclasses.dataclass(frozen=True)
class Identity:
    """What a run is made of."""

    recipe: FrozenConfigDict
    functions: dict[str, Any]  # section of the recipe -> fingerprint of the caller's function
    data: dict[str, str]  # split -> digest
    context: str | None = None  # digest of the objective's arrays

    def digests(self) -> dict[str, str]:
        """Those that each checkpoint carries."""
        training_data = {split: digest for split, digest in self.data.items() if split != "test"}
        functions = {name: value["digest"] for name, value in self.functions.items()} | {"context": self.context}
        return {
            "recipe": digest_of_json(fixed_fields(self.recipe)),
            "functions": digest_of_json(functions),
            "data": digest_of_json(training_data),
        }


def fixed_fields(recipe: Any) -> dict[str, Any]:
    """The fields of a resolved recipe, or of its JSON, that identify a run."""
    return identifying(flatten(to_json(recipe)))


def with_later_fields(recipe: Any) -> Any:
    """The recipe, which an older version may have written, with the fields that it lacks."""
    places = {path: path.partition(".")[::2] for path in LATER_FIELDS}
    sections = {name: recipe[name] for name in recipe if isinstance(recipe[name], SECTION)}
    missing = [path for path, (name, field) in places.items() if field not in sections.get(name, {field})]
    if not missing:
        return recipe
    completed = ConfigDict(recipe, convert_dict=True).copy_and_resolve_references()
    completed.unlock()
    for path in missing:
        section, field = places[path]
        completed[section][field] = LATER_FIELDS[path]
    return completed


def identifying(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the flat fields that identify a run."""
    later = lambda path, value: path in LATER_FIELDS and value == LATER_FIELDS[path]
    return {path: value for path, value in fields.items() if path not in FREE_FIELDS and not later(path, value)}
