"""The command line: `cifar-jax COMMAND`, `python launch.py COMMAND` or `python -m cifar_jax COMMAND`.

A command is one row of `COMMANDS`; its module is imported only when it is called (see cifar_jax/commands/__init__.py).
Settings of a recipe are spelled --config.FIELD=VALUE in every command that takes them.
"""

import argparse
import importlib
import importlib.metadata
import io
import os
import platform
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import NoReturn

import cifar_jax
from cifar_jax import process
from cifar_jax.commands.values import parse_value
from cifar_jax.errors import InputError, nearest


@dataclass(frozen=True)
class Command:
    module: str  # in cifar_jax.commands
    summary: str  # one line for --help
    takes_fields: bool = False  # whether it takes --config.FIELD=VALUE


COMMANDS = {
    "train": Command("train", "train a recipe, or resume a run", takes_fields=True),
    "evaluate": Command("evaluate", "evaluate a trained run"),
    "calibrate": Command("calibrate", "fit the temperature of a run, and choose thresholds of classes"),
    "predict": Command("predict", "name the classes of image files, and sort the files by them"),
    "index": Command("index", "embed images for a search by similarity"),
    "similar": Command("similar", "find the images of an index that are similar to others"),
    "export": Command("export", "write a trained model for other programs"),
    "serve": Command("serve", "answer HTTP requests with a trained run, and serve a page"),
    "list": Command("list", "list models, recipes, runs and more"),
    "ablate": Command("ablate", "train a recipe and changed ones with many seeds, and compare", takes_fields=True),
    "sweep": Command("sweep", "train all combinations of values with many seeds, and compare", takes_fields=True),
    "tune": Command("tune", "search for the best values of a recipe's fields", takes_fields=True),
    "work": Command("work", "train what a study in a folder lacks, beside other workers"),
    "compare": Command("compare", "compare finished runs and studies, with statistics"),
    "report": Command("report", "a page of HTML about a run, or about several runs and studies"),
    "audit": Command("audit", "find doubtful labels and duplicated images of a data set", takes_fields=True),
    "describe": Command("describe", "describe a recipe or a model without training it", takes_fields=True),
}
FIELD_FORM = "--config.FIELD=VALUE"


def start() -> NoReturn:
    """The whole process of a command: signals, process settings, the command, and the exit code."""
    process.handle_signals(last_words)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # so that nothing printed is lost when a signal ends the process
    try:
        process.prepare_process()
        code = main(sys.argv[1:])
    except SystemExit as stop:  # of the parser
        code = stop.code if isinstance(stop.code, int) else 0
    except BrokenPipeError:  # the reader of our output has gone, for example `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes it once more
        code = 141
    finally:
        process.release_signals()
    sys.exit(code)


def last_words() -> str:
    """What is printed when a signal ends the process. Runs in a thread that must not import anything."""
    names = ("train", "studies", "tune", "work", "predict", "audit", "index", "serve")
    loaded = [sys.modules.get(f"cifar_jax.commands.{name}") for name in names]
    words = [getattr(module, "last_words", None) for module in loaded]  # absent while a module is being imported
    nothing = "stopped before training began; the same command begins again"
    return next((said for say in words if say and (said := say())), nothing)


def main(arguments: list[str]) -> int:
    """Runs a command in this process and returns its exit code; a mistake in the arguments raises SystemExit(2)."""
    options = parse(arguments)
    try:
        return load(options.command).run(options)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def load(command: str) -> ModuleType:
    """The module of a command."""
    return importlib.import_module(f"cifar_jax.commands.{COMMANDS[command].module}")


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options of the command, with its name as `command` and the recipe fields that are set as `changes`."""
    name = arguments[0] if arguments and not arguments[0].startswith("-") else None
    if name is None and set(arguments) & {"-h", "--help", "--version"}:
        _general_parser().parse_args(arguments)
    if name is not None and name not in COMMANDS:
        usage_error(f"command '{name}' is unknown{nearest(name, COMMANDS)}")
    command = name or "train"
    parser = Parser(
        prog=f"{process.command_line()} {command}",
        description=load(command).__doc__,
        epilog=f"{FIELD_FORM} sets a field of the recipe, for example --config.optimizer.learning_rate=0.01; "
        "configs/base.py lists them all."
        if COMMANDS[command].takes_fields
        else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    load(command).add_arguments(parser)
    arguments, fields = split_fields(arguments)
    if fields and not COMMANDS[command].takes_fields:
        takers = ", ".join(f"'{name}'" for name, row in COMMANDS.items() if row.takes_fields)
        usage_error(f"{fields[0]} sets a recipe field, which only {takers} take")
    return parser.parse_args(arguments[bool(name) :], argparse.Namespace(command=command, changes=parse_fields(fields)))


def _general_parser() -> argparse.ArgumentParser:
    rows = "\n".join(f"  {name:12}{row.summary}" for name, row in COMMANDS.items())
    parser = Parser(
        prog=process.command_line(),
        usage="%(prog)s [COMMAND] [ARGUMENTS]",
        description="Train and evaluate image classifiers. Without arguments: train configs/quickstart.py.",
        epilog=f"commands:\n{rows}\n\n'COMMAND --help' explains a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    versions = f"jax {importlib.metadata.version('jax')}, Python {platform.python_version()}"
    parser.add_argument("--version", action="version", version=f"cifar_jax {cifar_jax.__version__} ({versions})")
    return parser


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        command = self.prog.rpartition(" ")[2]
        usage_error(message, command if command in COMMANDS else None)


def split_fields(arguments: Iterable[str]) -> tuple[list[str], list[str]]:
    """The arguments that set no recipe field, and those that do: --config.FIELD=VALUE."""
    arguments = list(arguments)
    fields = [text for text in arguments if text.startswith("--config.")]
    return [text for text in arguments if text not in fields], fields


def parse_fields(texts: Iterable[str]) -> dict[str, object]:
    """["--config.epochs=3", ...] -> {"epochs": 3, ...}; raises SystemExit(2) on text of another form."""
    return dict(map(parse_field, texts))


def parse_field(text: str) -> tuple[str, object]:
    """ "--config.optimizer.learning_rate=0.1" -> ("optimizer.learning_rate", 0.1)."""
    match = re.fullmatch(r"--config\.([\w.]+)=(.*)", text, re.DOTALL)
    if not match:
        usage_error(f"'{text}' is not of the form {FIELD_FORM}")
    field, value = match.groups()
    return field, parse_value(value)


def usage_error(message: str, command: str | None = None) -> NoReturn:
    """Prints one sentence, with the help to read, and raises SystemExit(2)."""
    help_ = process.command_line(*filter(None, [command, "--help"]))
    print(f"error: {message}; see '{help_}'", file=sys.stderr)
    sys.exit(2)
