"""Convolution, pooling, batch normalisation: one formulation each, fast on every backend, inside a scan too.

XLA's CPU compiler has fast convolutions only for the canonical layouts (images NHWC, kernels HWIO). The gradients that
autodiff makes are not in that form inside a loop and run 16 to 80 times slower there (jax issue 12868), and the
gradient of `reduce_window` becomes select-and-scatter, 20 times slower than the pooling below. So these layers state
their gradients themselves, and so do batch normalisation and GELU, to move less memory: in reverse mode only (see
`forward_mode`). On other platforms the convolution keeps autodiff's form, which XLA matches to cuDNN's.
"""

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
Padding = str | Sequence[tuple[int, int]]

LAYOUT = ("NHWC", "HWIO", "NHWC")


_plain = jax.make_user_context(default_value=False)  # part of the keys of JAX's caches


@contextlib.contextmanager
def forward_mode() -> Iterator[None]:
    """Uses plain operations of `lax` in code that is traced inside, so that `jax.jvp`, `jax.linearize`, `jax.jacfwd`
    and forward-over-reverse Hessian-vector products work for every model. Functions that were traced before are traced
    again. Training is slower inside: 16 to 80 times in a loop on the CPU.

    Without it JAX answers "can't apply forward-mode autodiff (jvp) to a custom_vjp function".
    """
    with _plain(True):
        yield


def gelu(x: Array) -> Array:
    """x times the normal distribution's cumulative function (Hendrycks & Gimpel 2016), exact, as in PyTorch."""
    return jax.nn.gelu(x, approximate=False) if _plain.value else _gelu(x)


@jax.custom_vjp
def _gelu(x: Array) -> Array:
    return jax.nn.gelu(x, approximate=False)


def _gelu_backward(x, gradient):
    """The derivative from x alone: autodiff saves a second array as large. The barrier has the result stored in x's
    dtype; XLA would keep it in float32, to spare a rounding."""
    wide = x.astype(jnp.float32)
    slope = (1 + lax.erf(wide * 0.5**0.5)) / 2 + wide * jnp.exp(-jnp.square(wide) / 2) * (2 * jnp.pi) ** -0.5
    return (lax.optimization_barrier((gradient * slope).astype(x.dtype)),)


_gelu.defvjp(lambda x: (_gelu(x), x), _gelu_backward)


def _pads(
    padding: Padding, size: Sequence[int], window: Sequence[int], strides: Sequence[int]
) -> tuple[tuple[int, int], ...]:
    """Padding in numbers, ((top, bottom), (left, right)), from 'SAME', 'VALID' or numbers."""
    if isinstance(padding, str):
        return tuple(lax.padtype_to_pads(size, window, strides, padding))
    return tuple((low, high) for low, high in padding)


def convolution(images: Array, kernel: Array, strides: tuple[int, int] = (1, 1), padding: Padding = "SAME") -> Array:
    """images [B, H, W, C] * kernel [h, w, C, O] -> [B, H', W', O], in the dtype of `images`."""
    pads = _pads(padding, images.shape[1:3], kernel.shape[:2], strides)
    if _plain.value:
        return lax.conv_general_dilated(images, kernel, strides, pads, dimension_numbers=LAYOUT)
    return _convolution(strides, pads, images, kernel)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _convolution(strides: tuple[int, int], pads: tuple[tuple[int, int], ...], images: Array, kernel: Array) -> Array:
    return _canonical(images, kernel, strides, pads)


def _canonical(images: Array, kernel: Array, strides, pads, dilation=(1, 1)) -> Array:
    """lax's convolution in the layout that is fast; `dilation` is that of the images.

    Images smaller than the window are padded beforehand, behind a barrier: XLA's CPU compiler has no fast form for them
    where the convolution pads (64 images of 2x2x512, 3x3: 547 ms, and so 7.5; VGG-16 ends in three of these).
    """
    if any(n < k for n, k in zip(images.shape[1:3], kernel.shape[:2], strict=True)):
        sides = [(low, high, step - 1) for (low, high), step in zip(pads, dilation, strict=True)]
        images = lax.optimization_barrier(_padded(images, sides))
        pads, dilation = ((0, 0), (0, 0)), (1, 1)
    return lax.conv_general_dilated(images, kernel, strides, pads, lhs_dilation=dilation, dimension_numbers=LAYOUT)


