"""Wide residual networks (Zagoruyko & Komodakis, "Wide Residual Networks", BMVC 2016), table 1.

    group    output     WRN-n-k, with N = (n - 4) / 6 blocks a group
    conv1    32 x 32    3x3, 16
    conv2    32 x 32    [3x3, 16 k; 3x3, 16 k] x N
    conv3    16 x 16    [3x3, 32 k; 3x3, 32 k] x N
    conv4     8 x  8    [3x3, 64 k; 3x3, 64 k] x N
    head      1 x  1    norm, activation, average pool, dense

The blocks are pre-activated, with dropout between the convolutions (figure 1d).

                            parameters (10 classes)    multiply-adds (32x32)
    wide_resnet16_4                      2,748,890                        392.6 M
    wide_resnet16_8                     10,961,370                      1,548.1 M
    wide_resnet28_10                    36,479,194                      5,243.3 M
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cifar_jax.errors import InputError
from cifar_jax.models.kernels import at_least_float32
from cifar_jax.models.layers import BatchNorm, Convolution, activation, drop_path_rates
from cifar_jax.models.preactivation import PreactivationBlock


class WideResNet(nn.Module):
    num_classes: int
    depth: int = 28  # convolutions along the longest path, the first block's shortcuts counted: n = 6 N + 4
    widen: int = 10  # k
    width: int = 16  # channels of conv1
    activation: str = "relu"
    dropout: float = 0.0  # fraction dropped in training between the two convolutions of a block; the paper has 0.3
    drop_path: float = 0.0  # probability that the last block's branch is dropped; it grows linearly up to there
    remat: bool = False  # recompute each block for its gradient instead of storing its activations
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        if self.depth < 10 or (self.depth - 4) % 6:
            raise InputError(f"model.depth is {self.depth}; a wide ResNet has 6 N + 4 layers: 10, 16, 22, 28, ...")
        blocks = (self.depth - 4) // 6
        activate = activation(self.activation)
        block = nn.remat(PreactivationBlock, static_argnums=(2,)) if self.remat else PreactivationBlock
        rates = iter(drop_path_rates(self.drop_path, 3 * blocks))
        x = Convolution(self.width, use_bias=False, dtype=self.dtype, name="conv1")(images)
        for group in range(3):
            for number in range(blocks):
                features = self.width * self.widen * 2**group
                strides = (2, 2) if group > 0 and number == 0 else (1, 1)
                settings = features, strides, self.activation, self.dropout, next(rates), self.dtype
                x = block(*settings, name=f"conv{group + 2}_{number + 1}")(x, train)
        norm = partial(BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=self.dtype)
        x = activate(norm(name="last_norm")(x))
        wide = at_least_float32(self.dtype)
        x = x.mean((1, 2), dtype=wide)
        return nn.Dense(self.num_classes, param_dtype=wide, name="head")(x)


wide_resnet16_4 = partial(WideResNet, depth=16, widen=4)
wide_resnet16_8 = partial(WideResNet, depth=16, widen=8)
wide_resnet28_10 = partial(WideResNet, depth=28, widen=10)
