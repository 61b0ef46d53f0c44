"""The caller's own arrays as data sets: the digest is that of the content, and whatever does not serve is refused."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cifar_jax.data import arrays
from cifar_jax.data.arrays import Split, dataset, splits
from cifar_jax.data.check import MAX_UNNAMED_CLASSES
from cifar_jax.errors import InputError

CLASSES = ("cat", "dog", "frog")


def made(count=6, size=4, channels=3, classes=3, seed=0):
    """-> (images uint8 [count, size, size, channels], labels int64 [count], every class among them)."""
    random = np.random.RandomState(seed)
    return random.randint(0, 256, (count, size, size, channels)).astype(np.uint8), np.arange(count) % classes


IMAGES, LABELS = made()


@st.composite
def contents(draw):
    """Images of any size, labels of any integer type, and the number of classes, at times more than one byte holds."""
    count, height, width, channels = (draw(st.integers(1, most)) for most in (6, 4, 5, 4))
    images = np.frombuffer(draw(st.binary(min_size=(n := count * height * width * channels), max_size=n)), np.uint8)
    classes = draw(st.sampled_from([1, 2, 10, 256, 257, 300]))
    labels = draw(st.lists(st.integers(0, classes - 1), min_size=count, max_size=count))
    kinds = [np.int64, np.uint64, np.int32, ">i4"] + ([np.uint8] if classes <= 256 else [])
    return (
        images.reshape(count, height, width, channels),
        np.array(labels, draw(st.sampled_from(kinds))),
        [str(n) for n in range(classes)],
    )


def expected_digest(images, labels, classes) -> str:
    width = 1 if len(classes) <= 256 else 2
    pairs = zip(images, labels.tolist(), strict=True)
    parts = [hashlib.sha256(image.tobytes() + label.to_bytes(width, "little")).digest() for image, label in pairs]
    return hashlib.sha256(b"".join(sorted(parts))).hexdigest()


def refusal(call, *arguments) -> str:
    with pytest.raises(InputError) as error:
        call(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


@settings(max_examples=60, deadline=None)
@given(contents(), st.data())
def test_the_digest_is_the_contents(content, data):
    images, labels, classes = content
    split = dataset(images, labels, classes)
    assert split.digest == expected_digest(images, labels, classes)
    np.testing.assert_array_equal(split.images, images)  # in the order given
    np.testing.assert_array_equal(split.labels, labels)
    assert (split.images.dtype, split.labels.dtype, split.classes) == (np.uint8, np.int32, tuple(classes))
    order = data.draw(st.permutations(range(len(labels))))
    shuffled = dataset(images[order], labels[order], classes)
    assert shuffled.digest == split.digest
    np.testing.assert_array_equal(shuffled.images, images[order])


@settings(max_examples=60, deadline=None)
@given(contents(), st.data())
def test_the_digest_sees_each_pixel_and_label(content, data):
    images, labels, classes = content
    digest = dataset(images, labels, classes).digest
    changed = images.copy()
    changed.flat[data.draw(st.integers(0, images.size - 1))] ^= data.draw(st.integers(1, 255))
    assert dataset(changed, labels, classes).digest != digest
    if len(classes) > 1:
        relabelled, index = labels.copy(), data.draw(st.integers(0, len(labels) - 1))
        relabelled[index] = (int(labels[index]) + data.draw(st.integers(1, len(classes) - 1))) % len(classes)
        assert dataset(images, relabelled, classes).digest != digest
    assert dataset(np.concatenate([images, images[:1]]), np.append(labels, labels[:1]), classes).digest != digest


def test_the_digest_is_that_of_load():
    loaded = arrays.load("digits", "test", progress=False)
    order = np.random.RandomState(0).permutation(len(loaded.labels))
    own = dataset(loaded.images[order], loaded.labels[order], loaded.classes)
    assert own.digest == loaded.digest
    assert dataset(loaded.images, loaded.labels).classes == loaded.classes  # "0" to "9"


def test_lists_and_strided_views_serve():
    reference = dataset(IMAGES, LABELS)
    assert dataset(IMAGES[:, ::-1][:, ::-1], LABELS.tolist()).digest == reference.digest
    strided = np.repeat(IMAGES, 2, axis=2)[:, :, ::2]
    assert dataset(strided, LABELS).digest == reference.digest
    assert dataset(strided, LABELS).images.flags.c_contiguous
    assert (reference.name, reference.split, reference.classes) == ("arrays", "", ("0", "1", "2"))
    assert dataset(IMAGES, LABELS, np.array(CLASSES), name="pets").classes == CLASSES
    assert type(dataset(IMAGES, LABELS, np.array(CLASSES)).classes[0]) is str


def test_the_arrays_are_read_only_and_the_callers_are_left_alone():
    images, labels = made()
    split = dataset(images, labels)
    for array in (split.images, split.labels):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    assert images.flags.writeable
    assert labels.flags.writeable
    before = split.images.copy()
    images[:] = 0  # the digest still holds
    np.testing.assert_array_equal(split.images, before)


def test_a_read_only_array_is_not_copied(tmp_path):
    np.save(tmp_path / "images.npy", IMAGES)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    split = dataset(mapped, LABELS)
    assert np.shares_memory(split.images, mapped)
    assert split.digest == dataset(IMAGES, LABELS).digest


ROUND = "(images * 255).round().astype(np.uint8)"


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ((IMAGES / 255).astype(np.float32), ["dtype float32", "(6, 4, 4, 3)", ROUND]),
        (IMAGES.astype(np.float64)[..., 0], ["dtype float64", "(6, 4, 4)", ROUND, "images[..., None]"]),
        (IMAGES.astype(np.int64), ["dtype int64", "(6, 4, 4, 3)", "images.astype(np.uint8)"]),
        (IMAGES.tolist(), ["dtype int64", "images.astype(np.uint8)"]),
        (IMAGES > 9, ["dtype bool", "(6, 4, 4, 3)"]),
        (IMAGES[..., 0], ["dtype uint8", "(6, 4, 4)", "images[..., None]"]),
        (IMAGES[0, 0, 0], ["(3,)"]),
        (IMAGES[None], ["(1, 6, 4, 4, 3)"]),
        (IMAGES[:0], ["(0, 4, 4, 3)", "not empty"]),
        (IMAGES[:, :0], ["(6, 0, 4, 3)", "not empty"]),
        (np.zeros((6, 3, 8, 8), np.uint8), ["(6, 3, 8, 8)", "images.transpose(0, 2, 3, 1)"]),
        (None, ["dtype object", "()"]),
        ([[[1, 2]], [[1]]], ["cannot be converted"]),
    ],
    ids=lambda value: "" if isinstance(value, list) else None,
)
def test_images_that_do_not_serve(images, words):
    text = refusal(dataset, images, LABELS)
    assert "images" in text
    for word in [*words, *(["uint8 [N, H, W, C]"] if "cannot" not in words[0] else [])]:
        assert word in text
    if ROUND not in words:
        assert ROUND not in text


@pytest.mark.parametrize(
    ("labels", "classes", "words"),
    [
        (LABELS[:-1], None, ["labels have shape (5,)", "each of the 6 images"]),
        (np.eye(6)[LABELS], None, ["shape (6, 6)", "labels.argmax(axis=1)"]),
        (np.int64(3), None, ["shape ()"]),
        (LABELS > 0, None, ["labels[0] is False", "dtype bool", "must be integers"]),
        (LABELS * 1.0, None, ["labels[0] is 0.0", "dtype float64", "labels.astype(np.int32)"]),
        ([0, 1, 2.5, 1, np.nan, 0], None, ["labels[2] is 2.5", "dtype float64"]),
        ([0, 1, 2, float("nan"), 1, 0], None, ["labels[3] is nan"]),
        ([0, 1, None, 1, 2, 0], None, ["labels[2] is None", "dtype object"]),
        (["cat"] * 6, None, ["labels[0] is 'cat'", "must be integers"]),
        ([0, 1, -1, -2, 1, 0], None, ["labels[2] is -1", "in 0..1"]),
        ([-1] * 6, None, ["labels[0] is -1"]),
        ([0, 1, 2, 3, 7, 0], CLASSES, ["labels[3] is 3", "in 0..2"]),
        (np.array([0, 2**64 - 1] * 3, np.uint64), CLASSES, [f"labels[1] is {2**64 - 1}", "in 0..2"]),
        ([0, 1, 2, 2**32, 1, 0], CLASSES, [f"labels[3] is {2**32}", "in 0..2"]),
        ([0, 1, MAX_UNNAMED_CLASSES, 1, 1, 0], None, [f"labels[2] is {2**16}", "without class names"]),
    ],
    ids=lambda value: "" if not isinstance(value, str) else value,
)
def test_labels_that_do_not_serve(labels, classes, words):
    text = refusal(dataset, IMAGES, labels, classes)
    for word in words:
        assert word in text


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        (["cat", "dog", "cat"], "classes[2] is 'cat'"),
        (["cat", "", "dog"], "classes[1] is ''"),
        (["cat", " ", "dog"], "classes[1] is ' '"),
        (["cat", 1, "dog"], "classes[1] is 1"),
        ("cat", "classes is 'cat'"),
        ([], "classes is []"),
        (3, "classes is 3"),
    ],
)
def test_class_names_that_do_not_serve(classes, words):
    assert words in refusal(dataset, IMAGES, LABELS, classes)


# splits


def test_tuples_take_the_classes_of_train():
    train = dataset(IMAGES, LABELS, (*CLASSES, "bird"))
    both = splits({"train": train, "test": (IMAGES[:3], LABELS[:3]), "validation": dataset(*made(), train.classes)})
    assert [both[name].split for name in both] == list(both) == ["train", "test", "validation"]
    assert {split.classes for split in both.values()} == {train.classes}
    assert both["train"].digest == train.digest
    assert train.split == ""
    text = refusal(splits, {"train": train, "test": (IMAGES, [0, 1, 2, 3, 4, 5])})
    assert "data['test']: labels[4] is 4" in text


def test_tuples_alone_share_one_range_of_classes():
    both = splits({"train": (IMAGES[:2], [0, 1]), "test": (IMAGES, [0, 4, 1, 1, 1, 1])})
    assert both["train"].classes == both["test"].classes == tuple("01234")
    assert isinstance(both["test"], Split)


def test_splits_that_differ_in_classes():
    train = dataset(IMAGES, LABELS, CLASSES)
    text = refusal(splits, {"test": dataset(IMAGES, LABELS, ("cat", "frog", "dog")), "train": train})
    assert "do not go together" in text
    assert "class 1 is 'dog' in train and 'frog' in test" in text
    assert "class 2 is 'frog' in train and 'dog' in test" in text
    assert "'cat'" not in text
    more = dataset(IMAGES, LABELS, (*CLASSES, "a", "b", "c", "d"))
    text = refusal(splits, {"train": train, "validation": more})
    assert "class 3 is absent in train and 'a' in validation" in text
    assert "1 more" in text
    # Numbered classes do not go with named ones.
    assert "class 0 is '0' in train and 'cat' in test" in refusal(splits, {"train": made(), "test": train})


def test_splits_that_differ_in_shape():
    for other in (made(size=5), made(channels=1)):
        text = refusal(splits, {"train": made(), "test": other})
        assert "do not go together" in text
        assert "(4, 4, 3)" in text
        assert str(other[0].shape[1:]) in text


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"test": made()}, "data needs the split 'train'; it has 'test'"),
        ({}, "data needs the split 'train'; it has none"),
        ({"train": made(), "valid": made()}, "'valid'; did you mean 'validation'? Known: test, train, validation"),
        ({"train": made(), 3: made()}, "unknown split 3"),
        (made(), "not tuple"),
        (dataset(*made()), "not Split"),
        ({"train": IMAGES}, "data['train'] is of type ndarray; it must be a Split or a tuple (images, labels)"),
        ({"train": (IMAGES,)}, "must be a Split or a tuple (images, labels)"),
        ({"train": (IMAGES / 255, LABELS)}, "data['train']: images have dtype float64"),
        ({"train": made(), "test": (IMAGES, -LABELS)}, "data['test']: labels[1] is -1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_data_that_does_not_serve(data, words):
    assert words in refusal(splits, data)
