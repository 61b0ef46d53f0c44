"""Data sets as uint8 arrays in memory, checked: a prepared TFDS data set (`load`) or the caller's own (`dataset`).

Reading and decoding CIFAR-10 through TFDS takes 7 s, so the arrays are cached once and memory-mapped afterwards.
The digest identifies the content of a split. It is recomputed each time the cache is read.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from cifar_jax.data.check import (
    check_range,
    checked_arrays,
    checked_classes,
    count_classes,
    first_outside,
    numbered_classes,
)
from cifar_jax.data.store import prepare, quiet
from cifar_jax.errors import InputError, nearest
from cifar_jax.process import cache_dir

# Digests (see `load`) of published data sets. Other content under these names is refused.
KNOWN_DIGESTS = {
    ("cifar10", "train"): "6a3b2c04d0a79ce272dcdacaf0bc440275db5a8cbe3717521a28fada2ea0d2ed",
    ("cifar10", "test"): "65a6ffe079453e514083f99356b35e02cbfd581b4951e3937fae188974b79f39",
}

SPLITS = ("train", "validation", "test")  # the names that `splits` takes


@dataclass(frozen=True)
class Split:
    """One split of an image-classification data set. The arrays are read-only."""

    images: np.ndarray  # uint8 [N, H, W, C]
    labels: np.ndarray  # int32 [N], indices into `classes`
    classes: tuple[str, ...]
    digest: str  # of images and labels, see `load`
    name: str
    split: str  # empty where it is not known, see `dataset`


def load(name: str, split: str, data_dir: str | Path | None = None, progress: bool = True) -> Split:
    """One split of the data set `name`, which is prepared first if necessary (see `store.prepare`).

    The digest is the sha256 of the sorted sha256 digests of all examples. An example is its image bytes followed
    by its label. The label takes one byte, or with more than 256 classes as many little-endian bytes as the
    largest class needs. The examples are sorted by these digests, so the arrays depend only on the content, and
    folders that store the same examples in different orders share one cache entry.

    Raises InputError for an unknown split, a data set without a uint8 `image` and a class `label`, images
    that differ in size, a file that is missing or cannot be read, or a digest other than the known one.
    """
    folder = prepare(name, data_dir, progress)
    info = json.loads((folder / "dataset_info.json").read_text())
    splits = [entry["name"] for entry in info.get("splits", [])]
    if split not in splits:
        raise InputError(f"data set {name!r} in {folder} has no split {split!r}; it has {', '.join(splits)}")
    fingerprint = _fingerprint(folder)
    cached = from_cache(fingerprint, name, split)
    loaded = cached or _read(folder, name, split, progress)
    expected = KNOWN_DIGESTS.get((info["name"], split), loaded.digest)
    if loaded.digest != expected:
        raise InputError(
            f"split {split!r} in {folder} is not the known one: its content has digest {loaded.digest} where"
            f" {expected} was expected; remove the folder and prepare it again"
        )
    if cached is None:
        to_cache(fingerprint, loaded)
    return loaded


def dataset(images: Any, labels: Any, classes: Sequence[str] | None = None, name: str | None = None) -> Split:
    """A split made of the caller's own arrays.

    images: uint8 [N, H, W, C]. labels: integers [N], indices into `classes`. classes: unique names; without
    them the classes are "0" to the largest label. There must be at least two classes.

    As in `load`, the digest names the content, and the examples come in the order of their digests: batches and
    `hold_out` refer to examples by position, and a run must depend on its seed and this digest alone.

    Raises InputError for arrays of another type or shape, a label outside the classes, or invalid names.
    """
    images, labels = checked_arrays(images, labels)
    names = numbered_classes(count_classes(labels)) if classes is None else checked_classes(classes)
    check_range(labels, len(names))
    return in_order_of_digests(images, labels, names, name or "arrays", "")


def splits(data: Mapping[str, Split | tuple[Any, Any]]) -> dict[str, Split]:
    """Checks the caller's own data: "train", and optionally "validation" and "test".

    Each split is a Split or a tuple (images, labels). A tuple becomes a Split by `dataset`. Its classes are those
    of "train" if that is a Split; otherwise they are "0" to the largest label of all tuples.

    Raises InputError if "train" is missing, a name is unknown, `dataset` refuses a tuple, or the splits differ in
    their classes or in the shape of an image.
    """
    if not isinstance(data, Mapping):
        raise InputError(f"data must be a mapping with the splits 'train' and 'test', not {type(data).__name__}")
    if unknown := [name for name in data if name not in SPLITS]:
        raise InputError(f"data has an unknown split {unknown[0]!r}{nearest(str(unknown[0]), SPLITS)}")
    if "train" not in data:
        raise InputError(f"data needs the split 'train'; it has {', '.join(map(repr, data)) or 'none'}")
    train = data["train"]
    tuples, counts = {}, []
    for name, given in data.items():
        if isinstance(given, Split):
            continue
        if not (isinstance(given, tuple) and len(given) == 2):
            raise InputError(
                f"data[{name!r}] is of type {type(given).__name__}; it must be a Split or a tuple (images, labels)"
            )
        with _naming(name):
            tuples[name] = checked_arrays(*given)
            if not isinstance(train, Split):
                counts.append(count_classes(tuples[name][1]))
    classes = train.classes if isinstance(train, Split) else numbered_classes(max(counts))
    checked = {}
    for name, given in data.items():
        with _naming(name):
            checked[name] = replace(given if isinstance(given, Split) else dataset(*tuples[name], classes), split=name)
    for split in checked.values():
        _check_together(checked["train"], split)
    return checked


def hold_out(labels: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A stratified split: (train indices, validation indices), both sorted int32. Exactly `count` are held out.

    labels: integers [N]. Each class gives its share of `count`, rounded by largest remainder. The same
    labels, count and seed give the same split on every machine.

    Raises InputError if `count` is negative or leaves nothing to train on, or the seed is not in [0, 2**32).
    """
    if not 0 <= count < len(labels):
        raise InputError(
            f"data.validation={count} must be at least 0 and leave some of the {len(labels)} training images;"
            " 0 holds out none"
        )
    if not 0 <= seed < 2**32:
        raise InputError(f"seed {seed} is not in [0, 2**32)")
    _, class_of, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    shares, remainders = np.divmod(sizes * count, len(labels))
    shares[np.argsort(-remainders, kind="stable")[: count - shares.sum()]] += 1
    # RandomState: numpy promises never to change its stream, which it does not for default_rng.
    random = np.random.RandomState(seed)
    held = np.zeros(len(labels), bool)
    for index, share in enumerate(shares):
        held[random.permutation(np.flatnonzero(class_of == index))[:share]] = True
    return np.flatnonzero(~held).astype(np.int32), np.flatnonzero(held).astype(np.int32)


