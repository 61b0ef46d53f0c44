"""Augmentations and views against NumPy."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cifar_jax import augment
from cifar_jax.augment import AUGMENTATIONS, VIEWS
from tests import made

KEY = jax.random.key(7)
STRENGTHS = {"flip": (0.5, 1.0), "crop": (1, 3)}


def images(batch=16, height=8, width=6):
    """Every pixel another value in 0..1, so that moving any is seen."""
    values = np.random.RandomState(0).permutation(batch * height * width * 3) / (batch * height * width * 3)
    return jnp.asarray(values.reshape(batch, height, width, 3), jnp.float32)


def shifted(image, row, column):
    """The image at [row:row + height, column:column + width] of its reflected surroundings."""
    height, width, _ = image.shape
    wide = np.pad(image, [(height - 1, height - 1), (width - 1, width - 1), (0, 0)], mode="reflect")
    return wide[height - 1 + row : 2 * height - 1 + row, width - 1 + column : 2 * width - 1 + column]


def shift_of(before, after, pixels):
    """The (row, column) that made `after` of `before`; exactly one does, as all pixels differ."""
    span = range(-pixels, pixels + 1)
    found = [(r, c) for r in span for c in span if np.array_equal(shifted(before, r, c), after)]
    assert len(found) == 1
    return found[0]


def section(**strengths):
    return made.recipe({f"augment.{name}": value for name, value in strengths.items()}).augment


def test_every_augmentation_is_tested():
    assert set(STRENGTHS) == set(AUGMENTATIONS)


@pytest.mark.parametrize(("name", "strength"), [(name, s) for name, both in STRENGTHS.items() for s in both])
def test_an_augmentation_keeps_shape_dtype_and_range_and_depends_on_its_key_only(name, strength):
    before = images()
    after = AUGMENTATIONS[name](KEY, before, strength)
    assert after.shape == before.shape
    assert after.dtype == before.dtype == jnp.float32
    for one, other in zip(before, after, strict=True):  # no value that its own image did not hold
        assert np.isin(other, one).all()
    np.testing.assert_array_equal(AUGMENTATIONS[name](KEY, before, strength), after)
    if (name, strength) != ("flip", 1.0):
        assert np.any(AUGMENTATIONS[name](jax.random.key(8), before, strength) != after)


@pytest.mark.parametrize(("name", "strengths"), STRENGTHS.items())
def test_strength_zero_is_the_identity(name, strengths):
    nothing = type(strengths[0])(0)
    np.testing.assert_array_equal(AUGMENTATIONS[name](KEY, images(), nothing), images())


def test_a_recipe_without_augmentation_changes_nothing():
    targets = jax.nn.one_hot(jnp.arange(16) % 4, 4)
    seen, same = augment.augment(made.recipe().augment, KEY, images(), targets)
    np.testing.assert_array_equal(seen, images())
    np.testing.assert_array_equal(same, targets)


def test_flip_mirrors_whole_images_and_twice_is_the_identity():
    before = images()
    mirrored = augment.flip(KEY, before, 1.0)
    np.testing.assert_array_equal(mirrored, np.asarray(before)[:, :, ::-1])
    np.testing.assert_array_equal(augment.flip(KEY, mirrored, 1.0), before)
    half = augment.flip(KEY, before, 0.5)
    np.testing.assert_array_equal(augment.flip(KEY, half, 0.5), before)


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_flip_mirrors_each_image_on_its_own_with_its_probability(probability):
    before = jnp.tile(images(1, 1, 2), (4000, 1, 1, 1))
    mirrored = np.asarray(augment.flip(KEY, before, probability) != before).any((1, 2, 3))
    assert abs(mirrored.mean() - probability) < 4 * np.sqrt(probability * (1 - probability) / 4000)
    repeats = np.mean(mirrored[1:] == mirrored[:-1])  # neighbours agree as often as independent draws do
    assert abs(repeats - (probability**2 + (1 - probability) ** 2)) < 4 * 0.5 / np.sqrt(3999)


@pytest.mark.parametrize("pixels", [1, 2, 4])
def test_crop_shifts_each_image_by_its_own_reflected_shift(pixels):
    before = images(64)
    after = np.asarray(augment.crop(KEY, before, pixels))
    shifts = [shift_of(one, other, pixels) for one, other in zip(np.asarray(before), after, strict=True)]
    span = set(range(-pixels, pixels + 1))
    assert {row for row, _ in shifts} == span
    assert {column for _, column in shifts} == span
    assert len(set(shifts)) > 2 * pixels + 1  # rows and columns are drawn apart


def test_crop_shifts_are_uniform():
    before = jnp.tile(images(1, 5, 5), (3000, 1, 1, 1))
    centres = np.asarray(augment.crop(KEY, before, 2))[:, 2, 2, 0]
    counts = np.array([np.sum(centres == value) for value in np.asarray(before)[0, :, :, 0].ravel()])
    assert counts.sum() == 3000
    assert np.sum((counts - 120) ** 2 / 120) < 51  # chi-squared with 24 degrees of freedom: p = 0.001


@pytest.mark.parametrize("pixels", [4, 8, 20])
def test_crop_by_more_than_the_image_stays_in_the_image(pixels):
    """Reflected again and again, as numpy.pad does it."""
    before = images(32, 4, 4)
    after = np.asarray(augment.crop(KEY, before, pixels))
    wide = np.pad(before, [(0, 0), (pixels, pixels), (pixels, pixels), (0, 0)], mode="reflect")
    for index in range(32):
        windows = [wide[index, r : r + 4, c : c + 4] for r in range(2 * pixels + 1) for c in range(2 * pixels + 1)]
        assert any(np.array_equal(window, after[index]) for window in windows), index


def test_augmentations_run_in_the_tables_order_with_keys_of_their_own():
    before, targets = images(), jax.nn.one_hot(jnp.arange(16) % 4, 4)
    seen, same = augment.augment(section(flip=0.5, crop=2), KEY, before, targets)
    expected = augment.crop(jax.random.fold_in(KEY, 1), augment.flip(jax.random.fold_in(KEY, 0), before, 0.5), 2)
    np.testing.assert_array_equal(seen, expected)
    np.testing.assert_array_equal(same, targets)
    alone, _ = augment.augment(section(crop=2), KEY, before, targets)  # another's strength does not move its draws
    np.testing.assert_array_equal(alone, augment.crop(jax.random.fold_in(KEY, 1), before, 2))


def test_a_function_may_stand_in_for_the_section():
    def brighter(key, images, targets):
        return images + jax.random.uniform(key), 1 - targets

    targets = jax.nn.one_hot(jnp.arange(16) % 4, 4)
    seen, others = augment.augment(made.recipe(augment=brighter).augment, KEY, images(), targets)
    np.testing.assert_array_equal(seen, images() + jax.random.uniform(KEY))
    np.testing.assert_array_equal(others, 1 - targets)


def numpy_views(batch):
    mirror = lambda x: x[:, :, ::-1]
    up = np.pad(batch, [(0, 0), (1, 1), (1, 1), (0, 0)], mode="reflect")[:, :-2, :-2]
    down = np.pad(batch, [(0, 0), (1, 1), (1, 1), (0, 0)], mode="reflect")[:, 2:, 2:]
    return {
        "one": [(1, batch)],
        "mirror": [(1 / 2, batch), (1 / 2, mirror(batch))],
        "mirror_shift": [
            (1 / 4, batch),
            (1 / 4, mirror(batch)),
            *[(1 / 8, view) for shifted in (up, down) for view in (shifted, mirror(shifted))],
        ],
    }


@pytest.mark.parametrize("name", VIEWS)
def test_views_are_numpys_and_their_weights_add_up_to_one(name):
    before, expected = images(), numpy_views(np.asarray(images()))[name]
    assert sum(weight for weight, _ in VIEWS[name]) == 1
    assert len(VIEWS[name]) == len(expected)
    for (weight, view), (share, batch) in zip(VIEWS[name], expected, strict=True):
        assert weight == share
        np.testing.assert_array_equal(view(before), batch)
    seen = [np.asarray(view(before)) for _, view in VIEWS[name]]
    assert all(np.any(one != other) for one, other in pairwise(seen))
