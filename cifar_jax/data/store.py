"""TFDS data sets without TensorFlow: where a prepared one lies, and how one is prepared.

The stock CIFAR builders need TensorFlow to read their files, to encode PNGs and to unpack archives. The
builders here have the same name, version and features, take the bytes with the standard library and Pillow,
and write the standard `array_record` folder, which stock `tfds.data_source("cifar10")` and
`tfds.builder_from_directory` read.

`find` answers from the file system alone. TFDS, Pillow and scikit-learn are imported where something is
prepared: TFDS takes 0.35 s to import, and its own search for a data set that is absent took 204 s offline.
"""

import contextlib
import fcntl
import http.client
import io
import json
import os
import re
import urllib.error
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cifar_jax.data.cifar import CIFAR10, CIFAR100
from cifar_jax.data.digits import DIGITS
from cifar_jax.data.download import download
from cifar_jax.data.source import Contents, Source
from cifar_jax.errors import InputError, nearest
from cifar_jax.process import cache_dir

DATASETS = {"cifar10": CIFAR10, "cifar100": CIFAR100, "digits": DIGITS}


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
        source = DATASETS[base]
        embedded = not source.url and not data_dir
        target = cache_dir() / "tensorflow_datasets" if embedded else _root(data_dir)
        origin = "--data_dir" if data_dir else "XDG_CACHE_HOME" if embedded else "TFDS_DATA_DIR"
        try:
            with _locked(target / "downloads", base):
                # Another process may have prepared it while this one waited.
                folder = find(name, data_dir) or _make(base, source, target, progress)
        except (OSError, RuntimeError) as error:  # the record writer tells of a full disk by RuntimeError
            reason = getattr(error, "strerror", None) or error
            raise InputError(
                f"data set {base!r} cannot be prepared in {target} ({origin}): {reason};"
                " set --data_dir or TFDS_DATA_DIR to a folder that can be written, or to one that holds"
                f" {base}/{source.version}"
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


def _make(name: str, source: Source, target: Path, progress: bool) -> Path:
    """Downloads if need be, then writes `<target>/<name>/<version>`."""
    archive = target / "downloads" / source.url.rpartition("/")[2]
    if source.url:
        try:
            download(source.url, source.sha256, archive, progress)
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            raise InputError(
                f"data set {name!r} is not prepared in {target} and cannot be downloaded from {source.url}"
                f" ({getattr(error, 'reason', None) or error}): connect (a download that was cut off goes on where it"
                f" stopped), or set --data_dir or TFDS_DATA_DIR to a folder that holds {name}/{source.version}"
            ) from error
    folder = _write(name, source, source.read(archive), target, progress)
    if source.url:
        archive.unlink()  # 162 MiB that are not needed again
    return folder


def _write(name: str, source: Source, contents: Contents, target: Path, progress: bool) -> Path:
    """Contents -> a TFDS folder in array_record form, written beside its final name and renamed when
    complete."""
    with quiet():
        import tensorflow_datasets as tfds
        from PIL import Image

        total = sum(len(images) for images, _ in contents.splits.values())
        bar = tqdm(desc=f"prepare {name}", total=total, unit=" images", disable=not progress)

        class Builder(source.builder(name), skip_registration=True):  # type: ignore[misc, call-arg]
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
