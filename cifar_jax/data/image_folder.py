"""A user's own images as a data set: a folder for each class, folders of splits above them, or a CSV file.

    DIR/good/*.png  DIR/scratched/*.jpg                  split by content, see `split_of`
    DIR/train/good/*.png  DIR/validation/...  DIR/test/...
    DIR/labels.csv: path,label[,split]                   paths are relative to the file

Images of any size and mode become uint8 [size, size, 3]: EXIF orientation applied, transparency on white. The digests
of the files decide which are held out, so that a split stays as it is when images are added.
"""

import csv
import hashlib
import io
import warnings
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from cifar_jax.data.decoding import RESIZE_MODES, SUFFIXES, decode, warn_of_skipped
from cifar_jax.data.image_files import in_threads, reason_of
from cifar_jax.errors import InputError, nearest

SPLITS = ("train", "validation", "test")
OTHER_NAMES = {"training": "train", "val": "validation", "valid": "validation", "dev": "validation", "testing": "test"}
SHOWN = 3  # pairs of images that a message names


@dataclass(frozen=True)
class Settings:
    """The fields of recipe.data that say how a folder is read."""

    path: str
    image_size: int = 32  # pixels a side
    resize_mode: str = "stretch"  # stretch, pad (on black) or crop (the centre)
    test_share: float = 0.2  # of the images of a class, where the folder has no test split
    validation_share: float = 0.1  # likewise

    def check(self) -> None:
        """Raises InputError on values that make no sense."""
        if not self.path:
            raise InputError("data.path is empty; name a folder of images, or a CSV file of path,label")
        if not Path(self.path).exists():
            raise InputError(f"data.path '{self.path}' does not exist; name a folder of images, or a CSV file")
        if self.image_size < 1:
            raise InputError(f"data.image_size is {self.image_size}; it must be at least 1 pixel")
        if self.resize_mode not in RESIZE_MODES:
            raise InputError(f"data.resize_mode is '{self.resize_mode}'{nearest(self.resize_mode, RESIZE_MODES)}")
        for name in ("test_share", "validation_share"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"data.{name} is {getattr(self, name)}; it must be at least 0 and below 1")
        if self.test_share + self.validation_share >= 1:
            raise InputError("data.test_share and data.validation_share leave nothing to train on; lower one of them")


Listing = dict[str, dict[str, list[Path]]]  # split, or "" where it is not given -> class -> files


def list_files(path: Path) -> Listing:
    """The image files by split and class. Raises InputError where there are none, or classes do not go together."""
    if path.is_file():
        listing = _read_csv(path)
    elif misnamed := [each.name for each in path.iterdir() if each.name.lower() in OTHER_NAMES and _has_folders(each)]:
        split = OTHER_NAMES[misnamed[0].lower()]
        raise InputError(f"'{path}' has a folder '{misnamed[0]}'; did you mean '{split}'? rename it")
    elif any((path / split).is_dir() for split in SPLITS):
        listing = {split: _classes_of(path / split) for split in SPLITS if (path / split).is_dir()}
        if "train" not in listing:
            raise InputError(f"'{path}' has no folder 'train' beside {', '.join(map(repr, listing))}; add it")
    else:
        listing = {"": _classes_of(path)}
    first = listing.get("train") or listing.get("") or {}
    if len(first) < 2 and path.is_file():
        found = f"one class, '{next(iter(first))}'" if first else "no images"
        raise InputError(f"'{path}' names {found} to train on; a data set needs images of at least two classes")
    if len(first) < 2:
        found = f"one class, '{next(iter(first))}'" if first else "no images in folders of classes"
        raise InputError(f"'{path}' holds {found}; a data set needs at least two folders, one for each class")
    for split, classes in listing.items():
        if unknown := sorted(classes.keys() - first.keys()):
            raise InputError(f"split '{split}' of '{path}' has the class '{unknown[0]}', which 'train' has not")
    return listing


def _has_folders(path: Path) -> bool:
    return path.is_dir() and any(each.is_dir() for each in path.iterdir())


def _classes_of(folder: Path) -> dict[str, list[Path]]:
    """Class -> its image files, at any depth; folders without images are left out, with a warning."""
    found, empty = {}, []
    for place in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        files = [path for path in sorted(place.rglob("*")) if path.suffix.lower() in SUFFIXES and path.is_file()]
        if files:
            found[place.name] = files
        else:
            empty.append(place.name)
    if found and empty:
        warnings.warn(f"'{folder}' has folders without images, which are no classes: {', '.join(empty)}", stacklevel=3)
    return found


