"""Learning-rate schedules: the factor on `optimizer.learning_rate` at an epoch, which may be a fraction."""

from typing import Any

import jax
import jax.numpy as jnp

from cifar_jax.recipe import Table, build


def _warm(epoch: Any, warmup_epochs: float) -> Any:
    """0 -> 1 over the warm-up, 1 afterwards."""
    return jnp.clip(epoch / warmup_epochs, 0.0, 1.0) if warmup_epochs else 1.0


def _progress(epoch: Any, epochs: float, warmup_epochs: float) -> Any:
    """0 -> 1 from the end of the warm-up to the end of the run."""
    return jnp.clip((epoch - warmup_epochs) / max(epochs - warmup_epochs, 1e-6), 0.0, 1.0)


def constant(epoch: Any, epochs: float, warmup_epochs: float = 0.0) -> Any:
    """1 after the warm-up."""
    return jnp.ones_like(epoch) * _warm(epoch, warmup_epochs)


def step(
    epoch: Any, epochs: float, warmup_epochs: float = 0.0, milestones: tuple[float, ...] = (), factor: float = 0.1
) -> Any:
    """Multiplied by `factor` at each milestone, given in epochs."""
    passed = sum((epoch >= milestone).astype(jnp.float32) for milestone in milestones) if milestones else 0.0
    return factor**passed * constant(epoch, epochs, warmup_epochs)


def linear(epoch: Any, epochs: float, warmup_epochs: float = 0.0, start: float = 0.0, final: float = 0.0) -> Any:
    """start -> 1 over the warm-up, 1 -> final after it, each in a straight line."""
    rise = start + (1 - start) * _warm(epoch, warmup_epochs)
    return (1 - (1 - final) * _progress(epoch, epochs, warmup_epochs)) * rise


def cosine(epoch: Any, epochs: float, warmup_epochs: float = 0.0, final: float = 0.0) -> Any:
    """1 -> final along half a cosine (Loshchilov & Hutter 2017, eq. 5)."""
    half_wave = 0.5 * (1 + jnp.cos(jnp.pi * _progress(epoch, epochs, warmup_epochs)))
    return (final + (1 - final) * half_wave) * _warm(epoch, warmup_epochs)


def one_cycle(epoch: Any, epochs: float, peak: float = 0.3, start: float = 0.04, final: float = 4e-6) -> Any:
    """start -> 1 at the share `peak` of the run -> final, each half a cosine (Smith & Topin 2019, as fastai has it)."""
    progress = epoch / epochs
    rise = jnp.clip(progress / peak, 0.0, 1.0)
    fall = jnp.clip((progress - peak) / (1 - peak), 0.0, 1.0)
    wave = lambda low, high, share: low + (high - low) * 0.5 * (1 - jnp.cos(jnp.pi * share))
    return jnp.where(progress < peak, wave(start, 1.0, rise), wave(1.0, final, fall))


SCHEDULES: Table = {
    "constant": constant,
    "step": step,
    "linear": linear,
    "cosine": cosine,
    "one_cycle": one_cycle,
}


def steps_per_epoch(recipe: Any) -> int:
    """Whole batches in the training set; each epoch leaves out other images, where some are left over."""
    return recipe.data.train_count // recipe.batch_size


def learning_rate(recipe: Any, step: jax.Array | int, epochs: float = 0.0) -> jax.Array:
    """optimizer.learning_rate times the schedule's factor before optimiser step `step`.

    With `epochs` the schedule is that of a run of so many, and the rate is 0 after them.
    """
    epoch = jnp.asarray(step, jnp.float32) / steps_per_epoch(recipe)
    factor = build(SCHEDULES, recipe.schedule, "schedule", epoch=epoch, epochs=float(epochs or recipe.epochs))
    if epochs:
        factor = jnp.where(epoch < epochs, factor, 0.0)
    return jnp.asarray(recipe.optimizer.learning_rate * factor, jnp.float32)
