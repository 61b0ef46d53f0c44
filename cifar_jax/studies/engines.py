"""Where the runs of a study are trained: in this process, in workers on this machine, or in jobs of Slurm.

(none)    one after another in this process, or as `execution` says
local     workers on this machine, each a process with its share of the cores, and one GPU where there are any
slurm     jobs of Slurm; see `slurm`

A worker is the command `work` with the folder of the study, which is all that it knows. It takes a run that nobody
trains, trains it, and records it in the folder. A worker that dies leaves the run to the next one, which continues it.
"""

import contextlib
import importlib
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cifar_jax.errors import InputError, nearest
from cifar_jax.process import unblocked_signals

ENGINES = ("local", "slurm")
OPTIONS = ("engine", "processes", "partition", "time_limit", "slurm")  # the arguments of `find_engine`
TIME_LIMIT = 60  # minutes
PROGRAMS = ("sbatch", "squeue", "sinfo", "srun", "scontrol")  # of Slurm, which `slurm` and submitit call
ANSWER = 60.0  # seconds in which a command of Slurm must end
POLL = 0.5  # seconds between two looks at the workers of this machine
VISIBLE_GPUS = ("JAX_CUDA_VISIBLE_DEVICES", "JAX_ROCM_VISIBLE_DEVICES")  # numbers among those that this process sees
STORAGE = "CIFAR_JAX_STORAGE"  # the environment variable with the address of a search's database


@dataclass(frozen=True)
class Engine:
    name: str  # one of ENGINES
    processes: int | None  # workers at the same time; None: as many as Slurm starts
    partition: str | None = None  # of Slurm; None: its default
    time_limit: int = TIME_LIMIT  # of a job of Slurm, in minutes
    slurm: Mapping[str, str] = field(default_factory=dict)  # further options of sbatch: {"gpus-per-node": "1"}


def find_engine(
    engine: str | None = None,
    processes: int | None = None,
    partition: str | None = None,
    time_limit: int | None = None,
    slurm: Mapping[str, Any] | None = None,
) -> Engine | None:
    """The engine that these options ask for; None for this process. `processes` alone means workers on this machine.

    More workers than cores get a warning. Raises InputError on an unknown engine, options that it does not have, and
    where Slurm or its library is missing.
    """
    if engine is not None and engine not in ENGINES:
        raise InputError(f"engine is '{engine}'{nearest(engine, ENGINES)}")
    if processes is not None and (not isinstance(processes, int) or isinstance(processes, bool) or processes < 1):
        raise InputError(f"processes is {processes!r}; it is the number of workers, at least 1")
    if engine != "slurm":
        of_slurm = {"partition": partition, "time_limit": time_limit, "slurm": slurm}
        for name, value in of_slurm.items():
            if value:
                raise InputError(f"{name} is {value!r}, and only engine='slurm' reads it; add that, or leave it out")
        if engine == "local" and processes is None:
            raise InputError("engine='local' needs the number of workers; give processes, for example 2")
        if engine is None and processes in (None, 1):
            return None
        _warn_of_cores(processes or 1)
        # This process computes nothing: it must not take three quarters of the memory of the workers' GPU.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        return Engine("local", processes)
    if time_limit is not None and (not isinstance(time_limit, int) or time_limit < 1):
        raise InputError(f"time_limit is {time_limit!r}; it is in whole minutes, at least 1")
    check_slurm(partition)
    more = {name.lstrip("-"): str(value) for name, value in (slurm or {}).items()}
    return Engine("slurm", processes, partition, time_limit or TIME_LIMIT, more)


def check_slurm(partition: str | None) -> None:
    """Raises InputError, saying what is missing, where no job can be submitted from this machine to the partition."""
    submitit_library()
    if missing := [program for program in PROGRAMS if shutil.which(program) is None]:
        what = f"engine='slurm' needs Slurm's commands, and {', '.join(missing)} is not on this machine's PATH"
        raise InputError(f"{what}; use a login node of a Slurm cluster, or engine='local'")
    known = ask_slurm("sinfo", "--all", "--noheader", "--format=%R").split()
    for name in partition.split(",") if partition else ():
        if name not in known:
            raise InputError(f"partition '{name}' is unknown to Slurm{nearest(name, set(known))}")


