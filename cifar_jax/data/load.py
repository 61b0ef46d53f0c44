"""The splits that recipe.data names: a prepared TFDS data set, or a folder of the user's own images."""

import hashlib
import itertools
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cifar_jax.data import arrays, image_folder
from cifar_jax.data.image_folder import Settings
from cifar_jax.errors import InputError

IMAGE_FOLDER = "image_folder"


def load_split(data: Any, split: str, data_dir: str | Path | None = None, progress: bool = True) -> arrays.Split:
    """A split of the data set that recipe.data names; `data_dir` is that of TFDS.

    Raises InputError where the data set has no such split.
    """
    if data.name != IMAGE_FOLDER:
        _check_path(data)
        return arrays.load(data.name, split, data_dir, progress)
    return _of(_load_folder(settings_of(data), progress), split, data.path)


def load_splits(
    data: Any, test: bool, data_dir: str | Path | None = None, progress: bool = True
) -> dict[str, arrays.Split]:
    """ "train", "validation" where the data set has one of its own, and "test" where it is asked for."""
    if data.name != IMAGE_FOLDER:
        names = ("train", "test") if test else ("train",)
        return arrays.splits({name: load_split(data, name, data_dir, progress) for name in names})
    found = _load_folder(settings_of(data), progress)
    if test:
        _of(found, "test", data.path)
    return arrays.splits({name: split for name, split in found.items() if test or name != "test"})


def image_files(data: Any, splits: Mapping[str, arrays.Split], progress: bool = True) -> Mapping[str, Sequence[str]]:
    """The file of each image of the splits that `load_splits` gave; {} where they do not come from files.

    The folder is read once more. Raises InputError where its images are no longer those of the splits.
    """
    if data.name != IMAGE_FOLDER:
        return {}
    decoded = image_folder.read_folder(settings_of(data), progress)
    found = {}
    for name, split in splits.items():
        files: dict[tuple[bytes, str], list[str]] = defaultdict(list)
        own = (decoded.images.get(name, ()), decoded.labels.get(name, ()), decoded.files.get(name, ()))
        for image, label, file in zip(*own, strict=True):
            files[image.tobytes(), decoded.classes[label]].append(str(file))
        keys = [
            (image.tobytes(), split.classes[label]) for image, label in zip(split.images, split.labels, strict=True)
        ]
        try:
            found[name] = [files[key].pop(0) for key in keys]
        except IndexError as error:
            raise InputError(f"the images in '{data.path}' have changed meanwhile; run the command again") from error
    return found


def _of(found: dict[str, arrays.Split], split: str, path: str) -> arrays.Split:
    """Raises InputError where the folder has no such split."""
    if split not in found:
        if split == "validation":
            remedy = "add a folder 'validation', or set data.validation_share"
        else:
            remedy = "add a folder 'test', set data.test_share where there is no folder 'train', or use"
            remedy += " --evaluate=validation"
        raise InputError(f"'{path}' has no {split} images; {remedy}")
    return found[split]


def _check_path(data: Any) -> None:
    """Raises InputError where the path of a folder is given, and the data set is no folder."""
    if "path" in data and data.path:  # a run of an older version has no such field
        what = f"data.path is '{data.path}', and only data.name={IMAGE_FOLDER} reads it"
        raise InputError(f"{what}; data.name is '{data.name}': change that, or leave data.path out")


def settings_of(data: Any) -> Settings:
    return Settings(data.path, data.image_size, data.resize_mode, data.test_share, data.validation_share)


def _load_folder(settings: Settings, progress: bool) -> dict[str, arrays.Split]:
    """From the cache where no file has changed."""
    fingerprint = image_folder.fingerprint(settings)
    cached = {name: arrays.from_cache(fingerprint, IMAGE_FOLDER, name) for name in image_folder.SPLITS}
    if cached["train"]:
        return _checked({name: split for name, split in cached.items() if split}, settings.path)
    decoded = image_folder.read_folder(settings, progress)
    found = {}
    for name in image_folder.SPLITS:
        if name in decoded.images:
            given = decoded.images[name], decoded.labels[name], decoded.classes, IMAGE_FOLDER, name
            found[name] = arrays.in_order_of_digests(*given)
    for name in reversed(list(found)):  # "train" last: it says that all are there
        arrays.to_cache(fingerprint, found[name])
    return _checked(found, settings.path)


def _checked(found: dict[str, arrays.Split], path: str) -> dict[str, arrays.Split]:
    """The splits, with a warning where images of one are in another too."""
    digest = lambda image: hashlib.blake2b(image.tobytes(), digest_size=16).digest()
    own = {name: [digest(image) for image in split.images] for name, split in found.items()}
    for first, second in itertools.combinations(own, 2):
        known = set(own[first])
        if common := sum(each in known for each in own[second]):
            what = f"{common} of {len(own[second])} {second} images in '{path}' are {first} images too"
            warnings.warn(f"{what}: accuracy on them says nothing of new images; 'audit' names them", stacklevel=4)
    return found
