"""Augmentation on the device, and the views of an image that an evaluation may average over.

An augmentation takes (key, images [B, H, W, C] in 0..1, strength) and treats each image on its own; a mixture takes
and returns the targets [B, classes] too. Both keep their dtype, float32 or float64. Values stay in 0..1, and at
strength 0 as they are. They run in the order of the tables.
"""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from cifar_jax.errors import InputError, nearest
from cifar_jax.training.policies import grey, randaugment, trivial_augment

Array = jax.Array

ERASED_AREA, ERASED_ASPECT, ERASING_TRIALS = (0.02, 0.4), (0.3, 1 / 0.3), 10  # Zhong et al. 2020, section 4.2


def flip(key: Array, images: Array, probability: float) -> Array:
    """Mirrors each image left to right with that probability."""
    mirrored = jax.random.bernoulli(key, probability, images.shape[:1])
    return jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)


def alternating_flip(key: Array, images: Array, on: int, index: Array, epoch: Array, coin: Array) -> Array:
    """Jordan 2024, section 3.6: mirrors half of the training set in even epochs and the other half in odd ones.

    `coin` is a key that is the same in all steps, `index` int32 [B] the images' positions in the training set.
    """
    tossed = jax.vmap(lambda position: jax.random.bernoulli(jax.random.fold_in(coin, position)))(index)
    mirrored = jnp.logical_and(on, tossed ^ (epoch % 2 == 1))
    return jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)


def vertical_flip(key: Array, images: Array, probability: float) -> Array:
    """Mirrors each image top to bottom with that probability."""
    mirrored = jax.random.bernoulli(key, probability, images.shape[:1])
    return jnp.where(mirrored[:, None, None, None], images[:, ::-1], images)


def crop(key: Array, images: Array, pixels: int) -> Array:
    """Shifts each image by -pixels..pixels along both axes; what enters is the image reflected at its border."""
    batch, height, width, _ = images.shape
    row_key, column_key = jax.random.split(key)
    row_shift = jax.random.randint(row_key, (batch, 1), -pixels, pixels + 1)
    column_shift = jax.random.randint(column_key, (batch, 1), -pixels, pixels + 1)
    rows = _reflect(jnp.arange(height) + row_shift, height)
    columns = _reflect(jnp.arange(width) + column_shift, width)
    return jax.vmap(lambda image, row, column: image[row[:, None], column[None]])(images, rows, columns)


def _reflect(index: Array, size: int) -> Array:
    """-1 -> 1, -2 -> 2, size -> size - 2: the border pixel itself is not repeated."""
    index %= max(2 * (size - 1), 1)  # the reflection of a reflection is the image again
    return jnp.minimum(index, 2 * (size - 1) - index)


def rotation(key: Array, images: Array, degrees: float) -> Array:
    """Turns each image about its centre by -degrees..degrees; bilinear, what enters is the image reflected."""
    _, height, width, _ = images.shape
    angle = jnp.deg2rad(_uniform(key, images, -degrees, degrees))[..., 0]  # [B, 1, 1]
    down, right = jnp.arange(height)[:, None] - (height - 1) / 2, jnp.arange(width) - (width - 1) / 2
    rows = jnp.cos(angle) * down + jnp.sin(angle) * right + (height - 1) / 2
    columns = jnp.cos(angle) * right - jnp.sin(angle) * down + (width - 1) / 2
    top, left = jnp.floor(rows), jnp.floor(columns)
    take = jax.vmap(lambda image, row, column: image[row, column])
    pixel = lambda row, column: take(
        images, _reflect(row.astype(jnp.int32), height), _reflect(column.astype(jnp.int32), width)
    )
    low, near = (rows - top)[..., None], (columns - left)[..., None]
    upper = (1 - near) * pixel(top, left) + near * pixel(top, left + 1)
    lower = (1 - near) * pixel(top + 1, left) + near * pixel(top + 1, left + 1)
    return jnp.clip((1 - low) * upper + low * lower, 0, 1)  # rounding may leave 0..1 by one unit in the last place


def _uniform(key: Array, images: Array, low: Any, high: Any) -> Array:
    """A number for each image, [B, 1, 1, 1]."""
    return jax.random.uniform(key, (len(images), 1, 1, 1), images.dtype, minval=low, maxval=high)


def brightness(key: Array, images: Array, strength: float) -> Array:
    """Multiplies each image by a factor in 1 - strength..1 + strength."""
    return jnp.clip(_uniform(key, images, 1 - strength, 1 + strength) * images, 0, 1)


def contrast(key: Array, images: Array, strength: float) -> Array:
    """Multiplies each image's distance from its mean grey by a factor in 1 - strength..1 + strength."""
    middle = grey(images).mean((1, 2, 3), keepdims=True)
    return jnp.clip(middle + _uniform(key, images, 1 - strength, 1 + strength) * (images - middle), 0, 1)


