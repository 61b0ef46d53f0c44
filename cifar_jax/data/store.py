"""TFDS data sets without TensorFlow: where a prepared one lies, and how CIFAR and digits are prepared.

The stock CIFAR builders need TensorFlow to read their files, to encode PNGs and to unpack archives. The
builders here have the same name, version and features, take the bytes with the standard library and Pillow,
and write the standard `array_record` folder, which stock `tfds.data_source("cifar10")` and
`tfds.builder_from_directory` read.

`find` answers from the file system alone. TFDS, Pillow and scikit-learn are imported where something is
prepared: TFDS takes 0.35 s to import, and its own search for a data set that is absent took 204 s offline.
"""

import contextlib
import fcntl
import hashlib
import http.client
import io
import json
import os
import re
import socket
import tarfile
import threading
import urllib.error
import urllib.parse
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from cifar_jax.errors import InputError, nearest
from cifar_jax.process import cache_dir

CONNECT_SECONDS = 1.5  # name look-up and TCP connection together; an offline machine answers within 2 s
READ_SECONDS = 30.0  # silence after which a download counts as cut off


@dataclass(frozen=True)
class Contents:
    """A whole data set in memory, before it is written.

    splits: split name -> (images uint8 [N, H, W, 3], {label feature: integers [N]})
    classes: label feature -> class names
    """

    splits: dict[str, tuple[np.ndarray, dict[str, np.ndarray]]]
    classes: dict[str, list[str]]


@dataclass(frozen=True)
class Dataset:
    """A data set that can be prepared here. Without a `url` its data come with an installed package."""

    version: str
    builder: Callable[[str], type]  # name -> the TFDS builder class that gives name, features and citation
    read: Callable[[Path], Contents]  # the downloaded archive -> its contents
    url: str = ""
    sha256: str = ""


def find(name: str, data_dir: str | Path | None = None) -> Path | None:
    """The folder of a prepared data set, `<dir>/<name>[/<config>]/<version>`, or None.

    It is looked for in `data_dir`, else in $TFDS_DATA_DIR, else in ~/tensorflow_datasets; then in the cache
    of this package. `name` may be "cifar10", "cifar10:3.0.2" or "cifar10_corrupted/fog_1"; the highest
    version wins. A folder counts once it holds `dataset_info.json`: TFDS writes that last, in `incomplete.*`,
    then renames the whole.

    Raises InputError where `name` is none of these forms.
    """
    base, version = _parse(name)
    for root in (_root(data_dir), cache_dir() / "tensorflow_datasets"):
        parent = root / base
        entries = os.listdir(parent) if parent.is_dir() else []
        # Whole numbers only: "incomplete.ABC123_3.0.2" must not count, and 10.0.0 is above 9.0.0.
        versions = [entry for entry in entries if re.fullmatch(r"\d+\.\d+\.\d+", entry)]
        for found in sorted(versions, key=lambda text: [int(part) for part in text.split(".")], reverse=True):
            if version in ("", found) and (parent / found / "dataset_info.json").is_file():
                return parent / found
    return None


