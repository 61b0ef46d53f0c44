"""MobileNetV2 (Sandler et al., "Inverted Residuals and Linear Bottlenecks", CVPR 2018), table 2, on 32x32 images.

    input         operator        t    c       n    s
    32 x 32       conv 3x3        -    32      1    1 (2)
    32 x 32       bottleneck      1    16      1    1
    32 x 32       bottleneck      6    24      2    1 (2)
    32 x 32       bottleneck      6    32      3    2
    16 x 16       bottleneck      6    64      4    2
     8 x  8       bottleneck      6    96      3    1
     8 x  8       bottleneck      6    160     3    2
     4 x  4       bottleneck      6    320     1    1
     4 x  4       conv 1x1        -    1280    1    1
     1 x  1       average pool, dense

t: expansion, c: channels, n: blocks, s: stride of the first block; the paper's own, for 224x224, in brackets. After
kuangliu/pytorch-cifar, whose count is the one known for CIFAR, two things more are not the paper's: a block of stride 1
that changes the channels has a 1x1 convolution as its shortcut (the paper has none), and the block of t = 1 keeps its
1x1 expansion.

                            parameters (10 classes)    multiply-adds (32x32)
    mobilenet_v2                         2,296,922                         91.2 M
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cifar_jax.models.kernels import at_least_float32
from cifar_jax.models.layers import BatchNorm, Convolution, DepthwiseConvolution, activation

STAGES = (  # expansion, channels, blocks, stride
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class InvertedResidual(nn.Module):
    """1x1 to `expanded` channels, 3x3 in each channel, 1x1 to `features` without activation; and the shortcut."""

    expanded: int
    features: int
    strides: tuple[int, int]
    activation: str
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        activate = activation(self.activation)
        pointwise = partial(Convolution, kernel_size=(1, 1), use_bias=False, dtype=self.dtype)
        both_sides = (1, 1), (1, 1)  # "SAME" pads an even image at one side only where there is a stride
        depthwise = DepthwiseConvolution(strides=self.strides, padding=both_sides, use_bias=False, dtype=self.dtype)
        norm = partial(BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=self.dtype)
        y = activate(norm()(pointwise(self.expanded)(x)))
        y = activate(norm()(depthwise(y)))
        y = norm()(pointwise(self.features)(y))
        if self.strides != (1, 1):
            return y
        if x.shape != y.shape:
            x = norm(name="shortcut_norm")(pointwise(self.features, name="shortcut")(x))
        return x + y


class MobileNetV2(nn.Module):
    num_classes: int
    stages: tuple[tuple[int, int, int, int], ...] = STAGES  # expansion, channels, blocks, stride of the first
    multiplier: float = 1.0  # of all channels; the last 1x1 convolution's only where it is above 1
    activation: str = "relu6"
    dropout: float = 0.0  # fraction of the pooled features dropped in training
    remat: bool = False  # recompute each block for its gradient instead of storing its activations
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        activate = activation(self.activation)
        conv = partial(Convolution, use_bias=False, dtype=self.dtype)
        norm = partial(BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=self.dtype)
        block = nn.remat(InvertedResidual, static_argnums=(2,)) if self.remat else InvertedResidual
        x = activate(norm(name="first_norm")(conv(round(32 * self.multiplier), name="first")(images)))
        for stage, (expansion, channels, blocks, stride) in enumerate(self.stages):
            for number in range(blocks):
                expanded, features = expansion * x.shape[-1], round(channels * self.multiplier)
                strides = (stride, stride) if number == 0 else (1, 1)
                settings = expanded, features, strides, self.activation, self.dtype
                x = block(*settings, name=f"bottleneck{stage + 1}_{number + 1}")(x, train)
        x = conv(round(1280 * max(1.0, self.multiplier)), (1, 1), name="last")(x)
        x = activate(norm(name="last_norm")(x))
        wide = at_least_float32(self.dtype)
        x = x.mean((1, 2), dtype=wide)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.num_classes, param_dtype=wide, name="head")(x)
