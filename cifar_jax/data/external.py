"""Other data sets than the one a model was trained on: matched to its classes by name, and to its size of images.

A data set is named by a folder of images (or a CSV file, see image_folder), "noise", or a name that `store.find` knows.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from cifar_jax.data import arrays
from cifar_jax.data.decoding import warn_of_skipped
from cifar_jax.data.image_files import find_images, read_images
from cifar_jax.data.image_folder import list_files
from cifar_jax.errors import InputError

NOISE = "noise"
NOISE_IMAGES = 10_000
SHOWN = 3  # names that a message quotes


def load_labelled(
    name: str,
    split: str,
    classes: Sequence[str],
    image_shape: tuple[int, int, int],
    resize_mode: str = "stretch",
    data_dir: str | Path | None = None,
    progress: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """images uint8 [N, *image_shape] and labels int32 [N], which number the model's `classes`.

    Raises InputError where the data set has a class that the model does not know, and warns of classes of the model
    that the data set has no images of.
    """
    if name == NOISE:
        raise InputError(f"'{NOISE}' has no classes, so no accuracy; use it with --out_of_distribution")
    if Path(name).exists():
        images, labels, names = _read_labelled(Path(name), split, image_shape, resize_mode, progress)
    else:
        loaded = _load(name, split, data_dir, progress)
        images, labels, names = loaded.images, loaded.labels, loaded.classes
    place = match_classes(names, classes, f"data set '{name}'")
    labels = place[labels]
    if absent := [known for label, known in enumerate(classes) if not np.any(labels == label)]:
        shown = _quoted(absent)
        warnings.warn(f"split '{split}' of '{name}' has no images of {len(absent)} classes: {shown}", stacklevel=2)
    return of_shape(images, image_shape), labels


def load_images(
    name: str,
    split: str,
    image_shape: tuple[int, int, int],
    resize_mode: str = "stretch",
    data_dir: str | Path | None = None,
    progress: bool = True,
) -> np.ndarray:
    """uint8 [N, *image_shape], whatever they show. "noise" is uniform noise, the same 10,000 images each time."""
    if name == NOISE:
        return np.random.RandomState(0).randint(0, 256, (NOISE_IMAGES, *image_shape)).astype(np.uint8)
    path = Path(name)
    if not path.exists():
        return of_shape(_load(name, split, data_dir, progress).images, image_shape)
    if path.is_file():
        files = [file for classes in list_files(path).values() for paths in classes.values() for file in paths]
    else:
        files = [Path(file) for file in find_images([path])]
    return _read(path, files, image_shape, resize_mode, progress)[0]


def _load(name: str, split: str, data_dir: str | Path | None, progress: bool) -> arrays.Split:
    try:
        return arrays.load(name, split, data_dir, progress)
    except InputError as error:
        raise InputError(f"'{name}' is no folder or file, and as a data set: {error}") from error


def match_classes(names: Sequence[str], classes: Sequence[str], source: str) -> np.ndarray:
    """int32 [names]: the number in `classes` of each name. Raises InputError on names that are not in `classes`."""
    if unknown := [name for name in names if name not in classes]:
        known = f"it knows {len(classes)} classes: {_quoted(classes)}"
        raise InputError(f"{source} has classes that the model does not know: {_quoted(unknown)}; {known}")
    return np.array([list(classes).index(name) for name in names], np.int32)


def check_classes(names: Sequence[str], classes: Sequence[str], source: str) -> None:
    """Raises InputError, which says by name what is missing or additional, unless they are the model's classes."""
    if tuple(names) == tuple(classes):
        return
    additional = [name for name in names if name not in classes]
    missing = [name for name in classes if name not in names]
    told = [f"{word} {_quoted(found)}" for word, found in (("without", missing), ("with", additional)) if found]
    raise InputError(f"{source} has other classes than the run: {' and '.join(told) or 'the same in another order'}")


def of_shape(images: np.ndarray, image_shape: tuple[int, int, int]) -> np.ndarray:
    """uint8 [N, *image_shape]: resized (bilinear), and grey made RGB or RGB made grey. Raises InputError otherwise."""
    from PIL import Image

    height, width, channels = image_shape
    if images.shape[3] != channels and {images.shape[3], channels} != {1, 3}:
        raise InputError(f"images have {images.shape[3]} channels, and the model takes {channels}")
    if images.shape[1:3] != (height, width):
        opened = (Image.fromarray(image.squeeze(-1) if images.shape[3] == 1 else image) for image in images)
        resized = [np.asarray(image.resize((width, height), Image.Resampling.BILINEAR)) for image in opened]
        images = np.stack(resized).reshape(len(images), height, width, -1)
    if images.shape[3] == channels:
        return images
    if channels == 3:
        return np.repeat(images, 3, axis=3)
    return np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in images])[..., None]


def _read_labelled(
    path: Path, split: str, image_shape: tuple[int, int, int], resize_mode: str, progress: bool
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """The images of a folder: those of the split where it has splits, otherwise all."""
    listing = list_files(path)
    if "" not in listing and split not in listing:
        raise InputError(f"'{path}' has no split '{split}'; it has {', '.join(map(repr, listing))}")
    own = listing.get(split) or listing[""]
    names = tuple(sorted(own))
    files = [file for name in names for file in own[name]]
    labels = np.repeat(np.arange(len(names)), [len(own[name]) for name in names])
    images, readable = _read(path, files, image_shape, resize_mode, progress)
    return images, labels[readable], names


def _read(
    path: Path, files: list[Path], image_shape: tuple[int, int, int], resize_mode: str, progress: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The images that can be read, and which of the files they are."""
    read = read_images(map(str, files), image_shape, resize_mode)
    found = list(tqdm(read, "read images", len(files), unit=" images", disable=not progress))
    named = [f"{file} ({entry})" for file, entry in zip(files, found, strict=True) if isinstance(entry, str)]
    warn_of_skipped(named, len(files), stacklevel=3)
    images = [entry for entry in found if not isinstance(entry, str)]
    if not images:
        raise InputError(f"'{path}' holds no image that can be read; name a folder of images")
    return np.stack(images), np.array([not isinstance(entry, str) for entry in found])


def _quoted(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(f"'{name}'" for name in names[:SHOWN]) + more
