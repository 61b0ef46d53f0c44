"""Two convolutions with max-pooling and a fully connected head: the usual network of introductory tutorials.

layer                     output (32x32 input, width 32)
conv 5x5, activation      32 x 32 x 32
max-pool 2x2              16 x 16 x 32
conv 5x5, activation      16 x 16 x 64
max-pool 2x2               8 x  8 x 64
dense, activation, dropout     hidden
dense                     num_classes

                            parameters (10 classes)    multiply-adds (32x32)
    cnn                                    579,402                         16.1 M
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cifar_jax.models.kernels import at_least_float32, max_pool
from cifar_jax.models.layers import Convolution, activation


class CNN(nn.Module):
    num_classes: int
    width: int = 32  # channels of the first convolution; the second has twice as many
    kernel_size: int = 5
    hidden: int = 128  # units of the layer before the last; 0 has none
    activation: str = "relu"
    dropout: float = 0.0  # fraction of the hidden units dropped in training
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        activate = activation(self.activation)
        wide = at_least_float32(self.dtype)
        kernel_size = (self.kernel_size, self.kernel_size)
        x = images
        for features in (self.width, 2 * self.width):
            x = Convolution(features, kernel_size, dtype=self.dtype)(x)
            x = activate(max_pool(x))
        x = x.reshape(x.shape[0], -1)
        if self.hidden:
            x = activate(nn.Dense(self.hidden, dtype=self.dtype, param_dtype=wide)(x))
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.num_classes, param_dtype=wide, name="head")(x.astype(wide))
