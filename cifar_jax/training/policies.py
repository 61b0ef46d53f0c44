"""RandAugment and TrivialAugment: a batch in which every image takes an operation of its own.

Evaluating all fourteen operations on the batch and choosing afterwards would cost fourteen passes; branching for each
image would run one image after the other. But the operations are of three kinds only: a table of 256 values for each
channel, a blend with another picture, and an affine map. Each image goes through one of each kind, which does nothing
to it unless its operation is of that kind. The operations are Pillow's, in 8 bits as in the papers; what enters from
outside an image is the mean of the data.
"""

from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array

# The name, the largest amount in RandAugment and in TrivialAugment (its "wide" space), and whether a coin decides the
# sign of the amount. The ranges are those of torchvision.transforms, which agree with the papers.
OPERATIONS = (
    ("identity", 0.0, 0.0, False),
    ("shear_x", 0.3, 0.99, True),  # columns a row
    ("shear_y", 0.3, 0.99, True),  # rows a column
    ("translate_x", 150 / 331, 1.0, True),  # widths
    ("translate_y", 150 / 331, 1.0, True),  # heights
    ("rotate", 30.0, 135.0, True),  # degrees
    ("brightness", 0.9, 0.99, True),  # factor - 1
    ("color", 0.9, 0.99, True),  # factor - 1
    ("contrast", 0.9, 0.99, True),  # factor - 1
    ("sharpness", 0.9, 0.99, True),  # factor - 1
    ("posterize", 4.0, 6.0, False),  # bits taken away
    ("solarize", 1.0, 1.0, False),  # the share of the 256 values, from the bright end, that is inverted
    ("autocontrast", 0.0, 0.0, False),
    ("equalize", 0.0, 0.0, False),
)
NUMBER = {name: number for number, (name, *_) in enumerate(OPERATIONS)}
OPERATIONS_AN_IMAGE = 2  # RandAugment's N, of Cubuk et al.'s table for CIFAR-10 (1 to 3)
LARGEST_MAGNITUDE = 10  # of RandAugment's scale, at which an operation reaches its largest amount
BINS = 31  # magnitudes that TrivialAugment draws from


def randaugment(key: Array, images: Array, magnitude: float, mean: Any = (0.5,)) -> Array:
    """Cubuk et al. 2020: two operations an image, each drawn evenly, all of one magnitude (0 to 10)."""
    if not magnitude:  # at which autocontrast and equalize would still act
        return images
    largest = jnp.array([largest for _, largest, _, _ in OPERATIONS])

    def one(images, key):
        operation_key, sign_key = jax.random.split(key)
        operation = jax.random.randint(operation_key, images.shape[:1], 0, len(OPERATIONS))
        amount = largest[operation] * magnitude / LARGEST_MAGNITUDE * _signs(sign_key, operation)
        return apply(operation, amount, images, mean), None

    return jax.lax.scan(one, images, jax.random.split(key, OPERATIONS_AN_IMAGE))[0]


def trivial_augment(key: Array, images: Array, strength: float, mean: Any = (0.5,)) -> Array:
    """Müller & Hutter 2021, wide: one operation an image, drawn evenly, and its magnitude too, times `strength`."""
    if not strength:  # as above
        return images
    operation_key, magnitude_key, sign_key = jax.random.split(key, 3)
    operation = jax.random.randint(operation_key, images.shape[:1], 0, len(OPERATIONS))
    magnitude = jax.random.randint(magnitude_key, images.shape[:1], 0, BINS) / (BINS - 1)
    largest = jnp.array([largest for _, _, largest, _ in OPERATIONS])[operation]
    return apply(operation, strength * magnitude * largest * _signs(sign_key, operation), images, mean)


def _signs(key: Array, operation: Array) -> Array:
    """-1 or 1 for each image, by a coin where its operation has a sign."""
    signed = jnp.array([signed for *_, signed in OPERATIONS])[operation]
    return jnp.where(signed & jax.random.bernoulli(key, shape=operation.shape), -1.0, 1.0)


def apply(operation: Array, amount: Array, images: Array, mean: Any = (0.5,)) -> Array:
    """To each of images [B, H, W, C] in 0..1 its operation [B] (a number of OPERATIONS) by its amount [B]."""
    batch, height, width, channels = images.shape
    values = jnp.round(images * 255).astype(jnp.int32).reshape(batch, height * width, channels)
    values = _look_up(_tables(operation, amount, values), values)
    values = _blended(operation, amount, values.reshape(images.shape))
    mapped = _mapped(operation, amount, values, jnp.round(jnp.asarray(mean, images.dtype) * 255))
    return mapped.astype(images.dtype) / 255


def _look_up(table: Array, index: Array) -> Array:
    """table [B, N, C or 1] at index [B, M, C or 1] -> [B, M, C]; the indices are within."""
    return jnp.take_along_axis(table, index, axis=1, mode="clip")


