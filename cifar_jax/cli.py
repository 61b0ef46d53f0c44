"""The command line: one table of commands, each of which imports what it needs when it is called."""

import argparse
import ast
import re
import shlex
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from cifar_jax.errors import InputError, nearest

LISTS = ("models", "optimizers", "schedules", "losses", "objectives", "augmentations", "recipes", "datasets", "runs")


def start(arguments: list[str] | None = None) -> int:
    """The entry point of a process: settings, signals, then the command. Returns the exit code."""
    from cifar_jax.process import end_on_signals, prepare_process

    arguments = sys.argv[1:] if arguments is None else arguments
    workdir: list[str] = []  # that of a training run, once it is known
    end_on_signals(lambda: interrupted(workdir[0] if workdir else None))
    options, changes = parse(arguments)  # before the slow imports
    if options.command == "train":
        workdir.append(options.workdir)
    prepare_process()
    return call(options, changes)


def main(arguments: list[str]) -> int:
    """A command inside this process. Returns the exit code; bad usage raises SystemExit(2)."""
    return call(*parse(arguments))


def call(options: argparse.Namespace, changes: dict[str, object]) -> int:
    try:
        COMMANDS[options.command](options, changes)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def interrupted(workdir: str | None) -> str:
    """The sentence for Ctrl-C and SIGTERM: what was really saved."""
    if workdir is None:
        return "stopped"
    steps = [int(path.stem) for path in Path(workdir).glob("manifests/*.json") if path.stem.isdecimal()]
    if steps:
        return f"stopped; step {max(steps)} is saved, and the same command resumes there"
    return "stopped before anything was saved; the same command starts anew"


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        usage_error(message)


def usage_error(message: str) -> NoReturn:
    print(f"error: {message}; see '{program()} --help'", file=sys.stderr)
    sys.exit(2)


def parse(arguments: list[str]) -> tuple[argparse.Namespace, dict[str, object]]:
    """The options, and the recipe fields that --config.FIELD=VALUE sets."""
    fields = [text for text in arguments if text.startswith("--config.")]
    changes = dict(map(parse_field, fields))
    given = [text for text in arguments if text not in fields]
    options = build_parser().parse_args(given or ["train"])
    options.command = options.command or "train"
    if fields and options.command not in ("train", "describe"):
        usage_error(f"{fields[0]} sets a recipe field, which only 'train' and 'describe' take")
    if options.command == "train":
        if options.workdir is None and options.config.endswith(".json"):
            usage_error(f"--config={options.config} repeats a run; name a --workdir for it")
        if options.workdir is None:
            options.workdir = f"runs/{Path(options.config).stem}"
    if getattr(options, "workdir", None) == "":
        usage_error("--workdir is empty; name a folder")
    return options, changes


def build_parser() -> Parser:
    parser = Parser(
        prog=program(),
        description="Train and evaluate image classifiers. Without arguments: train configs/quickstart.py.",
        epilog="--config.FIELD=VALUE sets a field of the recipe, --config.optimizer.learning_rate=0.01 for instance; "
        "configs/base.py lists them all.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=version())
    commands = parser.add_subparsers(dest="command")
    add = lambda name, text: commands.add_parser(name, help=text, description=text, allow_abbrev=False)
    training = add("train", "train a recipe, or resume it")
    training.add_argument("--config", default="configs/quickstart.py", help="recipe: a .py or a run's recipe.json")
    training.add_argument("--evaluate", default="test", choices=("test", "validation", "none"), help="at the end")
    training.add_argument("--resume", action="store_true", help="continue a run that a callback stopped")
    evaluation = add("evaluate", "evaluate a trained run")
    evaluation.add_argument("--split", default="test", help="test, validation or train")
    evaluation.add_argument("--views", help="one, mirror or mirror_shift; the recipe's if not given")
    evaluation.add_argument("--format", default="table", choices=("table", "json"))
    for command in (training, evaluation):
        text = "folder of the run" + ("" if command is evaluation else "; runs/<recipe> if not given")
        command.add_argument("--workdir", required=command is evaluation, help=text)
        command.add_argument("--data_dir", help="folder of prepared TFDS data sets; TFDS_DATA_DIR if not given")
    listing = add("list", "what there is: " + ", ".join(LISTS))
    listing.add_argument("kind", help=" | ".join(LISTS))
    listing.add_argument("folder", nargs="?", default="runs", help="of `list runs`")
    describing = add("describe", "parameters, multiply-adds, layers and memory of a recipe or a model")
    describing.add_argument("name", help="a recipe file, or the name of a model")
    return parser


def parse_field(text: str) -> tuple[str, object]:
    """ "--config.optimizer.learning_rate=0.1" -> ("optimizer.learning_rate", 0.1)."""
    match = re.fullmatch(r"--config\.([\w.]+)=(.*)", text, re.DOTALL)
    if not match:
        usage_error(f"'{text}' is not of the form --config.FIELD=VALUE")
    field, value = match.groups()
    try:
        return field, ast.literal_eval({"true": "True", "false": "False"}.get(value, value))
    except (ValueError, SyntaxError):
        return field, value


def version() -> str:
    import importlib.metadata

    packages = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "flax", "optax"))
    return f"cifar_jax {importlib.metadata.version('cifar_jax')} ({packages}, Python {sys.version.split()[0]})"


def program() -> str:
    """How this process was started, as it can be pasted: "python launch.py", "cifar-jax"."""
    name = Path(sys.argv[0]).name
    if name not in ("launch.py", "__main__.py"):
        return name if name == "cifar-jax" else "python launch.py"
    here, interpreter = Path.cwd(), Path(sys.executable)
    python = str(interpreter.relative_to(here)) if interpreter.is_relative_to(here) else str(interpreter)
    script = ["-m", "cifar_jax"] if name == "__main__.py" else [sys.argv[0]]
    return shlex.join([python, *script])