def saturation(key: Array, images: Array, strength: float) -> Array:
    """Multiplies each pixel's distance from its own grey by the image's factor in 1 - strength..1 + strength."""
    colourless = grey(images)
    return jnp.clip(colourless + _uniform(key, images, 1 - strength, 1 + strength) * (images - colourless), 0, 1)


def _rectangle(images: Array, top: Array, left: Array, bottom: Array, right: Array) -> Array:
    """True in rows top..bottom - 1 and columns left..right - 1 of each image; bounds int [B] -> bool [B, H, W, 1]."""
    row, column = jnp.arange(images.shape[1])[:, None, None], jnp.arange(images.shape[2])[:, None]
    top, left, bottom, right = (bound[:, None, None, None] for bound in (top, left, bottom, right))
    return (row >= top) & (row < bottom) & (column >= left) & (column < right)


def _centres(key: Array, images: Array) -> tuple[Array, Array]:
    """A pixel of each image: its row and its column, int [B]."""
    row_key, column_key = jax.random.split(key)
    batch, height, width, _ = images.shape
    return jax.random.randint(row_key, (batch,), 0, height), jax.random.randint(column_key, (batch,), 0, width)


def cutout(key: Array, images: Array, pixels: int, mean: Any = (0.5,)) -> Array:
    """DeVries & Taylor 2017: fills a square about any pixel, which may overlap the border, with the mean of the data.

    `mean` is data.mean, in 0..1; normalised, the square is 0.
    """
    row, column = _centres(key, images)
    top, left = row - pixels // 2, column - pixels // 2
    return jnp.where(
        _rectangle(images, top, left, top + pixels, left + pixels), jnp.asarray(mean, images.dtype), images
    )


def inner_cutout(key: Array, images: Array, pixels: int, mean: Any = (0.5,)) -> Array:
    """As `cutout`, but the square lies in the image, whose borders are covered less often than its middle (airbench96,
    Jordan 2024)."""
    batch, height, width, _ = images.shape
    row_key, column_key = jax.random.split(key)
    top = jax.random.randint(row_key, (batch,), 0, max(height - pixels, 0) + 1)
    left = jax.random.randint(column_key, (batch,), 0, max(width - pixels, 0) + 1)
    return jnp.where(
        _rectangle(images, top, left, top + pixels, left + pixels), jnp.asarray(mean, images.dtype), images
    )