def _kept(images: Array) -> Array:
    """The identity, in a form that makes XLA's CPU compiler store the result once.

    It copies the chains of unary operations that end in ReLU into each of their uses, the transposes of the filter
    gradient among them; this select is not copied. ResNet-18's step takes 0.86 of the time, the smaller networks' the
    same (2 cores, interleaved, n=4).
    """
    return lax.platform_dependent(images, cpu=lambda x: jnp.where(x == x, x, jnp.nan), default=lambda x: x)


def _forward(strides, pads, images, kernel):
    images = _kept(images)
    return _convolution(strides, pads, images, kernel), (images, kernel)


def _backward(strides, pads, saved, gradient):
    by_autodiff = partial(_gradients_by_autodiff, strides, pads)
    return lax.platform_dependent(
        *saved, gradient, cpu=partial(_gradients_canonical, strides, pads), default=by_autodiff
    )


_convolution.defvjp(_forward, _backward)


def _gradients_by_autodiff(strides, pads, images, kernel, gradient):
    plain = partial(lax.conv_general_dilated, window_strides=strides, padding=pads, dimension_numbers=LAYOUT)
    return jax.vjp(plain, images, kernel)[1](gradient)


def _gradients_canonical(strides, pads, images, kernel, gradient):
    """Both gradients as NHWC/HWIO convolutions. The barriers keep XLA from folding the transposes into them again."""
    if kernel.shape[:2] == (1, 1) and pads == ((0, 0), (0, 0)):
        return _gradients_pointwise(strides, images, kernel, gradient)
    (h, w), (out_h, out_w) = kernel.shape[:2], gradient.shape[1:3]
    size = images.shape[1:3]
    # How far the dilated gradient must be padded so that the full correlation gives back every input pixel.
    dilated = [(out - 1) * stride + 1 for out, stride in zip((out_h, out_w), strides, strict=True)]
    back = [(k - 1 - low, n + low - d) for k, (low, _), n, d in zip((h, w), pads, size, dilated, strict=True)]
    flipped = lax.optimization_barrier(jnp.flip(kernel, (0, 1)).transpose(0, 1, 3, 2))
    images_gradient = _canonical(gradient, flipped, (1, 1), back, strides)
    # The batch takes the channels' place: images [C, H, W, B] * gradient [H', W', B, O] -> [C, h, w, O].
    high = [k + d - 1 - n - low for k, (low, _), n, d in zip((h, w), pads, size, dilated, strict=True)]
    kernel_gradient = lax.conv_general_dilated(
        lax.optimization_barrier(images.transpose(3, 1, 2, 0)),
        lax.optimization_barrier(gradient.transpose(1, 2, 0, 3)),
        (1, 1),
        [(low, extra) for (low, _), extra in zip(pads, high, strict=True)],
        rhs_dilation=strides,
        dimension_numbers=LAYOUT,
    )
    return images_gradient, kernel_gradient.transpose(1, 2, 0, 3)


def _gradients_pointwise(strides, images, kernel, gradient):
    """The gradients of a 1x1 convolution: two matrix products over [B * H' * W']."""
    seen = images[:, :: strides[0], :: strides[1]]
    flat = gradient.reshape(-1, gradient.shape[-1])
    kernel_gradient = (seen.reshape(-1, seen.shape[-1]).T @ flat).reshape(kernel.shape)
    seen_gradient = (flat @ kernel[0, 0].T).reshape(seen.shape)
    (in_h, in_w), (out_h, out_w) = images.shape[1:3], seen.shape[1:3]
    rest = [n - (out - 1) * stride - 1 for n, out, stride in zip((in_h, in_w), (out_h, out_w), strides, strict=True)]
    inner = [(0, extra, stride - 1) for extra, stride in zip(rest, strides, strict=True)]
    return lax.pad(seen_gradient, jnp.zeros((), gradient.dtype), [(0, 0, 0), *inner, (0, 0, 0)]), kernel_gradient


def depthwise_convolution(
    images: Array, kernel: Array, strides: tuple[int, int] = (1, 1), padding: Padding = "SAME"
) -> Array:
    """images [B, H, W, C] * kernel [h, w, 1, C], each channel with its own filter -> [B, H', W', C].

    A sum of shifted products, in the gradients too. The library's grouped convolution is no alternative on the CPU:
    forward and backward in a scan took 8,071 ms where this takes 24 (32 images of 32x32x96, 3x3), and 43,600 where this
    takes 32 (16x16x256, 5x5); the gradients that autodiff makes of the same sum took 38 and 46 (2 cores, busy).
    """
    pads = _pads(padding, images.shape[1:3], kernel.shape[:2], strides)
    if _plain.value:
        groups = kernel.shape[-1]
        return lax.conv_general_dilated(
            images, kernel, strides, pads, dimension_numbers=LAYOUT, feature_group_count=groups
        )
    return _depthwise(strides, pads, images, kernel)


