"""Residual networks with pre-activation (He et al., "Identity Mappings in Deep Residual Networks", ECCV 2016).

Normalisation and activation come before each convolution, so that nothing stands on the path of the shortcuts (figure
1b). The stages are those of ResNet-18 with the CIFAR stem; the first block's activation comes right after conv1, before
the paths part, and another one follows the last block (appendix).

                            parameters (10 classes)    multiply-adds (32x32)
    preactivation_resnet18              11,172,170                        555.4 M
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cifar_jax.models.kernels import at_least_float32
from cifar_jax.models.layers import BatchNorm, Convolution, DropPath, activation, drop_path_rates

# As in the papers' code: with a stride the filters stand on the pixels that the shortcut takes. "SAME" pads an even
# image below and to the right only, and the filters stand one pixel off.
BOTH_SIDES = ((1, 1), (1, 1))


class PreactivationBlock(nn.Module):
    """norm, activation, 3x3, norm, activation, dropout, 3x3, and the shortcut.

    Where the number of channels changes, both paths start from the activated input, and the shortcut is a 1x1
    convolution; in the `first` block of a network both start from there too.
    """

    features: int
    strides: tuple[int, int]
    activation: str
    dropout: float
    drop_path: float
    dtype: Any
    first: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        activate = activation(self.activation)
        conv = partial(Convolution, use_bias=False, dtype=self.dtype)
        norm = partial(BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=self.dtype)
        y = activate(norm()(x))
        if x.shape[-1] != self.features:
            x = conv(self.features, (1, 1), self.strides, name="shortcut")(y)
        elif self.first:
            x = y
        y = conv(self.features, strides=self.strides, padding=BOTH_SIDES)(y)
        y = activate(norm()(y))
        y = nn.Dropout(self.dropout, deterministic=not train)(y)
        y = conv(self.features)(y)
        return x + DropPath(self.drop_path)(y, train)


class PreactivationResNet(nn.Module):
    num_classes: int
    stages: tuple[int, ...] = (2, 2, 2, 2)  # blocks in each stage; every stage but the first halves the image
    width: int = 64  # channels of the first stage; each stage doubles them
    activation: str = "relu"
    dropout: float = 0.0  # fraction of the pooled features dropped in training
    drop_path: float = 0.0  # probability that the last block's branch is dropped; it grows linearly up to there
    remat: bool = False  # recompute each block for its gradient instead of storing its activations
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        activate = activation(self.activation)
        norm = partial(BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=self.dtype)
        block = nn.remat(PreactivationBlock, static_argnums=(2,)) if self.remat else PreactivationBlock
        rates = iter(drop_path_rates(self.drop_path, sum(self.stages)))
        x = Convolution(self.width, use_bias=False, dtype=self.dtype, name="conv1")(images)
        for stage, blocks in enumerate(self.stages):
            for number in range(blocks):
                features, strides = self.width * 2**stage, (2, 2) if stage > 0 and number == 0 else (1, 1)
                first = stage == number == 0
                settings = features, strides, self.activation, 0.0, next(rates), self.dtype, first
                x = block(*settings, name=f"conv{stage + 2}_{number + 1}")(x, train)
        x = activate(norm(name="last_norm")(x))
        wide = at_least_float32(self.dtype)
        x = x.mean((1, 2), dtype=wide)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.num_classes, param_dtype=wide, name="head")(x)


preactivation_resnet18 = partial(PreactivationResNet, stages=(2, 2, 2, 2))
