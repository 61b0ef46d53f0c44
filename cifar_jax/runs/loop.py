"""The loop over chunks of steps: the device computes the next chunk while the host reads, logs and saves the last."""

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from cifar_jax import training
from cifar_jax.runs import programs
from cifar_jax.runs.checkpoint import Checkpoints
from cifar_jax.runs.classifier import Classifier
from cifar_jax.runs.devices import Placement
from cifar_jax.runs.events import Callback, Event, notify
from cifar_jax.runs.history import PartialEpoch, check_finite, lines_of
from cifar_jax.runs.log import MetricsFile, wait
from cifar_jax.runs.stopping import best_epoch, ended, may_save, save_is_due, score
from cifar_jax.runs.stream import Streamed
from cifar_jax.runs.workdir import Workdir


@dataclass(frozen=True)
class Job:
    """What is trained: the recipe, and the arrays on the devices."""

    recipe: Any  # FrozenConfigDict, resolved
    classes: tuple[str, ...]
    placement: Placement
    train_set: programs.Arrays | Streamed
    validation_set: programs.Arrays | None
    context: Any

    @property
    def steps(self) -> int:
        return training.steps_per_epoch(self.recipe)

    @functools.cached_property
    def shared(self) -> Any:
        """The recipe as its programs take it, which takes 5 ms to make."""
        return programs.shared(self.recipe)

    def first_images(self) -> Any:
        """The training images, or the first of them, for a model that looks at some before training."""
        return self.train_set.first() if isinstance(self.train_set, Streamed) else self.train_set[0]


@dataclass(frozen=True)
class Chunk:
    """Steps that the device has begun: `start` to `end`, counted in steps of the run."""

    start: int
    end: int
    state: training.TrainState
    results: Any  # (sums [epochs, steps] or [steps], those of validation, finite)


def launch(job: Job, state: training.TrainState, start: int) -> Chunk:
    """Starts the chunk after step `start`; `state` is donated. Chunks end at multiples of chunk_epochs, and inside an
    epoch after part_steps, resumed or not."""
    return launch_all([job], [state], start, "single")[0]


