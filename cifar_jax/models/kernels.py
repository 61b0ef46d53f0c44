"""Convolution, pooling, batch normalisation and GELU with custom gradients that are fast on every backend.

XLA's CPU compiler has fast convolutions only for the canonical layouts (images NHWC, kernels HWIO). Inside a loop the
gradients that autodiff derives have other layouts and run 16 to 80 times slower (jax issue 12868). The gradient of
`reduce_window` becomes select-and-scatter, which is 20 times slower than the pooling below. Convolution and pooling
therefore define their gradients with `jax.custom_vjp`. Batch normalisation and GELU do so too, because they then read
and write less memory. On other platforms the convolution keeps the gradients of autodiff, which XLA maps to cuDNN.

JAX has no forward-mode derivative of a `custom_vjp` function; `forward_mode` replaces them by plain operations.
"""

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Array = jax.Array
Padding = str | Sequence[tuple[int, int]]

LAYOUT = ("NHWC", "HWIO", "NHWC")

_plain = jax.make_user_context(False)  # a part of the keys of JAX's caches: functions traced before are traced again


@contextlib.contextmanager
def forward_mode() -> Iterator[None]:
    """A context in which the models are traced with plain operations, so that forward-mode derivatives work.

    Use it for `jax.jvp`, `jax.linearize`, `jax.jacfwd`, and Hessian-vector products by forward-over-reverse:

        with forward_mode():
            _, product = jax.jvp(jax.grad(loss), (params,), (vector,))

    Without it JAX raises TypeError: "can't apply forward-mode autodiff (jvp) to a custom_vjp function." The results
    agree with those of the normal kernels up to rounding. Training is slower: see the times in this module.

    The context applies to what the current thread traces inside it. A function that was jitted and called outside is
    traced again, and traced normally again afterwards; a program that was compiled ahead of time (`lower`, `compile`)
    stays as it is. Pooling becomes `reduce_window` and the depthwise convolution a grouped one, the forms that
    exporters recognise.
    """
    with _plain(True):
        yield


def at_least_float32(dtype: Any) -> Any:
    """float32, or float64 for float64: the dtype of parameters, statistics, sums and logits of a model in `dtype`."""
    return jnp.promote_types(dtype, jnp.float32)


def gelu(x: Array) -> Array:
    """x times the normal distribution's cumulative function (Hendrycks & Gimpel 2016), exact, as in PyTorch."""
    return jax.nn.gelu(x, approximate=False) if _plain.value else _gelu(x)


@jax.custom_vjp
def _gelu(x: Array) -> Array:
    return jax.nn.gelu(x, approximate=False)


def _gelu_backward(x, gradient):
    """The derivative from x alone, where autodiff saves a second array of the same size. The barrier makes XLA store
    the result in the dtype of x; otherwise it would keep it in float32."""
    wide = x.astype(at_least_float32(x.dtype))
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
    """`lax.conv_general_dilated` in the fast layout; `dilation` is that of the images.

    Images smaller than the window are padded first, followed by a barrier, because XLA's CPU compiler is slow where the
    convolution itself pads such images: 547 ms instead of 7.5 ms for 64 images of 2x2x512 and a window of 3x3. VGG-16
    ends in three such convolutions.
    """
    if any(n < k for n, k in zip(images.shape[1:3], kernel.shape[:2], strict=True)):
        sides = [(low, high, step - 1) for (low, high), step in zip(pads, dilation, strict=True)]
        images = lax.optimization_barrier(_padded(images, sides))
        pads, dilation = ((0, 0), (0, 0)), (1, 1)
    return lax.conv_general_dilated(images, kernel, strides, pads, lhs_dilation=dilation, dimension_numbers=LAYOUT)


