"""What a study will cost: runs, compilations, time and disk space, from one short measurement of its base recipe."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax

from cifar_jax import training
from cifar_jax.models.counts import counts
from cifar_jax.runs import programs
from cifar_jax.runs.workdir import without_optimizer
from cifar_jax.studies.execution import time_steps
from cifar_jax.training.state import input_shape

CHECKPOINTS = 2  # that a workdir keeps
BACKWARD = 2  # the gradient costs two forward passes


@dataclass(frozen=True)
class Plan:
    """`runs` are (arm, seed) in the order in which they are trained. Time and space are estimates for those runs."""

    runs: tuple[tuple[str, int], ...]
    finished: int  # runs that the folder holds already
    compilations: int  # programs that differ
    seconds: float
    compile_seconds: float  # of these, to compile
    bytes: int

    def __str__(self) -> str:
        lines = [f"{number}. {arm}, seed {seed}" for number, (arm, seed) in enumerate(self.runs, 1)]
        there = f" ({self.finished} more are there already)" if self.finished else ""
        return "\n".join(
            [
                *lines,
                f"{len(self.runs)} runs{there}, {self.compilations} programs to compile",
                f"about {duration(self.seconds)}, of which {duration(self.compile_seconds)} to compile",
                f"about {self.bytes / 2**20:,.1f} MiB on the disk",
            ]
        )


def duration(seconds: float) -> str:
    """ "45 s", "12 min", "3.4 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def work(recipe: Any) -> float:
    """Multiply-adds of a whole run of a resolved recipe, its validation included."""
    _, forward = counts(training.model(recipe), input_shape(recipe))
    images = (1 + BACKWARD) * training.steps_per_epoch(recipe) * recipe.batch_size + recipe.data.validation
    return float(forward) * images * recipe.epochs


def estimate(
    named: Sequence[tuple[str, int]],
    recipes: Sequence[Any],
    finished: int,
    train_set: programs.Arrays,
    context: Any,
    light: bool,
) -> Plan:
    """The plan for runs, one resolved recipe each; the first is measured, and the others are by their multiply-adds."""
    if not recipes:
        return Plan((), finished, 0, 0.0, 0.0, 0)
    compile_seconds, step_seconds = time_steps(recipes[0], train_set, context)
    steps = training.steps_per_epoch(recipes[0]) * recipes[0].epochs
    rate = work(recipes[0]) / (steps * step_seconds)  # multiply-adds a second
    compilations = len({programs.shared(recipe) for recipe in recipes})
    compiling = compilations * compile_seconds
    seconds = sum(work(recipe) for recipe in recipes) / rate + compiling
    size = sum(disk_space(recipe, light) for recipe in recipes)
    return Plan(tuple(named), finished, compilations, seconds, compiling, size)


def disk_space(recipe: Any, light: bool) -> int:
    """Bytes of a workdir: its checkpoints, and the predictions of the validation split."""
    state = jax.eval_shape(lambda: training.init(recipe))
    kept, tree = (1, without_optimizer(state)) if light else (CHECKPOINTS, state)
    arrays = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
    return kept * arrays + 4 * recipe.data.validation * (1 + recipe.data.num_classes)
