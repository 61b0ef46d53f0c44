"""CIFAR-10 and CIFAR-100: the stock TFDS builders, and readers of the binary archives that need no TensorFlow."""

import tarfile
from pathlib import Path

import numpy as np

from cifar_jax.data.source import Contents, Source


def _stock_cifar(name: str) -> type:
    from tensorflow_datasets.image_classification import cifar

    return {"cifar10": cifar.Cifar10, "cifar100": cifar.Cifar100}[name]


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


CIFAR10 = Source(
    version="3.0.2",
    builder=_stock_cifar,
    read=_read_cifar10,
    url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
)

CIFAR100 = Source(
    version="3.0.2",
    builder=_stock_cifar,
    read=_read_cifar100,
    url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
    sha256="58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
)
