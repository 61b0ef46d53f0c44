"""Describe a recipe or a model: layers, parameters, multiply-adds, memory. Nothing is trained."""

import argparse

from cifar_jax.errors import InputError, nearest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="RECIPE_OR_MODEL", help="a .py, a run's recipe.json, or the name of a model")


def run(options: argparse.Namespace) -> int:
    from cifar_jax.models import MODELS
    from cifar_jax.runs.describe import description

    path, changes = options.name, options.changes
    if path in MODELS:
        path, changes = "configs/base.py", {"model.name": path, **changes}
    elif not path.endswith((".py", ".json")):
        raise InputError(f"'{path}' is neither a recipe file nor a model{nearest(path, MODELS)}")
    print(description(path, changes))
    return 0
