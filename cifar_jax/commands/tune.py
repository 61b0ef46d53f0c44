"""Search for values of recipe fields, by Optuna: many trials, the best of which becomes a recipe file.

    --config=configs/cnn.py --space=configs/spaces/cnn.py --trials=50 --processes=2

Trials are compared on the validation split. Everything is in the folder of the study, but for another --storage, and
the same command continues after Ctrl-C or a kill; the same command elsewhere, on the same folder, is a further worker.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import cifar_jax as cj
from cifar_jax.process import unblocked_signals

_search: Any = None  # the search that this process works on, for `last_words`
_has_workers = False  # whether this process waits for workers


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
    parser.add_argument("--processes", type=int, default=1, help="workers on this machine, which share its cores; 1")
    parser.add_argument("--max_hours", type=float, help="begin no trial after so many hours")
    parser.add_argument("--light", action="store_true", help="keep no optimiser states: less disk space")
    parser.add_argument("--data_dir", help="folder of prepared TFDS data sets; TFDS_DATA_DIR if not given")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)  # ends with the process above it


def run(options: argparse.Namespace) -> int:
    from cifar_jax.studies.tune import Search

    global _search
    check_processes(options.processes)
    if options.worker:
        threading.Thread(target=end_with_parent, name="parent", daemon=True).start()
    recipe = cj.load_recipe(options.config, options.changes)
    folder = options.folder or f"studies/{Path(options.config).stem}-tune"
    names = ("metric", "sampler", "pruner", "seeds", "data_dir", "light", "max_hours")
    chosen = {name: getattr(options, name) for name in names}
    search = Search(recipe, options.space, folder=folder, address=options.storage, **chosen)
    ended = 0
    if options.processes > 1:
        search.check_count(options.trials)
        search.open()
        ended = run_workers(options.processes)
    else:
        _search = search
        search.work(options.trials)
    if not options.worker:
        show(search)
    return ended


def show(search: Any) -> None:
    """The table, the plots where plotly is installed, and where everything is."""
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


def check_processes(count: int) -> None:
    """Raises InputError below 1; more processes than cores get a warning."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if count < 1:
        raise cj.InputError(f"--processes is {count}; it is the number of workers, at least 1")
    if count > cores:
        warnings.warn(f"--processes={count} is more than the {cores} cores of this machine", stacklevel=2)


def run_workers(count: int) -> int:
    """Starts this command `count` times as a worker, each with its share of the cores, and waits for all: 0, or the
    exit code of the first that did not end well."""
    command = [sys.executable, "-m", "cifar_jax", *sys.argv[1:], "--processes=1", "--worker"]
    global _has_workers
    _has_workers = True
    settings = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # they may share a GPU
    workers = []
    for index in range(count):
        with own_cores(index, count), unblocked_signals():
            # In a session of its own a worker does not get the terminal's Ctrl-C beside the end of its stdin, which
            # would be a second signal and end it before it has saved.
            more: dict[str, Any] = {"stdin": subprocess.PIPE, "start_new_session": True, "env": settings}
            workers.append(subprocess.Popen(command, **more))
    codes = [worker.wait() for worker in workers]
    for index, code in enumerate(codes):
        if code:
            print(f"worker {index + 1} of {count} ended with code {code}", file=sys.stderr)
    return next((code if code > 0 else 128 - code for code in codes if code), 0)


@contextlib.contextmanager
def own_cores(index: int, count: int) -> Any:
    """A process that is started within it gets the cores of worker `index`, where there are enough."""
    if not hasattr(os, "sched_setaffinity") or len(cores := sorted(os.sched_getaffinity(0))) < count:
        yield
        return
    os.sched_setaffinity(0, cores[index::count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def end_with_parent() -> None:
    """Ends this process in order once the process that started it has gone: the other end of its stdin closes."""
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGTERM)


def last_words() -> str:
    """What a signal leaves of the search, in one sentence. Imports nothing."""
    if _search is None:
        return "stopped, and the workers stop too; the same command continues" if _has_workers else ""
    _search.mark_interrupted()
    if _search.current is None:
        return "stopped between two trials; the same command continues"
    return f"stopped in trial {_search.current.name}; the same command continues it"
