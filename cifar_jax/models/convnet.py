"""Convolutions and pooling in stages, everything a field: the network for experiments with architectures.

    layer (defaults, 32x32)                                    output
    stage 1: [conv 3x3, norm, activation] x 2, max-pool 2x2    16 x 16 x 64
    stage 2: the same, wider                                    8 x  8 x 128
    stage 3: the same, wider                                    4 x  4 x 256
    average over the image (or flatten, and a hidden layer)     256
    dense                                                       num_classes

Dropout follows each pooling and the hidden layer.

                            parameters (10 classes)    multiply-adds (32x32)
    convnet                              1,148,874                        152.8 M
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cifar_jax.errors import InputError
from cifar_jax.models.kernels import at_least_float32, average_pool, max_pool
from cifar_jax.models.layers import BatchNorm, Convolution, activation, choice

POOLINGS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "max": partial(max_pool, padding="SAME"),
    "average": partial(average_pool, padding="SAME"),
    "strided": lambda x: x,  # the stage's last convolution has stride 2 instead
}

NORMALISATIONS: dict[str, Callable[..., Callable[[jax.Array], jax.Array]]] = {
    "none": lambda channels, train, dtype: lambda x: x,
    "batch": lambda channels, train, dtype: BatchNorm(not train, momentum=0.9, epsilon=1e-5, dtype=dtype),
    "layer": lambda channels, train, dtype: nn.LayerNorm(
        dtype=dtype, param_dtype=at_least_float32(dtype)
    ),  # over the channels of each pixel
    "group": lambda channels, train, dtype: nn.GroupNorm(
        int(np.gcd(32, channels)), dtype=dtype, param_dtype=at_least_float32(dtype)
    ),  # over groups of an image
}

REDUCTIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "average": lambda x: x.mean((1, 2), dtype=at_least_float32(x.dtype)).astype(x.dtype),
    "flatten": lambda x: x.reshape(x.shape[0], -1),
}


def of_each(field: str, numbers: tuple[int, ...], stages: int) -> tuple[int, ...]:
    """One number for each stage. Raises InputError unless `numbers` has one for each stage, or one for all."""
    if len(numbers) not in (1, stages) or min(numbers) < 1:
        raise InputError(f"model.{field} is {numbers}; it takes one number above 0, or one for each of {stages} stages")
    return numbers if len(numbers) == stages else numbers * stages


class ConvNet(nn.Module):
    num_classes: int
    widths: tuple[int, ...] = (64, 128, 256)  # channels of each stage; every stage halves the image
    convolutions: tuple[int, ...] = (2,)  # of each stage, one number a stage or one for all
    kernel_sizes: tuple[int, ...] = (3,)  # of each stage, likewise
    pooling: str = "max"  # max, average, or strided: the stage's last convolution has stride 2
    activation: str = "relu"
    normalisation: str = "batch"  # none, batch, layer, group
    reduction: str = "average"  # of the last stage's pixels to a vector: average over the image, or flatten
    hidden: int = 0  # units of a hidden layer before the last; 0 has none
    dropout: float = 0.1  # fraction dropped in training, after each pooling and after the hidden layer
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        wide = at_least_float32(self.dtype)
        activate = activation(self.activation)
        pool = choice("pooling", self.pooling, POOLINGS)
        norm = choice("normalisation", self.normalisation, NORMALISATIONS)
        use_bias = self.normalisation != "batch"  # which subtracts it again
        conv = partial(Convolution, kernel_init=nn.initializers.he_normal(), use_bias=use_bias, dtype=self.dtype)
        depths = of_each("convolutions", self.convolutions, len(self.widths))
        sizes = of_each("kernel_sizes", self.kernel_sizes, len(self.widths))
        x = images
        for features, depth, size in zip(self.widths, depths, sizes, strict=True):
            for number in range(depth):
                last = number == depth - 1
                strides = (2, 2) if self.pooling == "strided" and last else (1, 1)
                x = conv(features, (size, size), strides)(x)
                x = activate(norm(features, train, self.dtype)(x))
            x = nn.Dropout(self.dropout, deterministic=not train)(pool(x))
        x = choice("reduction", self.reduction, REDUCTIONS)(x)
        if self.hidden:
            x = activate(nn.Dense(self.hidden, dtype=self.dtype, param_dtype=wide)(x))
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.num_classes, param_dtype=wide, name="head")(x.astype(wide))
