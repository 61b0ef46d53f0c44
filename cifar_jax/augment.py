"""Augmentation on the device, and the views of an image that an evaluation may average over.

An augmentation takes (key, images float32 [B, H, W, C] in 0..1, strength) and treats each image on its own. Strength 0
is the identity. They run in the order of the table.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from cifar_jax.recipe import InputError, nearest

Array = jax.Array


def flip(key: Array, images: Array, probability: float) -> Array:
    """Mirrors each image left to right with that probability."""
    mirrored = jax.random.bernoulli(key, probability, images.shape[:1])
    return jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)


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


AUGMENTATIONS: dict[str, Callable[[Array, Array, Any], Array]] = {
    "flip": flip,  # probability, 0 to 1
    "crop": crop,  # pixels
}


def augment(section: Any, key: Array, images: Array, targets: Array) -> tuple[Array, Array]:
    """What `recipe.augment` says: images [B, H, W, C] in 0..1 and targets [B, classes] -> the same.

    In place of the section a function of the same form as this one, less the section, may stand.
    """
    if callable(section):
        return section(key, images, targets)
    for number, (name, function) in enumerate(AUGMENTATIONS.items()):
        if section[name]:
            images = function(jax.random.fold_in(key, number), images, section[name])
    return images, targets


def _shifted(images: Array, rows: int, columns: int) -> Array:
    """Each image moved by whole pixels, reflected at its border."""
    _, height, width, _ = images.shape
    images = images[:, _reflect(jnp.arange(height) + rows, height)]
    return images[:, :, _reflect(jnp.arange(width) + columns, width)]


def _mirrored(images: Array) -> Array:
    return images[:, :, ::-1]


def views(name: str) -> list[tuple[float, Callable[[Array], Array]]]:
    """The views of that name, each with its weight. Raises InputError on an unknown name."""
    if name not in VIEWS:
        raise InputError(f"views '{name}' are unknown{nearest(name, list(VIEWS))}")
    return VIEWS[name]


# Each view with its weight; weights add up to 1.
VIEWS: dict[str, list[tuple[float, Callable[[Array], Array]]]] = {
    "one": [(1.0, lambda images: images)],
    "mirror": [(0.5, lambda images: images), (0.5, _mirrored)],
    "mirror_shift": [  # the six views of airbench (Jordan 2024, section 3.5)
        (0.25, lambda images: images),
        (0.25, _mirrored),
        (0.125, lambda images: _shifted(images, -1, -1)),
        (0.125, lambda images: _mirrored(_shifted(images, -1, -1))),
        (0.125, lambda images: _shifted(images, 1, 1)),
        (0.125, lambda images: _mirrored(_shifted(images, 1, 1))),
    ],
}
