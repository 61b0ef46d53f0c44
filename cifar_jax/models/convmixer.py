"""ConvMixer (Trockman & Kolter, "Patches Are All You Need?", TMLR 2023; figure 2 and the CIFAR-10 experiments).

    layer                                                      output (32x32, patch 2)
    conv patch x patch, stride patch; activation, norm         16 x 16 x width
    [conv 5x5 in each channel, activation, norm, + input;
     conv 1x1, activation, norm] x depth                       16 x 16 x width
    average pool, dense                                        num_classes

The sizes are those of the authors' recipe for CIFAR-10 (locuslab/convmixer-cifar10): width 256, depth 8, kernel 5,
patch 2.

                            parameters (10 classes)    multiply-adds (32x32)
    convmixer256_8                         594,186                        148.1 M
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cifar_jax.models.kernels import at_least_float32
from cifar_jax.models.layers import BatchNorm, Convolution, DepthwiseConvolution, activation


class ConvMixerBlock(nn.Module):
    """A convolution over space with the identity around it, then one over channels."""

    kernel_size: int
    activation: str
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        activate, kernel_size = activation(self.activation), (self.kernel_size, self.kernel_size)
        norm = partial(BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=self.dtype)
        x += norm()(activate(DepthwiseConvolution(kernel_size, dtype=self.dtype)(x)))
        return norm()(activate(Convolution(x.shape[-1], (1, 1), dtype=self.dtype)(x)))


class ConvMixer(nn.Module):
    num_classes: int
    width: int = 256  # channels (h)
    depth: int = 8  # blocks
    kernel_size: int = 5
    patch_size: int = 2  # pixels along each side; the border is padded with zeros
    activation: str = "gelu"
    dropout: float = 0.0  # fraction of the pooled features dropped in training
    remat: bool = False  # recompute each block for its gradient instead of storing its activations
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        patch = (self.patch_size, self.patch_size)
        norm = partial(BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=self.dtype)
        block = nn.remat(ConvMixerBlock, static_argnums=(2,)) if self.remat else ConvMixerBlock
        init = nn.initializers.he_normal()  # the activation comes before the norm: 2 / fan out would keep it near 0
        x = Convolution(self.width, patch, patch, dtype=self.dtype, kernel_init=init, name="patches")(images)
        x = norm(name="patches_norm")(activation(self.activation)(x))
        for number in range(self.depth):
            x = block(self.kernel_size, self.activation, self.dtype, name=f"block{number + 1}")(x, train)
        wide = at_least_float32(self.dtype)
        x = x.mean((1, 2), dtype=wide)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.num_classes, param_dtype=wide, name="head")(x)


convmixer256_8 = partial(ConvMixer, width=256, depth=8)