def ask_slurm(*command: str) -> str:
    """What a command of Slurm prints. Raises InputError, with its message, where it fails or does not end."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER)
        reason = message_of(done.stderr) if done.returncode else None
    except subprocess.TimeoutExpired:
        reason = f"{command[0]} did not end within {ANSWER:.0f} s"
    if reason:
        raise InputError(f"Slurm does not answer ({reason}); start it, or ask its administrator")
    return done.stdout


def message_of(text: str) -> str:
    """What Slurm printed, without the names of its programs, in one line."""
    lines = [line.partition("error: ")[2] or line for line in text.strip().splitlines()]
    return "; ".join(line.strip() for line in lines if line.strip()) or "without a message"


def submitit_library() -> Any:
    """The module submitit. Raises InputError where it is missing."""
    try:
        return importlib.import_module("submitit")
    except ImportError as error:
        remedy = "install it with pip install -c constraints.txt -e '.[slurm]'"
        raise InputError(f"engine='slurm' needs submitit, which is not installed; {remedy}") from error


def take_engine(options: Mapping[str, Any]) -> tuple[Engine | None, dict[str, Any]]:
    """The engine among the arguments of a call, and the other arguments."""
    own = {name: value for name, value in options.items() if name in OPTIONS}
    return find_engine(**own), {name: value for name, value in options.items() if name not in OPTIONS}


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _warn_of_cores(count: int) -> None:
    if count > cores():
        warnings.warn(f"processes={count} is more than the {cores()} cores of this machine", stacklevel=4)


def check_passed(engine: Engine | None, passed: Mapping[str, Any], max_hours: float | None) -> None:
    """Raises InputError where the caller passes what is only in the memory of this process: a worker knows the folder
    of the study alone. `passed` are name -> value. And where max_hours has no meaning."""
    if engine is None:
        return
    for name, value in passed.items():
        if value is not None:
            what = (
                f"{name}=... is in the memory of this process, which the workers of engine='{engine.name}' do not see"
            )
            raise InputError(f"{what}; name it in the recipe, or leave out engine and processes")
    if engine.name == "slurm" and max_hours is not None:
        raise InputError("max_hours is for workers on this machine; jobs of engine='slurm' have a time_limit")


def arguments_of(folder: Path, **options: Any) -> list[str]:
    """The arguments of the command `work`; options that are None or False are left out, True is a flag."""
    given = [f"--{name}" + ("" if value is True else f"={value}") for name, value in options.items() if value]
    return ["work", str(folder.resolve()), *given]


def worker_command(arguments: Sequence[str]) -> list[str]:
    """The command line of a worker that ends when its standard input is closed."""
    return [sys.executable, "-m", "cifar_jax", *arguments, "--attached"]


def worker_environment() -> dict[str, str]:
    """Of a worker: it finds this package, wherever it is started, and may share a GPU."""
    root = str(Path(__file__).resolve().parent.parent.parent)
    paths = dict.fromkeys([root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


def gpus() -> int:
    """The GPUs that this process sees; 0 where JAX computes on something else."""
    import jax  # this module is also imported where the arguments are wrong, or Slurm computes

    return jax.local_device_count() if jax.default_backend() == "gpu" else 0


def own_gpu(index: int, count: int) -> dict[str, str]:
    """The environment variables by which worker `index` uses one of `count` GPUs."""
    return {name: str(index % count) for name in VISIBLE_GPUS} if count else {}


def _warn_of_gpus(count: int, available: int) -> None:
    """One GPU serves several processes in slices of time, which makes small kernels wait: on an H200 a narrow convnet's
    6 epochs took 2 minutes beside 14 processes, 4 epochs 0.7 s beside one (benchmarks/results/shared_gpu.json)."""
    if 0 < available < count:
        warnings.warn(
            f"processes={count} is more than the {available} GPU{'s' * (available > 1)} of this machine, and workers"
            " that share a GPU wait for each other",
            stacklevel=3,
        )


def run_workers(arguments: Sequence[str], count: int, watch: Callable[[], object] = lambda: None) -> int:
    """Starts `count` workers and calls `watch` now and then until all have ended.

    Each worker has its share of the cores, and one GPU where there are any. Returns 0, or the exit code of the first
    that did not end well. Where this process ends, the workers end in order.
    """
    workers: list[subprocess.Popen[bytes]] = []
    available = gpus()
    _warn_of_gpus(count, available)
    try:
        for index in range(count):
            with own_cores(index, count), unblocked_signals():
                # In a session of its own a worker does not get the terminal's Ctrl-C beside the end of its stdin,
                # which would be a second signal and end it before it has saved.
                environment = worker_environment() | own_gpu(index, available)
                more: dict[str, Any] = {"start_new_session": True, "env": environment}
                workers.append(subprocess.Popen(worker_command(arguments), stdin=subprocess.PIPE, **more))
        while any(worker.poll() is None for worker in workers):
            time.sleep(POLL)
            watch()
    finally:
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.close()
        codes = [worker.wait() for worker in workers]
    watch()
    for index, code in enumerate(codes):
        if code:
            print(f"worker {index + 1} of {count} ended with code {code}", file=sys.stderr, flush=True)
    return next((code if code > 0 else 128 - code for code in codes if code), 0)


@contextlib.contextmanager
def own_cores(index: int, count: int) -> Iterator[None]:
    """A process that is started within it gets the cores of worker `index`, where there are enough."""
    if not hasattr(os, "sched_setaffinity") or len(every := sorted(os.sched_getaffinity(0))) < count:
        yield
        return
    os.sched_setaffinity(0, every[index::count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, every)


def end_with_parent() -> None:
    """Ends this process in order once the process that started it has gone: the other end of its stdin closes."""
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGTERM)
