"""Arrays depend on the content alone; damage anywhere is noticed; a second start reads the cache."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from cifar_jax.data import arrays as data
from cifar_jax.data import store as datasets
from cifar_jax.errors import InputError

ROOT = Path(__file__).parent.parent.parent
REAL = datasets.find("cifar10") if os.environ.get("TFDS_DATA_DIR") else None  # before the environment is isolated


@pytest.fixture(autouse=True)
def isolated(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))


def _write(root, name, splits, classes=("a", "b", "c"), shape=(None, None, 3), shards=1, **features):
    """Writes a TFDS folder: splits {name: [(image, label)]}, in that order, with stock TFDS alone."""
    import io

    import tensorflow_datasets as tfds
    from PIL import Image

    def png(image):
        buffer = io.BytesIO()
        Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(buffer, format="png")
        return buffer.getvalue()

    described = {
        "image": tfds.features.Image(shape=shape),
        "label": tfds.features.ClassLabel(**({"names": list(classes)} if classes else {"num_classes": 2**33})),
    }
    described |= features
    described = {key: value for key, value in described.items() if value is not None}

    class Written(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(described), disable_shuffling=True
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(examples) for split, examples in splits.items()}

        def _generate_examples(self, examples):
            for index, (image, label) in enumerate(examples):
                values = {"image": png(image), "label": label}
                yield index, {key: values.get(key, "x") for key in described}

    Written.name = name
    with datasets.quiet():
        config = tfds.download.DownloadConfig(num_shards=shards)
        builder = Written(data_dir=root)
        builder.download_and_prepare(file_format="array_record", download_config=config)
    return Path(builder.data_path)


def _examples(count, size=(6, 5, 3), classes=3, seed=0):
    random = np.random.default_rng(seed)
    return [(random.integers(0, 256, size, dtype=np.uint8), int(label)) for label in random.integers(0, classes, count)]


def _pairs(images, labels) -> Counter:
    return Counter((np.asarray(image).tobytes(), int(label)) for image, label in zip(images, labels, strict=True))


def _digest(examples, width=1) -> str:
    parts = [hashlib.sha256(image.tobytes() + label.to_bytes(width, "little")).digest() for image, label in examples]
    return hashlib.sha256(b"".join(sorted(parts))).hexdigest()


def _arrays(examples):
    return np.stack([image for image, _ in examples]), np.array([label for _, label in examples])


def _load(*arguments):
    return data.load(*arguments, progress=False)


def _sentence(error) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.fixture
def no_reading(monkeypatch):
    """-> call it, and from then on nothing may be decoded."""

    def refuse(*_):
        raise AssertionError("the folder was decoded again")

    return lambda: monkeypatch.setattr(data, "_read", refuse)


def test_the_arrays_are_the_examples(tmp_path, no_reading, capfd):
    examples = _examples(40)
    _write(tmp_path / "tfds", "made", {"train": examples, "test": examples[:7]}, shards=3)
    first = _load("made", "train")
    assert (first.name, first.split, first.classes) == ("made", "train", ("a", "b", "c"))
    assert (first.images.dtype, first.labels.dtype, first.images.shape) == (np.uint8, np.int32, (40, 6, 5, 3))
    assert _pairs(first.images, first.labels) == _pairs(*zip(*examples, strict=True))
    assert first.digest == _digest(examples)
    assert data.dataset(*_arrays(examples), first.classes).digest == first.digest
    assert len(_load("made", "test").labels) == 7
    no_reading()
    second = _load("made", "train")
    assert isinstance(second.images, np.memmap)
    np.testing.assert_array_equal(first.images, second.images)
    np.testing.assert_array_equal(first.labels, second.labels)
    assert (second.digest, second.classes) == (first.digest, first.classes)
    for loaded in (first, second):
        with pytest.raises(ValueError, match="read-only"):
            loaded.images[0] = 0
    assert capfd.readouterr() == ("", "")


def test_the_order_in_the_folder_does_not_matter(tmp_path, monkeypatch):
    examples = _examples(30)
    examples.append(examples[0])  # the same example twice stays twice
    _write(tmp_path / "one", "made", {"train": examples})
    _write(tmp_path / "two", "made", {"train": examples[::-1]}, shards=2)
    one = _load("made", "train", tmp_path / "one")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other_cache"))
    two = _load("made", "train", tmp_path / "two")
    assert one.digest == two.digest
    np.testing.assert_array_equal(one.images, two.images)
    np.testing.assert_array_equal(one.labels, two.labels)
    assert len(one.labels) == 31


def test_the_digest_sees_pixels_and_labels(tmp_path):
    examples = _examples(10)
    digests = set()
    changed = [(image.copy(), label) for image, label in examples]
    changed[3][0][0, 0, 0] ^= 1
    relabelled = [*examples[:3], (examples[3][0], (examples[3][1] + 1) % 3), *examples[4:]]
    for index, content in enumerate((examples, changed, relabelled)):
        _write(tmp_path / str(index), "made", {"train": content})
        digests.add(_load("made", "train", tmp_path / str(index)).digest)
    assert len(digests) == 3


def test_one_content_under_other_class_names(tmp_path):
    examples = _examples(10)
    _write(tmp_path / "one", "made", {"train": examples})
    _write(tmp_path / "two", "made", {"train": examples}, classes=("x", "y", "z"))
    for _ in range(2):  # decoded, then from the cache they share
        assert _load("made", "train", tmp_path / "one").classes == ("a", "b", "c")
        assert _load("made", "train", tmp_path / "two").classes == ("x", "y", "z")
    assert len(list((tmp_path / "cache/cifar_jax/arrays").iterdir())) == 2  # the arrays once, and the index


def test_more_than_256_classes_take_two_bytes(tmp_path, no_reading):
    examples = [(image, label) for (image, _), label in zip(_examples(5), (0, 1, 255, 256, 299), strict=True)]
    _write(tmp_path / "tfds", "many", {"train": examples}, classes=[f"c{n}" for n in range(300)])
    loaded = _load("many", "train")
    assert sorted(loaded.labels.tolist()) == [0, 1, 255, 256, 299]
    assert loaded.digest == _digest(examples, width=2)
    assert data.dataset(*_arrays(examples)).digest == loaded.digest
    no_reading()
    assert _load("many", "train").digest == loaded.digest


def test_grey_images_stay_grey(tmp_path):
    examples = _examples(5, size=(6, 5, 1))
    _write(tmp_path / "tfds", "grey", {"train": examples}, shape=(6, 5, 1))
    loaded = _load("grey", "train")
    assert loaded.images.shape == (5, 6, 5, 1)
    assert _pairs(loaded.images, loaded.labels) == _pairs(*zip(*examples, strict=True))


def test_an_unknown_split_is_told_before_anything_is_read(tmp_path, no_reading):
    _write(tmp_path / "tfds", "made", {"train": _examples(4), "test": _examples(4)})
    no_reading()
    with pytest.raises(InputError, match=r"no split 'validation'; it has test, train|it has train, test"):
        _load("made", "validation")


def test_images_of_two_sizes(tmp_path):
    _write(tmp_path / "tfds", "made", {"train": [*_examples(3), *_examples(1, size=(7, 5, 3))]})
    with pytest.raises(InputError, match=r"differ in size: \(6, 5, 3\) and \(7, 5, 3\)") as error:
        _load("made", "train")
    _sentence(error)


@pytest.mark.parametrize("value", [-1, 3, 2**32])
def test_a_label_out_of_range_is_named(tmp_path, value):
    examples = _examples(4)
    examples[2] = (examples[2][0], value)
    _write(tmp_path / "tfds", "made", {"train": _examples(4), "test": examples}, classes=None)
    folder = tmp_path / "tfds/made/1.0.0"
    features = json.loads((folder / "features.json").read_text())
    features["featuresDict"]["features"]["label"]["classLabel"]["numClasses"] = "3"
    (folder / "features.json").write_text(json.dumps(features))
    with pytest.raises(InputError, match=rf"split 'test' in .* has the label {value}; .* 0\.\.2") as error:
        _load("made", "test")
    assert str(folder) in _sentence(error)
    assert not list((tmp_path / "cache").rglob("*.npy"))
    assert len(_load("made", "train").labels) == 4


def test_not_image_classification(tmp_path):
    import tensorflow_datasets as tfds

    for name, features in {
        "unlabelled": {"label": None, "note": tfds.features.Text()},
        "written": {"label": tfds.features.Text()},
    }.items():
        examples = [(image, "text") for image, _ in _examples(3)]
        _write(tmp_path / "tfds", name, {"train": examples}, **features)
        with pytest.raises(InputError, match=f"{name}.*is not an image-classification set: it needs") as error:
            _load(name, "train")
        assert "'image' (Image)" in _sentence(error)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """A folder of 3 train shards of 70 and 3 test shards of 80, of which each test damages a copy."""
    root = tmp_path_factory.mktemp("pristine")
    examples = _examples(210, size=(16, 16, 3))
    _write(root, "made", {"train": examples, "test": _examples(240, size=(16, 16, 3), seed=1)}, shards=3)
    return root, examples


@pytest.mark.parametrize("damage", ["missing", "cut", "empty", "garbage", "flipped", "other_length"])
def test_a_damaged_shard_is_named(tmp_path, pristine, damage):
    shutil.copytree(pristine[0], tmp_path / "tfds")
    folder = tmp_path / "tfds/made/1.0.0"
    shard = folder / "made-train.array_record-00001-of-00003"
    content = bytearray(shard.read_bytes())
    if damage == "missing":
        shard.unlink()
    elif damage == "other_length":  # 80 examples where 70 belong: every one can be read
        shutil.copy(folder / "made-test.array_record-00001-of-00003", shard)
    else:
        if damage == "cut":
            del content[len(content) // 2 :]
        elif damage == "empty":
            content.clear()
        elif damage == "garbage":
            content[:] = np.random.default_rng(0).bytes(len(content))
        else:  # one bit in the middle of the records
            content[20_000] ^= 1
        shard.write_bytes(content)
    with pytest.raises(InputError) as error:
        _load("made", "train")
    text = _sentence(error)
    assert shard.name in text
    assert "prepare it again" in text
    assert "is missing" in text if damage == "missing" else "cannot be read" in text
    assert not list((tmp_path / "cache").rglob("*.npy"))  # nothing damaged is kept
    assert len(_load("made", "test").labels) == 240


def test_a_swapped_shard_of_a_known_set(tmp_path, pristine, monkeypatch):
    monkeypatch.setitem(data.KNOWN_DIGESTS, ("made", "train"), _digest(pristine[1]))
    shutil.copytree(pristine[0], tmp_path / "tfds")
    folder = tmp_path / "tfds/made/1.0.0"
    _load("made", "train")
    shutil.rmtree(tmp_path / "cache")
    shards = [folder / f"made-train.array_record-0000{index}-of-00003" for index in range(2)]
    shutil.copy(shards[0], shards[1])  # the first twice: every record is sound, and of the right number
    with pytest.raises(InputError) as error:
        _load("made", "train")
    text = _sentence(error)
    examples = pristine[1]
    for part in (str(folder), _digest(examples), _digest(examples[:70] * 2 + examples[140:])):
        assert part in text
    assert not list((tmp_path / "cache").rglob("*.npy"))


def test_a_change_in_the_folder_is_seen(tmp_path):
    examples = _examples(20)
    folder = _write(tmp_path / "tfds", "made", {"train": examples})
    before = _load("made", "train")
    shutil.rmtree(folder)
    _write(tmp_path / "tfds", "made", {"train": examples[1:] + examples[1:2]})
    assert _load("made", "train").digest != before.digest


@pytest.mark.parametrize("damage", ["pixel", "label", "order", "cut", "empty", "lost", "index", "meta"])
def test_a_damaged_cache_is_made_again(tmp_path, damage, no_reading):
    examples = _examples(20)
    _write(tmp_path / "tfds", "made", {"train": examples})
    before = _load("made", "train")
    expected = before.images.copy(), before.labels.copy()
    folder = tmp_path / "cache/cifar_jax/arrays" / before.digest
    (index,) = (tmp_path / "cache/cifar_jax/arrays/index").iterdir()
    images, labels = (np.array(np.load(folder / f"{part}.npy")) for part in ("images", "labels"))
    path = folder / "images.npy"
    if damage == "pixel":
        images[5, 0, 0, 0] ^= 1
        np.save(path, images)
    elif damage == "label":
        labels[5] = 1 - min(labels[5], 1)
        np.save(folder / "labels.npy", labels)
    elif damage == "order":
        np.save(path, images[::-1])
        np.save(folder / "labels.npy", labels[::-1])
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "lost":
        path.unlink()
    elif damage == "index":
        index.write_text('{"digest": "')
    else:
        index.write_text(json.dumps({"digest": before.digest}))
    after = _load("made", "train")
    np.testing.assert_array_equal(after.images, expected[0])
    np.testing.assert_array_equal(after.labels, expected[1])
    no_reading()
    np.testing.assert_array_equal(_load("made", "train").images, expected[0])


def test_without_a_cache_it_works_and_says_so(tmp_path, monkeypatch):
    examples = _examples(6)
    _write(tmp_path / "tfds", "made", {"train": examples})
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for _ in range(2):
        with pytest.warns(UserWarning, match="cannot be cached in .*XDG_CACHE_HOME"):
            assert _load("made", "train").digest == _digest(examples)


def test_two_writers_at_once(tmp_path):
    _write(tmp_path / "tfds", "made", {"train": _examples(300)})
    code = "from cifar_jax.data import arrays as data; print(data.load('made', 'train', progress=False).digest)"
    both = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    outputs = [process.communicate() for process in both]
    digest = _load("made", "train").digest
    assert outputs == [(f"{digest}\n".encode(), b"")] * 2
    arrays = tmp_path / "cache/cifar_jax/arrays"
    assert sorted(path.name for path in arrays.iterdir()) == sorted([digest, "index"])
    assert [path.suffix for path in (arrays / "index").iterdir()] == [".json"]


def test_a_writer_that_comes_second_leaves_the_first(tmp_path):
    """Both have decoded before either has written."""
    _write(tmp_path / "tfds", "made", {"train": _examples(20)})
    loaded = _load("made", "train")
    (entry,) = (tmp_path / "cache/cifar_jax/arrays/index").iterdir()
    images = tmp_path / "cache/cifar_jax/arrays" / loaded.digest / "images.npy"
    inode = images.stat().st_ino
    data.to_cache(entry.stem.split("-")[0], loaded)
    assert images.stat().st_ino == inode
    assert not list((tmp_path / "cache/cifar_jax/arrays").glob("writing.*"))


def test_digits_load(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train, test = _load("digits", "train"), _load("digits", "test")
    assert (train.images.shape, test.images.shape) == ((1437, 32, 32, 3), (360, 32, 32, 3))
    assert train.classes == tuple("0123456789")
    # Whatever machine and version prepares them, they are the same digits.
    assert train.digest == "f3046638f99ea56731487ced8d5b55a7ab83e395e5f756a8c8fa8026f6fdf204"
    assert test.digest == "a829fe7c760717a04005f5c7eff1daa184edc64e5a1be80bb3b81d9f02e278df"
    assert not set(_pairs(train.images, train.labels)) & set(_pairs(test.images, test.labels))


# CIFAR-10 itself

needs_cifar10 = pytest.mark.skipif(REAL is None, reason="TFDS_DATA_DIR holds no prepared cifar10")


@pytest.fixture(scope="session")
def real_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("real_cache")


@needs_cifar10
def test_cifar10_is_itself(real_cache, monkeypatch, no_reading):
    monkeypatch.setenv("XDG_CACHE_HOME", str(real_cache))
    root = REAL.parent.parent
    first = {split: _load("cifar10", split, root) for split in ("train", "test")}
    for split, count in (("train", 5000), ("test", 1000)):
        assert first[split].digest == data.KNOWN_DIGESTS["cifar10", split]
        assert np.bincount(first[split].labels).tolist() == [count] * 10
    assert first["test"].classes[:2] == ("airplane", "automobile")
    # The published per-channel means of the training images: 0.4914, 0.4822, 0.4465.
    means = first["train"].images.mean((0, 1, 2)) / 255
    np.testing.assert_allclose(means, (0.4914, 0.4822, 0.4465), atol=1e-4)
    no_reading()
    assert _load("cifar10", "train", root).digest == first["train"].digest


@needs_cifar10
def test_a_second_start_takes_less_than_a_second(real_cache, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(real_cache))
    code = f"""