@contextlib.contextmanager
def _naming(name: str) -> Iterator[None]:
    """Puts the name of the split before the message of an InputError."""
    try:
        yield
    except InputError as error:
        raise InputError(f"data[{name!r}]: {error}") from error


def _check_together(train: Split, other: Split) -> None:
    """Raises InputError if the two differ in the shape of an image or in their classes."""
    if other.images.shape[1:] != train.images.shape[1:]:
        raise InputError(
            f"the splits do not go together: train has images of {train.images.shape[1:]}, {other.split} of"
            f" {other.images.shape[1:]}; all must have one shape"
        )
    quoted = lambda name: "absent" if name is None else repr(name)
    differing = [
        f"class {index} is {quoted(ours)} in train and {quoted(theirs)} in {other.split}"
        for index, (ours, theirs) in enumerate(zip_longest(train.classes, other.classes))
        if ours != theirs
    ]
    if differing:
        more = f", and so on for {len(differing) - 3} more" if len(differing) > 3 else ""
        raise InputError(
            f"the splits do not go together: {', '.join(differing[:3])}{more}; all splits must have the same classes"
            " in the same order"
        )


def in_order_of_digests(
    images: np.ndarray, labels: np.ndarray, classes: tuple[str, ...], name: str, split: str
) -> Split:
    digests = _example_digests(images, labels, len(classes))
    order = sorted(range(len(digests)), key=digests.__getitem__)
    images, labels = images[order], labels[order].astype(np.int32)
    images.setflags(write=False)
    labels.setflags(write=False)
    return Split(images, labels, classes, _content_digest([digests[index] for index in order]), name, split)


def _content_digest(sorted_digests: list[bytes]) -> str:
    return hashlib.sha256(b"".join(sorted_digests)).hexdigest()


