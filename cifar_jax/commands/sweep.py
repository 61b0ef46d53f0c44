"""Train all combinations of values with many seeds, and compare them.

    --grid='model.activation=relu,gelu,silu' --grid='optimizer.learning_rate=0.01,0.03,0.1'

Each --grid is a field with its values, separated by commas, outside brackets. Runs are evaluated on the validation
split. The same command continues a study that was interrupted; further values and seeds extend it.
"""

import argparse
from typing import Any

from cifar_jax.commands import studies
from cifar_jax.commands.values import parse_value, split_outside_brackets
from cifar_jax.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--grid", action="append", default=[], metavar="FIELD=VALUE,...", help="an axis; repeatable")
    studies.add_arguments(parser)


def run(options: argparse.Namespace) -> int:
    from cifar_jax.studies.definition import grid_arms

    grid = parse_grid(options.grid)
    return studies.run(options, "sweep", lambda recipe: grid_arms(recipe, grid))


def parse_grid(texts: list[str]) -> dict[str, list[Any]]:
    """["model.activation=relu,gelu"] -> {"model.activation": ["relu", "gelu"]}."""
    grid: dict[str, list[Any]] = {}
    for text in texts:
        field, equals, values = text.partition("=")
        if not equals or not field:
            raise InputError(f"--grid='{text}' is not of the form FIELD=VALUE,VALUE")
        if field in grid:
            raise InputError(f"--grid names '{field}' twice; give all its values in one")
        grid[field] = [parse_value(part) for part in split_outside_brackets(values) if part]
    return grid
