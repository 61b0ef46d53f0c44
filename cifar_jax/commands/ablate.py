"""Train a recipe, and the recipe with each --change, with many seeds, and compare each change with the recipe.

    --change='augment.flip=0' --change='model.dropout=0,loss.label_smoothing=0'

Each --change is an arm; its fields are separated by commas, outside brackets. --change=FILE is the recipe of a file,
such as best.py of a search, whose data and seed follow the first. Without any, the seeds of the recipe alone are
trained. Runs are evaluated on the validation split. The same command continues a study that was interrupted; further
changes and seeds extend it.
"""

import argparse
from pathlib import Path
from typing import Any

from cifar_jax.commands import studies
from cifar_jax.commands.values import parse_value, split_outside_brackets
from cifar_jax.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--change", action="append", default=[], metavar="FIELD=VALUE,...", help="an arm, or a recipe file; repeatable"
    )
    studies.add_arguments(parser)


def run(options: argparse.Namespace) -> int:
    from cifar_jax.studies.sweep import arms_of

    changes = [parse_change(text) for text in options.change]
    return studies.run(options, "ablate", lambda recipe: arms_of(recipe, changes))


def parse_change(text: str) -> dict[str, Any] | str:
    """ "model.dropout=0,augment.crop=4" -> {"model.dropout": 0, "augment.crop": 4}; the name of a file is kept."""
    if "=" not in text and text.endswith((".py", ".json")):
        return text
    if (Path(text) / "best.py").exists():
        raise InputError(f"--change='{text}' is the folder of a search; give its recipe, {Path(text) / 'best.py'}")
    change: dict[str, Any] = {}
    for part in split_outside_brackets(text):
        field, equals, value = part.partition("=")
        if not equals or not field:
            raise InputError(f"--change='{text}' is not of the form FIELD=VALUE,FIELD=VALUE (at '{part}')")
        if field in change:
            raise InputError(f"--change='{text}' sets '{field}' twice; set it once")
        change[field] = parse_value(value)
    return change