def random_erasing(key: Array, images: Array, probability: float) -> Array:
    """Zhong et al. 2020, algorithm 1: replaces a rectangle by noise, an independent number for each value.

    Its area is 0.02..0.4 of the image, its height over its width 0.3..1/0.3. Of ten rectangles the first that lies in
    the image counts; an image where none does stays as it is.
    """
    batch, height, width, channels = images.shape
    whether_key, area_key, aspect_key, row_key, column_key, noise_key = jax.random.split(key, 6)
    draw = lambda key, low, high: jax.random.uniform(key, (batch, ERASING_TRIALS), minval=low, maxval=high)
    area, aspect = height * width * draw(area_key, *ERASED_AREA), draw(aspect_key, *ERASED_ASPECT)
    tall, wide = jnp.round(jnp.sqrt(area * aspect)), jnp.round(jnp.sqrt(area / aspect))
    top, left = jnp.floor(draw(row_key, 0, height)), jnp.floor(draw(column_key, 0, width))
    fits = (top + tall <= height) & (left + wide <= width)
    first = jnp.argmax(fits, 1, keepdims=True)
    bounds = [jnp.take_along_axis(bound, first, 1)[:, 0] for bound in (top, left, top + tall, left + wide)]
    wanted = jax.random.bernoulli(whether_key, probability, (batch,)) & fits.any(1)
    words = jax.random.bits(noise_key, (batch, -(-height * width * channels // 4)))  # 32 bits are four values
    noise = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(batch, -1)[:, : height * width * channels]
    erased = _rectangle(images, *bounds) & wanted[:, None, None, None]
    return jnp.where(erased, noise.reshape(images.shape).astype(images.dtype) / 255, images)


def mixup(key: Array, images: Array, alpha: float, targets: Array) -> tuple[Array, Array]:
    """Zhang et al. 2018: share * image + (1 - share) * its neighbour in the batch, the targets likewise.

    The share is an image's own, of Beta(alpha, alpha). The batch is in random order, so a neighbour is any image.
    """
    if not alpha:
        return images, targets
    share = jax.random.beta(key, alpha, alpha, (len(images), 1), images.dtype)
    mixed = share[..., None, None] * images + (1 - share[..., None, None]) * jnp.roll(images, 1, 0)
    return jnp.clip(mixed, 0, 1), share * targets + (1 - share) * jnp.roll(targets, 1, 0)


def cutmix(key: Array, images: Array, alpha: float, targets: Array) -> tuple[Array, Array]:
    """Yun et al. 2019: a rectangle of the neighbour in the batch; the targets by the pixels that each image keeps.

    Its share of the area is 1 - Beta(alpha, alpha) before the border cuts it; it has the image's shape, and its centre
    is any pixel.
    """
    if not alpha:
        return images, targets
    _, height, width, _ = images.shape
    share_key, centre_key = jax.random.split(key)
    side = jnp.sqrt(1 - jax.random.beta(share_key, alpha, alpha, (len(images),), images.dtype))
    tall, wide = (side * height).astype(jnp.int32), (side * width).astype(jnp.int32)
    row, column = _centres(centre_key, images)
    top, left = row - tall // 2, column - wide // 2
    pasted = _rectangle(images, top, left, top + tall, left + wide)
    kept = 1 - pasted.mean((1, 2), dtype=targets.dtype)
    return (
        jnp.where(pasted, jnp.roll(images, 1, 0), images),
        kept * targets + (1 - kept) * jnp.roll(targets, 1, 0),
    )


# In the order in which they run. Beside (key, images, strength) a function names what else it depends on: index and
# epoch (where the images stand), coin (a key that all steps share) and mean (of the data).
AUGMENTATIONS: dict[str, Callable[..., Array]] = {
    "flip": flip,  # probability, 0 to 1
    "alternating_flip": alternating_flip,  # 0 or 1
    "vertical_flip": vertical_flip,  # probability, 0 to 1
    "crop": crop,  # pixels
    "rotation": rotation,  # degrees
    "brightness": brightness,  # factor - 1
    "contrast": contrast,  # factor - 1
    "saturation": saturation,  # factor - 1
    "randaugment": randaugment,  # magnitude, 0 to 10
    "trivial_augment": trivial_augment,  # share of the full ranges, 0 to 1
    "cutout": cutout,  # pixels
    "inner_cutout": inner_cutout,  # pixels
    "random_erasing": random_erasing,  # probability, 0 to 1
}
# After them, on (key, images, strength, targets) -> (images, targets).
MIXTURES: dict[str, Callable[..., tuple[Array, Array]]] = {
    "mixup": mixup,  # alpha of the Beta distribution
    "cutmix": cutmix,  # alpha of the Beta distribution
}

# The number of each one's random stream. Numbers never change: an augmentation that is added gets a new one.
STREAMS = {
    "flip": 0,
    "alternating_flip": 1,
    "crop": 2,
    "rotation": 3,
    "brightness": 4,
    "contrast": 5,
    "saturation": 6,
    "randaugment": 7,
    "trivial_augment": 8,
    "cutout": 9,
    "inner_cutout": 10,
    "random_erasing": 11,
    "mixup": 12,
    "cutmix": 13,
    "vertical_flip": 14,
}


def augment(section: Any, key: Array, images: Array, targets: Array, **given: Any) -> tuple[Array, Array]:
    """What `recipe.augment` says: images [B, H, W, C] in 0..1 and targets [B, classes] -> the same.

    `given` is what the functions may name: index int32 [B], epoch, coin, mean. In place of the section a function
    (key, images, targets) -> (images, targets) may stand.
    """
    if callable(section):
        return section(key, images, targets)
    everything: dict[str, Callable[..., Any]] = {**AUGMENTATIONS, **MIXTURES}
    for name, function in everything.items():
        if section[name]:
            own = jax.random.fold_in(key, STREAMS[name])
            if name in MIXTURES:
                images, targets = function(own, images, section[name], targets)
            else:
                named = {each: given[each] for each in inspect.signature(function).parameters if each in given}
                images = function(own, images, section[name], **named)
    return images, targets


def _shifted(images: Array, rows: int, columns: int) -> Array:
    """Each image moved by whole pixels, reflected at its border."""
    _, height, width, _ = images.shape
    images = images[:, _reflect(jnp.arange(height) + rows, height)]
    return images[:, :, _reflect(jnp.arange(width) + columns, width)]


def _mirrored(images: Array) -> Array:
    return images[:, :, ::-1]


def _upside_down(images: Array) -> Array:
    return images[:, ::-1]


def views(name: str) -> list[tuple[float, Callable[[Array], Array]]]:
    """The views of that name, each with its weight. Raises InputError on an unknown name."""
    if name not in VIEWS:
        raise InputError(f"views '{name}' are unknown{nearest(name, list(VIEWS))}")
    return VIEWS[name]


# Each view with its weight; weights add up to 1, and the first view is the image itself.
VIEWS: dict[str, list[tuple[float, Callable[[Array], Array]]]] = {
    "one": [(1.0, lambda images: images)],
    "mirror": [(0.5, lambda images: images), (0.5, _mirrored)],
    "flips": [  # for images without an upper side
        (0.25, lambda images: images),
        (0.25, _mirrored),
        (0.25, _upside_down),
        (0.25, lambda images: _mirrored(_upside_down(images))),
    ],
    "mirror_shift": [  # the six views of airbench (Jordan 2024, section 3.5)
        (0.25, lambda images: images),
        (0.25, _mirrored),
        (0.125, lambda images: _shifted(images, -1, -1)),
        (0.125, lambda images: _mirrored(_shifted(images, -1, -1))),
        (0.125, lambda images: _shifted(images, 1, 1)),
        (0.125, lambda images: _mirrored(_shifted(images, 1, 1))),
    ],
}
