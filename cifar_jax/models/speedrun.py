"""The networks of the CIFAR-10 speedruns to 94% and 96% (K. Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU",
2024, and its later versions airbench94_muon and airbench96).

    layer                                                        output     94%      96%
    2x2 convolution without padding, frozen but its bias; GELU   31 x 31    24       24
    group 1                                                      15 x 15    64       128
    group 2                                                       7 x  7    256      384
    group 3                                                       3 x  3    256      512
    max-pool over the image, dense without bias, times a constant           num_classes

    group, depth 2 (94%):   3x3, max-pool 2x2, norm, GELU; 3x3, norm, GELU
    group, depth 3 (96%):   3x3, max-pool 2x2, norm, GELU; 3x3, norm, GELU; 3x3, norm, + the first GELU's output; GELU

The first convolution whitens the images. `whitening_filters` computes its filters from training images. They are
statistics of the data and not parameters, so they are stored in `batch_stats`, where no gradient, optimiser or weight
decay changes them. Before `prepare` is called they are a random rotation of the 2x2 patches and its negative. The 3x3
convolutions start as the identity on their first channels; the other filters start uniform. Norms have a bias and no
scale.

                            parameters (10 classes)    multiply-adds (32x32)
    speedrun94                           1,971,352                        105.4 M
    speedrun96                           9,915,416                        414.4 M

The 288 numbers of the whitening are not among the parameters.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cifar_jax.errors import InputError
from cifar_jax.models.kernels import at_least_float32, convolution, gelu, max_pool
from cifar_jax.models.layers import BatchNorm, Convolution, activation

Array = jax.Array


def patches(images: Array) -> Array:
    """Every 2x2 patch of images [N, H, W, C], row by row: [N * (H - 1) * (W - 1), 4 C]."""
    _, height, width, channels = images.shape
    corners = [images[:, i : height - 1 + i, j : width - 1 + j] for i in (0, 1) for j in (0, 1)]
    return jnp.concatenate(corners, -1).reshape(-1, 4 * channels)


def whitening_filters(images: Array) -> Array:
    """The filters that whiten the 2x2 patches of images float32 [N, H, W, C], normalised: [2, 2, C, 8 C].

    Eigenvectors of the patches' second moments (their mean, nearly 0, is not subtracted), largest first, each over the
    root of its eigenvalue; then their negatives. An eigenvector has no sign of its own: its largest entry is positive,
    on every device.
    """
    pixels = patches(images)
    moments = jnp.matmul(pixels.T, pixels, precision="highest") / len(pixels)
    eigenvalues, eigenvectors = jnp.linalg.eigh(moments)
    eigenvectors *= jnp.sign(jnp.take_along_axis(eigenvectors, jnp.abs(eigenvectors).argmax(0)[None], 0))
    whitening = (eigenvectors / jnp.sqrt(eigenvalues + 5e-4))[:, ::-1]
    return both_signs(whitening, images.shape[-1])


def both_signs(columns: Array, channels: int) -> Array:
    """[4 C, 4 C], a filter a column, -> [2, 2, C, 8 C]: each filter, then the negative of each."""
    return jnp.concatenate([columns, -columns], 1).reshape(2, 2, channels, 8 * channels)


def rotation(key: Array, channels: int, dtype: Any) -> Array:
    """Filters [2, 2, C, 8 C] for images that were never seen."""
    return both_signs(nn.initializers.orthogonal()(key, (4 * channels, 4 * channels), dtype), channels)


def uniform(bound: float) -> Any:
    """An initialiser: uniform in -bound..bound."""
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


def of_deviation(deviation: float) -> Any:
    """An initialiser: uniform about 0, then over its own deviation, so that it is `deviation` to the last bit or so."""

    def weights(key, shape, dtype=jnp.float32):
        kernel = uniform(1.0)(key, shape, dtype)
        return kernel * (deviation / kernel.std(ddof=1))

    return weights


def dirac(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """Kernel [h, w, C, O]: the first C filters pass their channel on, the others are uniform (1 / sqrt(fan in))."""
    h, w, channels, features = shape
    kernel = uniform((h * w * channels) ** -0.5)(key, shape, dtype)
    identity = jnp.zeros((h, w, channels, channels), dtype).at[h // 2, w // 2].set(jnp.eye(channels, dtype=dtype))
    return kernel.at[..., :channels].set(identity[..., :features])


class Group(nn.Module):
    """`depth` convolutions 3x3, max-pooling after the first; a third one is residual."""

    features: int
    depth: int
    activation: str
    momentum: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        activate = activation(self.activation)
        conv = partial(Convolution, self.features, use_bias=False, dtype=self.dtype, kernel_init=dirac)
        norm = partial(BatchNorm, not train, momentum=self.momentum, epsilon=1e-12, use_scale=False, dtype=self.dtype)
        # Images below 16x16 come down to one pixel early, which is not pooled. Of an odd number of rows no window sees
        # the last one: it is not computed, which saves 11% of the multiply-adds and changes nothing.
        window = min(2, x.shape[1]), min(2, x.shape[2])
        seen = [(1, 1 - size % side) for size, side in zip(x.shape[1:3], window, strict=True)]
        x = max_pool(conv(padding=seen)(x), window)
        x = first = activate(norm()(x))
        x = norm()(conv()(x))
        if self.depth == 3:
            x = norm()(conv()(activate(x))) + first
        return activate(x)


class Speedrun(nn.Module):
    num_classes: int
    widths: tuple[int, ...] = (64, 256, 256)  # channels of each group
    depth: int = 2  # convolutions in each group: 2, or 3 with the third residual
    momentum: float = 0.6  # fraction of the running statistics that each batch keeps
    head_std: float = 1.0  # of the head's initial weights, uniform; 0 draws them within 1 / sqrt(fan in)
    head_scale: float = 1 / 256  # of the logits
    activation: str = "gelu"  # of the groups; the one after the whitening is always GELU
    whitening_bias: float = 1.0  # initial range, uniform, as a multiple of 1 / sqrt(4 channels)
    whitening_images: int = 5000  # training images that the whitening is made from
    dtype: Any = jnp.float32

    def prepare(self, batch_stats: Any, images: Callable[[int], Array]) -> Any:
        """The statistics with the whitening of the training set; images(n) are its first n, normalised."""
        filters = whitening_filters(images(self.whitening_images))
        return {**batch_stats, "whitening": filters.astype(at_least_float32(self.dtype))}

    @nn.compact
    def __call__(self, images: Array, *, train: bool) -> Array:
        if self.depth not in (2, 3):
            raise InputError(f"model.depth is {self.depth}; a group of the speedrun's network has 2 or 3 convolutions")
        channels, wide = images.shape[-1], at_least_float32(self.dtype)
        start = lambda: rotation(self.make_rng("params"), channels, wide)
        whitening = self.variable("batch_stats", "whitening", start)
        start = uniform(self.whitening_bias * (4 * channels) ** -0.5)
        bias = self.param("whitening_bias", start, (8 * channels,), wide)
        x = convolution(images.astype(self.dtype), whitening.value.astype(self.dtype), padding="VALID")
        x = gelu(x + bias.astype(self.dtype))
        for number, features in enumerate(self.widths):
            group = Group(features, self.depth, self.activation, self.momentum, self.dtype, name=f"group{number + 1}")
            x = group(x, train)
        x = max_pool(x, (x.shape[1], x.shape[2]))[:, 0, 0]
        start = of_deviation(self.head_std) if self.head_std else uniform(x.shape[-1] ** -0.5)
        head = nn.Dense(self.num_classes, use_bias=False, param_dtype=wide, kernel_init=start, name="head")
        return head(x.astype(wide)) * self.head_scale


speedrun94 = partial(Speedrun)
speedrun96 = partial(
    Speedrun, widths=(128, 384, 512), depth=3, momentum=0.9, head_std=0.0, head_scale=1 / 9, whitening_bias=0.0
)
