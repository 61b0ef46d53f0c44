"""List what the package offers, or the runs in a folder: status, accuracy, and the recipe fields that differ."""

import argparse
import ast
import functools
import re
import sys
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cifar_jax.errors import InputError, nearest

KINDS = ("models", "optimizers", "schedules", "losses", "objectives", "augmentations", "recipes", "datasets", "runs")
COLUMNS = 6  # fields that differ, in columns of their own
FACTS = ("data.num_classes", "data.image_shape", "data.train_count")  # of the data, which other fields name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", help=", ".join(KINDS))
    parser.add_argument("folder", nargs="?", help="of the runs, at any depth; runs if not given")


def run(options: argparse.Namespace) -> int:
    if options.kind not in KINDS:
        raise InputError(f"'{options.kind}' cannot be listed{nearest(options.kind, KINDS)}")
    if options.folder is not None and options.kind != "runs":
        raise InputError(f"'list {options.kind}' takes no folder, and '{options.folder}' was given; leave it out")
    print_table(list_runs(Path(options.folder or "runs")) if options.kind == "runs" else described(options.kind))
    return 0


def print_table(rows: list[list[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


# --- what the package offers ---


def described(kind: str) -> list[list[str]]:
    """[name, description in one line] of everything of a kind."""
    if kind == "recipes":
        from cifar_jax.runs.recipes import shipped_recipes

        files = sorted(path for path in shipped_recipes().glob("*.py") if path.stem != "base")
        texts = {f"configs/{path.name}": ast.get_docstring(ast.parse(path.read_text())) for path in files}
        return [[name, first_sentence(text)] for name, text in texts.items()]
    describe = {"models": model_line, "datasets": dataset_line}.get(kind, lambda entry: first_sentence(entry.__doc__))
    return [[name, describe(entry)] for name, entry in table(kind).items()]


def table(kind: str) -> Mapping[str, Any]:
    """The table in which the package looks up names of that kind."""
    from cifar_jax.data.store import DATASETS
    from cifar_jax.models import MODELS
    from cifar_jax.training import augment, losses, objectives, optimizers, schedules

    tables: dict[str, Mapping[str, Any]] = {
        "models": MODELS,
        "optimizers": optimizers.OPTIMIZERS,
        "schedules": schedules.SCHEDULES,
        "losses": losses.LOSSES,
        "objectives": objectives.OBJECTIVES,
        "augmentations": {**augment.AUGMENTATIONS, **augment.MIXTURES},
        "datasets": DATASETS,
    }
    return tables[kind]


def model_line(entry: Any) -> str:
    """The architecture, described where its module begins, and the fields that this model sets."""
    text = first_sentence(sys.modules[getattr(entry, "func", entry).__module__].__doc__)
    fields = entry.keywords if isinstance(entry, functools.partial) else {}
    return f"{text}: {', '.join(f'{name}={value}' for name, value in fields.items())}" if fields else text


def dataset_line(entry: Any) -> str:
    return f"downloaded from {entry.url}" if entry.url else "made from an installed package, without a download"


def first_sentence(text: str | None) -> str:
    """The first sentence of a docstring, without its full stop; "et al." and initials do not end a sentence."""
    paragraph = " ".join((text or "").strip().split("\n\n")[0].split())
    return re.split(r"(?<!\bal)(?<!\b[A-Z])\.\s+(?=[A-Z`])", paragraph)[0].rstrip(".:")


# --- runs ---


def list_runs(folder: Path) -> list[list[str]]:
    """A heading, and a row for each run: folder, status, accuracy, and the values of the fields that differ, each in a
    column. Where they are more than COLUMNS, a run has those in which it differs from most runs, in one cell.

    Raises InputError where the folder holds no run. A run that cannot be read is left out with a warning.
    """
    from cifar_jax.runs.identity import FREE_FIELDS

    found = {}
    by_number = lambda path: [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", str(path))]
    for path in sorted((file.parent for file in folder.glob("**/run.json")), key=by_number):  # seed2 before seed10
        try:
            found[str(path.relative_to(folder))] = read_run(path)
        except InputError as error:
            warnings.warn(str(error), stacklevel=2)
    if not found:
        raise InputError(f"'{folder}' holds no runs; train one with --workdir={folder}/NAME")
    recipes = [fields for *_, fields in found.values()]
    left_out = {*FREE_FIELDS, *FACTS} - {"data.path"}
    every = {field for fields in recipes for field in fields if field not in left_out}
    differing = sorted(field for field in every if len({repr(fields.get(field)) for fields in recipes}) > 1)
    heading, cells = differing, [[str(fields.get(field, "")) for field in differing] for fields in recipes]
    if len(differing) > COLUMNS:
        most = [Counter(column).most_common(1)[0][0] for column in zip(*cells, strict=True)]
        named = [zip(differing, row, most, strict=True) for row in cells]
        heading = ["differs from most in"]
        cells = [[", ".join(f"{field}={value}" for field, value, usual in row if value != usual)] for row in named]
    rows = [[name, status, accuracy] for name, (status, accuracy, _) in found.items()]
    return [["run", "status", "accuracy", *heading], *(row + more for row, more in zip(rows, cells, strict=True))]


def read_run(workdir: Path) -> tuple[str, str, dict[str, Any]]:
    """Status, accuracy and recipe fields of a run. Raises InputError where its files are damaged."""
    from cifar_jax.recipe import flatten, to_json
    from cifar_jax.runs.identity import LATER_FIELDS
    from cifar_jax.runs.recipes import read_recipe
    from cifar_jax.runs.workdir import read_evaluation, read_record

    record = read_record(workdir)
    assert record is not None  # the folder has a run.json
    seen = read_evaluation(workdir, "test") or read_evaluation(workdir, "validation")
    status = record["reason"] if record["complete"] else f"not complete, step {record['step']}"
    accuracy = f"{seen.split} {seen.accuracy:.2%}" if seen else ""
    return status, accuracy, LATER_FIELDS | flatten(to_json(read_recipe(workdir / "recipe.json")))
