"""Workers of a search that are killed at random moments, on made-up data.

    python -m tests.studies.kills --kills=20 [--postgres]    # prints what became of the trials, as JSON

The suite does it with a few kills. Two workers train trials of tiny networks; kill -9 ends one of them at a random
moment, and another takes its place. In the end both are killed, and one worker is started.
"""

import argparse
import contextlib
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cifar_jax as cj
from cifar_jax.studies.space import log_uniform
from tests import made, postgres

DATA = {"train": made.split(96, seed=0)}
SPACE = {"optimizer.learning_rate": log_uniform(1e-3, 1e-1)}
READY = "ready"


def recipe() -> Any:
    changes = {"epochs": 8, "batch_size": 16, "data.validation": 32, "model.dropout": 0.2, "augment.flip": 0.5}
    return cj.override(made.recipe(), changes)


def work(folder: str, storage: str | None, trials: int) -> Any:
    """What a worker does."""
    return cj.tune(recipe(), SPACE, folder=folder, storage=storage, trials=trials, data=DATA, progress=False)


def start(folder: Path, storage: str | None) -> subprocess.Popen:
    """A worker that never ends by itself; returns once it has begun."""
    command = [sys.executable, "-m", "tests.studies.kills", "--work", str(folder), f"--storage={storage or ''}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == READY
    return process


def kill_workers(folder: Path, storage: str | None, kills: int, seed: int = 0) -> tuple[Any, dict[str, Any]]:
    """The search after the kills and one start of a worker in this process, and figures of it."""
    choose, moments = random.Random(seed), []
    workers = [start(folder, storage) for _ in range(2)]
    try:
        for number in range(kills):
            moments.append(round(choose.uniform(0, 4), 2))
            time.sleep(moments[-1])
            index = choose.randrange(2)
            workers[index].kill()
            workers[index].wait()
            if number < kills - 2:  # the last two leave nobody
                workers[index] = start(folder, storage)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    before = _count(folder, storage)
    result = work(str(folder), storage, max(1, sum(before.values())))
    retries = Counter(trial.retries for trial in result.trials)
    after = dict(Counter(trial.status for trial in result.trials))
    return result, {
        "kills": kills,
        "seconds before a kill": moments,
        "before": before,
        "after": after,
        "retries": retries,
    }


def _count(folder: Path, storage: str | None) -> dict[str, int]:
    """Trials by status, without changing anything."""
    from cifar_jax.studies.search import Search

    options = {"metric": "validation_accuracy", "sampler": "tpe", "pruner": "none", "seeds": 1, "address": storage}
    found = Search(recipe(), SPACE, folder, **options, data=DATA, progress=False).result()
    return dict(Counter(trial.status for trial in found.trials))


def check(result: Any) -> int:
    """Every trial has an end, and those that were continued are the runs that nobody killed. Returns their number."""
    again = 0
    for trial in result.trials:
        assert trial.status == "finished" or (trial.status == "failed" and trial.reason), trial
        if trial.status == "finished" and trial.retries:
            single = cj.fit(
                cj.override(recipe(), result.changes(trial)), data=DATA, evaluate="validation", progress=False
            )
            stored = cj.load_run(result.folder / f"trials/{trial.number}/seed0")
            made.assert_same(stored.state, single.state)
            assert trial.value == single.evaluation.accuracy
            last = [each for each in result.study.trials if each.user_attrs.get("original") == trial.number][-1]
            values = {line["epoch"]: line["validation_accuracy"] for line in single.history}
            assert last.intermediate_values == values
            again += 1
    return again


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--storage", help="address of a database")
    parser.add_argument("--postgres", action="store_true", help="start a PostgreSQL server, and use it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", metavar="FOLDER", help="be a worker")
    options = parser.parse_args()
    if options.work:
        # The programs are compiled, so that kills meet trials rather than the start of the process.
        cj.fit(recipe(), data=DATA, evaluate="validation", progress=False)
        print(READY, flush=True)
        work(options.work, options.storage or None, 10**6)
        return
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        if options.postgres:
            options.storage = stack.enter_context(postgres.server())
        result, figures = kill_workers(Path(folder) / "kills", options.storage, options.kills, options.seed)
        figures["continued and equal to a run that nobody killed"] = check(result)
        figures["storage"] = "PostgreSQL" if options.postgres else options.storage or "SQLite"
        figures["versions"] = {name: version(name) for name in ("optuna", "sqlalchemy", "jax")}
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
