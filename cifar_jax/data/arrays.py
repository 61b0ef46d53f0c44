"""A prepared TFDS data set -> uint8 arrays in memory, checked, split.

Reading and decoding CIFAR-10 through TFDS takes 7 s; the arrays are cached once and memory-mapped from then
on. What is in them is named by one digest, recomputed at every start: a run is a function of its seed and
this digest.
"""

import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from cifar_jax.data.store import cache_dir, prepare, quiet
from cifar_jax.errors import InputError

# Content digests (see `load`) of data sets that are the same for everyone.
KNOWN_DIGESTS = {
    ("cifar10", "train"): "6a3b2c04d0a79ce272dcdacaf0bc440275db5a8cbe3717521a28fada2ea0d2ed",
    ("cifar10", "test"): "65a6ffe079453e514083f99356b35e02cbfd581b4951e3937fae188974b79f39",
}


@dataclass(frozen=True)
class Split:
    """One split of an image-classification data set. The arrays are read-only."""

    images: np.ndarray  # uint8 [N, H, W, C]
    labels: np.ndarray  # int32 [N], indices into `classes`
    classes: tuple[str, ...]
    digest: str  # of images and labels, see `load`
    name: str
    split: str


def load(name: str, split: str, data_dir: str | Path | None = None, progress: bool = True) -> Split:
    """One whole split of the data set `name`, prepared first if need be (see `datasets.prepare`).

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


def dataset(images: Any, labels: Any, classes: Any = None, name: str | None = None) -> Split:
    """A split of the caller's own: images uint8 [N, H, W, C] and labels, integers [N], in the order given.

    `classes` are the names; without them the classes are "0" to the largest label. The digest is that of `load`.
    Raises InputError on images of another type or shape, and on labels that are not those of the classes.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    if images.dtype != np.uint8 or images.ndim != 4 or not images.size:
        hint = "convert them with (images * 255).round().astype(np.uint8) where they are in 0..1"
        hint = "add the channel with images[..., None]" if images.dtype == np.uint8 and images.ndim == 3 else hint
        raise InputError(f"images are {images.dtype} {list(images.shape)}; they must be uint8 [N, H, W, C]: {hint}")
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        shown = f"{labels.dtype} {list(labels.shape)}"
        raise InputError(f"labels are {shown}; they must be integers [{len(images)}], one for each image")
    names = tuple(map(str, range(int(labels.max()) + 1))) if classes is None else tuple(classes)
    if len({*names}) != len(names) or not all(isinstance(each, str) and each for each in names):
        raise InputError(f"classes are {names!r}; they must be different, non-empty strings")
    bad = np.flatnonzero((labels < 0) | (labels >= len(names)))
    if len(bad):
        raise InputError(
            f"label {labels[bad[0]]} of image {bad[0]} is not one of the {len(names)} classes; labels are 0 to"
            f" {len(names) - 1}"
        )
    if len(names) < 2:
        raise InputError("the labels name one class; a classifier needs at least two")
    labels = labels.astype(np.int32)
    views = images.view(), labels
    for array in views:
        array.flags.writeable = False
    digest = hashlib.sha256(b"".join(sorted(_example_digests(images, labels, len(names))))).hexdigest()
    return Split(*views, names, digest, name or "arrays", "")


def splits(data: Mapping[str, Any]) -> dict[str, Split]:
    """What `fit` may be given: {"train", "validation", "test"}, of which only the first is needed, each a `Split` or
    (images, labels). Raises InputError where they do not go together."""
    if "train" not in data or data.keys() - {"train", "validation", "test"}:
        wrong = f"it has {', '.join(map(repr, data))}"
        raise InputError(f"data needs the split 'train', and may have 'validation' and 'test'; {wrong}")
    pairs = {name: tuple(split) for name, split in data.items() if not isinstance(split, Split)}
    known = next((split.classes for split in data.values() if isinstance(split, Split)), None)
    if pairs and known is None:
        largest = max(int(np.max(labels, initial=0)) for _, labels in pairs.values())
        known = tuple(map(str, range(largest + 1)))
    own = lambda name: dataset(pairs[name][0], pairs[name][1], known)
    found = {name: own(name) if name in pairs else split for name, split in data.items()}
    training = found["train"]
    for name, split in found.items():
        if split.classes != training.classes or split.images.shape[1:] != training.images.shape[1:]:
            raise InputError(
                f"the splits do not go together: train has {len(training.classes)} classes and images of"
                f" {training.images.shape[1:]}, {name} {len(split.classes)} and {split.images.shape[1:]}"
            )
    return found


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
        images, labels = np.empty(0, np.uint8), np.empty(len(source), np.int32)
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
    if np.min(labels) < 0 or np.max(labels) >= len(classes):
        raise InputError(
            f"split {split!r} in {folder} has labels outside its {len(classes)} classes: -1 marks unlabelled"
        )
    digests = _example_digests(images, labels, len(classes))
    order = sorted(range(len(digests)), key=digests.__getitem__)
    digest = hashlib.sha256(b"".join(digests[index] for index in order)).hexdigest()
    images, labels = images[order], labels[order]
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
            if hashlib.sha256(b"".join(digests)).hexdigest() == digest:
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
