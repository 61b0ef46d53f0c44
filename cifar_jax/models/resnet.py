"""Deep residual networks (He et al., "Deep Residual Learning for Image Recognition", CVPR 2016), with the CIFAR stem.

    stage     output     ResNet-18
    conv1     32 x 32    3x3, 64              (no stride, no max-pool: the images are small)
    conv2_x   32 x 32    [3x3, 64; 3x3, 64] x 2
    conv3_x   16 x 16    [3x3, 128; 3x3, 128] x 2
    conv4_x    8 x  8    [3x3, 256; 3x3, 256] x 2
    conv5_x    4 x  4    [3x3, 512; 3x3, 512] x 2
    head       1 x  1    average pool, dense

Shortcuts are 1x1 convolutions where the shape changes (option B). 11,173,962 parameters with 10 classes.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cifar_jax.layers import BatchNorm, Convolution, activation


class BasicBlock(nn.Module):
    """[3x3, features; 3x3, features] and the shortcut (He et al., figure 5, left)."""

    features: int
    strides: tuple[int, int]
    activation: str
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        activate = activation(self.activation)
        conv = partial(Convolution, use_bias=False, dtype=self.dtype)
        norm = partial(BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=self.dtype)
        y = activate(norm()(conv(self.features, strides=self.strides)(x)))
        y = norm()(conv(self.features)(y))
        if x.shape != y.shape:
            x = norm(name="shortcut_norm")(conv(self.features, (1, 1), self.strides, name="shortcut")(x))
        return activate(x + y)


class ResNet(nn.Module):
    num_classes: int
    stages: tuple[int, ...] = (2, 2, 2, 2)  # blocks in each stage; every stage but the first halves the image
    width: int = 64  # channels of the first stage; each stage doubles them
    activation: str = "relu"
    dropout: float = 0.0  # share of the pooled features dropped in training
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        x = Convolution(self.width, use_bias=False, dtype=self.dtype)(images)
        x = BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=self.dtype)(x)
        x = activation(self.activation)(x)
        for stage, blocks in enumerate(self.stages):
            for block in range(blocks):
                strides = (2, 2) if stage > 0 and block == 0 else (1, 1)
                x = BasicBlock(self.width * 2**stage, strides, self.activation, self.dtype)(x, train=train)
        x = x.mean((1, 2), dtype=jnp.float32)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.num_classes)(x)


resnet18 = partial(ResNet, stages=(2, 2, 2, 2))
