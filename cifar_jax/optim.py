"""Optimisers, weight-decay masks and learning-rate schedules.

An optimiser is rebuilt in every traced step with the learning rate of that step as a number, so its state keeps no
second clock. A schedule gives the factor on `optimizer.learning_rate` at an epoch, which may be a fraction.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from cifar_jax.recipe import InputError, Table, nearest


def _kernels(params: Any) -> Any:
    """True for kernels and embeddings; False for biases and normalisation scales, which have one dimension."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def _everything(params: Any) -> Any:
    return jax.tree.map(lambda leaf: True, params)


DECAYED = {"kernels": _kernels, "all": _everything}


def _mask(decayed: str) -> Any:
    if decayed not in DECAYED:
        raise InputError(f"optimizer.decayed '{decayed}' is unknown{nearest(decayed, list(DECAYED))}")
    return DECAYED[decayed]


def sgd(
    learning_rate: float,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    decayed: str = "kernels",
) -> optax.GradientTransformation:
    """v <- momentum v + (g + weight_decay w); w <- w - learning_rate v (with Nesterov: g + momentum v instead of v)."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay, _mask(decayed)),
        optax.trace(momentum, nesterov),
        optax.scale_by_learning_rate(learning_rate),
    )


def adam(
    learning_rate: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    weight_decay: float = 0.0,
    decayed: str = "kernels",
) -> optax.GradientTransformation:
    """Kingma & Ba 2015, algorithm 1; weight decay enters the gradient (L2)."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay, _mask(decayed)),
        optax.scale_by_adam(beta1, beta2, epsilon),
        optax.scale_by_learning_rate(learning_rate),
    )


def adamw(
    learning_rate: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    weight_decay: float = 1e-2,
    decayed: str = "kernels",
) -> optax.GradientTransformation:
    """Loshchilov & Hutter 2019, algorithm 2: weight decay beside Adam's step, scaled by the learning rate."""
    return optax.chain(
        optax.scale_by_adam(beta1, beta2, epsilon),
        optax.add_decayed_weights(weight_decay, _mask(decayed)),
        optax.scale_by_learning_rate(learning_rate),
    )


OPTIMIZERS: Table = {
    "sgd": sgd,
    "adam": adam,
    "adamw": adamw,
}


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


def linear(epoch: Any, epochs: float, warmup_epochs: float = 0.0, final: float = 0.0) -> Any:
    """1 -> final, in a straight line."""
    return (1 - (1 - final) * _progress(epoch, epochs, warmup_epochs)) * _warm(epoch, warmup_epochs)


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
