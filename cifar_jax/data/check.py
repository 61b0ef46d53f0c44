"""Checks of the arrays that a caller gives as a data set. Each InputError quotes the first wrong value."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from cifar_jax.errors import InputError

MAX_UNNAMED_CLASSES = 2**16  # without class names, a larger label is taken for a mistake


def checked_arrays(images: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, H, W, C] and integer labels [N] as NumPy arrays. The range of the labels is not checked.

    Raises InputError for another type or shape, or where there is no image.
    """
    try:
        images, labels = np.asarray(images), np.asarray(labels)
    except (TypeError, ValueError) as error:  # lists of unequal lengths, or arrays on another library's device
        raise InputError(f"images and labels cannot be converted to NumPy arrays: {error}") from error
    _check_images(images)
    _check_labels(labels, len(images))
    return images, labels


def _check_images(images: np.ndarray) -> None:
    shape, kind, remedies = images.shape, images.dtype.kind, []
    if kind == "f":
        remedies.append("convert floats in 0..1 with (images * 255).round().astype(np.uint8)")
    if kind in "iu" and images.dtype != np.uint8:
        remedies.append("convert integers in 0..255 with images.astype(np.uint8)")
    if len(shape) == 3:
        remedies.append("add a channel axis to grayscale images with images[..., None]")
    # [N, C, H, W]. Images of 1 or 3 rows whose channels are as many as their columns are not expected.
    if len(shape) == 4 and shape[1] in (1, 3) and shape[2] == shape[3] > 4:
        remedies.append("move the channels to the last axis with images.transpose(0, 2, 3, 1)")
    if remedies or images.dtype != np.uint8 or len(shape) != 4 or not images.size:
        raise InputError(
            f"images have dtype {images.dtype} and shape {shape}; they must be uint8 [N, H, W, C] and not empty"
            + "".join(f"; {remedy}" for remedy in remedies)
        )


def _check_labels(labels: np.ndarray, count: int) -> None:
    if labels.shape != (count,):
        one_hot = "; convert one-hot labels with labels.argmax(axis=1)" if labels.ndim == 2 else ""
        raise InputError(
            f"labels have shape {labels.shape}; there must be one label for each of the {count} images, as an array of"
            f" shape ({count},){one_hot}"
        )
    if labels.dtype.kind not in "iu":
        values = labels.tolist()
        whole = [isinstance(value, int | float) and value % 1 == 0 for value in values]
        first = 0 if all(whole) else whole.index(False)
        raise InputError(
            f"labels[{first}] is {values[first]!r}, of dtype {labels.dtype}; labels must be integers; convert whole"
            " numbers with labels.astype(np.int32)"
        )


def checked_classes(classes: Iterable[str]) -> tuple[str, ...]:
    """The names of the classes as a tuple. Raises InputError unless they are unique, non-empty strings."""
    names = () if isinstance(classes, str) or not isinstance(classes, Iterable) else tuple(classes)
    if not names:
        raise InputError(f"classes is {classes!r}; it must be a sequence of names, like ('cat', 'dog')")
    known: set[str] = set()
    for index, name in enumerate(names):
        if not isinstance(name, str) or not name.strip() or name in known:
            raise InputError(f"classes[{index}] is {name!r}; the names of classes must be unique, non-empty strings")
        known.add(name)
    return tuple(map(str, names))  # numpy's strings become plain ones


def numbered_classes(labels: np.ndarray) -> tuple[str, ...]:
    """The class names "0" to the largest label. Raises InputError where that is MAX_UNNAMED_CLASSES or more."""
    large = np.flatnonzero(labels >= MAX_UNNAMED_CLASSES)
    if len(large):
        raise InputError(
            f"labels[{large[0]}] is {labels[large[0]]}; without class names labels must be in"
            f" 0..{MAX_UNNAMED_CLASSES - 1}; give the names of the classes, or number the classes from 0"
        )
    return tuple(map(str, range(max(int(labels.max()), 0) + 1)))


def first_outside(labels: np.ndarray, classes: int) -> int | None:
    """The position of the first label that is not in 0..classes-1, or None."""
    outside = np.flatnonzero((labels < 0) | (labels >= classes))
    return int(outside[0]) if len(outside) else None