def launch_all(jobs: Sequence[Job], states: Sequence[training.TrainState], start: int, how: str) -> list[Chunk]:
    """`launch` for runs that share their programs, in one program; `how` is as for `programs.together`."""
    if isinstance(jobs[0].train_set, Streamed):
        return [launch_streamed(job, state, start) for job, state in zip(jobs, states, strict=True)]
    job, values = jobs[0], [programs.numbers(job.recipe) for job in jobs]
    recipe, batch = job.shared, job.placement.batch
    epoch, inside = divmod(start, job.steps)

    def call(program: Any, states: Sequence[Any], *shared: Any) -> list[Any]:
        return [program(values[0], states[0], *shared)] if how == "single" else program(values, list(states), *shared)

    if inside or job.recipe.part_steps < job.steps:
        count = min(job.recipe.part_steps, job.steps - inside)
        part = programs.part_program(recipe, training.phase_of(job.recipe, epoch), count, batch, how)
        seen: list[tuple[Any, ...]] = [
            (state, sums, {}, finite) for state, sums, finite in call(part, states, job.train_set, job.context)
        ]
        if inside + count == job.steps:
            end = programs.end_program(recipe, batch, how)
            ends = call(end, [state for state, *_ in seen], job.train_set, job.validation_set)
            seen = [(*end[:1], sums, *end[1:]) for (_, sums, *_), end in zip(seen, ends, strict=True)]
        return [Chunk(start, start + count, state, tuple(results)) for state, *results in seen]
    last = min(job.recipe.epochs, (epoch // job.recipe.chunk_epochs + 1) * job.recipe.chunk_epochs)
    program = programs.epochs_program(recipe, programs.phases(job.recipe, epoch, last), batch, how)
    results = call(program, states, job.train_set, job.validation_set, job.context)
    return [Chunk(start, last * job.steps, state, (sums, {}, finite)) for state, sums, finite in results]


def launch_streamed(job: Job, state: training.TrainState, start: int) -> Chunk:
    """`launch` where the training images are on the host."""
    assert isinstance(job.train_set, Streamed)
    recipe, batch, values = job.shared, job.placement.batch, programs.numbers(job.recipe)
    epoch, inside = divmod(start, job.steps)
    count = min(job.recipe.part_steps, job.steps - inside)
    images, labels, positions = job.placement.put(job.train_set.batches(job.recipe, epoch, inside, count))
    part = programs.streamed_program(recipe, training.phase_of(job.recipe, epoch), batch)
    state, sums, finite = part(values, state, (images, labels), positions, job.context)
    of_validation = {}
    if inside + count == job.steps:
        end = programs.end_program(recipe, batch)
        state, of_validation, finite = end(values, state, (images, labels), job.validation_set)
    return Chunk(start, start + count, state, (sums, of_validation, finite))


@dataclass(frozen=True)
class Executor:
    """Where chunks are computed, and how. `launch(job, state, start)` may wait for other runs and compute theirs."""

    placement: Placement = field(default_factory=Placement)
    launch: Callable[[Job, training.TrainState, int], Chunk] = launch


@dataclass
class Loop:
    """The state of the host: what was logged and saved, and whether to go on."""

    job: Job
    launch: Callable[[Job, training.TrainState, int], Chunk]
    workdir: Workdir | None
    checkpoints: Checkpoints | None
    log: MetricsFile | None
    callbacks: Sequence[Callback]
    stoppable: bool
    history: list[dict[str, Any]] = field(default_factory=list)
    partial: PartialEpoch = field(default_factory=PartialEpoch)
    best: training.TrainState | None = None  # the state with the best score, where early stopping may return to it
    saved_step: int = -1
    saved_at: float = field(default_factory=time.monotonic)
    stopping: bool = False  # asked for by a callback, or because one raised `error`
    error: Exception | None = None

    def run(self, state: training.TrainState, step: int, refresh: Callable[[], Any]) -> training.TrainState:
        """Trains from `step` on. Raises the error of a callback, once everything is saved."""
        recipe, total = self.job.recipe, self.job.recipe.epochs * self.job.steps
        self._tell(self.history, step, state)
        if self.stopping and step != self.saved_step:
            self._save(step, programs.copy()(state), None)
        running = None if self._is_over(step) else self.launch(self.job, state, step)
        clock = time.perf_counter()
        while running:
            chunk = running
            waits = bool(recipe.early_stopping.patience) or self.stoppable or self.stopping
            may_save = self.checkpoints is not None and self._may_save(chunk)
            # Donation gives the state's buffers to the next chunk: what is kept is copied first.
            snapshot = programs.copy()(chunk.state) if may_save or waits else None
            running = None if waits or chunk.end == total else self.launch(self.job, chunk.state, chunk.end)
            wait(chunk.results, refresh)
            seconds, clock = time.perf_counter() - clock, time.perf_counter()
            lines = self._read(chunk, seconds)
            value = score(recipe, lines[-1]) if lines else None
            improved = bool(recipe.early_stopping.patience and value is not None)
            improved = improved and best_epoch(recipe, self.history) * self.job.steps == chunk.end
            if improved:
                self.best = snapshot
            self._tell(lines, chunk.end, snapshot)
            due = may_save and self._is_due(chunk)
            if due or (snapshot is not None and (improved or self._is_over(chunk.end))):
                self._save(chunk.end, snapshot, value)
            state = chunk.state
            if waits:
                running = None if self._is_over(chunk.end) else self.launch(self.job, chunk.state, chunk.end)
        if self.error:
            raise self.error
        return state if self.best is None else self.best

    def _is_over(self, step: int) -> bool:
        epoch, inside = divmod(step, self.job.steps)
        return self.stopping or (not inside and ended(self.job.recipe, self.history, epoch))

    def _may_save(self, chunk: Chunk) -> bool:
        """Whether a checkpoint may belong after a chunk, which then leaves a copy of its state."""
        steps = self.job.steps
        return bool(chunk.end % steps) or may_save(self.job.recipe, chunk.start // steps, chunk.end // steps)

    def _is_due(self, chunk: Chunk) -> bool:
        """Whether a checkpoint belongs after a chunk that is computed and may be saved."""
        recipe, seconds = self.job.recipe, time.monotonic() - self.saved_at
        if chunk.end % self.job.steps:
            return seconds >= 60 * recipe.checkpoint.every_minutes
        return save_is_due(recipe, chunk.end // self.job.steps, seconds)

    def _read(self, chunk: Chunk, seconds: float) -> list[dict[str, Any]]:
        """The new lines of a chunk whose results are there. Raises InputError where the loss is not finite."""
        job, count = self.job, 0 if self.job.validation_set is None else len(self.job.validation_set[0])
        sums, of_validation, finite = jax.device_get(chunk.results)
        check_finite(job.recipe, sums | of_validation, finite, chunk.start)
        epoch = chunk.start // job.steps
        if sums["loss_sum"].ndim == 1:
            self.partial.add(sums, seconds)
            if chunk.end % job.steps:
                return []
            of_validation = {name: np.asarray(value)[None] for name, value in of_validation.items()}
            sums, seconds = self.partial.whole() | of_validation, self.partial.seconds
            self.partial = PartialEpoch()
        lines = lines_of(job.recipe, sums, epoch, seconds, count)
        self.history += lines
        return lines

    def _tell(self, lines: Sequence[dict[str, Any]], step: int, state: training.TrainState | None) -> None:
        """Writes metrics.jsonl, then calls the callbacks; what one raises ends the run after the next save."""
        job = self.job

        def classifier() -> Classifier:
            assert state is not None
            return Classifier(job.recipe, programs.copy()(training.evaluated_weights(state)), job.classes)

        path = self.workdir.path if self.workdir else None
        total = job.recipe.epochs * job.steps
        event = Event(job.recipe, path, tuple(lines), step, total, classifier if self.stoppable else None)
        if self.log:
            self.log(event)
        stop, error = notify(self.callbacks, event)
        self.stopping, self.error = self.stopping or stop or error is not None, self.error or error

    def _save(self, step: int, state: training.TrainState | None, value: float | None) -> None:
        if self.checkpoints and self.workdir and step != self.saved_step:
            self.workdir.saved(step)
            self.checkpoints.save(step, state, value, beside={"partial": self.partial.to_json()})
            self.saved_step, self.saved_at = step, time.monotonic()
