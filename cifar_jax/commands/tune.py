"""Search for values of recipe fields, by Optuna: many trials, the best of which becomes a recipe file.

    --config=configs/cnn.py --space=configs/spaces/cnn.py --trials=50 --processes=2

Trials are compared on the validation split. Everything is in the folder of the study, but for another --storage, and
the same command continues after Ctrl-C or a kill; the same command elsewhere, on the same folder, is a further worker.
"""

import argparse
import contextlib
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cifar_jax as cj
from cifar_jax.commands import studies

_search: Any = None  # the search that this process works on, for `last_words`
_workers: Callable[[], str] | None = None  # what becomes of the workers that this process waits for


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", default="configs/quickstart.py", help="recipe, .py or .json; configs/quickstart.py")
    parser.add_argument("--space", required=True, help="file of the search space, such as configs/spaces/cnn.py")
    parser.add_argument("--trials", type=int, default=50, help="of the study, all workers and commands together; 50")
    parser.add_argument("--folder", help="of the study; studies/<recipe>-tune if not given")
    parser.add_argument("--metric", default="validation_accuracy", help="or validation_loss")
    parser.add_argument("--sampler", default="tpe", help="tpe, random, qmc, nsgaii, gp or cmaes; tpe")
    parser.add_argument(
        "--pruner", default="none", help="none, median, hyperband, or wilcoxon with several seeds; none"
    )
    parser.add_argument("--seeds", type=int, default=1, help="runs of a trial, whose mean counts; 1")
    parser.add_argument("--storage", help="address of a database, such as postgresql://...; trials.db in the folder")
    studies.add_engine_arguments(parser)
    parser.add_argument("--dry_run", action="store_true", help="print what is searched and its cost, and train nothing")
    parser.add_argument("--retry", action="store_true", help="train trials again that failed")
    parser.add_argument("--patience", type=int, help="end once so many trials have ended since the best one")
    parser.add_argument("--max_hours", type=float, help="begin no trial after so many hours")
    parser.add_argument("--light", action="store_true", help="keep no optimiser states: less disk space")
    parser.add_argument("--data_dir", help="folder of prepared TFDS data sets; TFDS_DATA_DIR if not given")


def run(options: argparse.Namespace) -> int:
    from cifar_jax.studies.engine_study import words_at_end
    from cifar_jax.studies.search import Search

    global _search, _workers
    engine = studies.engine_of(options)
    recipe = cj.load_recipe(options.config, options.changes)
    folder = f"studies/{Path(options.config).stem}-tune" if options.folder is None else options.folder
    names = ("metric", "sampler", "pruner", "seeds", "data_dir", "light", "max_hours", "patience", "retry")
    chosen = {name: getattr(options, name) for name in names}
    search = Search(recipe, options.space, folder=folder, address=options.storage, **chosen)
    search.check_count(options.trials)
    if options.dry_run:
        print(search.plan(options.trials))
        return 0
    ended = 0
    if engine:
        _workers = functools.partial(words_at_end, engine, search.folder)
        ended = search.work_with(engine, options.trials)
    else:
        _search = search
        search.work(options.trials)
    result = show(search)
    return ended or int(result.all_failed)


def show(search: Any) -> Any:
    """Prints the table, the plots where plotly is installed, and where everything is; returns the result."""
    result = search.result()
    print(result)
    drawn = []
    with contextlib.suppress(cj.InputError):  # plots are extra: without plotly there are none
        drawn = result.plot()
    place = f"\nThe study is in {search.folder}: trials.csv, the workdirs in trials/"
    plots = f", {len(drawn)} plots in plots/" if drawn else ""
    print(f"{place}{plots}.")
    if result.best is not None:
        print(f"The best recipe is {search.folder / 'best.py'}.")
    return result


def last_words() -> str:
    """What a signal leaves of the search, in one sentence. Imports nothing."""
    if _search is None:
        return f"stopped, and {_workers()}" if _workers else ""
    return _search.interrupted()