def _kept(images: Array) -> Array:
    """The identity, in a form that makes XLA's CPU compiler store the result once.

    The compiler duplicates chains of elementwise operations that end in ReLU into each of their uses, for example into
    the transposes of the filter gradient. It does not duplicate this select. The step of ResNet-18 takes 0.86 of the
    time; that of smaller networks does not change (2 cores, interleaved, n=4).
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
        groups = images.shape[-1]
        return lax.conv_general_dilated(
            images, kernel, strides, pads, dimension_numbers=LAYOUT, feature_group_count=groups
        )
    return _depthwise(strides, pads, images, kernel)


def _shifted_products(strides, images, kernel):
    """The depthwise convolution of images that are padded already, summed in at least float32."""
    slices = _slices(kernel.shape[:2], strides, images)
    filters = kernel.reshape(-1, kernel.shape[-1]).astype(at_least_float32(images.dtype))
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
    sums = at_least_float32(images.dtype)
    kernel_gradient = [jnp.sum(seen * gradient, (0, 1, 2), dtype=sums) for seen in slices]
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
        return _plain_max_pool(window, strides, pads, images)
    return _max_pool(window, strides, _padded_by(-jnp.inf, pads, images))


def _padded_by(value, pads, images):
    if all(pad == (0, 0) for pad in pads):
        return images
    sides = [(low, high, 0) for low, high in pads]
    return lax.pad(images, jnp.array(value, images.dtype), [(0, 0, 0), *sides, (0, 0, 0)])


def _slices(window, strides, images):
    """The window's positions in row-major order, each as the strided slice [B, H', W', C] that it sees."""
    out_h, out_w = ((n - k) // s + 1 for n, k, s in zip(images.shape[1:3], window, strides, strict=True))
    for i in range(window[0]):
        for j in range(window[1]):
            stop_i, stop_j = i + (out_h - 1) * strides[0] + 1, j + (out_w - 1) * strides[1] + 1
            yield images[:, i : stop_i : strides[0], j : stop_j : strides[1]]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _max_pool(window, strides, images):
    """Where no gradient is taken. XLA's CPU compiler writes the windows' slices as arrays of their own: with them `cnn`
    took 0.38 ms of processor time an image, and 0.28 with this (batches of 64, float32, medians of n=15)."""
    return _reduce_window(lax.max, -jnp.inf, window, strides, ((0, 0), (0, 0)), images)


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


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _plain_max_pool(window, strides, pads, images):
    return _reduce_window(lax.max, -jnp.inf, window, strides, pads, images)


@_plain_max_pool.defjvp
def _plain_max_pool_derivative(window, strides, pads, images, tangents):
    """The tangent of the first largest value, exactly. The derivative of `reduce_window` is not exact: it rounds
    tangents in float64, and chooses among equal values by their tangents."""
    _, (first, _) = _max_pool_forward(window, strides, _padded_by(-jnp.inf, pads, images[0]))
    seen = _slices(window, strides, _padded_by(0, pads, tangents[0]))
    return _plain_max_pool(window, strides, pads, images[0]), lax.select_n(first.astype(jnp.int32), *seen)


def _reduce_window(operation, start, window, strides, pads, images):
    start = np.array(start, images.dtype)  # a constant: JAX then knows the operation, and its derivative
    dimensions = (1, *window, 1), (1, *strides, 1), ((0, 0), *pads, (0, 0))
    return lax.reduce_window(images, start, operation, *dimensions)


def average_pool(
    images: Array, window: tuple[int, int] = (2, 2), strides: tuple[int, int] | None = None, padding: Padding = "VALID"
) -> Array:
    """Mean of each window of images [B, H, W, C]; padding counts as zeros."""
    strides = strides or window
    pads = _pads(padding, images.shape[1:3], window, strides)
    if _plain.value:
        return _reduce_window(lax.add, 0, window, strides, pads, images) / (window[0] * window[1])
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
    """x [..., C] with mean 0 and variance 1 in each channel, times scale [C], plus bias [C]; and mean and variance [C].

    The returned mean and variance are constants to differentiation: nothing is trained through running statistics.
    """
    if _plain.value:
        outputs, *statistics = _plain_normalised(epsilon, x, scale, bias)
        return outputs, *map(lax.stop_gradient, statistics)
    return _normalised(epsilon, x, scale, bias)


def _plain_normalised(epsilon, x, scale, bias):
    axes = tuple(range(x.ndim - 1))
    wide = x.astype(at_least_float32(x.dtype))
    mean = wide.mean(axes)
    variance = jnp.maximum(jnp.square(wide).mean(axes) - jnp.square(mean), 0.0)
    outputs = (wide - mean) * (lax.rsqrt(variance + epsilon) * scale) + bias
    return outputs.astype(x.dtype), mean, variance


_normalised = jax.custom_vjp(_plain_normalised, nondiff_argnums=(0,))


def _normalised_forward(epsilon, x, scale, bias):
    """Plain operations: the saved statistics depend on x, and a second derivative goes through them."""
    outputs, mean, variance = _plain_normalised(epsilon, x, scale, bias)
    return (outputs, mean, variance), (x, scale, mean, variance)


def _normalised_backward(epsilon, saved, gradients):
    x, scale, mean, variance = saved
    gradient = gradients[0].astype(mean.dtype)  # nothing is trained through the statistics
    axes, count = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
    inverse = lax.rsqrt(variance + epsilon)
    centred = x.astype(mean.dtype) - mean
    bias_gradient, scale_gradient = gradient.sum(axes), (gradient * centred).sum(axes) * inverse
    x_gradient = gradient - bias_gradient / count - centred * (inverse * scale_gradient / count)
    return (x_gradient * (inverse * scale)).astype(x.dtype), scale_gradient, bias_gradient


_normalised.defvjp(_normalised_forward, _normalised_backward)
