"""Train a recipe, or resume the run in the workdir. A complete run is reported and left as it is."""

import argparse
import contextlib
import json
from pathlib import Path
from typing import Any

import cifar_jax as cj
from cifar_jax.process import command_line

_workdir: Path | None = None  # of the run that this process trains, for `last_words`; None before it trains


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", default="configs/quickstart.py", help="recipe: a .py or a run's recipe.json")
    parser.add_argument("--workdir", help="folder of the run; runs/<recipe> if not given")
    parser.add_argument("--data_dir", help="folder of prepared TFDS data sets; TFDS_DATA_DIR if not given")
    parser.add_argument(
        "--evaluate", choices=("test", "validation", "none"), help="split of the one evaluation at the end; test"
    )
    parser.add_argument(
        "--log",
        action="append",
        default=[],
        choices=("tensorboard", "wandb"),
        help="write figures there too; repeatable",
    )
    parser.add_argument("--resume", action="store_true", help="continue a run that a callback stopped")


def run(options: argparse.Namespace) -> int:
    workdir = workdir_of(options)
    recipe = cj.load_recipe(options.config, options.changes)
    before = read_record(workdir)
    chosen: dict[str, Any] = {}
    if options.evaluate:
        chosen["evaluate"] = None if options.evaluate == "none" else options.evaluate
    if options.resume:
        chosen["resume"] = True
    callbacks = [remember]
    if options.log:
        from cifar_jax.reports.sinks import sink

        callbacks += [sink(name) for name in options.log]
    trained = cj.fit(recipe, workdir, data_dir=options.data_dir, callbacks=callbacks, **chosen)
    if before.get("complete") and before.get("step") == read_record(workdir).get("step"):
        print(f"the run in {workdir} is complete; nothing to train")
    print(trained.evaluation or trained)
    print(f"\nThe run is in {workdir}. Next:")
    for command in next_commands(workdir, trained.recipe.data.name):
        print(f"  {command}")
    return 0


def remember(event: cj.Event) -> None:
    """A callback: from its first call on, the workdir holds the run of this process and no other."""
    global _workdir
    _workdir = event.workdir


def workdir_of(options: argparse.Namespace) -> Path:
    """The folder of the run. Raises InputError where none can be chosen."""
    if options.workdir == "":
        raise cj.InputError("--workdir is empty; name a folder")
    if options.workdir is None and options.config.endswith(".json"):
        raise cj.InputError(f"--config={options.config} repeats a run; name a --workdir for it")
    return Path(options.workdir or f"runs/{Path(options.config).stem}")


def next_commands(workdir: Path, data: str) -> list[str]:
    """Commands that can be pasted from the current folder."""
    cifar = "--config=configs/cnn.py", "--config=configs/resnet18.py"
    return [
        command_line("report", str(workdir)) + "    # a page of HTML; needs the extra 'report'",
        command_line("evaluate", f"--workdir={workdir}", "--format=json"),
        command_line("list", "runs", str(workdir.parent)),
        *([command_line("train", cifar[0]) + "         # CIFAR-10, 162 MiB to download"] if data == "digits" else []),
        *([command_line("train", cifar[1]) + "    # CIFAR-10, for a GPU"] if data == "digits" else []),
    ]


def last_words() -> str:
    """What a signal leaves of the run, in one sentence, from the files of its workdir. Imports nothing."""
    if _workdir is None:
        return ""
    record = read_record(_workdir)
    if record.get("complete"):
        return f"stopped; the run in {_workdir} is complete"
    steps = [int(path.stem) for path in _workdir.glob("manifests/*.json") if path.stem.isdecimal()]
    if not steps:
        return "stopped before anything was saved; the same command starts anew"
    return f"stopped; step {max(steps)} of {record.get('total_steps')} is saved, and the same command resumes there"


def read_record(workdir: Path) -> dict[str, Any]:
    """run.json; {} where it is missing or damaged. `runs.workdir` checks it, but imports jax."""
    with contextlib.suppress(OSError, ValueError):
        record = json.loads((workdir / "run.json").read_text())
        return record if isinstance(record, dict) else {}
    return {}
