"""A multilayer perceptron, the baseline without convolutions.

flatten                                 3072 (32x32x3)
[dense, activation, dropout] x 2        512
dense                                   num_classes

                        parameters (10 classes)    multiply-adds (32x32)
mlp                                  1,841,162                          1.8 M
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cifar_jax.models.kernels import at_least_float32
from cifar_jax.models.layers import activation


class MLP(nn.Module):
    num_classes: int
    widths: tuple[int, ...] = (512, 512)  # units of each hidden layer
    activation: str = "relu"
    dropout: float = 0.0  # fraction of each hidden layer's units dropped in training
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        wide = at_least_float32(self.dtype)
        x = images.reshape(images.shape[0], -1)
        for width in self.widths:
            x = nn.Dense(width, dtype=self.dtype, param_dtype=wide, kernel_init=nn.initializers.he_normal())(x)
            x = activation(self.activation)(x)
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.num_classes, param_dtype=wide, name="head")(x.astype(wide))
