"""Corruptions of images in the manner of CIFAR-10-C (Hendrycks & Dietterich 2019, arXiv 1903.12261), at severities 1
to 5, with the parameters that their script uses for images of 32x32.

A corruption takes (key, images float32 [B, H, W, C] in 0..1, parameters of one severity) and gives images in 0..1.
Of their 19, these are left out: fog, frost, snow, spatter, glass_blur and elastic_transform, which need pictures or
loops over pixels. `jpeg_compression` runs on the host (see runs/robustness.py).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

LEFT_OUT = ("fog", "frost", "snow", "spatter", "glass_blur", "elastic_transform")
SEVERITIES = (1, 2, 3, 4, 5)


def gaussian_noise(key: Array, images: Array, deviation: float) -> Array:
    return images + deviation * jax.random.normal(key, images.shape)


def shot_noise(key: Array, images: Array, photons: float) -> Array:
    """Counts of photons, Poisson; `photons` is the mean count of white.

    An image of 8 bits has 256 means, so that a count is looked up in the distribution of its mean: the number of counts
    whose cumulative probability a uniform number reaches. jax.random.poisson takes at least 28 times the
    processor's time (benchmarks/results/shot_noise.json).
    """
    counts = int(photons + 9 * photons**0.5) + 9  # beyond them lies less than float32 resolves
    count, mean = np.arange(counts), np.arange(256)[:, None] / 255 * photons
    log_factorial = np.cumsum(np.log(np.maximum(count, 1)))
    probability = np.exp(count * np.log(np.maximum(mean, 1e-300)) - mean - log_factorial)
    cumulative = np.cumsum(probability, -1).astype(np.float32)
    row = jnp.round(images * 255).astype(jnp.int32) * counts
    uniform = jax.random.uniform(key, images.shape, images.dtype)

    def refine(step: Array, found: Array) -> Array:
        """A bisection: `found` counts are reached, and perhaps `2**bit` more."""
        more = found + (1 << (counts.bit_length() - 1 - step))
        reached = jnp.asarray(cumulative.ravel())[row + jnp.minimum(more, counts) - 1] <= uniform
        return jnp.where(reached & (more <= counts), more, found)

    found = jax.lax.fori_loop(0, counts.bit_length(), refine, jnp.zeros_like(row))
    return found.astype(images.dtype) / photons


def impulse_noise(key: Array, images: Array, amount: float) -> Array:
    """Salt and pepper: this share of the values becomes 0 or 1."""
    hit_key, salt_key = jax.random.split(key)
    hit = jax.random.bernoulli(hit_key, amount, images.shape)
    return jnp.where(hit, jax.random.bernoulli(salt_key, 0.5, images.shape).astype(images.dtype), images)


def speckle_noise(key: Array, images: Array, deviation: float) -> Array:
    return images + images * deviation * jax.random.normal(key, images.shape)


def gaussian_blur(_: Array, images: Array, deviation: float) -> Array:
    """`deviation` in pixels; four of them wide, and the border's pixels continue outside."""
    radius = int(4 * deviation + 0.5)
    return _filter(images, np.outer(*[_gaussian(np.arange(-radius, radius + 1), deviation)] * 2), "edge")


def defocus_blur(_: Array, images: Array, radius: float, deviation: float) -> Array:
    """A disk of `radius` pixels, softened by a Gaussian of 3x3."""
    at = np.arange(-8, 9)
    disk = (at[:, None] ** 2 + at**2 <= radius**2).astype(float)
    soft = np.outer(*[_gaussian(np.arange(-1, 2), deviation)] * 2)
    kernel = sum(soft[i, j] * np.roll(disk, (i - 1, j - 1), (0, 1)) for i in range(3) for j in range(3))
    used = int(radius) + 1
    return _filter(images, (kernel / kernel.sum())[8 - used : 9 + used, 8 - used : 9 + used], "reflect")


def motion_blur(key: Array, images: Array, radius: int, deviation: float) -> Array:
    """Along a line at an angle of -45 to 45 degrees that each image draws; the line goes one way from each pixel."""
    _, height, width, _ = images.shape
    weights = _gaussian(np.arange(2 * radius + 1), deviation)
    angles = jax.random.uniform(key, (len(images),), minval=-math.pi / 4, maxval=math.pi / 4)

    def blur(image: Array, angle: Array) -> Array:
        total = jnp.zeros_like(image)
        for step, weight in enumerate(weights):
            row = jnp.clip(jnp.arange(height) + jnp.round(step * jnp.sin(angle)).astype(int), 0, height - 1)
            column = jnp.clip(jnp.arange(width) + jnp.round(step * jnp.cos(angle)).astype(int), 0, width - 1)
            total += weight * image[row[:, None], column[None]]
        return total

    return jax.vmap(blur)(images, angles)


def zoom_blur(_: Array, images: Array, largest: float) -> Array:
    """The mean of the image and of its enlargements about the centre, by 1, 1.01, ... below `largest`."""
    factors = np.arange(1, largest, 0.01)
    size = np.array(images.shape[1:3])
    total = images
    for factor in factors:
        shift = jnp.asarray(size * (1 - factor) / 2, images.dtype)
        scale = jnp.asarray([factor, factor], images.dtype)
        total += jax.image.scale_and_translate(images, images.shape, (1, 2), scale, shift, "linear", antialias=False)
    return total / (len(factors) + 1)


