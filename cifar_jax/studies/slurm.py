"""The engine `slurm`: a job for each run of a study, or for each worker of a search, submitted by submitit.

jobs/jobs.json    run, or worker -> {"job": its number in Slurm, "state"}: "submitted", and once it has ended without
                  a result "interrupted", with Slurm's word for it
jobs/*            what submitit writes: the script, the output of each job, and the arguments of the worker, pickled

Nothing in jobs/ decides what a study is; the results are in the files that every engine writes. A job that Slurm
preempts, or that reaches its time limit, goes back to the queue under the same number, and its worker continues inside
the run. A worker ends in order at SIGTERM, which Slurm sends first.
"""

import contextlib
import io
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cifar_jax.errors import InputError
from cifar_jax.runs.files import read_json, unsealed, write_sealed
from cifar_jax.studies.engines import (
    Engine,
    ask_slurm,
    message_of,
    submitit_library,
    worker_command,
    worker_environment,
)

FOLDER = "jobs"
FILE = "jobs/jobs.json"
REQUEUES = 100  # times that a job goes back to the queue after its time limit
SHORTEST, LONGEST = 1.0, 15.0  # seconds between two looks at the queue
# The states of a job that has not ended, by squeue's names.
QUEUED = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD")
RUNNING = ("RUNNING", "COMPLETING", "SIGNALING", "STAGE_OUT", "STOPPED", "SUSPENDED", "RESIZING")


class Job:
    """What a job does: it starts a worker and waits for it. Pickled by submitit, it holds the worker's arguments."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self.arguments = list(arguments)

    def __call__(self) -> None:
        # Slurm announces the time limit to all processes of the job. The worker keeps the signal blocked.
        announced = {getattr(signal, f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}")}
        signal.pthread_sigmask(signal.SIG_BLOCK, announced)
        more: dict[str, Any] = {"stdin": subprocess.PIPE, "env": worker_environment()}
        self.worker = subprocess.Popen(worker_command(self.arguments), **more)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, announced)
        if code := self.worker.wait():
            sys.exit(code if code > 0 else 128 - code)

    def checkpoint(self) -> Any:
        """Called by submitit in a signal handler, before the job goes back to the queue: the worker saves and ends."""
        if worker := getattr(self, "worker", None):
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                worker.send_signal(signal.SIGTERM)
                os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)  # Popen.wait holds its lock in __call__
        return submitit_library().helpers.DelayedSubmission(Job(self.arguments))


def read_jobs(folder: Path) -> dict[str, dict[str, str]]:
    """Run or worker -> {"job", "state"}, from jobs.json; {} where there is none.

    Raises InputError where it is damaged.
    """
    path = folder / FILE
    if not path.exists():
        return {}
    if (stored := unsealed(read_json(path))) is None:
        raise InputError(f"{path} is damaged, or was changed; see with squeue that no job of it runs, and remove it")
    return stored["jobs"]


def write_jobs(folder: Path, jobs: Mapping[str, Mapping[str, str]]) -> None:
    write_sealed(folder / FILE, {"jobs": jobs})


def job_states() -> dict[str, str]:
    """Number of a job, "12" or "12_3" -> its state, of all jobs of this user that Slurm remembers.

    Raises InputError, with Slurm's message, where it does not answer.
    """
    options = ("--array", "--states=all", "--noheader", "--format=%i %T")
    printed = ask_slurm("squeue", "--user", str(os.getuid()), *options)
    return dict(line.split(maxsplit=1) for line in printed.splitlines() if " " in line.strip())


def is_alive(state: str | None) -> bool:
    return state in QUEUED or state in RUNNING


def submit(folder: Path, work: Mapping[str, Sequence[str]], engine: Engine) -> dict[str, dict[str, str]]:
    """Submits one array with a job for each run, or worker, of `work`, name -> arguments of the worker, but for those
    whose job is in the queue or runs. Returns all jobs of the folder.

    Raises InputError with Slurm's message where it refuses them.
    """
    jobs, states = read_jobs(folder), job_states()
    new = [name for name in work if not is_alive(states.get(jobs[name]["job"]) if name in jobs else None)]
    if not new:
        return jobs
    submitit = submitit_library()
    executor = submitit.SlurmExecutor(folder=folder.resolve() / FOLDER, max_num_timeout=REQUEUES)
    executor.update_parameters(**_parameters(folder, engine))
    before = set((folder / FOLDER).glob("*"))
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # submitit prints what sbatch says, and raises it too
            submitted = executor.submit_array([Job(work[name]) for name in new])
    except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
        for path in set((folder / FOLDER).glob("*")) - before:
            path.unlink()
        raise InputError(f"Slurm refused the job ({message_of(str(error))}); correct that option") from error
    jobs |= {name: {"job": job.job_id, "state": "submitted"} for name, job in zip(new, submitted, strict=True)}
    write_jobs(folder, jobs)
    return jobs


def watch(folder: Path, names: Sequence[str], look: Callable[[Mapping[str, str]], set[str]]) -> dict[str, str]:
    """Waits until the jobs of these runs, or workers, have ended, and calls `look` with the state of each job that has
    not. `look` returns the names that have their result.

    Returns those that ended without one, name -> Slurm's word for it, and records them as interrupted.
    """
    pause, ended = SHORTEST, set[str]()
    while True:
        jobs, states = read_jobs(folder), job_states()
        alive = {name: states[job["job"]] for name, job in jobs.items() if is_alive(states.get(job["job"]))}
        done = look({name: state for name, state in alive.items() if name in names})
        over = {name for name in names if name in jobs and name not in alive and name not in done}
        if over == ended and not any(name in alive for name in names):  # seen twice: a file system may lag behind
            break
        ended = over
        time.sleep(pause)
        pause = min(LONGEST, 1.3 * pause)
    lost = {name: states.get(jobs[name]["job"], "unknown to Slurm") for name in sorted(over)}
    if lost:
        changed = {name: {**jobs[name], "state": f"interrupted ({state})"} for name, state in lost.items()}
        write_jobs(folder, jobs | changed)
    return lost


def hint(folder: Path) -> str:
    """How to follow and cancel the jobs of a folder, in words. Imports nothing."""
    numbers = sorted(
        {job["job"].partition("_")[0] for job in read_jobs(folder).values() if job["state"] == "submitted"}
    )
    return f"the jobs go on: the same command watches them, 'scancel {' '.join(numbers)}' cancels them"


def _parameters(folder: Path, engine: Engine) -> dict[str, Any]:
    """The parameters of submitit's executor."""
    parameters: dict[str, Any] = {
        "job_name": f"cifar_jax-{folder.resolve().name}",
        "time": engine.time_limit,
        "signal_delay_s": min(90, 15 * engine.time_limit),  # announced so many seconds before the time limit
        # The job finds this package, wherever it is installed.
        "setup": [f"export PYTHONPATH={shlex.quote(worker_environment()['PYTHONPATH'])}"],
        "additional_parameters": {"requeue": True, **engine.slurm},
    }
    if engine.partition:
        parameters["partition"] = engine.partition
    if engine.processes:
        parameters["array_parallelism"] = engine.processes
    return parameters
