"""The layers that the architectures are built from: convolution, batch normalisation, stochastic depth, activations."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from cifar_jax.errors import InputError, nearest
from cifar_jax.models.kernels import Padding, at_least_float32, convolution, depthwise_convolution, gelu, normalised

Array = jax.Array

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "leaky_relu": jax.nn.leaky_relu,
    "elu": jax.nn.elu,
    "gelu": gelu,
    "silu": jax.nn.silu,
    "mish": jax.nn.mish,
    "tanh": jnp.tanh,
}


def choice(kind: str, name: str, table: Mapping[str, Any]) -> Any:
    """table[name]. Raises InputError on a name that is not in the table."""
    if name not in table:
        raise InputError(f"{kind} '{name}' is unknown{nearest(name, list(table))}")
    return table[name]


def activation(name: str) -> Callable[[Array], Array]:
    """The activation function of that name. Raises InputError on an unknown one."""
    return choice("activation", name, ACTIVATIONS)


class Convolution(nn.Module):
    """images [B, H, W, C] -> [B, H', W', features] in `dtype`; parameters kernel [h, w, C, features] and bias.

    Parameters are float32, or float64 where `dtype` is. Weights start normal with variance 2 / fan_out (He et al. 2015,
    eq. 14), biases at zero.
    """

    features: int
    kernel_size: tuple[int, int] = (3, 3)
    strides: tuple[int, int] = (1, 1)
    padding: Padding = "SAME"
    use_bias: bool = True
    dtype: Any = jnp.float32
    kernel_init: Callable[..., Array] = nn.initializers.variance_scaling(2.0, "fan_out", "normal")

    @nn.compact
    def __call__(self, images: Array) -> Array:
        shape, param_dtype = (*self.kernel_size, images.shape[-1], self.features), at_least_float32(self.dtype)
        kernel = self.param("kernel", self.kernel_init, shape, param_dtype)
        outputs = convolution(images.astype(self.dtype), kernel.astype(self.dtype), self.strides, self.padding)
        if self.use_bias:
            outputs += self.param("bias", nn.initializers.zeros, (self.features,), param_dtype).astype(self.dtype)
        return outputs


class DepthwiseConvolution(nn.Module):
    """images [B, H, W, C] -> [B, H', W', C] in `dtype`, each channel by its own filter; kernel [h, w, 1, C], bias.

    Parameters are float32, or float64 where `dtype` is. Weights start normal with variance 2 / (h w): each filter sees
    one channel, and feeds one.
    """

    kernel_size: tuple[int, int] = (3, 3)
    strides: tuple[int, int] = (1, 1)
    padding: Padding = "SAME"
    use_bias: bool = True
    dtype: Any = jnp.float32
    kernel_init: Callable[..., Array] = nn.initializers.variance_scaling(2.0, "fan_in", "normal")

    @nn.compact
    def __call__(self, images: Array) -> Array:
        channels, param_dtype = images.shape[-1], at_least_float32(self.dtype)
        kernel = self.param("kernel", self.kernel_init, (*self.kernel_size, 1, channels), param_dtype)
        outputs = depthwise_convolution(
            images.astype(self.dtype), kernel.astype(self.dtype), self.strides, self.padding
        )
        if self.use_bias:
            outputs += self.param("bias", nn.initializers.zeros, (channels,), param_dtype).astype(self.dtype)
        return outputs


class BatchNorm(nn.Module):
    """Ioffe & Szegedy 2015: x [..., C] -> [..., C] in `dtype`; parameters scale and bias [C], statistics mean and var.

    Statistics, parameters and arithmetic are float32, or float64 where `dtype` is. Training uses the statistics of the
    batch, with the biased variance, and updates the running ones: momentum * running + (1 - momentum) * batch. Values
    and parameter names are those of `nn.BatchNorm`. The gradient is the closed form of the paper's section 3, which
    makes six passes over the images; the gradient that autodiff derives makes nine.
    """

    use_running_average: bool
    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: Any = jnp.float32
    use_scale: bool = True
    scale_init: Callable[..., Array] = nn.initializers.ones

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape, wide = (x.shape[-1],), at_least_float32(self.dtype)
        running = {
            "mean": self.variable("batch_stats", "mean", jnp.zeros, shape, wide),
            "var": self.variable("batch_stats", "var", jnp.ones, shape, wide),
        }
        scale = self.param("scale", self.scale_init, shape, wide) if self.use_scale else jnp.ones(shape, wide)
        bias = self.param("bias", nn.initializers.zeros, shape, wide)
        x = x.astype(self.dtype)
        if self.use_running_average:
            factor = lax.rsqrt(running["var"].value + self.epsilon) * scale
            return ((x.astype(wide) - running["mean"].value) * factor + bias).astype(self.dtype)
        outputs, mean, variance = normalised(self.epsilon, x, scale, bias)
        if not self.is_initializing():
            for old, new in zip(running.values(), (mean, variance), strict=True):
                old.value = self.momentum * old.value + (1 - self.momentum) * new
        return outputs


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): in training each image of x [B, ...] is dropped whole with probability
    `rate`, and the others are divided by the probability to stay. It stands on the residual branch."""

    rate: float

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        return nn.Dropout(self.rate, broadcast_dims=tuple(range(1, x.ndim)), deterministic=not train)(x)


def drop_path_rates(last: float, blocks: int) -> list[float]:
    """The rate of each residual block; it grows linearly with the depth, up to `last` (Huang et al., eq. 4)."""
    return [last * (block + 1) / blocks for block in range(blocks)]
