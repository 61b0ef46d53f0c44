"""The optimisers, and the masks of what their weight decay acts on.

An optimiser is rebuilt in every traced step with the learning rate of that step as a number, so its state keeps no
second clock.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from cifar_jax.errors import InputError, nearest
from cifar_jax.recipe import Table


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