def train(options: argparse.Namespace, changes: dict[str, object]) -> None:
    import cifar_jax as cj
    from cifar_jax.runs.workdir import read_record

    record = read_record(Path(options.workdir))
    recipe = cj.load_recipe(options.config, changes)
    evaluate = None if options.evaluate == "none" else options.evaluate
    run = cj.fit(recipe, options.workdir, data_dir=options.data_dir, evaluate=evaluate, resume=options.resume)
    if record and record["complete"]:
        print(f"the run in {options.workdir} is complete; nothing to train")
    print(run.evaluation or run)
    folder, command = options.workdir, program()
    workdir = shlex.quote(f"--workdir={folder}")
    print(f"\nThe run is in {folder}. Next:")
    print(f"  cat {shlex.quote(f'{folder}/metrics.jsonl')} {shlex.quote(f'{folder}/run.json')}")
    print(f"  {command} evaluate {workdir} --views=mirror")
    if run.recipe.data.name == "digits":
        print(f"  {command} train --config=configs/cnn.py         # CIFAR-10, 162 MiB to download")
        print(f"  {command} train --config=configs/resnet18.py    # CIFAR-10, for a GPU")


def evaluate(options: argparse.Namespace, changes: dict[str, object]) -> None:
    import json

    import cifar_jax as cj

    run = cj.load_run(options.workdir)
    result = cj.evaluate(run, options.split, views=options.views, data_dir=options.data_dir)
    print(json.dumps(result.to_json()) if options.format == "json" else result)


def list_things(options: argparse.Namespace, changes: dict[str, object]) -> None:
    if options.kind not in LISTS:
        raise InputError(f"'{options.kind}' cannot be listed{nearest(options.kind, LISTS)}")
    rows = list_runs(Path(options.folder)) if options.kind == "runs" else [*named(options.kind)]
    print_table(rows)


def named(kind: str) -> list[list[str]]:
    """[name, one line] of everything of a kind."""
    if kind == "recipes":
        from cifar_jax.runs.recipes import shipped_recipes

        files = sorted(path for path in shipped_recipes().glob("*.py") if path.stem != "base")
        return [[f"configs/{path.name}", first_line(ast.get_docstring(ast.parse(path.read_text())))] for path in files]
    table = tables()[kind]()
    return [[name, describe_entry(entry)] for name, entry in table.items()]


def tables() -> dict[str, Callable[[], dict[str, Any]]]:
    from cifar_jax.data.store import DATASETS
    from cifar_jax.models import MODELS
    from cifar_jax.training import augment, losses, objectives, optimizers, schedules

    return {
        "models": lambda: dict(MODELS),
        "optimizers": lambda: dict(optimizers.OPTIMIZERS),
        "schedules": lambda: dict(schedules.SCHEDULES),
        "losses": lambda: dict(losses.LOSSES),
        "objectives": lambda: dict(objectives.OBJECTIVES),
        "augmentations": lambda: {**augment.AUGMENTATIONS, **augment.MIXTURES},
        "datasets": lambda: dict(DATASETS),
    }


def describe_entry(entry: Any) -> str:
    """The first line of a function's docstring; of a model, that of its module; of a data set, where it comes from."""
    if hasattr(entry, "url"):
        return entry.url or "with an installed package"
    function = getattr(entry, "func", entry)
    in_module = isinstance(function, type)
    return first_line(sys.modules[function.__module__].__doc__ if in_module else function.__doc__)


def first_line(text: str | None) -> str:
    return (text or "").strip().split("\n\n")[0].replace("\n", " ").split(". ")[0].rstrip(".:")


def list_runs(folder: Path) -> list[list[str]]:
    """A row for each run in a folder: its name, status, accuracy, and the recipe fields in which the runs differ."""
    from cifar_jax.recipe import flatten, to_json
    from cifar_jax.runs.recipes import read_recipe
    from cifar_jax.runs.workdir import FREE_FIELDS, read_evaluation, read_record

    found = []
    for path in sorted(file.parent for file in folder.glob("**/run.json")):
        try:
            record = read_record(path)
            fields = flatten(to_json(read_recipe(path / "recipe.json")))
            seen = read_evaluation(path, "test") or read_evaluation(path, "validation")
        except InputError as error:
            warnings.warn(str(error), stacklevel=2)
            continue
        assert record is not None
        status = record["reason"] if record["complete"] else f"not complete, step {record['step']}"
        accuracy = f"{seen.split} {seen.accuracy:.2%}" if seen else ""
        found.append((str(path.relative_to(folder)), status, accuracy, fields))
    if not found:
        raise InputError(f"'{folder}' holds no runs; train one with --workdir={folder}/NAME")
    every = {field for *_, fields in found for field in fields if field not in FREE_FIELDS}
    differing = sorted(field for field in every if len({repr(fields.get(field)) for *_, fields in found}) > 1)
    rows = [["run", "status", "accuracy", *differing]]
    return rows + [[*row, *(str(fields.get(field, "")) for field in differing)] for *row, fields in found]


def print_table(rows: list[list[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def describe(options: argparse.Namespace, changes: dict[str, object]) -> None:
    from cifar_jax.models import MODELS
    from cifar_jax.runs.describe import description

    path, fields = options.name, dict(changes)
    if path in MODELS:
        path, fields = "configs/base.py", {"model.name": path, **changes}
    print(description(path, fields))


COMMANDS: dict[str, Callable[[argparse.Namespace, dict[str, object]], None]] = {
    "train": train,
    "evaluate": evaluate,
    "list": list_things,
    "describe": describe,
}
