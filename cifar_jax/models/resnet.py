"""Deep residual networks (He et al., "Deep Residual Learning for Image Recognition", CVPR 2016), on 32x32 images.

Table 1 with the CIFAR stem (3x3, no stride, no max-pool: the images are small); shortcuts of option B. With
model.stem=imagenet, conv1 is table 1's own: 7x7 with stride 2, and a max-pool 3x3 with stride 2 after it, so that each
output below is a quarter as high and wide.

    stage      output     18                        34                         50
    conv1      32 x 32    3x3, 64                   3x3, 64                    3x3, 64
    conv2_x    32 x 32    [3x3, 64; 3x3, 64] x 2    [3x3, 64; 3x3, 64] x 3     [1x1, 64; 3x3, 64; 1x1, 256] x 3
    conv3_x    16 x 16    [3x3, 128; ...] x 2       [3x3, 128; ...] x 4        [1x1, 128; 3x3, 128; 1x1, 512] x 4
    conv4_x     8 x  8    [3x3, 256; ...] x 2       [3x3, 256; ...] x 6        [1x1, 256; 3x3, 256; 1x1, 1024] x 6
    conv5_x     4 x  4    [3x3, 512; ...] x 2       [3x3, 512; ...] x 3        [1x1, 512; 3x3, 512; 1x1, 2048] x 3
    head        1 x  1    average pool, dense

Section 4.2, made for CIFAR-10; shortcuts of option A. 6n + 2 layers for n = 3, 5, 7, 9, 18.

    conv1      32 x 32    3x3, 16
    conv2_x    32 x 32    [3x3, 16; 3x3, 16] x n
    conv3_x    16 x 16    [3x3, 32; 3x3, 32] x n
    conv4_x     8 x  8    [3x3, 64; 3x3, 64] x n
    head        1 x  1    average pool, dense

                            parameters (10 classes)    multiply-adds (32x32)
    resnet18                            11,173,962                        555.4 M
    resnet34                            21,282,122                      1,159.4 M
    resnet50                            23,520,842                      1,297.8 M
    resnet20                               269,722                         40.6 M
    resnet32                               464,154                         68.9 M
    resnet44                               658,586                         97.2 M
    resnet56                               853,018                        125.5 M
    resnet110                            1,727,962                        252.9 M

The stride of a bottleneck stands at its 3x3 convolution, as in the usual implementations since Goyal et al. (2017); the
paper has it at the first 1x1, with as many parameters. Windows with a stride are padded evenly, as in PyTorch: they
centre on the pixel that the shortcut takes, and PyTorch's weights give its logits here (see `pretrained`).
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cifar_jax.models.kernels import at_least_float32, max_pool
from cifar_jax.models.layers import BatchNorm, Convolution, DropPath, activation, choice, drop_path_rates

EVEN = ((1, 1), (1, 1))  # padding of a 3x3 window; SAME would pad one side only where the stride is 2


def projected(x: jax.Array, features: int, strides: tuple[int, int], train: bool) -> jax.Array:
    """Option B: a 1x1 convolution."""
    x = Convolution(features, (1, 1), strides, use_bias=False, dtype=x.dtype, name="shortcut")(x)
    norm = partial(BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=x.dtype)
    return norm(name="shortcut_norm")(x)


def padded(x: jax.Array, features: int, strides: tuple[int, int], train: bool) -> jax.Array:
    """Option A: every second pixel, and zeros in the new channels; no parameters."""
    x = x[:, :: strides[0], :: strides[1]]
    return jnp.pad(x, [(0, 0), (0, 0), (0, 0), (0, features - x.shape[-1])])


SHORTCUTS = {"A": padded, "B": projected}  # where the shape changes; elsewhere the shortcut is the identity


class Block(nn.Module):
    """The residual branch, plus the shortcut."""

    features: int
    strides: tuple[int, int]
    shortcut: str
    activation: str
    drop_path: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = DropPath(self.drop_path)(self.branch(x, train), train)
        if x.shape != y.shape:
            x = choice("shortcut", self.shortcut, SHORTCUTS)(x, y.shape[-1], self.strides, train)
        return activation(self.activation)(x + y)

    def branch(self, x: jax.Array, train: bool) -> jax.Array:
        raise NotImplementedError


class BasicBlock(Block):
    """[3x3, features; 3x3, features] (He et al., figure 5, left)."""

    def branch(self, x: jax.Array, train: bool) -> jax.Array:
        activate = activation(self.activation)
        conv = partial(Convolution, use_bias=False, dtype=self.dtype)
        norm = partial(BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=self.dtype)
        x = activate(norm()(conv(self.features, strides=self.strides, padding=EVEN)(x)))
        return norm()(conv(self.features)(x))


class Bottleneck(Block):
    """[1x1, features; 3x3, features; 1x1, 4 features] (He et al., figure 5, right)."""

    def branch(self, x: jax.Array, train: bool) -> jax.Array:
        activate = activation(self.activation)
        conv = partial(Convolution, use_bias=False, dtype=self.dtype)
        norm = partial(BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=self.dtype)
        x = activate(norm()(conv(self.features, (1, 1))(x)))
        x = activate(norm()(conv(self.features, strides=self.strides, padding=EVEN)(x)))
        return norm()(conv(4 * self.features, (1, 1))(x))


BLOCKS = {"basic": BasicBlock, "bottleneck": Bottleneck}
STEMS: dict[str, dict[str, Any]] = {  # the settings of conv1; the ImageNet stem pools too
    "cifar": {"kernel_size": (3, 3)},
    "imagenet": {"kernel_size": (7, 7), "strides": (2, 2), "padding": ((3, 3), (3, 3))},
}


class ResNet(nn.Module):
    num_classes: int
    stages: tuple[int, ...] = (2, 2, 2, 2)  # blocks in each stage; every stage but the first halves the image
    width: int = 64  # channels of the first stage; each stage doubles them
    block: str = "basic"  # or "bottleneck"
    stem: str = "cifar"  # 3x3; or "imagenet": 7x7 with stride 2, and a max-pool 3x3 with stride 2
    shortcut: str = "B"  # where the shape changes: "A" pads with zeros, "B" is a 1x1 convolution
    activation: str = "relu"
    dropout: float = 0.0  # fraction of the pooled features dropped in training
    drop_path: float = 0.0  # probability that the last block's branch is dropped; it grows linearly up to there
    remat: bool = False  # recompute each block for its gradient instead of storing its activations
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        block = choice("block", self.block, BLOCKS)
        if self.remat:
            block = nn.remat(block, static_argnums=(2,))
        rates = iter(drop_path_rates(self.drop_path, sum(self.stages)))
        stem = choice("stem", self.stem, STEMS)
        x = Convolution(self.width, **stem, use_bias=False, dtype=self.dtype, name="conv1")(images)
        norm = partial(BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=self.dtype)
        x = activation(self.activation)(norm(name="conv1_norm")(x))
        if self.stem == "imagenet":
            x = max_pool(x, (3, 3), (2, 2), EVEN)
        for stage, blocks in enumerate(self.stages):
            for number in range(blocks):
                features, strides = self.width * 2**stage, (2, 2) if stage > 0 and number == 0 else (1, 1)
                settings = features, strides, self.shortcut, self.activation, next(rates), self.dtype
                x = block(*settings, name=f"conv{stage + 2}_{number + 1}")(x, train)
        wide = at_least_float32(self.dtype)
        x = x.mean((1, 2), dtype=wide)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.num_classes, param_dtype=wide, name="head")(x)


resnet18 = partial(ResNet, stages=(2, 2, 2, 2))
resnet34 = partial(ResNet, stages=(3, 4, 6, 3))
resnet50 = partial(ResNet, stages=(3, 4, 6, 3), block="bottleneck")
resnet20 = partial(ResNet, stages=(3, 3, 3), width=16, shortcut="A")
resnet32 = partial(ResNet, stages=(5, 5, 5), width=16, shortcut="A")
resnet44 = partial(ResNet, stages=(7, 7, 7), width=16, shortcut="A")
resnet56 = partial(ResNet, stages=(9, 9, 9), width=16, shortcut="A")
resnet110 = partial(ResNet, stages=(18, 18, 18), width=16, shortcut="A")
