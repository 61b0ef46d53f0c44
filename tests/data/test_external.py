"""Other data sets: classes by name, images of the model's size, folders, noise, and what is refused."""

import numpy as np
import pytest
from PIL import Image

import cifar_jax as cj
from cifar_jax.data.external import check_classes, load_images, load_labelled, match_classes, of_shape
from tests.data.test_image_folder import folder

SHAPE = (8, 8, 3)


def test_classes_are_matched_by_name_not_by_position(tmp_path):
    folder(tmp_path / "data", 3)
    images, labels = load_labelled(str(tmp_path / "data"), "test", ("good", "bad"), SHAPE, progress=False)
    assert images.shape == (6, *SHAPE)
    redder = images[..., 0].mean((1, 2)) > images[..., 1].mean((1, 2))
    np.testing.assert_array_equal(labels, np.where(redder, 1, 0))  # the red ones are "bad", here the second class


def test_a_folder_with_splits_gives_the_one_that_is_asked_for(tmp_path):
    for split, count in (("train", 4), ("test", 2)):
        folder(tmp_path / "data" / split, count)
    assert len(load_labelled(str(tmp_path / "data"), "test", ("bad", "good"), SHAPE, progress=False)[1]) == 4
    with pytest.raises(cj.InputError, match="has no split 'validation'; it has 'train', 'test'"):
        load_labelled(str(tmp_path / "data"), "validation", ("bad", "good"), SHAPE)


def test_absent_classes_are_told_and_unknown_ones_refused(tmp_path):
    folder(tmp_path / "data", 2)
    with pytest.warns(UserWarning, match="has no images of 1 classes: 'dented'"):
        _, labels = load_labelled(str(tmp_path / "data"), "test", ("bad", "dented", "good"), SHAPE, progress=False)
    assert set(labels) == {0, 2}
    with pytest.raises(cj.InputError, match=r"has classes that the model does not know: 'good'; it knows 2 classes"):
        load_labelled(str(tmp_path / "data"), "test", ("bad", "dented"), SHAPE, progress=False)
    with pytest.raises(cj.InputError, match=r"'noise' has no classes"):
        load_labelled("noise", "test", ("bad", "good"), SHAPE)


def test_a_prepared_data_set_by_name():
    images, labels = load_labelled("digits", "test", [str(digit) for digit in range(9, -1, -1)], SHAPE, progress=False)
    assert images.shape == (360, *SHAPE)
    own = load_labelled("digits", "test", [str(digit) for digit in range(10)], SHAPE, progress=False)[1]
    np.testing.assert_array_equal(labels, 9 - own)


def test_images_without_classes(tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    Image.new("L", (20, 10), 255).save(tmp_path / "grey.png")
    Image.new("RGB", (20, 10), (255, 0, 0)).save(tmp_path / "deep" / "er" / "red.jpg")
    images = load_images(str(tmp_path), "test", SHAPE, progress=False)
    assert images.shape == (2, *SHAPE)
    noise = load_images("noise", "test", SHAPE)
    np.testing.assert_array_equal(noise, load_images("noise", "test", SHAPE))
    assert noise.std() == pytest.approx(256 / 12**0.5, rel=0.01)
    (tmp_path / "empty").mkdir()
    with pytest.raises(cj.InputError, match="no images found in"):
        load_images(str(tmp_path / "empty"), "test", SHAPE)


def test_the_shape_of_the_model():
    images = np.random.RandomState(0).randint(0, 256, (2, 16, 16, 3)).astype(np.uint8)
    np.testing.assert_array_equal(of_shape(images, (16, 16, 3)), images)
    assert of_shape(images, (8, 8, 3)).shape == (2, 8, 8, 3)
    grey = of_shape(images, (8, 8, 1))
    assert grey.shape == (2, 8, 8, 1)
    np.testing.assert_array_equal(of_shape(grey, (8, 8, 3)), np.repeat(grey, 3, -1))
    with pytest.raises(cj.InputError, match="images have 3 channels, and the model takes 4"):
        of_shape(images, (16, 16, 4))


def test_differences_of_classes_are_named():
    np.testing.assert_array_equal(match_classes(("b", "a"), ("a", "b", "c"), "x"), [1, 0])
    check_classes(("a", "b"), ("a", "b"), "data set 'x'")
    with pytest.raises(cj.InputError, match="'x' has other classes than the run: without 'b' and with 'c', 'd'"):
        check_classes(("a", "c", "d"), ("a", "b"), "data set 'x'")
    with pytest.raises(cj.InputError, match="the same in another order"):
        check_classes(("b", "a"), ("a", "b"), "data set 'x'")
