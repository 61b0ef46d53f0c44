"""Train what the study in a folder lacks, as one worker beside others: for other machines that share the folder.

    work studies/convnet-sweep

The command that began the study starts workers itself, with --processes or --engine. A worker takes a run, or a trial,
that nobody trains, and records it in the folder, until none is left. It prints no table: that command does.
"""

import argparse
import threading
from pathlib import Path
from typing import Any

from cifar_jax.errors import InputError

_worker: Any = None  # the study or search that this process works on, for `last_words`


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="of a study that ablate, sweep or tune began")
    parser.add_argument("--run", metavar="NAME", help="this run of an ablation or sweep only: runs/<arm>/seed<n>")
    parser.add_argument("--trials", type=int, help="of a search, all workers together; needed there")
    parser.add_argument("--light", action="store_true", help="keep no optimiser states of the trials of a search")
    parser.add_argument("--patience", type=int, help="of a search: end once so many trials have ended since the best")
    parser.add_argument("--max_hours", type=float, help="begin nothing after so many hours")
    parser.add_argument("--data_dir", help="folder of prepared TFDS data sets; TFDS_DATA_DIR if not given")
    parser.add_argument("--attached", action="store_true", help=argparse.SUPPRESS)  # ends with the process above it


def run(options: argparse.Namespace) -> int:
    from cifar_jax.studies.engines import end_with_parent
    from cifar_jax.studies.worker import load_worker

    global _worker
    if options.attached:
        threading.Thread(target=end_with_parent, name="parent", daemon=True).start()
    given = {name: getattr(options, name) for name in ("light", "max_hours", "data_dir")}
    folder = Path(options.folder)
    search = (folder / "tune.json").exists()
    if search and options.trials is None:
        raise InputError(f"'{folder}' holds a search; give the number of its trials, for example --trials=50")
    for name in ("trials", "light", "patience") if not search else ("run",):
        if value := getattr(options, name):
            what = "a search" if search else "no search"
            raise InputError(f"--{name} is {value!r}, and '{folder}' holds {what}; leave it out")
    _worker = load_worker(folder, **given, **({"patience": options.patience} if search else {}))
    _worker.work(options.trials if search else options.run)
    return 0


def last_words() -> str:
    """What a signal leaves, in one sentence. Imports nothing."""
    return "" if _worker is None else _worker.interrupted()
