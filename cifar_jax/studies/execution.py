"""How the runs of a study are computed: one after another, several in one program, or one on each device.

sequential    one after another; bit for bit the single run of each recipe
unrolled      those that share a program, one after another within it: one launch for all of them
mapped        those that share a program, in each operation together (jax.vmap): small models on an accelerator
devices       one on each device at a time

Mapped convolutions are grouped convolutions, 2.0 to 2.9 times slower on the CPU than one run after another (jax issues
26568, 13800), so the CPU takes the runs one after another. Elsewhere `measure` decides.
"""

import functools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import jax

from cifar_jax import training
from cifar_jax.errors import InputError, nearest
from cifar_jax.recipe import override
from cifar_jax.runs import programs, stream
from cifar_jax.runs.devices import Placement
from cifar_jax.runs.log import wait
from cifar_jax.runs.loop import Chunk, Executor, Job, launch, launch_all

EXECUTIONS = ("sequential", "unrolled", "mapped", "devices")
MEASURED_STEPS = 10
GAIN = 1.1  # by which another execution must be faster than the sequential one


class StoppedError(BaseException):
    """Ends the threads of a group after Ctrl-C; no failure of a run."""


@dataclass
class _Waiting:
    """A run that waits in `launch`."""

    job: Job
    state: training.TrainState
    start: int
    result: Chunk | BaseException | None = None


@dataclass
class Together:
    """Runs that share their programs, each trained by `fit` in a thread of its own: the loop of each waits in `launch`
    until all have come, and the chunk of all is one program."""

    count: int
    how: str
    stopped: threading.Event
    condition: threading.Condition = field(default_factory=threading.Condition)
    waiting: list[_Waiting] = field(default_factory=list)

    def launch(self, job: Job, state: training.TrainState, start: int) -> Chunk:
        """As `loop.launch`."""
        own = _Waiting(job, state, start)
        with self.condition:
            self.waiting.append(own)
            self._compute()
            while own.result is None:
                self.condition.wait(timeout=1.0)
                if self.stopped.is_set():
                    raise StoppedError
        if isinstance(own.result, BaseException):
            raise own.result
        return own.result

    def leave(self) -> None:
        """A run is over; the others no longer wait for it."""
        with self.condition:
            self.count -= 1
            self._compute()

    def _compute(self) -> None:
        """Where all runs wait: the next chunk of those that are the least far, because some may have been resumed."""
        if not self.waiting or len(self.waiting) < self.count:
            return
        start = min(run.start for run in self.waiting)
        chosen = [run for run in self.waiting if run.start == start]
        self.waiting = [run for run in self.waiting if run.start != start]
        try:
            states = [run.state for run in chosen]
            how = self.how if len(chosen) > 1 else "single"
            results: Sequence[Any] = launch_all([run.job for run in chosen], states, start, how)
        except BaseException as error:  # whatever it is, the others must not wait for ever
            results = [error] * len(chosen)
        for run, result in zip(chosen, results, strict=True):
            run.result = result
        self.condition.notify_all()


Task = Callable[[Executor], object]


def placements(how: str) -> list[Placement]:
    """Where runs are computed, in turn; "auto" takes "devices" where there are several."""
    one_each = how in ("devices", "auto")
    return [Placement([device]) for device in jax.local_devices()] if one_each else [Placement()]


def run_together(tasks: Sequence[Task], how: str, places: Sequence[Placement]) -> None:
    """Calls each task with an executor: all at once for "unrolled" and "mapped", one for each device for "devices"."""
    if how == "sequential" or len(tasks) == 1:
        for task in tasks:
            task(Executor(places[0]))
        return
    stopped = threading.Event()

    def launch_unless_stopped(job: Job, state: training.TrainState, start: int) -> Chunk:
        if stopped.is_set():
            raise StoppedError
        return launch(job, state, start)

    if how == "devices":
        executors = [Executor(place, launch_unless_stopped) for place in places]
        _in_threads([functools.partial(task, on) for task, on in zip(tasks, executors, strict=False)], stopped)
    else:
        group = Together(len(tasks), how, stopped)
        executor = Executor(places[0], group.launch)

        def member(task: Task) -> None:
            try:
                task(executor)
            finally:
                group.leave()

        _in_threads([functools.partial(member, task) for task in tasks], stopped)


