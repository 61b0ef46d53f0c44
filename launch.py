"""cifar_jax on the command line: train | evaluate. Without arguments it trains the quickstart."""

import argparse
import ast
import ctypes
import os
import re
import signal
import sys
import warnings
from pathlib import Path
from typing import NoReturn


def main(arguments: list[str]) -> int:
    options, changes = parse(arguments)
    from cifar_jax.errors import InputError

    try:
        return COMMANDS[options.command](options, changes)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def interrupted(stop: KeyboardInterrupt) -> NoReturn:
    """Ctrl-C, or SIGTERM: what was saved stays, and nobody waits for the epoch that the device is at."""
    if sys.argv[1:2] != ["evaluate"]:
        print("\nstopped; the same command resumes from the last checkpoint", file=sys.stderr)
    sys.stdout.flush()
    os._exit(128 + (stop.args or (signal.SIGINT,))[0])


def parse(arguments: list[str]) -> tuple[argparse.Namespace, dict[str, object]]:
    """The options, and the recipe fields that --config.FIELD=VALUE sets."""
    parser = Parser(
        prog="launch.py",
        description="Train and evaluate image classifiers. Without arguments: train configs/quickstart.py.",
        epilog="--config.FIELD=VALUE sets a field of the recipe, --config.optimizer.learning_rate=0.01 for instance; "
        "configs/base.py lists them all.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command")
    train_command = commands.add_parser("train", help="train a recipe, or resume it", allow_abbrev=False)
    train_command.add_argument("--config", default="configs/quickstart.py", help="recipe: a .py or a run's recipe.json")
    evaluate_command = commands.add_parser("evaluate", help="evaluate a trained run", allow_abbrev=False)
    evaluate_command.add_argument("--split", default="test", help="test, validation or train")
    evaluate_command.add_argument("--views", help="one, mirror or mirror_shift; the recipe's if not given")
    for command in (train_command, evaluate_command):
        required = command is evaluate_command
        command.add_argument("--workdir", required=required, help="folder of the run; runs/<recipe> if not given")
        command.add_argument("--data_dir", help="folder of prepared TFDS data sets; TFDS_DATA_DIR if not given")
    fields = [text for text in arguments if text.startswith("--config.")]
    changes = dict(map(parse_field, fields))
    options = parser.parse_args([text for text in arguments if text not in fields] or ["train"])
    options.command = options.command or "train"
    if fields and options.command != "train":
        usage_error(f"{fields[0]} sets a recipe field, which only 'train' takes")
    if options.workdir is None and options.config.endswith(".json"):
        usage_error(f"--config={options.config} repeats a run; name a --workdir for it")
    if options.workdir is None:
        options.workdir = f"runs/{Path(options.config).stem}"
    if not options.workdir:
        usage_error("--workdir is empty; name a folder")
    return options, changes


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        usage_error(message)


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


def usage_error(message: str) -> NoReturn:
    print(f"error: {message}; see 'python launch.py --help'", file=sys.stderr)
    sys.exit(2)


def stop(number: int, frame: object) -> None:
    """Ends the work as Ctrl-C does, wherever the main thread is."""
    raise KeyboardInterrupt(number)


def prepare_process() -> None:
    """Process-wide settings: the launcher's business, never an import's. Before jax is imported."""
    if sys.platform == "linux":
        # XLA gives its temporary buffers back after each step, and page faults dominate small models (8 to 12% of a
        # step on two cores): M_MMAP_MAX 0, M_TRIM_THRESHOLD 2 GiB, M_TOP_PAD 256 MiB, M_ARENA_MAX 1.
        libc = ctypes.CDLL(None)
        for parameter, value in ((-4, 0), (-1, 2**31 - 1), (-2, 256 << 20), (-8, 1)):
            if hasattr(libc, "mallopt"):  # glibc has it, musl does not
                libc.mallopt(parameter, value)
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", "10")  # a bar in a file: a line now and then, not ten a second
    warnings.formatwarning = lambda message, *details: f"warning: {message}\n"
    import jax

    from cifar_jax.data.store import cache_dir

    # Compiled programs are kept for the next start: 5 s instead of 30 for a large model.
    jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def train(options: argparse.Namespace, changes: dict[str, object]) -> int:
    import cifar_jax as cj

    before = Path(options.workdir, "evaluation.json").exists()
    recipe = cj.load_recipe(options.config, changes)
    run = cj.fit(recipe, options.workdir, data_dir=options.data_dir)
    if before:
        print(f"the run in {options.workdir} is complete; nothing to do")
    print(run.evaluation)
    here = Path(sys.executable)
    python = here.relative_to(Path.cwd()) if here.is_relative_to(Path.cwd()) else here.name
    print(f"\nThe run is in {options.workdir}. Next:")
    print(f"  cat {options.workdir}/metrics.jsonl {options.workdir}/evaluation.json")
    print(f"  {python} launch.py evaluate --workdir={options.workdir} --views=mirror")
    if run.recipe.data.name == "digits":
        print(f"  {python} launch.py train --config=configs/cnn.py         # CIFAR-10, 162 MiB to download")
        print(f"  {python} launch.py train --config=configs/resnet18.py    # CIFAR-10, for a GPU")
    return 0


def evaluate(options: argparse.Namespace, changes: dict[str, object]) -> int:
    import cifar_jax as cj

    run = cj.load_run(options.workdir)
    print(cj.evaluate(run, options.split, views=options.views, data_dir=options.data_dir))
    return 0


COMMANDS = {"train": train, "evaluate": evaluate}

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, stop)
    try:
        prepare_process()
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt as signalled:
        interrupted(signalled)