import sys, time
from cifar_jax.data import arrays as data
start = time.process_time()
for split in ("train", "test"):
    data.load("cifar10", split, {str(REAL.parent.parent)!r}, progress=False)
assert "tensorflow_datasets" not in sys.modules
print(time.process_time() - start)
"""
    for split in ("train", "test"):
        _load("cifar10", split, REAL.parent.parent)
    times = [float(subprocess.check_output([sys.executable, "-c", code], cwd=ROOT)) for _ in range(2)]
    assert min(times) < 1  # 0.2 s on two idle cores


# hold_out


@pytest.mark.parametrize("sizes", [[5000] * 10, [7, 100, 33, 1], [3, 0, 9]])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.37, 0.9])
def test_hold_out_is_stratified(sizes, share):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    np.random.default_rng(0).shuffle(labels)
    count = int(share * len(labels))
    train, validation = data.hold_out(labels, count, seed=3)
    assert train.dtype == validation.dtype == np.int32
    assert len(validation) == count
    assert np.array_equal(np.sort(np.concatenate([train, validation])), np.arange(len(labels)))
    for indices in (train, validation):
        assert (np.diff(indices) > 0).all()
    exact = np.array(sizes) * count / len(labels)
    held = np.bincount(labels[validation], minlength=len(sizes))
    assert (np.abs(held - exact) < 1).all()
    # Largest remainder: no class that was rounded up has a smaller remainder than one that was rounded down.
    up = held > np.floor(exact)
    if up.any() and not up.all():
        assert (exact % 1)[up].min() >= (exact % 1)[~up].max() - 1e-9


def test_hold_out_depends_on_the_seed_alone():
    labels = np.tile(np.arange(10), 50)
    first, again, other = (data.hold_out(labels, 100, seed)[1] for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert (
        hashlib.sha256(first.astype("<i4").tobytes()).hexdigest()[:16] == "2b5e1c730780bd1d"
    )  # on every version of numpy


@pytest.mark.parametrize("count", [50, 60, -1])
def test_hold_out_refuses(count):
    with pytest.raises(
        InputError, match=rf"data.validation={count} .*leave some of the 50 training images; 0 holds out none"
    ) as error:
        data.hold_out(np.zeros(50, np.int32), count, seed=0)
    _sentence(error)
    with pytest.raises(InputError, match="seed -1"):
        data.hold_out(np.zeros(50, np.int32), 5, seed=-1)
