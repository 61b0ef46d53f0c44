"""What `ablate` and `sweep` share: arguments, and the study from its definition to its table."""

import argparse
import contextlib
import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cifar_jax as cj

FORMATS = ("table", "csv", "json", "markdown", "latex")

_folder: Path | None = None  # of the study that this process trains, for `last_words`
_workers: Callable[[], str] | None = None  # what becomes of the workers that train it, where they do


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", default="configs/quickstart.py", help="recipe, .py or .json; configs/quickstart.py")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds, from the recipe's on; 5")
    parser.add_argument("--folder", help="of the study; studies/<recipe>-<command> if not given")
    parser.add_argument("--data_dir", help="folder of prepared TFDS data sets; TFDS_DATA_DIR if not given")
    parser.add_argument("--light", action="store_true", help="keep no optimiser states: less disk space")
    parser.add_argument(
        "--dry_run", action="store_true", help="print the runs, and what they will cost, and train none"
    )
    parser.add_argument("--max_hours", type=float, help="begin no run after so many hours; the same command continues")
    parser.add_argument("--max_runs", type=int, default=200, help="refuse a study of more runs; 200")
    parser.add_argument("--retry", action="store_true", help="train runs again that failed")
    parser.add_argument("--execution", default="auto", help="auto, sequential, unrolled, mapped or devices")
    parser.add_argument("--together", type=int, default=8, help="runs at once, where the execution computes several; 8")
    parser.add_argument(
        "--final", nargs="?", const="", metavar="ARM", help="evaluate on the test split, all arms or one; counted"
    )
    add_engine_arguments(parser)
    add_report_arguments(parser)


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of what trains the runs; `tune` has them too."""
    parser.add_argument("--engine", metavar="NAME", help="local: workers on this machine; slurm: jobs of Slurm")
    parser.add_argument("--processes", type=int, metavar="N", help="workers at the same time, which share the cores")
    parser.add_argument("--partition", help="of Slurm; its default if not given")
    parser.add_argument("--time_limit", type=int, metavar="MINUTES", help="of a job of Slurm, which then continues; 60")
    parser.add_argument(
        "--slurm", action="append", default=[], metavar="NAME=VALUE", help="an option of sbatch; repeatable"
    )


def engine_of(options: argparse.Namespace) -> Any:
    """The engine that the arguments ask for; None for this process."""
    from cifar_jax.studies.engines import OPTIONS, find_engine

    given = {name: getattr(options, name) for name in OPTIONS}
    for text in options.slurm:
        if not text.partition("=")[1] or text.startswith("="):
            raise cj.InputError(f"--slurm='{text}' is not of the form NAME=VALUE, such as gpus-per-node=1")
    given["slurm"] = {name: value for name, _, value in (text.partition("=") for text in options.slurm)}
    return find_engine(**given)


def add_report_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of the table; `compare` has them too."""
    parser.add_argument("--metric", help="a figure of the runs, such as test_accuracy or validation_loss")
    parser.add_argument(
        "--detect",
        type=float,
        help="smallest difference of interest in points, such as 0.5; without it none is assumed",
    )
    parser.add_argument("--format", choices=FORMATS, default="table", help="of the result; table")
    parser.add_argument("--plots", metavar="FOLDER", help="write plots of the comparison there, PNG and SVG")


def run(options: argparse.Namespace, command: str, arms_of: Callable[[Any], Any]) -> int:
    """Trains the study, or evaluates it on test, or plans it, and prints the table."""
    from cifar_jax.studies.compare import check_detect, check_metric
    from cifar_jax.studies.engine_study import words_at_end
    from cifar_jax.studies.study import Options, Study

    global _folder, _workers
    engine = engine_of(options)
    options.metric = options.metric or ("validation_accuracy" if options.final is None else "test_accuracy")
    check_metric(options.metric, ("validation",) if options.final is None else ("validation", "test"))
    check_detect(options.metric, options.detect)
    check_plots(options)
    recipe = cj.load_recipe(options.config, options.changes)
    if options.folder == "":
        raise cj.InputError("--folder='' names no folder; give one, such as studies/NAME")
    folder = Path(options.folder or f"studies/{Path(options.config).stem}-{command}")
    names = ("data_dir", "light", "execution", "together", "max_hours", "max_runs", "retry")
    chosen = Options(engine=engine, **{name: getattr(options, name) for name in names})
    study = Study(command, folder, recipe, arms_of(recipe), options.seeds, chosen)
    if options.dry_run:
        print(study.plan())
        return 0
    _folder, code = folder, 0
    if options.final is None:
        _workers = engine and functools.partial(words_at_end, engine, folder)
        code = study.train()
    else:
        study.final(options.final or None)
    report([folder], options)
    if options.format == "table":
        print(f"\nThe study is in {folder}: study.json, runs.csv, and a workdir for each run.")
    return code


def check_plots(options: argparse.Namespace) -> None:
    """Raises InputError where plots are asked for and the library is missing."""
    if options.plots:
        from cifar_jax.reports.figures import new_figure

        new_figure(1, 1)


def report(paths: list[Path], options: argparse.Namespace, base: str | None = None) -> None:
    """Prints the comparison of runs and studies in the chosen form, and draws it where that is asked for."""
    table = cj.compare(paths, base=base, metric=options.metric or "validation_accuracy", detect=options.detect)
    if options.plots:
        from cifar_jax.reports.plots import draw

        for path in draw(table, Path(options.plots)):
            print(f"wrote {path}", file=sys.stderr)
    forms: dict[str, Callable[[], str]] = {
        "table": table.__str__,
        "csv": table.to_csv,
        "json": table.to_json,
        "markdown": table.to_markdown,
        "latex": table.to_latex,
    }
    print(forms[options.format]().rstrip("\n"))


def last_words() -> str:
    """What a signal leaves of the study, in one sentence, from its study.json. Imports nothing."""
    if _folder is None:
        return ""
    more = _workers() if _workers else "the same command continues"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        study = json.loads((_folder / "study.json").read_text())
        total = len(study["arms"]) * len(study["seeds"])
        return f"stopped; {len(study['runs'])} of {total} runs are done, and {more}"
    return "stopped before a run was done; the same command starts anew"
