"""The command's part of a study that workers train: it starts them, tells how far they are, and collects nothing, for
the workers record their runs themselves."""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cifar_jax.errors import InputError
from cifar_jax.runs.workdir import read_record
from cifar_jax.studies import slurm
from cifar_jax.studies.engines import Engine, arguments_of, run_workers
from cifar_jax.studies.progress import StudyProgress, short
from cifar_jax.studies.study_file import read_study


class StudyWatch:
    """Follows runs that other processes train, by the study's folder alone."""

    def __init__(self, folder: Path, names: Sequence[str], progress: StudyProgress) -> None:
        self.folder, self.names, self.progress = folder, names, progress
        self.done: set[str] = set()

    def __call__(self, alive: Mapping[str, str] | None = None) -> set[str]:
        """Tells what is new; `alive` are the states of jobs in Slurm. Returns the runs that are recorded."""
        runs = (read_study(self.folder) or {"runs": {}})["runs"]
        for name in self.names:
            if name in runs and name not in self.done:
                self.done.add(name)
                self.progress.done(name, runs[name])
            elif name not in self.done:
                self.progress.at(name, fraction_done(self.folder / name))
        if alive is not None:
            running = sum(state != "PENDING" for name, state in alive.items() if name not in self.done)
            queued = sum(state == "PENDING" for state in alive.values())
            self.progress.status(f"{running} running, {queued} queued, {len(self.done)} of {len(self.names)} done")
        return self.done


def fraction_done(workdir: Path) -> float:
    """How much of a run was trained, as its last checkpoint has it."""
    with contextlib.suppress(InputError):
        if record := read_record(workdir):
            return float(record["step"] / record["total_steps"])
    return 0.0


def train_with(engine: Engine, folder: Path, names: Sequence[str], progress: StudyProgress, **options: Any) -> int:
    """Trains the runs of these names by workers, which are given the options too: 0, or an exit code where a worker
    did not end well.

    Raises InputError where Slurm refuses the jobs.
    """
    look = StudyWatch(folder, names, progress)
    if engine.name == "local":
        count = min(engine.processes or 1, len(names))
        return run_workers(arguments_of(folder, **options), count, look)
    work = {name: arguments_of(folder, run=name, **options) for name in names}
    return watch_jobs(folder, slurm.submit(folder, work, engine), names, look, progress.say)


def watch_jobs(folder: Path, jobs: Mapping[str, Mapping[str, str]], names: Sequence[str], look: Any, say: Any) -> int:
    """Waits for the jobs of these runs, or workers: 0, or 1 where some ended without a result."""
    numbers = sorted({jobs[name]["job"].partition("_")[0] for name in names})
    say(f"{len(names)} jobs in Slurm, {', '.join(numbers)}; their output is in {folder / slurm.FOLDER}")
    try:
        lost = slurm.watch(folder, names, look)
    except KeyboardInterrupt:
        say(f"stopped; {slurm.hint(folder)}")
        raise
    for name, state in lost.items():
        output = folder / slurm.FOLDER / f"{jobs[name]['job']}_0_log.err"
        say(f"{short(name)} was interrupted: its job is {state}, and its output in {output}")
    if lost:
        say("the same command submits again what is missing")
    return int(bool(lost))


def words_at_end(engine: Engine, folder: Path) -> str:
    """What becomes of the workers when the command that waits for them ends, in words. Imports nothing."""
    if engine.name == "local":
        return "the workers stop too; the same command continues"
    with contextlib.suppress(InputError, OSError):
        return slurm.hint(folder)
    return "the jobs go on"