def _shifted_products(strides, images, kernel):
    """The depthwise convolution of images that are padded already, summed in float32."""
    slices = _slices(kernel.shape[:2], strides, images)
    filters = kernel.reshape(-1, kernel.shape[-1]).astype(jnp.float32)
    return sum(seen * weight for seen, weight in zip(slices, filters, strict=True)).astype(images.dtype)


def _padded(images, sides):
    return lax.pad(images, jnp.zeros((), images.dtype), [(0, 0, 0), *sides, (0, 0, 0)])


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _depthwise(strides: tuple[int, int], pads: tuple[tuple[int, int], ...], images: Array, kernel: Array) -> Array:
    return _shifted_products(strides, _padded(images, [(low, high, 0) for low, high in pads]), kernel)


def _depthwise_forward(strides, pads, images, kernel):
    return _depthwise(strides, pads, images, kernel), (images, kernel)


def _depthwise_backward(strides, pads, saved, gradient):
    images, kernel = saved
    slices = _slices(kernel.shape[:2], strides, _padded(images, [(low, high, 0) for low, high in pads]))
    kernel_gradient = [jnp.sum(seen * gradient, (0, 1, 2), dtype=jnp.float32) for seen in slices]
    # The gradient, dilated by the strides and padded so that the full correlation gives back every input pixel.
    sides = [
        (k - 1 - low, n + low - (out - 1) * stride - 1, stride - 1)
        for k, (low, _), n, out, stride in zip(
            kernel.shape[:2], pads, images.shape[1:3], gradient.shape[1:3], strides, strict=True
        )
    ]
    images_gradient = _shifted_products((1, 1), _padded(gradient, sides), jnp.flip(kernel, (0, 1)))
    return images_gradient, jnp.stack(kernel_gradient).reshape(kernel.shape).astype(kernel.dtype)


_depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def max_pool(
    images: Array, window: tuple[int, int] = (2, 2), strides: tuple[int, int] | None = None, padding: Padding = "VALID"
) -> Array:
    """Largest value of each window of images [B, H, W, C]; among equals the first takes the whole gradient."""
    strides = strides or window
    pads = _pads(padding, images.shape[1:3], window, strides)
    if _plain.value:
        return _reduce_windows(lax.max, -jnp.inf, images, window, strides, pads)
    if any(pad != (0, 0) for pad in pads):
        lowest = jnp.array(-jnp.inf, images.dtype)
        images = lax.pad(images, lowest, [(0, 0, 0), *[(low, high, 0) for low, high in pads], (0, 0, 0)])
    return _max_pool(window, strides, images)


def _reduce_windows(reduce, start, images, window, strides, pads):
    """lax.reduce_window over the height and the width."""
    shape, steps, sides = (1, *window, 1), (1, *strides, 1), ((0, 0), *pads, (0, 0))
    return lax.reduce_window(images, jnp.array(start, images.dtype), reduce, shape, steps, sides)


