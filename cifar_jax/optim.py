"""Optimisers, parameter groups, weight-decay masks and learning-rate schedules.

An optimiser is rebuilt in every traced step with the learning rate of that step as a number, so its state keeps no
second clock. A schedule gives the factor on `optimizer.learning_rate` at an epoch, which may be a fraction.
"""

import re
from collections.abc import Callable
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


def lamb(
    learning_rate: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-6,
    weight_decay: float = 0.0,
    decayed: str = "kernels",
) -> optax.GradientTransformation:
    """You et al. 2020, algorithm 2: AdamW's step, scaled to each parameter's norm, where that is not 0."""
    return optax.lamb(learning_rate, beta1, beta2, epsilon, weight_decay=weight_decay, mask=_mask(decayed))


def lion(
    learning_rate: float,
    beta1: float = 0.9,
    beta2: float = 0.99,
    weight_decay: float = 0.0,
    decayed: str = "kernels",
) -> optax.GradientTransformation:
    """Chen et al. 2023, algorithm 2: the sign of an interpolated momentum; weight decay beside it."""
    return optax.lion(learning_rate, beta1, beta2, weight_decay=weight_decay, mask=_mask(decayed))


def muon(
    learning_rate: float,
    momentum: float = 0.6,
    steps: int = 3,
    coefficients: tuple[float, ...] = (3.4445, -4.7750, 2.0315),
    dtype: str = "bfloat16",
    normalised: bool = True,
    sgd_factor: float = 1.0,
    sgd_momentum: float = 0.85,
    weight_decay: float = 0.0,
    decayed: str = "kernels",
) -> optax.GradientTransformation:
    """Jordan et al. 2024, as airbench has it: filters of convolutions by Muon, all else by Nesterov SGD.

    Muon: v <- momentum v + g; w <- w - learning_rate * orthogonal(g + momentum v), where `normalised` first scales w to
    the Frobenius norm sqrt(C_out). `steps`, `coefficients` and `dtype` are those of `orthogonal`. SGD has the rate
    sgd_factor * learning_rate, and the weight decay, which the filters have not. (optax.contrib.muon averages its
    momentum, takes Adam for four-dimensional kernels, and keeps no norm.)
    """
    filters = optax.chain(
        optax.trace(momentum, nesterov=True),
        optax.stateless(lambda gradients, _: orthogonal(gradients, steps, coefficients, dtype)),
        optax.scale_by_learning_rate(learning_rate),
        optax.stateless_with_tree_map(lambda update, w: update + _to_norm(w) - w if normalised else update),
    )
    others = sgd(sgd_factor * learning_rate, sgd_momentum, True, weight_decay, decayed)
    kinds = lambda params: jax.tree.map(lambda leaf: "filters" if leaf.ndim == 4 else "others", params)
    return optax.partition({"filters": filters, "others": others}, kinds)


def _to_norm(filters: jax.Array) -> jax.Array:
    return filters * (filters.shape[-1] ** 0.5 / jnp.maximum(jnp.linalg.norm(filters.reshape(-1)), 1e-7))


