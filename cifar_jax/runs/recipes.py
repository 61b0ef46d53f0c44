"""Recipe files: where they lie, and how one is read."""

import importlib.util
import inspect
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cifar_jax.errors import InputError
from cifar_jax.recipe import BUILT, from_json, override, without_facts
from cifar_jax.runs.files import read_json


def load_recipe(path: str | Path, changes: Mapping[str, Any] | None = None) -> ConfigDict:
    """The recipe of a file, `configs/cnn.py` or a run's `recipe.json`, over `configs/base.py`, with `changes`.

    Raises InputError where the file is missing or a field is unknown.
    """
    file = find_recipe(Path(path))
    chosen = without_facts(read_recipe(file)) if file.suffix == ".json" else _get_config(file)
    return override(override(_get_config(shipped_recipes() / "base.py"), chosen), changes or {})


def shipped_recipes() -> Path:
    """The folder of the recipes that come with the package: beside it in a checkout, in it where it is installed."""
    package = Path(__file__).parent.parent
    beside = package.parent / "configs"
    return beside if beside.is_dir() else package / "configs"


def find_recipe(path: Path) -> Path:
    """The file itself, or the one of that name among the recipes that come with the package."""
    for candidate in (path, shipped_recipes().parent / path):
        if candidate.is_file():
            return candidate
    known = ", ".join(sorted(f"configs/{file.name}" for file in shipped_recipes().glob("*.py") if file.stem != "base"))
    raise InputError(f"recipe '{path}' is not a file; known recipes: {known}")


def read_recipe(path: Path) -> ConfigDict:
    """A run's recipe.json. Raises InputError where it is damaged."""
    values = read_json(path)
    if not isinstance(values, dict) or not {*BUILT, "data"} - {"objective"} <= values.keys():
        raise InputError(f"{path} is not a recipe, or is damaged")
    return from_json(values)


def _get_config(file: Path) -> ConfigDict:
    return call_file(file, "get_config", "recipe", "neither a .py nor a .json file", "configs/cnn.py")


def call_file(file: Path, function: str, kind: str, fault: str, example: str) -> Any:
    """What `function` of a Python file returns.

    Raises InputError where the file cannot be read, which `fault` says of one of another form, or has no such function.
    """
    spec = importlib.util.spec_from_file_location(f"{kind}_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise InputError(f"{kind} '{file}' is {fault}")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (SyntaxError, ImportError) as error:
        raise InputError(f"{kind} '{file}' cannot be read: {error}") from error
    except (Exception, SystemExit) as error:
        raise InputError(_raised(kind, file, error)) from error
    if not hasattr(module, function):
        raise InputError(f"{kind} '{file}' defines no {function}(); see {example} for the form")
    called = getattr(module, function)
    try:
        inspect.signature(called).bind()
    except (TypeError, ValueError) as error:
        raise InputError(f"{function} of {kind} '{file}' cannot be called: {error}; it takes no arguments") from error
    try:
        return called()
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(_raised(kind, file, error)) from error


def _raised(kind: str, file: Path, error: BaseException) -> str:
    """That a user's file raised an error, and in which of its lines."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(file.absolute())]
    where = f" at line {lines[-1]}" if lines else ""
    return f"{kind} '{file}' raised {type(error).__name__}{where}: {error}"
