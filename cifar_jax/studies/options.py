"""What a study or a search is trained with: its options, its data, and the definition that follows from them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cifar_jax.data import arrays
from cifar_jax.data.load import load_splits
from cifar_jax.errors import InputError
from cifar_jax.recipe import override, to_json
from cifar_jax.runs.devices import compute_dtype
from cifar_jax.runs.fingerprint import data_digest, fingerprint
from cifar_jax.runs.functions import with_functions
from cifar_jax.studies import engines
from cifar_jax.studies.definition import Definition, StudyArm

FUNCTIONS = ("model", "optimizer", "schedule", "loss", "augment", "objective")
MAX_RUNS = 200
TOGETHER = 8


@dataclass(frozen=True)
class Options:
    """What a study is trained with beside its arms. Data, context and functions are part of the study; the others
    decide no results, but for the precision of executions other than sequential."""

    data_dir: str | Path | None = None
    data: Mapping[str, Any] | None = None  # as for `fit`
    context: Any = None  # as for `fit`
    functions: Mapping[str, Any] = field(default_factory=dict)  # model=..., loss=...: as for `fit`
    light: bool = False  # keeps no optimiser states
    execution: str = "auto"  # see `execution`
    together: int = TOGETHER  # runs at once, where the execution computes several
    max_hours: float | None = None  # no run begins after so many hours
    max_runs: int = MAX_RUNS  # a study of more is refused
    retry: bool = False  # trains runs again that failed
    engine: engines.Engine | None = None  # what trains the runs, where it is not this process
    progress: bool = True


@dataclass(frozen=True)
class SearchOptions(Options):
    """What a search is trained with beside its space. `retry` queues trials again that failed."""

    patience: int | None = None  # no trial begins after so many that brought no improvement


def search_options(given: Mapping[str, Any]) -> SearchOptions:
    """Raises InputError on an option of studies that a search does not have, or a wrong value."""
    known = ("data_dir", "data", "context", "light", "max_hours", "patience", "retry", "progress")
    for name in given:
        if name not in (*known, *FUNCTIONS):
            raise InputError(f"tune has no option '{name}'. Known: {', '.join((*known, *FUNCTIONS))}")
    functions = {name: value for name, value in given.items() if name in FUNCTIONS and value is not None}
    options = SearchOptions(functions=functions, **{name: value for name, value in given.items() if name in known})
    check_hours(options.max_hours)
    patience = options.patience
    if patience is not None and (not isinstance(patience, int) or isinstance(patience, bool) or patience < 1):
        raise InputError(f"patience is {patience!r}; it is a number of trials, at least 1")
    return options


def check_hours(hours: Any) -> None:
    """Raises InputError unless max_hours is None or a number above 0."""
    if hours is not None and not (isinstance(hours, int | float) and not isinstance(hours, bool) and hours > 0):
        raise InputError(f"max_hours is {hours!r}; it must be a number above 0")


def with_dtype(recipe: Any, stored: Mapping[str, Any] | None) -> Any:
    """dtype="auto" as the stored study began, or for this machine: an arm has one dtype."""
    if recipe.dtype != "auto":
        return recipe
    return override(recipe, {"dtype": stored["recipe"]["dtype"] if stored else compute_dtype("auto")})


def check_engine(options: Options) -> None:
    """Raises InputError where workers cannot do what is asked for."""
    if options.engine is None:
        return
    passed = {"data": options.data, "context": options.context, **options.functions}
    engines.check_passed(options.engine, passed, options.max_hours)
    name = options.engine.name
    if options.execution not in ("auto", "sequential"):
        raise InputError(f"execution is '{options.execution}', and engine='{name}' trains each run alone; leave it out")


def load_data(recipe: Any, options: Options) -> dict[str, arrays.Split]:
    """The splits of a study, without test where they are loaded by name. Raises InputError without a validation
    split."""
    loaded = lambda: load_splits(recipe.data, False, options.data_dir, options.progress)
    data = arrays.splits(options.data) if options.data else loaded()
    if not recipe.data.validation and "validation" not in data:
        raise InputError(
            "a study compares its runs on a validation split, and data.validation is 0; set a number of images,"
            " for example --config.data.validation=5000"
        )
    return data


def define(
    command: str,
    recipe: Any,
    arms: Sequence[StudyArm],
    seeds: tuple[int, ...],
    data: Mapping[str, arrays.Split],
    options: Options,
) -> Definition:
    """All that decides the results of a study, as it is stored."""
    digests = {name: split.digest for name, split in data.items() if name != "test"}
    base = to_json(with_functions(recipe, options.functions))
    prints = {name: fingerprint(value) for name, value in options.functions.items()}
    context = data_digest(options.context) if options.context is not None else None
    return Definition(command, base, tuple(arms), seeds, prints, digests, context)