def prepare(name: str, data_dir: str | Path | None = None, progress: bool = True) -> Path:
    """The folder of the prepared data set `name` (see `find`); where there is none, it is made first.

    A downloaded set goes to the first folder that `find` looks in; one that comes with a package goes to the
    cache, unless `data_dir` is given. Processes that prepare the same set at once wait for the first.

    Raises InputError for an unknown set, one that is not in array_record form, no connection, a wrong
    checksum, or a folder that cannot be written.
    """
    folder = find(name, data_dir)
    if folder is None:
        base, version = _parse(name)
        if base not in DATASETS or version not in ("", DATASETS[base].version):
            raise InputError(
                f"data set {name!r} is neither prepared in {_root(data_dir)} nor one that can be prepared here"
                f"{nearest(base, list(DATASETS))}; prepare any other image data set with TFDS, as"
                f" download_and_prepare(file_format='array_record'), and set --data_dir or TFDS_DATA_DIR"
            )
        dataset = DATASETS[base]
        embedded = not dataset.url and not data_dir
        target = cache_dir() / "tensorflow_datasets" if embedded else _root(data_dir)
        origin = "--data_dir" if data_dir else "XDG_CACHE_HOME" if embedded else "TFDS_DATA_DIR"
        try:
            with _locked(target / "downloads", base):
                # Another process may have prepared it while this one waited.
                folder = find(name, data_dir) or _make(base, dataset, target, progress)
        except (OSError, RuntimeError) as error:  # the record writer tells of a full disk by RuntimeError
            reason = getattr(error, "strerror", None) or error
            raise InputError(
                f"data set {base!r} cannot be prepared in {target} ({origin}): {reason};"
                " set --data_dir or TFDS_DATA_DIR to a folder that can be written, or to one that holds"
                f" {base}/{dataset.version}"
            ) from error
    form = json.loads((folder / "dataset_info.json").read_text()).get("fileFormat", "tfrecord")
    if form != "array_record":
        raise InputError(
            f"data set {name!r} in {folder} is in {form!r} form, which only TensorFlow reads; array_record is needed:"
            " prepare it with download_and_prepare(file_format='array_record') in another folder, and set --data_dir"
        )
    return folder


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within it TFDS neither logs, prints nor draws its own bars; errors still show."""
    import tensorflow_datasets as tfds
    from absl import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()
        logging.set_verbosity(verbosity)


def _root(data_dir: str | Path | None) -> Path:
    return Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def _parse(name: str) -> tuple[str, str]:
    """ "cifar10:3.0.2" -> ("cifar10", "3.0.2"); without a version it is empty."""
    match = re.fullmatch(r"(\w+(?:/\w[\w.+-]*)?)(?::(\d+\.\d+\.\d+))?", name)
    if match is None:
        raise InputError(
            f"data set {name!r} is not a name; write it like 'cifar10', 'cifar10:3.0.2' or 'cifar10_corrupted/fog_1'"
        )
    return match[1], match[2] or ""


@contextlib.contextmanager
def _locked(folder: Path, name: str) -> Iterator[None]:
    """One process at a time: two that append to the same `.part` would spoil it."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"{name}.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            warnings.warn(f"another process prepares {name!r}; waiting for it", stacklevel=4)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _make(name: str, dataset: Dataset, target: Path, progress: bool) -> Path:
    """Downloads if need be, then writes `<target>/<name>/<version>`."""
    archive = target / "downloads" / dataset.url.rpartition("/")[2]
    if dataset.url:
        try:
            _download(dataset, archive, progress)
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            raise InputError(
                f"data set {name!r} is not prepared in {target} and cannot be downloaded from {dataset.url}"
                f" ({getattr(error, 'reason', None) or error}): connect (a download that was cut off goes on where it"
                f" stopped), or set --data_dir or TFDS_DATA_DIR to a folder that holds {name}/{dataset.version}"
            ) from error
    folder = _write(name, dataset, dataset.read(archive), target, progress)
    if dataset.url:
        archive.unlink()  # 162 MiB that are not needed again
    return folder