def _example_digests(images: np.ndarray, labels: np.ndarray, classes: int) -> list[bytes]:
    width = max(1, ((classes - 1).bit_length() + 7) // 8)
    return [
        hashlib.sha256(image.tobytes() + label.to_bytes(width, "little")).digest()
        for image, label in zip(images, labels.tolist(), strict=True)
    ]


def _read(folder: Path, name: str, split: str, progress: bool) -> Split:
    """Decodes every example with TFDS. Most damage in a shard is only found when its records are read."""
    with quiet():
        import tensorflow_datasets as tfds

        builder = tfds.builder_from_directory(folder)
        _check_features(builder.info.features, folder, name)
        info = builder.info.splits[split]
        _check_shards(info.filepaths, info.shard_lengths, folder)
        source = builder.as_data_source(split)
        images, labels = np.empty(0, np.uint8), np.empty(len(source), np.int64)
        for index in tqdm(range(len(source)), f"read {name} {split}", unit=" images", disable=not progress):
            try:
                example = source[index]
            except Exception as error:  # the record reader, the parser and the decoder each have their own
                shard = np.searchsorted(np.cumsum(info.shard_lengths), index, side="right")
                raise _unreadable(info.filepaths[shard], folder, error) from error
            image = example["image"]
            if index == 0:
                images = np.empty((len(source), *image.shape), np.uint8)
            if image.shape != images.shape[1:]:
                raise InputError(
                    f"the images of data set {name!r} in {folder} differ in size: {images.shape[1:]} and"
                    f" {image.shape}; all must have one size: resize them when the set is prepared"
                )
            images[index], labels[index] = image, example["label"]
        classes = tuple(builder.info.features["label"].names)
    if (bad := first_outside(labels, len(classes))) is not None:
        raise InputError(
            f"split {split!r} in {folder} has the label {labels[bad]}; labels must be in 0..{len(classes) - 1}, and -1"
            " marks unlabelled examples: prepare it again from labelled examples"
        )
    return in_order_of_digests(images, labels, classes, name, split)


def _check_features(features: Any, folder: Path, name: str) -> None:
    import tensorflow_datasets as tfds

    known = dict(features.items()) if isinstance(features, tfds.features.FeaturesDict) else {}
    image, label = known.get("image"), known.get("label")
    is_image = isinstance(image, tfds.features.Image) and image.np_dtype == np.uint8
    if not (is_image and isinstance(label, tfds.features.ClassLabel)):
        has = ", ".join(f"{key!r} ({type(value).__name__})" for key, value in known.items())
        raise InputError(
            f"data set {name!r} in {folder} is not an image-classification set: it needs the features 'image'"
            f" (uint8) and 'label' (a class), and has {has}"
        )


def _check_shards(paths: list[Any], lengths: list[int], folder: Path) -> None:
    """Raises InputError for a shard that is missing, cut short or of another split, before any is decoded."""
    from array_record.python import array_record_module

    if not sum(lengths):
        raise InputError(f"a split of the data set in {folder} holds no example; prepare it again")
    for path, length in zip(paths, lengths, strict=True):
        if not Path(path).is_file():
            raise InputError(f"{path} is missing; remove {folder} and prepare it again")
        try:
            reader = array_record_module.ArrayRecordReader(str(path))
            found = reader.num_records()
            reader.close()
        except (RuntimeError, ValueError) as error:
            raise _unreadable(path, folder, error) from error
        if found != length:
            raise _unreadable(path, folder, f"it holds {found} examples where {length} were expected")


def _unreadable(path: Any, folder: Path, reason: Any) -> InputError:
    return InputError(f"{path} cannot be read ({reason}); remove {folder} and prepare it again")


def _fingerprint(folder: Path) -> str:
    """Identifies a prepared folder by names, sizes and times. The records are not read."""
    state = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        stat = path.stat()
        state.update(f"{path.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
        # Sizes of record files are multiples of 64 KiB, and a copy may give all files the same time. The
        # descriptions contain the exact number of bytes, so they distinguish such folders.
        if path.suffix in (".json", ".txt"):
            state.update(path.read_bytes())
    return state.hexdigest()


def _index(fingerprint: str, split: str) -> Path:
    return cache_dir() / "arrays" / "index" / f"{fingerprint}-{split}.json"


def from_cache(fingerprint: str, name: str, split: str) -> Split | None:
    """The memory-mapped arrays, or None. Recomputes the digest (0.2 s for CIFAR-10) and removes a damaged entry."""
    try:
        entry = json.loads(_index(fingerprint, split).read_text())
        digest, shape, classes = entry["digest"], tuple(entry["shape"]), tuple(entry["classes"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    folder = cache_dir() / "arrays" / digest
    try:
        images = np.load(folder / "images.npy", mmap_mode="r")
        labels = np.load(folder / "labels.npy", mmap_mode="r")
        if images.shape == shape and labels.shape == shape[:1]:
            # The cached examples are in the order of their digests. Any other order is damage, so nothing is sorted.
            digests = _example_digests(images, labels, len(classes))
            if _content_digest(digests) == digest:
                return Split(images, labels, classes, digest, name, split)
    except (OSError, ValueError, EOFError, OverflowError):
        pass
    shutil.rmtree(folder, ignore_errors=True)
    return None


def to_cache(fingerprint: str, loaded: Split) -> None:
    """Keeps the arrays for `from_cache`; a cache that cannot be written is a warning."""
    try:
        _write_cache(fingerprint, loaded)
    except OSError as error:
        warnings.warn(
            f"the decoded images cannot be cached in {cache_dir()} ({error}); set XDG_CACHE_HOME to a folder that can"
            " be written",
            stacklevel=3,
        )


def _write_cache(fingerprint: str, loaded: Split) -> None:
    """Writes to a temporary folder and renames it, so that another process sees either nothing or all of it."""
    index = _index(fingerprint, loaded.split)
    index.parent.mkdir(parents=True, exist_ok=True)
    arrays = index.parent.parent
    temporary = Path(tempfile.mkdtemp(dir=arrays, prefix="writing."))
    try:
        np.save(temporary / "images.npy", loaded.images)
        np.save(temporary / "labels.npy", loaded.labels)
        # Two folders may have the same examples and different class names, so the names belong to the index.
        entry = {"digest": loaded.digest, "shape": loaded.images.shape, "classes": loaded.classes}
        index.with_suffix(f".{temporary.name}").write_text(json.dumps(entry))
        try:
            os.rename(temporary, arrays / loaded.digest)
        except OSError:
            # Another process has written the same content, or another folder has it.
            if not (arrays / loaded.digest).is_dir():
                raise
        os.replace(index.with_suffix(f".{temporary.name}"), index)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
