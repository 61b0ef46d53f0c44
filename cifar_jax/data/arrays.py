"""Data sets as uint8 arrays in memory, checked: a prepared TFDS data set (`load`) or the caller's own (`dataset`).

Reading and decoding CIFAR-10 through TFDS takes 7 s; the arrays are cached once and memory-mapped from then
on. What is in them is named by one digest, recomputed at every start: a run is a function of its seed and
this digest.
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

from cifar_jax.data.check import checked_arrays, checked_classes, first_outside, numbered_classes
from cifar_jax.data.store import prepare, quiet
from cifar_jax.errors import InputError, nearest
from cifar_jax.process import cache_dir

# Content digests (see `load`) of data sets that are the same for everyone.
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
    """One whole split of the data set `name`, prepared first if need be (see `store.prepare`).

    The digest is sha256 over the sorted sha256 digests of each example's `image bytes + label`, the label as
    one byte, or as the fewest little-endian bytes that hold the largest class where there are more than 256.
    The examples come in the order of these digests, so the arrays depend on the content alone: the cache is
    shared between folders that store the same examples in another order, and a run must not depend on which
    of them was read first.

    Raises InputError for an unknown split, a data set without a uint8 `image` and a class `label`, images
    that differ in size, a file that is missing or cannot be read, or a digest other than the known one.
    """
    folder = prepare(name, data_dir, progress)
    info = json.loads((folder / "dataset_info.json").read_text())
    splits = [entry["name"] for entry in info.get("splits", [])]
    if split not in splits:
        raise InputError(f"data set {name!r} in {folder} has no split {split!r}; it has {', '.join(splits)}")
    fingerprint = _fingerprint(folder)
    cached = _from_cache(fingerprint, name, split)
    loaded = cached or _read(folder, name, split, progress)
    expected = KNOWN_DIGESTS.get((info["name"], split), loaded.digest)
    if loaded.digest != expected:
        raise InputError(
            f"split {split!r} in {folder} is not the known one: its content has digest {loaded.digest} where"
            f" {expected} was expected; remove the folder and prepare it again"
        )
    if cached is None:
        try:
            _to_cache(fingerprint, loaded)
        except OSError as error:
            warnings.warn(
                f"the decoded images cannot be cached in {cache_dir()} ({error}); set XDG_CACHE_HOME to a"
                " folder that can be written",
                stacklevel=2,
            )
    return loaded


def dataset(images: Any, labels: Any, classes: Sequence[str] | None = None, name: str | None = None) -> Split:
    """A split made of the caller's own arrays, in the order given.

    images: uint8 [N, H, W, C]. labels: integers [N], indices into `classes`. classes: unique names; without
    them the classes are "0" to the largest label. The digest is that of `load`, so it does not depend on the
    order. A writable array is copied, so that a later change cannot contradict the digest; a read-only one,
    such as a memory map with mode="r", is shared.

    Raises InputError for arrays of another type or shape, a label outside the classes, or unusable names.
    """
    images, labels = checked_arrays(images, labels)
    names = numbered_classes(labels) if classes is None else checked_classes(classes)
    if (bad := first_outside(labels, len(names))) is not None:
        raise InputError(f"labels[{bad}] is {labels[bad]}; labels must be in 0..{len(names) - 1}")
    images, labels = _read_only(images, np.uint8), _read_only(labels, np.int32)
    digest = _content_digest(sorted(_example_digests(images, labels, len(names))))
    return Split(images, labels, names, digest, name or "arrays", "")


def splits(data: Mapping[str, Split | tuple[Any, Any]]) -> dict[str, Split]:
    """The caller's own data, checked: "train", and "validation" or "test", each a Split or a tuple (images, labels).

    A tuple becomes a Split by `dataset`, with the classes of "train" where that is a Split; otherwise the
    classes are "0" to the largest label of all tuples.

    Raises InputError where "train" is missing, a name is unknown, `dataset` refuses a tuple, or the splits
    differ in their classes or in the shape of an image.
    """
    if not isinstance(data, Mapping):
        raise InputError(f"data must be a mapping from 'train' and 'test' to splits, not {type(data).__name__}")
    if unknown := [name for name in data if name not in SPLITS]:
        raise InputError(f"data has an unknown split {unknown[0]!r}{nearest(str(unknown[0]), SPLITS)}")
    if "train" not in data:
        raise InputError(f"data needs the split 'train'; it has {', '.join(map(repr, data)) or 'none'}")
    tuples, numbered = {}, []
    for name, given in data.items():
        if isinstance(given, Split):
            continue
        if not (isinstance(given, tuple) and len(given) == 2):
            raise InputError(
                f"data[{name!r}] is of type {type(given).__name__}; it must be a Split or a tuple (images, labels)"
            )
        with _naming(name):
            tuples[name] = checked_arrays(*given)
            numbered.append(numbered_classes(tuples[name][1]))
    train = data["train"]
    classes = train.classes if isinstance(train, Split) else max(numbered, key=len)
    made = {}
    for name, given in data.items():
        with _naming(name):
            made[name] = replace(given if isinstance(given, Split) else dataset(*tuples[name], classes), split=name)
    for split in made.values():
        _check_together(made["train"], split)
    return made


def hold_out(labels: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A stratified split: (train indices, validation indices), both sorted int32; exactly `count` are held
    out.

    labels: integers [N]. Each class gives its share of `count`, rounded by largest remainder. The same
    labels, count and seed give the same split on every machine.

    Raises InputError where `count` is negative or leaves nothing to train on, or the seed is not in [0,
    2**32).
    """
    if not 0 <= count < len(labels):
        raise InputError(
            f"data.validation={count} must be at least 0 and leave some of the {len(labels)} training images;"
            f" the training set has {len(labels)}"
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


def _read_only(array: np.ndarray, dtype: type) -> np.ndarray:
    """The array itself if it cannot be written, else a copy."""
    result: np.ndarray = np.array(array, dtype, order="C", copy=True if array.flags.writeable else None)
    result.setflags(write=False)
    return result


@contextlib.contextmanager
def _naming(name: str) -> Iterator[None]:
    """An InputError raised within it begins with the name of the split."""
    try:
        yield
    except InputError as error:
        raise InputError(f"data[{name!r}]: {error}") from error


def _check_together(train: Split, other: Split) -> None:
    if other.images.shape[1:] != train.images.shape[1:]:
        raise InputError(
            f"the splits do not go together: train has images of {train.images.shape[1:]}, {other.split} of"
            f" {other.images.shape[1:]}; all must have one shape"
        )
    told = lambda name: "absent" if name is None else repr(name)
    differing = [
        f"class {index} is {told(ours)} in train and {told(theirs)} in {other.split}"
        for index, (ours, theirs) in enumerate(zip_longest(train.classes, other.classes))
        if ours != theirs
    ]
    if differing:
        more = f", and so on for {len(differing) - 3} more" if len(differing) > 3 else ""
        raise InputError(
            f"the splits do not go together: {', '.join(differing[:3])}{more}; all splits must have the same classes"
            " in the same order"
        )


def _content_digest(sorted_digests: list[bytes]) -> str:
    return hashlib.sha256(b"".join(sorted_digests)).hexdigest()


def _example_digests(images: np.ndarray, labels: np.ndarray, classes: int) -> list[bytes]:
    width = max(1, ((classes - 1).bit_length() + 7) // 8)
    return [
        hashlib.sha256(image.tobytes() + label.to_bytes(width, "little")).digest()
        for image, label in zip(images, labels.tolist(), strict=True)
    ]


def _read(folder: Path, name: str, split: str, progress: bool) -> Split:
    """Decodes every example through TFDS: most damage in a shard shows on access only."""
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
    digests = _example_digests(images, labels, len(classes))
    order = sorted(range(len(digests)), key=digests.__getitem__)
    digest = _content_digest([digests[index] for index in order])
    images, labels = images[order], labels[order].astype(np.int32)
    images.setflags(write=False)
    labels.setflags(write=False)
    return Split(images, labels, classes, digest, name, split)


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
    """A shard that is missing, cut short, or another split's: before the first is decoded."""
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
    """Names a prepared folder without reading it: another copy with the same stamps has the same
    fingerprint."""
    state = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        stat = path.stat()
        state.update(f"{path.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
        # Record files have sizes in steps of 64 KiB and some copies have one time stamp for all: the
        # descriptions, which give the exact number of bytes, tell sets apart.
        if path.suffix in (".json", ".txt"):
            state.update(path.read_bytes())
    return state.hexdigest()


def _index(fingerprint: str, split: str) -> Path:
    return cache_dir() / "arrays" / "index" / f"{fingerprint}-{split}.json"


def _from_cache(fingerprint: str, name: str, split: str) -> Split | None:
    """The memory-mapped arrays, their digest recomputed (0.2 s for CIFAR-10); a damaged entry is dropped."""
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
            # In the canonical order the digests are sorted already; any other order gives another digest.
            digests = _example_digests(images, labels, len(classes))
            if _content_digest(digests) == digest:
                return Split(images, labels, classes, digest, name, split)
    except (OSError, ValueError, EOFError, OverflowError):
        pass
    shutil.rmtree(folder, ignore_errors=True)
    return None


def _to_cache(fingerprint: str, loaded: Split) -> None:
    """Everything is written beside its name and renamed: another process sees all of it or nothing."""
    index = _index(fingerprint, loaded.split)
    index.parent.mkdir(parents=True, exist_ok=True)
    arrays = index.parent.parent
    temporary = Path(tempfile.mkdtemp(dir=arrays, prefix="writing."))
    try:
        np.save(temporary / "images.npy", loaded.images)
        np.save(temporary / "labels.npy", loaded.labels)
        # The class names are the prepared folder's, not the content's: they stay with the fingerprint.
        entry = {"digest": loaded.digest, "shape": loaded.images.shape, "classes": loaded.classes}
        index.with_suffix(f".{temporary.name}").write_text(json.dumps(entry))
        try:
            os.rename(temporary, arrays / loaded.digest)
        except OSError:
            # Another process was first, or another folder holds the same content: theirs is as good.
            if not (arrays / loaded.digest).is_dir():
                raise
        os.replace(index.with_suffix(f".{temporary.name}"), index)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