def orthogonal(
    filters: Any,
    steps: int = 3,
    coefficients: tuple[float, ...] = (3.4445, -4.7750, 2.0315),
    dtype: str = "bfloat16",
) -> Any:
    """Nearly the orthogonal matrix next to each of a tree of filters [h, w, C_in, C_out], seen as [C_out, h w C_in].

    Newton-Schulz: X <- a X + (b A + c A A) X with A = X X^T, from X of Frobenius norm 1, computed in `dtype`; the norm
    in float32, because float16 has no room for the squares. The coefficients drive singular values fast into about
    0.7..1.2, and not to 1.

    Matrices with as many rows are one batch, padded with columns of zeros, which stay zero and change nothing: alone,
    each would take 21 small kernels on a GPU.
    """
    a, b, c = coefficients
    leaves, structure = jax.tree.flatten(filters)
    matrices = [leaf.reshape(-1, leaf.shape[-1]) for leaf in leaves]
    tall = [len(matrix) > matrix.shape[1] for matrix in matrices]  # then the transpose is made orthogonal: the same
    wide = [matrix.T if turn else matrix for matrix, turn in zip(matrices, tall, strict=True)]
    wide = [(matrix / (jnp.linalg.norm(matrix) + 1e-7)).astype(dtype) for matrix in wide]
    for rows in sorted({len(matrix) for matrix in wide}):
        members = [number for number, matrix in enumerate(wide) if len(matrix) == rows]
        columns = [wide[number].shape[1] for number in members]
        x = jnp.stack(
            [jnp.pad(wide[n], ((0, 0), (0, max(columns) - k))) for n, k in zip(members, columns, strict=True)]
        )
        for _ in range(steps):
            gram = x @ x.mT
            x = a * x + (b * gram + c * gram @ gram) @ x
        for position, (number, count) in enumerate(zip(members, columns, strict=True)):
            wide[number] = x[position, :, :count]
    found = [
        (matrix.T if turn else matrix).astype(leaf.dtype).reshape(leaf.shape)
        for matrix, turn, leaf in zip(wide, tall, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, found)


OPTIMIZERS: Table = {
    "sgd": sgd,
    "adam": adam,
    "adamw": adamw,
    "lamb": lamb,
    "lion": lion,
    "muon": muon,
}


Groups = tuple[tuple[Any, ...], ...]


def grouped(
    groups: Groups, make: Callable[[float, float, float], optax.GradientTransformation], field: str = "groups"
) -> optax.GradientTransformation:
    """make(learning-rate factor, weight-decay factor, epochs) for each group (pattern, *those); a learning rate of 0
    freezes. A group need not name its epochs: then they are 0, which stands for those of the run.

    A pattern is a regular expression that matches a parameter's whole path, such as "Convolution_0/kernel"; `field` is
    the recipe's name of the groups.

    Raises InputError where a parameter matches no pattern or two, or a pattern no parameter.
    """
    if not groups:
        return make(1.0, 1.0, 0.0)
    _check(groups, field)

    def labels(params: Any) -> Any:
        paths = _paths(params)
        for pattern, *_ in groups:
            if not any(re.fullmatch(pattern, path) for path in jax.tree.leaves(paths)):
                known = ", ".join(jax.tree.leaves(paths))
                raise InputError(f"{field}: pattern '{pattern}' matches no parameter; there are {known}")
        return jax.tree.map(label, paths)

    def label(path: str) -> str:
        fitting = [str(number) for number, (pattern, *_) in enumerate(groups) if re.fullmatch(pattern, path)]
        if len(fitting) != 1:
            patterns = ", ".join(f"'{pattern}'" for pattern, *_ in groups)
            raise InputError(f"{field}: parameter '{path}' matches {len(fitting)} of {patterns}; it must match one")
        return fitting[0]

    def own(rate: float, decay: float, epochs: float = 0.0) -> optax.GradientTransformation:
        return make(rate, decay, epochs) if rate else optax.set_to_zero()

    return optax.partition({str(number): own(*rest) for number, (_, *rest) in enumerate(groups)}, labels)


def frozen_groups(groups: Groups, epoch: float) -> tuple[str, ...]:
    """The patterns of the groups that do not train from `epoch` on: their factor is 0, or their epochs are over."""
    _check(groups)
    over = lambda epochs: bool(epochs) and 0 < epochs[0] <= epoch
    return tuple(pattern for pattern, rate, _, *epochs in groups if not rate or over(epochs))


def stop_gradients(params: Any, patterns: tuple[str, ...]) -> Any:
    """The parameters, those whose path matches a pattern as constants: what only their gradients need falls away."""
    stop = lambda leaf, path: jax.lax.stop_gradient(leaf) if any(re.fullmatch(p, path) for p in patterns) else leaf
    return jax.tree.map(stop, params, _paths(params)) if patterns else params


def _check(groups: Groups, field: str = "groups") -> None:
    for group in groups:
        if not (isinstance(group, tuple) and [type(part) for part in group[:1]] == [str] and len(group) in (3, 4)):
            form = "(pattern, learning-rate factor, weight-decay factor) or the same and epochs"
            raise InputError(f"{field} holds {group!r}; a group is {form}")
        if not all(isinstance(number, int | float) and number >= 0 for number in group[1:]):
            raise InputError(f"{field} holds {group!r}; its factors and epochs must be numbers of at least 0")
        try:
            re.compile(group[0])
        except re.error as error:
            raise InputError(
                f"{field} holds the pattern '{group[0]}', which is no regular expression: {error}"
            ) from None


def _paths(params: Any) -> Any:
    """The tree with each leaf's path, such as "Convolution_0/kernel", in its place."""
    return jax.tree_util.tree_map_with_path(lambda path, _: "/".join(str(part.key) for part in path), params)


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