def _download(dataset: Dataset, archive: Path, progress: bool) -> None:
    """`dataset.url` -> `archive`, by way of `<archive>.part`; only bytes with the right checksum get the
    name."""
    part = archive.with_name(archive.name + ".part")
    source = archive if archive.exists() else part
    if source is part:
        _check_connection(dataset.url)
        _fetch(dataset.url, part, progress)
    with open(source, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != dataset.sha256:
        source.unlink()
        raise InputError(
            f"the download from {dataset.url} has sha256 {found} where {dataset.sha256} was expected; it was removed:"
            " start again, and if this repeats, something between here and the server changes the file"
        )
    os.replace(source, archive)


def _check_connection(url: str) -> None:
    """Raises TimeoutError or another OSError unless the server (or its proxy) accepts a connection at once.

    A look-up of a name has no time limit of its own and takes up to minutes without a network, so it runs in
    a thread that is left behind.
    """
    parts = urllib.parse.urlsplit(url)
    proxy = urllib.request.getproxies().get(parts.scheme, "")
    if proxy and not urllib.request.proxy_bypass(parts.netloc):
        parts = urllib.parse.urlsplit(proxy if "//" in proxy else f"//{proxy}")
    address = (parts.hostname, parts.port or (443 if parts.scheme == "https" else 80))
    outcome: list[OSError | None] = []

    def connect() -> None:
        try:
            socket.create_connection(address, timeout=CONNECT_SECONDS).close()
            outcome.append(None)
        except OSError as error:
            outcome.append(error)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(CONNECT_SECONDS)
    if not outcome:
        raise TimeoutError(f"no answer from {address[0]} within {CONNECT_SECONDS} s")
    if outcome[0] is not None:
        raise ConnectionError(f"{address[0]}: {outcome[0].strerror or outcome[0]}")


def _fetch(url: str, part: Path, progress: bool) -> None:
    """Appends to `part` what it still lacks of `url`; starts it again where the server does not serve ranges.

    Raises URLError, HTTPException, ConnectionError or TimeoutError; what has come by then stays in `part`.
    """
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=READ_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing lies beyond what is there: the checksum says whether it is right
            return
        raise ConnectionError(f"HTTP {error.code} {error.reason}") from error
    with response:
        resumed = response.status == 206
        have = have if resumed else 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        with (
            open(part, "ab" if resumed else "wb") as file,
            tqdm(desc=part.stem, total=total, initial=have, unit="B", unit_scale=True, disable=not progress) as bar,
        ):
            while block := response.read(1 << 18):
                file.write(block)
                have += len(block)
                bar.update(len(block))
    if total is not None and have < total:
        raise ConnectionError(f"cut off after {have:,} of {total:,} bytes")


def _write(name: str, dataset: Dataset, contents: Contents, target: Path, progress: bool) -> Path:
    """Contents -> a TFDS folder in array_record form, written beside its final name and renamed when
    complete."""
    with quiet():
        import tensorflow_datasets as tfds
        from PIL import Image

        total = sum(len(images) for images, _ in contents.splits.values())
        bar = tqdm(desc=f"prepare {name}", total=total, unit=" images", disable=not progress)

        class Builder(dataset.builder(name), skip_registration=True):  # type: ignore[misc, call-arg]
            def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
                for feature, classes in contents.classes.items():
                    self.info.features[feature].names = classes
                return {split: self._generate_examples(split) for split in contents.splits}

            def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
                images, labels = contents.splits[split]
                for index, image in enumerate(images):
                    png = io.BytesIO()
                    Image.fromarray(image).save(png, format="png")
                    values = {feature: int(column[index]) for feature, column in labels.items()}
                    bar.update()
                    yield index, {"id": f"{split}_{index:05d}", "image": png.getvalue(), **values}

        Builder.name = name  # a class takes its name from its own body, not from the stock class
        builder = Builder(data_dir=target)
        with bar:
            # Nothing but the record files is wanted: no look at a bucket.
            config = tfds.download.DownloadConfig(try_download_gcs=False)
            builder.download_and_prepare(file_format="array_record", download_config=config)
        return Path(builder.data_path)


def _stock_cifar(name: str) -> type:
    from tensorflow_datasets.image_classification import cifar

    return {"cifar10": cifar.Cifar10, "cifar100": cifar.Cifar100}[name]


def _digits(_: str) -> type:
    import tensorflow_datasets as tfds

    class Digits(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> Any:
            return tfds.core.DatasetInfo(
                builder=self,
                description="1,797 handwritten digits of 8x8 pixels, each pixel enlarged to 4x4, grey as RGB.",
                features=tfds.features.FeaturesDict(
                    {
                        "id": tfds.features.Text(),
                        "image": tfds.features.Image(shape=(32, 32, 3)),
                        "label": tfds.features.ClassLabel(num_classes=10),
                    }
                ),
                supervised_keys=("image", "label"),
                homepage="https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits",
                citation="E. Alpaydin, C. Kaynak. Optical Recognition of Handwritten Digits, UCI, 1998.",
            )

    return Digits


def _read_cifar(archive: Path, files: dict[str, tuple[str, ...]], classes: dict[str, str]) -> Contents:
    """Source: https://www.cs.toronto.edu/~kriz/cifar.html, "binary version": label bytes, then 3x32x32 pixels
    a record.

    Read in memory by file name: nothing is unpacked, so a path in the archive cannot lead anywhere.
    """
    with tarfile.open(archive) as tar:
        members = {Path(member.name).name: tar.extractfile(member) for member in tar if member.isfile()}
        content = {name: file.read() for name, file in members.items() if file is not None}
    splits = {}
    for split, names in files.items():
        joined = b"".join(content[name] for name in names)
        records = np.frombuffer(joined, np.uint8).reshape(-1, len(classes) + 3 * 32 * 32)
        images = records[:, len(classes) :].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        # strict=False: a record begins with one byte for each label, and goes on with the pixels.
        splits[split] = (np.ascontiguousarray(images), dict(zip(classes, records.T, strict=False)))
    return Contents(splits, {feature: content[name].decode().split() for feature, name in classes.items()})


def _read_cifar10(archive: Path) -> Contents:
    train = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
    return _read_cifar(archive, {"train": train, "test": ("test_batch.bin",)}, {"label": "batches.meta.txt"})


def _read_cifar100(archive: Path) -> Contents:
    # In the order of the two label bytes.
    classes = {"coarse_label": "coarse_label_names.txt", "label": "fine_label_names.txt"}
    return _read_cifar(archive, {"train": ("train.bin",), "test": ("test.bin",)}, classes)


def _read_digits(_: Path) -> Contents:
    """scikit-learn's copy: 1,797 x 8 x 8, values 0 to 16. Every fifth of a class is test: 360 of 1,797."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    small = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    images = np.repeat(small.repeat(4, axis=1).repeat(4, axis=2)[..., None], 3, axis=3)
    by_class = np.argsort(bunch.target, kind="stable")
    chosen = np.zeros(len(images), bool)
    chosen[by_class[::5]] = True
    splits = {
        split: (images[mask], {"label": bunch.target[mask]}) for split, mask in (("train", ~chosen), ("test", chosen))
    }
    return Contents(splits, {"label": [str(digit) for digit in range(10)]})


DATASETS = {
    "cifar10": Dataset(
        version="3.0.2",
        builder=_stock_cifar,
        read=_read_cifar10,
        url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    ),
    "cifar100": Dataset(
        version="3.0.2",
        builder=_stock_cifar,
        read=_read_cifar100,
        url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        sha256="58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
    ),
    "digits": Dataset(version="1.0.0", builder=_digits, read=_read_digits),
}