def _slices(window, strides, images):
    """The window's positions in row-major order, each as the strided slice [B, H', W', C] that it sees."""
    out_h, out_w = ((n - k) // s + 1 for n, k, s in zip(images.shape[1:3], window, strides, strict=True))
    for i in range(window[0]):
        for j in range(window[1]):
            stop_i, stop_j = i + (out_h - 1) * strides[0] + 1, j + (out_w - 1) * strides[1] + 1
            yield images[:, i : stop_i : strides[0], j : stop_j : strides[1]]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _max_pool(window, strides, images):
    first, *others = _slices(window, strides, images)
    for other in others:
        first = jnp.maximum(first, other)
    return first


def _max_pool_forward(window, strides, images):
    largest, *others = _slices(window, strides, images)
    kind = jnp.int8 if window[0] * window[1] <= 128 else jnp.int32
    first = jnp.zeros(largest.shape, kind)  # which position won
    for position, other in enumerate(others, start=1):
        first = jnp.where(other > largest, kind(position), first)
        largest = jnp.maximum(largest, other)
    return largest, (first, images.shape)


def _max_pool_backward(window, strides, saved, gradient):
    first, shape = saved
    zero = jnp.zeros((), gradient.dtype)
    if window == strides:  # each pixel is seen once: repeat, and keep where the pixel's position is the winner's
        repeat = lambda x: jnp.repeat(jnp.repeat(x, window[0], 1), window[1], 2)
        height, width = (n * k for n, k in zip(first.shape[1:3], window, strict=True))
        position = (jnp.arange(height) % window[0])[:, None] * window[1] + jnp.arange(width) % window[1]
        kept = jnp.where(repeat(first) == position[..., None].astype(first.dtype), repeat(gradient), zero)
        return (lax.pad(kept, zero, [(0, 0, 0), (0, shape[1] - height, 0), (0, shape[2] - width, 0), (0, 0, 0)]),)
    total = jnp.zeros(shape, gradient.dtype)
    for position in range(window[0] * window[1]):
        total += lax.pad(
            jnp.where(first == position, gradient, zero), zero, _scatter(position, window, strides, first.shape, shape)
        )
    return (total,)


def _scatter(position, window, strides, inner, outer):
    """lax.pad's configuration that puts [B, H', W', C] where the window's position sees it in [B, H, W, C]."""
    offsets = divmod(position, window[1])
    sides = [
        (offset, n - offset - (m - 1) * stride - 1, stride - 1)
        for offset, m, n, stride in zip(offsets, inner[1:3], outer[1:3], strides, strict=True)
    ]
    return [(0, 0, 0), *sides, (0, 0, 0)]


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def average_pool(
    images: Array, window: tuple[int, int] = (2, 2), strides: tuple[int, int] | None = None, padding: Padding = "VALID"
) -> Array:
    """Mean of each window of images [B, H, W, C]; padding counts as zeros."""
    strides = strides or window
    pads = _pads(padding, images.shape[1:3], window, strides)
    if _plain.value:
        return _reduce_windows(lax.add, 0, images, window, strides, pads) / (window[0] * window[1])
    if any(pad != (0, 0) for pad in pads):
        images = jnp.pad(images, [(0, 0), *pads, (0, 0)])
    return sum(_slices(window, strides, images)) / (window[0] * window[1])


def adaptive_average_pool(images: Array, size: tuple[int, int]) -> Array:
    """images [B, H, W, C] -> [B, *size, C]: row i of n is the mean of the rows from floor(i H / n) to
    ceil((i + 1) H / n) - 1. Windows overlap where n does not divide H, and repeat rows where H is smaller.
    """
    for axis, count in enumerate(size, start=1):
        length = images.shape[axis]
        if length != count:
            spans = [(i * length // count, -(-(i + 1) * length // count)) for i in range(count)]
            means = [jnp.mean(lax.slice_in_dim(images, *span, axis=axis), axis) for span in spans]
            images = jnp.stack(means, axis)
    return images


def normalised(epsilon: float, x: Array, scale: Array, bias: Array) -> tuple[Array, Array, Array]:
    """x [..., C] to mean 0 and variance 1 in each channel, times scale [C], plus bias [C]; and both statistics."""
    return (_normalise if _plain.value else _normalised)(epsilon, x, scale, bias)


def _normalise(epsilon, x, scale, bias):
    axes = tuple(range(x.ndim - 1))
    wide = x.astype(jnp.float32)
    mean = wide.mean(axes)
    variance = jnp.maximum(jnp.square(wide).mean(axes) - jnp.square(mean), 0.0)
    outputs = (wide - mean) * (lax.rsqrt(variance + epsilon) * scale) + bias
    return outputs.astype(x.dtype), mean, variance


_normalised = jax.custom_vjp(_normalise, nondiff_argnums=(0,))


def _normalised_forward(epsilon, x, scale, bias):
    outputs, mean, variance = _normalised(epsilon, x, scale, bias)
    return (outputs, mean, variance), (x, scale, mean, variance)


def _normalised_backward(epsilon, saved, gradients):
    x, scale, mean, variance = saved
    gradient = gradients[0].astype(jnp.float32)  # nothing is trained through the statistics
    axes, count = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
    inverse = lax.rsqrt(variance + epsilon)
    centred = x.astype(jnp.float32) - mean
    bias_gradient, scale_gradient = gradient.sum(axes), (gradient * centred).sum(axes) * inverse
    x_gradient = gradient - bias_gradient / count - centred * (inverse * scale_gradient / count)
    return (x_gradient * (inverse * scale)).astype(x.dtype), scale_gradient, bias_gradient


_normalised.defvjp(_normalised_forward, _normalised_backward)
