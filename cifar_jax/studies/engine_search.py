"""The command's part of a search that workers train: it starts them and waits for them."""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cifar_jax.studies import slurm
from cifar_jax.studies.engine_study import watch_jobs
from cifar_jax.studies.engines import STORAGE, Engine, arguments_of, run_workers


def run_search(
    engine: Engine,
    folder: Path,
    trials: int,
    address: str | None,
    say: Callable[[str], None],
    over: Callable[[], int],
    **options: Any,
) -> int:
    """Trains trials until the search has so many of them; `address` is that of its database, `over` counts the trials
    that are over, and the options are those of the workers. Returns 0, or the exit code of a worker."""
    arguments = arguments_of(folder, trials=trials, **options)
    with _address(address):
        if engine.name == "local":
            return run_workers(arguments, engine.processes or 1)
        names = [f"worker {number}" for number in range(1, (engine.processes or 1) + 1)]
        jobs = slurm.submit(folder, dict.fromkeys(names, arguments), engine)
    told: list[int] = []

    def look(alive: Mapping[str, str]) -> set[str]:
        """A worker that has ended has its result: the trials."""
        if (count := over()) != (told[-1] if told else 0):
            say(f"{count} of {trials} trials are over, {len(alive)} jobs run or wait")
        told.append(count)
        return set(names) - set(alive) if count >= trials else set()

    return watch_jobs(folder, jobs, names, look, say)


@contextlib.contextmanager
def _address(address: str | None) -> Iterator[None]:
    """Workers that are started within it have the address in their environment: it may hold a password, which a
    command line would show to everybody."""
    if address is None:
        yield
        return
    before = os.environ.get(STORAGE)
    os.environ[STORAGE] = address
    try:
        yield
    finally:
        os.environ.pop(STORAGE)
        if before is not None:
            os.environ[STORAGE] = before