def grey(images: Array) -> Array:
    """[B, ..., C] -> [B, ..., 1]: the luma of ITU-R 601 of three channels, as Pillow has it, else their mean."""
    if images.shape[-1] != 3:
        return images.mean(-1, keepdims=True)
    return 0.299 * images[..., :1] + 0.587 * images[..., 1:2] + 0.114 * images[..., 2:]


def _tables(operation: Array, amount: Array, values: Array) -> Array:
    """What becomes of each of the 256 values: float [B, 256, C], whole numbers in 0..255. values: int [B, H W, C]."""
    batch, pixels, channels = values.shape
    value = jnp.arange(256.0)[:, None]  # [256, 1]; every image adds a first dimension, every channel a last
    factor = (1 + amount)[:, None, None]
    # Whole numbers, which XLA adds up in 0.1 ms on the CPU; floats take 1.9 (a batch of 128).
    mean = jnp.floor((grey(values) + 0.5).astype(jnp.int32).sum(1, keepdims=True) / pixels + 0.5)
    low, high = values.min(1, keepdims=True), values.max(1, keepdims=True)
    step = 2.0 ** jnp.round(amount)[:, None, None]
    counts = jnp.zeros((batch, 256, channels), jnp.int32)
    counts = counts.at[jnp.arange(batch)[:, None, None], values, jnp.arange(channels)].add(1)
    # Pillow's share of each output value: all pixels but those of the brightest value, over 255.
    share = (pixels - _look_up(counts, high)) // 255
    below = jnp.cumsum(counts, 1) - counts
    tables = {
        "brightness": value * factor,
        "contrast": mean + factor * (value - mean),
        "posterize": value - value % step,
        "solarize": jnp.where(value < 256 * (1 - amount)[:, None, None], value, 255 - value),
        "autocontrast": jnp.where(high > low, (value - low) * (255 / jnp.maximum(high - low, 1)), value),
        "equalize": jnp.where(share > 0, (share // 2 + below) // jnp.maximum(share, 1), value),
    }
    own = operation[:, None, None]
    shape = (batch, 256, channels)
    chosen = jnp.broadcast_to(value, shape)
    for name, table in tables.items():
        chosen = jnp.where(own == NUMBER[name], jnp.broadcast_to(table, shape), chosen)
    return jnp.floor(jnp.clip(chosen, 0, 255) + 1e-4)  # 254.99999 is 255, whose rounding error is not Pillow's


def _blended(operation: Array, amount: Array, values: Array) -> Array:
    """other + factor * (values - other) with the grey or the smoothed picture, for color and sharpness."""
    own = operation[:, None, None, None]
    wide = jnp.pad(values, [(0, 0), (1, 1), (1, 1), (0, 0)])
    rows = wide[:, :-2] + wide[:, 1:-1] + wide[:, 2:]
    box = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    border = lambda size: jnp.isin(jnp.arange(size), jnp.array([0, size - 1]))
    inner = ~(border(values.shape[1])[:, None, None] | border(values.shape[2])[:, None])
    smooth = jnp.where(inner, jnp.floor((box + 4 * values) / 13 + 0.5), values)  # Pillow leaves the border
    other = jnp.where(own == NUMBER["color"], jnp.floor(grey(values) + 0.5), smooth)
    blend = jnp.floor(jnp.clip(other + (1 + amount)[:, None, None, None] * (values - other), 0, 255) + 1e-4)
    return jnp.where((own == NUMBER["color"]) | (own == NUMBER["sharpness"]), blend, values)


def _mapped(operation: Array, amount: Array, values: Array, fill: Array) -> Array:
    """Shears and translations about the corner, rotations about the centre; nearest pixel, `fill` from outside."""
    batch, height, width, channels = values.shape
    of = lambda name: jnp.where(operation == NUMBER[name], amount, 0.0)[:, None, None]
    row, column = jnp.arange(height)[:, None] + 0.5, jnp.arange(width) + 0.5
    cosine, sine = jnp.cos(jnp.deg2rad(of("rotate"))), jnp.sin(jnp.deg2rad(of("rotate")))
    down, right = row - height / 2, column - width / 2
    rows = height / 2 + cosine * down + sine * right + of("shear_y") * column - jnp.trunc(of("translate_y") * height)
    columns = width / 2 - sine * down + cosine * right + of("shear_x") * row - jnp.trunc(of("translate_x") * width)
    rows, columns = jnp.floor(rows).astype(jnp.int32), jnp.floor(columns).astype(jnp.int32)
    index = jnp.clip(rows, 0, height - 1) * width + jnp.clip(columns, 0, width - 1)
    moved = _look_up(values.reshape(batch, height * width, channels), index.reshape(batch, height * width, 1))
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    return jnp.where(inside[..., None], moved.reshape(values.shape), fill)
