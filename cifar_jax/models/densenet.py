"""DenseNet-BC (Huang et al., "Densely Connected Convolutional Networks", CVPR 2017), as made for CIFAR in section 4.

    layer              output     DenseNet-BC, L = 100, k = 12
    conv               32 x 32    3x3, 2 k
    dense block 1      32 x 32    [1x1, 4 k; 3x3, k] x (L - 4) / 6     each sees all the outputs before it
    transition 1       16 x 16    1x1, half the channels; average pool 2x2
    dense block 2      16 x 16    the same
    transition 2        8 x  8    the same
    dense block 3       8 x  8    the same
    head                1 x  1    norm, activation, average pool, dense

Norm and activation come before each convolution but the first.

                            parameters (10 classes)    multiply-adds (32x32)
    densenet_bc100_12                      769,162                        287.9 M
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cifar_jax.errors import InputError
from cifar_jax.models.kernels import at_least_float32, average_pool
from cifar_jax.models.layers import BatchNorm, Convolution, activation


class DenseLayer(nn.Module):
    """norm, activation, 1x1, 4 growth; norm, activation, 3x3, growth; new channels, concatenated to the input."""

    growth: int
    activation: str
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        activate = activation(self.activation)
        conv = partial(Convolution, use_bias=False, dtype=self.dtype)
        norm = partial(BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=self.dtype)
        drop = partial(nn.Dropout, self.dropout, deterministic=not train)
        y = drop()(conv(4 * self.growth, (1, 1))(activate(norm()(x))))
        y = drop()(conv(self.growth)(activate(norm()(y))))
        return jnp.concatenate([x, y], -1)


class DenseNet(nn.Module):
    num_classes: int
    depth: int = 100  # L: convolutions and the dense layer
    growth: int = 12  # k: channels that each layer adds
    compression: float = 0.5  # fraction of the channels that a transition keeps (theta)
    activation: str = "relu"
    dropout: float = 0.0  # fraction dropped in training after each convolution; 0.2 in the paper without augmentation
    remat: bool = False  # compute each layer again for its gradient: the concatenations are what fills the memory
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        if self.depth < 10 or (self.depth - 4) % 6:
            raise InputError(
                f"model.depth is {self.depth}; a DenseNet-BC has 6 N + 4 layers: 10, 16, ..., 94, 100, ..."
            )
        activate = activation(self.activation)
        conv = partial(Convolution, use_bias=False, dtype=self.dtype)
        norm = partial(BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=self.dtype)
        layer = nn.remat(DenseLayer, static_argnums=(2,)) if self.remat else DenseLayer
        x = conv(2 * self.growth, name="conv")(images)
        for block in (1, 2, 3):
            for number in range((self.depth - 4) // 6):
                settings = self.growth, self.activation, self.dropout, self.dtype
                x = layer(*settings, name=f"block{block}_{number + 1}")(x, train)
            if block < 3:
                x = activate(norm(name=f"transition{block}_norm")(x))
                x = conv(int(self.compression * x.shape[-1]), (1, 1), name=f"transition{block}")(x)
                x = nn.Dropout(self.dropout, deterministic=not train)(x)
                x = average_pool(x)
        x = activate(norm(name="last_norm")(x))
        wide = at_least_float32(self.dtype)
        x = x.mean((1, 2), dtype=wide)
        return nn.Dense(self.num_classes, param_dtype=wide, name="head")(x)


densenet_bc100_12 = partial(DenseNet, depth=100, growth=12)
