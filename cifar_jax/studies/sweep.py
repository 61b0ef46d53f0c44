"""ablate and sweep: from changes or a grid to a table."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from cifar_jax.errors import InputError
from cifar_jax.recipe import BUILT
from cifar_jax.runs.recipes import load_recipe
from cifar_jax.studies.compare import check_detect, check_metric
from cifar_jax.studies.comparison import Comparison
from cifar_jax.studies.definition import StudyArm, ablation_arms, changes_to, grid_arms
from cifar_jax.studies.engines import take_engine
from cifar_jax.studies.options import FUNCTIONS, Options
from cifar_jax.studies.study import Study


def ablate(
    recipe: Any,
    changes: Sequence[Any] = (),
    *,
    seeds: int = 5,
    folder: str | Path | None = None,
    metric: str = "validation_accuracy",
    detect: float | None = None,
    **options: Any,
) -> Comparison:
    """Trains the recipe, and the recipe with each set of changes, with several seeds; compares each with the recipe.

        table = cj.ablate("configs/convnet.py", [{"augment.flip": 0}, {"model.dropout": 0}], seeds=8)

    recipe: a recipe, or the file of one. changes: field -> value, dotted or nested, one set for each arm; or another
    recipe or its file, whose data and seed follow the first; without any, the seeds of the recipe alone are
    trained. seeds: their number, from recipe.seed on. folder: that of the study; only a recipe file has a default,
    studies/<recipe>-ablate. metric and detect are as for `compare`; options are those of `studies.study.Options`, and
    model=..., loss=... as for `fit`.
    engine="local", processes=2 or engine="slurm", partition="gpu", time_limit=60: see `studies.engines`.

    The same call continues a study that was interrupted; more arms or seeds extend it. Raises InputError where an arm
    cannot be trained, changes nothing or is given twice, and where the folder holds another study.
    """
    base, place = _base(recipe, folder, "ablate")
    _check_report(metric, detect)
    return _trained(base, place, "ablate", arms_of(base, changes), seeds, options).comparison(metric, detect)


def sweep(
    recipe: Any,
    grid: Mapping[str, Sequence[Any]],
    *,
    seeds: int = 5,
    folder: str | Path | None = None,
    metric: str = "validation_accuracy",
    detect: float | None = None,
    **options: Any,
) -> Comparison:
    """Trains the recipe with each combination of values, with several seeds; compares each with the recipe's own.

        table = cj.sweep("configs/convnet.py", {"optimizer.learning_rate": [0.01, 0.03, 0.1]}, seeds=5)

    Where no combination is the recipe itself, the first is the base. Everything else is as for `ablate`.
    """
    base, place = _base(recipe, folder, "sweep")
    _check_report(metric, detect)
    return _trained(base, place, "sweep", grid_arms(base, grid), seeds, options).comparison(metric, detect)


def arms_of(recipe: Any, changes: Sequence[Any]) -> list[StudyArm]:
    """The arms of an ablation: changes, or other recipes, or their files, whose names the arms have.

    Raises InputError as `ablation_arms`, and where a file is no recipe.
    """
    names = [str(each) if isinstance(each, str | Path) else "" for each in changes]
    return ablation_arms(recipe, [_changes(recipe, each) for each in changes], names)


def _changes(recipe: Any, given: Any) -> Mapping[str, Any]:
    """Changes as they are, or those that make another recipe of this one."""
    other = load_recipe(given) if isinstance(given, str | Path) else given
    if not isinstance(other, ConfigDict | FrozenConfigDict) or not {*BUILT} - {"objective"} <= {*other}:
        return other
    if found := changes_to(recipe, other):
        return found
    what = f"'{given}' is" if isinstance(given, str | Path) else "an arm is"
    raise InputError(f"{what} the recipe itself, so that there is nothing to compare")


def _base(recipe: Any, folder: str | Path | None, command: str) -> tuple[Any, Path]:
    """The base recipe and the folder of the study."""
    if isinstance(recipe, str | Path):
        return load_recipe(recipe), Path(folder or f"studies/{Path(recipe).stem}-{command}")
    if folder is None:
        raise InputError(f"{command} needs the folder of the study; give folder='studies/NAME'")
    return recipe, Path(folder)


def _check_report(metric: str, detect: float | None) -> None:
    """Raises InputError on what the comparison after the training would refuse."""
    check_metric(metric, ("validation",))
    check_detect(metric, detect)


def _trained(
    recipe: Any, folder: Path, command: str, arms: Sequence[StudyArm], seeds: int, options: Mapping[str, Any]
) -> Study:
    engine, more = take_engine(options)
    functions = {name: value for name, value in more.items() if name in FUNCTIONS and value is not None}
    others = {name: value for name, value in more.items() if name not in FUNCTIONS}
    study = Study(command, folder, recipe, arms, seeds, Options(functions=functions, engine=engine, **others))
    study.train()
    return study