def _read_csv(path: Path) -> Listing:
    listing: Listing = defaultdict(lambda: defaultdict(list))
    if not path.stat().st_size:
        raise InputError(f"'{path}' is empty; it needs a line 'path,label', and then one line for each image")
    try:
        rows = csv.DictReader(io.StringIO(path.read_bytes().decode("utf-8-sig"), newline=""))
    except UnicodeDecodeError as error:
        raise InputError(f"'{path}' is no text in UTF-8; save it as 'CSV UTF-8', or name a folder of images") from error
    if not {"path", "label"} <= set(rows.fieldnames or ()):
        needed = "it needs 'path' and 'label', and may have 'split'"
        raise InputError(f"'{path}' has the columns {rows.fieldnames}; {needed}")
    lines: dict[Path, int] = {}
    for number, row in enumerate(rows, 2):
        file_path, split = path.parent / row["path"], row.get("split") or ""
        if not file_path.is_file():
            raise InputError(f"line {number} of '{path}' names '{row['path']}', which is not a file")
        if (first := lines.setdefault(file_path, number)) != number:
            raise InputError(f"lines {first} and {number} of '{path}' name '{row['path']}'; remove one of them")
        if not row["label"]:
            raise InputError(f"line {number} of '{path}' has no label; give '{row['path']}' one, or remove it")
        if split not in (*SPLITS, ""):
            raise InputError(f"line {number} of '{path}' has the split '{split}'{nearest(split, SPLITS)}")
        listing[split][row["label"]].append(file_path)
    if "" in listing and len(listing) > 1:
        raise InputError(f"'{path}' names the split of some images only; name it for all of them, or for none")
    return {split: dict(classes) for split, classes in listing.items()}


def split_of(digest: bytes, settings: Settings, given: str, has_validation: bool) -> str:
    """The split of a file: as given, or by its digest, which is uniform in 0..1.

    Equal files are in one split, and an image keeps its split when others are added. A given "train" gives a share to
    validation where that is not given.
    """
    if given and (given != "train" or has_validation):
        return given
    place = int.from_bytes(digest[:8], "big") / 2**64
    test = 0.0 if given else settings.test_share
    if place < test:
        return "test"
    return "validation" if place < test + settings.validation_share else "train"


@dataclass(frozen=True)
class Decoded:
    """What was read: for each split the images, labels and files, and the files that could not be read."""

    classes: tuple[str, ...]
    images: Mapping[str, np.ndarray]  # uint8 [N, size, size, 3]
    labels: Mapping[str, np.ndarray]  # int64 [N]
    files: Mapping[str, list[Path]]
    skipped: tuple[str, ...]


def read_folder(settings: Settings, progress: bool = True) -> Decoded:
    """All splits of a folder. Files that cannot be read are left out, with a warning that names the first of them.

    Raises InputError where the folder holds no data set, one image stands in two classes, or a class has no image to
    train on.
    """
    settings.check()
    listing = list_files(Path(settings.path))
    classes = tuple(sorted({name for split in listing.values() for name in split}))
    for split, own in listing.items():
        if absent := [name for name in classes if name not in own]:
            warnings.warn(f"split '{split}' of '{settings.path}' has no images of: {', '.join(absent)}", stacklevel=2)
    files = [(split, name, path) for split, own in listing.items() for name, paths in own.items() for path in paths]

    def read(path: Path) -> tuple[bytes, np.ndarray] | str:
        try:
            content = path.read_bytes()
            return hashlib.sha256(content).digest(), decode(content, settings.image_size, settings.resize_mode)
        except Exception as error:  # each decoder of Pillow has its own
            return f"{path} ({reason_of(error)})"

    read_all = in_threads(read, [path for _, _, path in files])
    found = list(tqdm(read_all, "read images", len(files), unit=" images", disable=not progress))
    skipped = tuple(entry for entry in found if isinstance(entry, str))
    warn_of_skipped(skipped, len(files), stacklevel=2)
    splits = (
        "" if isinstance(entry, str) else split_of(entry[0], settings, given, "validation" in listing)
        for (given, _, _), entry in zip(files, found, strict=True)
    )
    return _collect(classes, files, list(splits), found, skipped)


def _collect(classes: tuple[str, ...], files: Any, splits: list[str], found: Any, skipped: tuple[str, ...]) -> Decoded:
    images: dict[str, list[np.ndarray]] = defaultdict(list)
    labels: dict[str, list[int]] = defaultdict(list)
    paths: dict[str, list[Path]] = defaultdict(list)
    owners: dict[bytes, tuple[str, Path]] = {}
    twice: list[str] = []
    for (_, name, path), split, entry in zip(files, splits, found, strict=True):
        if isinstance(entry, str):
            continue
        digest, image = entry
        other, other_path = owners.setdefault(digest, (name, path))
        if other != name:
            twice.append(f"as '{other}' ('{other_path}') and as '{name}' ('{path}')")
        images[split].append(image)
        labels[split].append(classes.index(name))
        paths[split].append(path)
    if twice:
        more = f", and {len(twice) - SHOWN} more" if len(twice) > SHOWN else ""
        pairs = "; ".join(twice[:SHOWN])
        raise InputError(f"the same image stands in two classes: {pairs}{more}; remove one of each pair")
    for label, name in enumerate(classes):
        count = labels["train"].count(label)
        if count < 2:
            remedy = "add images, or lower data.test_share and data.validation_share"
            raise InputError(f"class '{name}' has {count} images to train on, and needs at least 2; {remedy}")
    arrays = {split: np.stack(own) for split, own in images.items()}
    return Decoded(classes, arrays, {split: np.array(labels[split]) for split in arrays}, paths, skipped)


def fingerprint(settings: Settings) -> str:
    """Identifies what a folder would be read as, by names, sizes and times of its files. No image is read."""
    settings.check()
    state = hashlib.sha256(repr(settings).encode())
    for split, classes in list_files(Path(settings.path)).items():
        for name, paths in classes.items():
            for path in paths:
                stat = path.stat()
                state.update(f"{split}/{name}/{path} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return state.hexdigest()
