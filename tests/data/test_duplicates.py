"""Equal and nearly equal images: what is found, what is not, and that blocks change nothing."""

import re

import numpy as np
import pytest

import cifar_jax as cj
from cifar_jax.data import duplicates
from cifar_jax.data.duplicates import (
    ALONE,
    EXACT,
    NEAR,
    Features,
    find_duplicates,
    near_pairs,
    thumbnails,
    unit_vectors,
)


def smooth(count: int, size: int = 32, seed: int = 0) -> np.ndarray:
    """Images uint8 [count, size, size, 3] that look nothing like each other."""
    coarse = np.random.RandomState(seed).randint(0, 256, (count, size // 4, size // 4, 3))
    return coarse.repeat(4, 1).repeat(4, 2).astype(np.uint8)


def places(pairs):
    return [(pair.first, pair.second, pair.kind) for pair in pairs]


def test_equal_images_are_found_across_a_set_and_the_first_stands_for_all():
    images = smooth(6)
    images[3] = images[5] = images[1]
    assert duplicates.exact_groups(images).tolist() == [0, 1, 2, 1, 4, 1]
    assert places(find_duplicates(images)) == [(1, 3, EXACT), (1, 5, EXACT)]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("darker", lambda image: (image * 0.7).astype(np.uint8)),
        ("mirrored", lambda image: image[:, ::-1]),
        ("noisy", lambda image: np.clip(image + np.random.RandomState(1).normal(0, 8, image.shape), 0, 255)),
        ("one pixel", lambda image: np.where(np.arange(image.size).reshape(image.shape) == 5, 255 - image, image)),
    ],
)
def test_altered_copies_are_near_duplicates_and_other_images_are_not(name, change):
    images = smooth(40)
    images[31] = change(images[7])
    (pair,) = find_duplicates(images)
    assert (pair.first, pair.second, pair.kind) == (7, 31, NEAR)
    assert ALONE <= pair.similarity <= 1 + 1e-6


@pytest.mark.parametrize("block", [1, 7, 64])
def test_pairs_are_those_of_the_whole_product_whatever_the_block(block):
    vectors = unit_vectors(np.random.RandomState(0).normal(size=(50, 4)))
    others = unit_vectors(np.random.RandomState(1).normal(size=(50, 3)))
    both = (vectors @ vectors.T >= 0.8) & (others @ others.T >= 0.3)
    expected = {(row, column) for row, column in zip(*np.nonzero(both), strict=True) if row < column}
    found = near_pairs([Features(vectors, 0.8), Features(others, 0.3)], block)
    assert {(pair.first, pair.second) for pair in found} == expected
    assert len(found) == len(expected) > 3
    similarities = [pair.similarity for pair in found]
    assert similarities == sorted(similarities, reverse=True)
    first = found[0]
    cosines = vectors[first.first] @ vectors[first.second], others[first.first] @ others[first.second]
    assert first.similarity == pytest.approx(min(cosines), abs=1e-6)


def test_other_features_must_agree():
    images = smooth(10)
    images[4] = images[2] // 2
    images[9] = images[8] // 2
    vectors = np.eye(10, dtype=np.float32)
    vectors[9] = vectors[8]
    assert sorted(places(find_duplicates(images))) == [(2, 4, NEAR), (8, 9, NEAR)]
    assert places(find_duplicates(images, [Features(vectors, 0.9)])) == [(8, 9, NEAR)]


def test_images_of_one_colour_are_near_to_nothing():
    images = np.stack([np.full((8, 8, 3), value, np.uint8) for value in (10, 11, 200)])
    assert not thumbnails(images).any()
    assert find_duplicates(images) == []


@pytest.mark.parametrize(("size", "channels"), [(8, 1), (28, 1), (20, 3), (5, 3)])
def test_thumbnails_of_any_size_are_unit_vectors_without_a_mean(size, channels):
    images = np.random.RandomState(0).randint(0, 256, (6, size, size, channels)).astype(np.uint8)
    found = thumbnails(images)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(found.reshape(6, -1, channels).mean(1), 0, atol=1e-6)
    np.testing.assert_allclose(duplicates.mirror(found), thumbnails(images[:, :, ::-1]), atol=1e-5)


def test_shifted_images_keep_their_size():
    images = smooth(2)
    moved = duplicates.shifted(images, 2)
    assert moved.shape == images.shape
    np.testing.assert_array_equal(moved[:, 2:, 2:], images[:, :-2, :-2])


@pytest.mark.parametrize("cosine", [0.0, -0.5, 1.5, float("nan")])
def test_a_cosine_that_says_nothing_is_refused(cosine):
    with pytest.raises(cj.InputError, match=re.escape(f"thumbnail_cosine is {cosine}; the cosine of two duplicates")):
        find_duplicates(smooth(3), thumbnail_cosine=cosine)


def test_too_many_pairs_are_refused(monkeypatch):
    monkeypatch.setattr(duplicates, "MOST_PAIRS", 10)
    same = Features(np.ones((6, 1), np.float32), 0.5)
    with pytest.raises(cj.InputError, match=r"more than 10 pairs of images are as similar as 0.5; raise a cosine"):
        near_pairs([same])


def test_details_tell_images_apart_that_thumbnails_do_not():
    """A bright sky over a dark sea, with another small thing on each."""
    images = np.full((6, 32, 32, 3), 60, np.uint8)
    images[:, :16] = 200
    random = np.random.RandomState(0)
    for image in images[:5]:
        image[12:20, 10:22] = np.clip(image[12:20, 10:22] + random.randint(-50, 50, (8, 12, 1)), 0, 255)
    images[5] = images[0] * 0.8
    small = thumbnails(images)
    assert (small @ small.T).min() > ALONE
    assert places(find_duplicates(images)) == [(0, 5, NEAR)]


def test_details_of_mirror_images_are_equal():
    images = smooth(5)
    pairs = np.arange(5), np.arange(5, 10)
    both = np.concatenate([images, images[:, :, ::-1]])
    np.testing.assert_allclose(duplicates.detail_cosines(both, *pairs), 1, rtol=1e-5)