def _in_threads(calls: Sequence[Callable[[], object]], stopped: threading.Event) -> None:
    """Calls all at once; raises the first exception once all have ended, which `stopped` asks them to do."""
    with ThreadPoolExecutor(len(calls), thread_name_prefix="run") as pool:
        try:
            for future in [pool.submit(call) for call in calls]:
                future.result()
        except BaseException:  # Ctrl-C in a script, or in a thread
            stopped.set()
            raise


def at_once(how: str, together: int) -> int:
    """How many runs are computed at the same time."""
    return {"sequential": 1, "devices": len(jax.local_devices())}.get(how, together)


def group_key(recipe: Any) -> tuple[Any, ...]:
    """Equal for runs that can be computed in one program: the program, its data, and when the host looks."""
    fields = ("data.name", "data.validation", "data.seed", "chunk_epochs", "part_steps", "init_from")
    values = [recipe.data[name[5:]] if name.startswith("data.") else recipe[name] for name in fields]
    return (programs.shared(recipe), *values, recipe.early_stopping.patience, recipe.early_stopping.metric)


def check_execution(how: str, together: int) -> None:
    """Raises InputError on an unknown execution, or one that this machine has no devices for."""
    if how not in (*EXECUTIONS, "auto"):
        raise InputError(f"execution is '{how}'{nearest(how, [*EXECUTIONS, 'auto'])}")
    if how == "devices" and len(jax.local_devices()) == 1:
        raise InputError("execution='devices' needs several devices, and this machine has 1; use 'sequential'")
    if together < 1:
        raise InputError(f"together is {together}; it is the number of runs at once, at least 1")


def choose(recipe: Any, train_set: programs.Arrays, context: Any, together: int) -> tuple[str, dict[str, float]]:
    """The execution for runs of this resolved recipe on this machine, and the seconds of a step and run that decided;
    {} where nothing was measured."""
    if len(jax.local_devices()) > 1:
        return "devices", {}
    if jax.default_backend() == "cpu" or together == 1:
        return "sequential", {}
    seconds = measure(recipe, train_set, context, together)
    best = min(seconds, key=lambda how: seconds[how])
    return (best if seconds["sequential"] > GAIN * seconds[best] else "sequential"), seconds


def measure(recipe: Any, train_set: programs.Arrays, context: Any, together: int) -> dict[str, float]:
    """Seconds of a step and run by execution."""
    counts = {"single": 1, "unrolled": together, "mapped": together}
    found = {how: time_steps(recipe, train_set, context, how, count)[1] for how, count in counts.items()}
    return {"sequential": found.pop("single"), **found}


def sample(data: Mapping[str, Any], context: Any) -> tuple[Any, Any]:
    """The training images and the context on a device, for a measurement; nothing is held out, and of images that do
    not fit it only the first are there."""
    place, split = placements("auto")[0], data["train"]
    count = stream.first_count(data, place)
    return place.put((split.images[:count], split.labels[:count])), place.put(context)


def time_steps(
    recipe: Any, train_set: programs.Arrays, context: Any, how: str = "single", count: int = 1
) -> tuple[float, float]:
    """(seconds of the first call beyond a later one, which is mostly compiling; seconds of a step and run), from twice
    MEASURED_STEPS steps of `count` runs; `how` is as for `programs.together`."""
    recipe = override(recipe, {"data.train_count": min(recipe.data.train_count, len(train_set[0]))})
    steps = min(MEASURED_STEPS, training.steps_per_epoch(recipe))
    shared, values = programs.shared(recipe), programs.numbers(recipe)
    program = programs.part_program(shared, training.phase_of(recipe, 0), steps, None, how)
    seconds = []
    for _ in range(2):
        states = [programs.copy()(programs.first_state(recipe, train_set[0])) for _ in range(count)]
        wait(states)
        start = time.perf_counter()
        arguments = (values, states[0]) if how == "single" else ([values] * count, states)
        wait(program(*arguments, train_set, context))
        seconds.append(time.perf_counter() - start)
    return max(0.0, seconds[0] - seconds[1]), seconds[1] / steps / count