def brightness(_: Array, images: Array, added: float) -> Array:
    """Adds to the value of HSV; hue and saturation stay."""
    value = images.max(-1, keepdims=True)
    brighter = jnp.minimum(value + added, 1)
    return jnp.where(value > 0, images * brighter / jnp.maximum(value, 1e-6), brighter)


def contrast(_: Array, images: Array, factor: float) -> Array:
    """Multiplies the distance from the mean of each channel."""
    means = images.mean((1, 2), keepdims=True)
    return (images - means) * factor + means


def saturate(_: Array, images: Array, factor: float, added: float) -> Array:
    """Multiplies the saturation of HSV and adds to it; hue and value stay. A grey pixel has the hue of red."""
    value = images.max(-1, keepdims=True)
    missing = value - images  # value * saturation, in the channels that a pure colour has not
    saturation = missing.max(-1, keepdims=True) / jnp.maximum(value, 1e-6)
    wanted = jnp.clip(saturation * factor + added, 0, 1)
    red = jnp.broadcast_to(jnp.asarray([0.0] + [1.0] * (images.shape[-1] - 1), images.dtype), images.shape)
    shape = jnp.where(saturation > 0, missing / jnp.maximum(value * saturation, 1e-6), red)
    return value - value * wanted * shape


def pixelate(_: Array, images: Array, factor: float) -> Array:
    """Means over boxes of 1 / factor pixels, enlarged again."""
    sizes = images.shape[1:3]
    there = [_boxes(size, int(size * factor)) for size in sizes]
    back = [_boxes(int(size * factor), size) for size in sizes]
    rows, columns = (jnp.asarray(up @ down, images.dtype) for up, down in zip(back, there, strict=True))
    return jnp.einsum("hi,wj,bijc->bhwc", rows, columns, images, precision="highest")


class Corruption(NamedTuple):
    function: Callable[..., Array]
    parameters: tuple[tuple[Any, ...], ...]  # of the five severities


def _one(*values: float) -> tuple[tuple[float], ...]:
    return tuple((value,) for value in values)


CORRUPTIONS = {
    "gaussian_noise": Corruption(gaussian_noise, _one(0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot_noise": Corruption(shot_noise, _one(500, 250, 100, 75, 50)),
    "impulse_noise": Corruption(impulse_noise, _one(0.01, 0.02, 0.03, 0.05, 0.07)),
    "speckle_noise": Corruption(speckle_noise, _one(0.06, 0.1, 0.12, 0.16, 0.2)),
    "gaussian_blur": Corruption(gaussian_blur, _one(0.4, 0.6, 0.7, 0.8, 1.0)),
    "defocus_blur": Corruption(defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))),
    "motion_blur": Corruption(motion_blur, ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))),
    "zoom_blur": Corruption(zoom_blur, _one(1.06, 1.11, 1.16, 1.21, 1.26)),
    "brightness": Corruption(brightness, _one(0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": Corruption(contrast, _one(0.75, 0.5, 0.4, 0.3, 0.15)),
    "saturate": Corruption(saturate, ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2))),
    "pixelate": Corruption(pixelate, _one(0.95, 0.9, 0.85, 0.75, 0.65)),
}


def corrupt(name: str, severity: int, key: Array, images: Array) -> Array:
    """uint8 [B, H, W, C] -> uint8 [B, H, W, C], rounded down as in CIFAR-10-C."""
    corruption = CORRUPTIONS[name]
    changed = corruption.function(key, images.astype(jnp.float32) / 255, *corruption.parameters[severity - 1])
    return jnp.floor(jnp.clip(changed, 0, 1) * 255 + 1e-3).astype(jnp.uint8)  # 1e-3: k / 255 * 255 may round below k


def _gaussian(at: np.ndarray, deviation: float) -> np.ndarray:
    weights = np.exp(-(at**2) / (2 * deviation**2))
    return weights / weights.sum()


def _filter(images: Array, kernel: np.ndarray, border: str) -> Array:
    """Each channel filtered with the kernel [K, K], as shifted sums: few channels, so no convolution pays."""
    radius = len(kernel) // 2
    padded = jnp.pad(images, ((0, 0), (radius, radius), (radius, radius), (0, 0)), mode=border)
    _, height, width, _ = images.shape
    total = jnp.zeros_like(images)
    for row, column in zip(*np.nonzero(kernel), strict=True):
        total += float(kernel[row, column]) * padded[:, row : row + height, column : column + width]
    return total


def _boxes(size: int, boxes: int) -> np.ndarray:
    """[boxes, size]: Pillow's box filter, the mean of the pixels whose centres lie in each box."""
    scale = size / boxes
    distance = (np.arange(size) + 0.5 - (np.arange(boxes)[:, None] + 0.5) * scale) / max(1, scale)
    inside = ((distance > -0.5) & (distance <= 0.5)).astype(float)
    return inside / inside.sum(-1, keepdims=True)
