"""Augmentations and views against NumPy."""

import inspect
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from cifar_jax.errors import InputError
from cifar_jax.training import augment, policies
from cifar_jax.training.augment import AUGMENTATIONS, MIXTURES, VIEWS
from cifar_jax.training.check import check
from cifar_jax.training.policies import OPERATIONS, apply
from cifar_jax.training.state import normalise
from tests import made

KEY = jax.random.key(7)
STRENGTHS = {  # two of each; both leave some image other than it was
    "flip": (0.5, 1.0),
    "alternating_flip": (1, 1),
    "vertical_flip": (0.5, 1.0),
    "crop": (1, 3),
    "rotation": (5.0, 180.0),
    "brightness": (0.1, 1.0),
    "contrast": (0.1, 1.0),
    "saturation": (0.1, 1.0),
    "randaugment": (2.0, 10.0),
    "trivial_augment": (0.5, 1.0),
    "cutout": (1, 5),
    "inner_cutout": (1, 5),
    "random_erasing": (0.5, 1.0),
    "mixup": (0.2, 1.0),
    "cutmix": (0.2, 1.0),
}
ALWAYS = {("flip", 1.0), ("vertical_flip", 1.0)}  # do the same to every image
CASES = [(name, strength) for name, both in STRENGTHS.items() for strength in sorted(set(both))]
TARGETS = jax.nn.one_hot(jnp.arange(16) % 4, 4)
GIVEN = {"index": jnp.arange(16), "epoch": jnp.int32(0), "coin": jax.random.key(3), "mean": (0.2, 0.4, 0.6)}


def run(name, strength, before=None, key=KEY, **given):
    """(images, targets) after that augmentation alone, through `augment`."""
    before = images() if before is None else before
    return augment.augment(section(**{name: strength}), key, before, TARGETS, **GIVEN | given)


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


def test_every_augmentation_is_tested_and_is_a_field_of_the_recipe():
    assert set(STRENGTHS) == {*AUGMENTATIONS, *MIXTURES} == set(made.recipe().augment)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("name", "strength"), CASES)
def test_an_augmentation_keeps_shape_dtype_and_range(name, strength, channels):
    before = images()[..., :channels]
    after, targets = run(name, strength, before, mean=(0.3,))
    assert after.shape == before.shape
    assert after.dtype == jnp.float32
    assert (after >= 0).all()
    assert (after <= 1).all()
    assert targets.shape == TARGETS.shape
    np.testing.assert_allclose(targets.sum(-1), 1, rtol=1e-6)


@pytest.mark.parametrize(("name", "strength"), CASES)
def test_an_augmentation_depends_on_its_key_only(name, strength):
    once, again = run(name, strength), run(name, strength)
    made.assert_same(once, again)
    other = run(name, strength, key=jax.random.key(8))[0]
    assert np.any(once[0] != other) == ((name, strength) not in {*ALWAYS, ("alternating_flip", 1)})


@pytest.mark.parametrize(("name", "strength"), CASES)
def test_images_are_treated_differently_and_only_mixtures_change_the_targets(name, strength):
    same = jnp.tile(images(1), (16, 1, 1, 1))
    seen = same if name in MIXTURES else run(name, strength, same)[0]
    distinct = len({np.asarray(image).tobytes() for image in seen})
    assert distinct == 1 if name in MIXTURES or (name, strength) in ALWAYS else distinct > 1
    _, targets = run(name, strength)
    if name in MIXTURES:
        assert len({float(row.max()) for row in targets}) > 3  # a share of its own for each image
    else:
        np.testing.assert_array_equal(targets, TARGETS)


@pytest.mark.parametrize("name", STRENGTHS)
def test_strength_zero_is_the_identity(name):
    seen, targets = run(name, type(STRENGTHS[name][0])(0))
    np.testing.assert_array_equal(seen, images())
    np.testing.assert_array_equal(targets, TARGETS)


@pytest.mark.parametrize("name", STRENGTHS)
def test_an_augmentation_of_strength_zero_called_by_itself_is_the_identity_too(name):
    function, zero = {**AUGMENTATIONS, **MIXTURES}[name], type(STRENGTHS[name][0])(0)
    if name in MIXTURES:
        seen, targets = function(KEY, images(), zero, TARGETS)
        np.testing.assert_array_equal(targets, TARGETS)
    else:
        named = {each: GIVEN[each] for each in inspect.signature(function).parameters if each in GIVEN}
        seen = function(KEY, images(), zero, **named)
    np.testing.assert_allclose(seen, images(), rtol=0, atol=1e-6)


def test_streams_keep_their_numbers():
    """Another number would draw other images for every stored recipe."""
    assert {
        "flip": 0,
        "alternating_flip": 1,
        "crop": 2,
        "rotation": 3,
        "brightness": 4,
        "contrast": 5,
        "saturation": 6,
        "randaugment": 7,
        "trivial_augment": 8,
        "cutout": 9,
        "inner_cutout": 10,
        "random_erasing": 11,
        "mixup": 12,
        "cutmix": 13,
        "vertical_flip": 14,
    }.items() <= augment.STREAMS.items()
    assert len(set(augment.STREAMS.values())) == len(augment.STREAMS)


def test_a_recipe_without_augmentation_changes_nothing():
    targets = jax.nn.one_hot(jnp.arange(16) % 4, 4)
    seen, same = augment.augment(made.recipe().augment, KEY, images(), targets)
    np.testing.assert_array_equal(seen, images())
    np.testing.assert_array_equal(same, targets)


@pytest.mark.parametrize(("flip", "axis"), [(augment.flip, 2), (augment.vertical_flip, 1)])
def test_flips_mirror_whole_images_and_twice_is_the_identity(flip, axis):
    before = images()
    mirrored = flip(KEY, before, 1.0)
    np.testing.assert_array_equal(mirrored, np.flip(before, axis))
    np.testing.assert_array_equal(flip(KEY, mirrored, 1.0), before)
    half = flip(KEY, before, 0.5)
    np.testing.assert_array_equal(flip(KEY, half, 0.5), before)


def test_the_two_flips_are_drawn_apart():
    same = jnp.tile(images(1), (400, 1, 1, 1))
    both = augment.augment(section(flip=0.5, vertical_flip=0.5), KEY, same, jnp.zeros((400, 4)), **GIVEN)[0]
    counts = np.unique(np.asarray(both).reshape(400, -1), axis=0, return_counts=True)[1]
    assert len(counts) == 4
    assert np.sum((counts - 100) ** 2 / 100) < 16.3  # chi-squared with 3 degrees of freedom: p = 0.001


@pytest.mark.parametrize("flip", [augment.flip, augment.vertical_flip])
@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_flips_mirror_each_image_on_its_own_with_their_probability(flip, probability):
    before = jnp.tile(images(1, 2, 2), (4000, 1, 1, 1))
    mirrored = np.asarray(flip(KEY, before, probability) != before).any((1, 2, 3))
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
    expected = augment.crop(jax.random.fold_in(KEY, 2), augment.flip(jax.random.fold_in(KEY, 0), before, 0.5), 2)
    np.testing.assert_array_equal(seen, expected)
    np.testing.assert_array_equal(same, targets)
    alone, _ = augment.augment(section(crop=2), KEY, before, targets)  # another's strength does not move its draws
    np.testing.assert_array_equal(alone, augment.crop(jax.random.fold_in(KEY, 2), before, 2))


def test_a_function_may_stand_in_for_the_section():
    def brighter(key, images, targets):
        return images + jax.random.uniform(key), 1 - targets

    targets = jax.nn.one_hot(jnp.arange(16) % 4, 4)
    seen, others = augment.augment(made.recipe(augment=brighter).augment, KEY, images(), targets)
    np.testing.assert_array_equal(seen, images() + jax.random.uniform(KEY))
    np.testing.assert_array_equal(others, 1 - targets)


def test_alternating_flip_shows_each_image_mirrored_in_every_second_epoch():
    """Jordan 2024: whatever the step, the batch and the place in it."""
    before, index = images(64), jnp.arange(64)
    toss = lambda epoch, order=index: np.asarray(
        augment.alternating_flip(KEY, before[order], 1, order, jnp.int32(epoch), GIVEN["coin"])
    )
    mirrored = np.asarray(before)[:, :, ::-1]
    first, second = toss(0), toss(1)
    flipped = (first == mirrored).all((1, 2, 3))
    assert 16 < flipped.sum() < 48
    np.testing.assert_array_equal(first, np.where(flipped[:, None, None, None], mirrored, before))
    np.testing.assert_array_equal(second, np.where(flipped[:, None, None, None], before, mirrored))
    np.testing.assert_array_equal(toss(2), first)
    order = np.random.RandomState(1).permutation(64)
    np.testing.assert_array_equal(toss(0, jnp.asarray(order)), first[order])


def test_flip_and_alternating_flip_together_are_refused():
    with pytest.raises(InputError, match="undo each other"):
        check(made.recipe({"augment.flip": 0.5, "augment.alternating_flip": 1}))


def drawn(strength):
    """The factors that _uniform draws under KEY, in float64."""
    return np.float64(jax.random.uniform(KEY, (16, 1, 1, 1), minval=1 - strength, maxval=1 + strength))


def luma(batch):
    return (np.float64(batch) * [0.299, 0.587, 0.114]).sum(-1, keepdims=True)


@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_brightness_contrast_and_saturation_are_numpys(strength):
    before, factor = np.float64(images()), drawn(strength)
    anchors = {
        "brightness": 0.0,
        "contrast": luma(before).mean((1, 2, 3), keepdims=True),
        "saturation": luma(before),
    }
    for name, anchor in anchors.items():
        expected = np.clip(anchor + factor * (before - anchor), 0, 1)
        np.testing.assert_allclose(AUGMENTATIONS[name](KEY, images(), strength), expected, atol=2e-6, err_msg=name)


def test_rotation_is_numpys_bilinear_one():
    before = images(16, 9, 7)
    angles = np.deg2rad(np.float64(jax.random.uniform(KEY, (16, 1, 1, 1), minval=-50, maxval=50))).ravel()
    wide = np.pad(before, [(0, 0), (8, 8), (6, 6), (0, 0)], mode="reflect")
    expected = np.zeros(before.shape)
    for n, i, j in np.ndindex(16, 9, 7):
        sine, cosine = np.sin(angles[n]), np.cos(angles[n])
        y, x = cosine * (i - 4) + sine * (j - 3) + 4 + 8, cosine * (j - 3) - sine * (i - 4) + 3 + 6
        top, left = int(y), int(x)
        for row, column in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
            expected[n, i, j] += (1 - abs(y - row)) * (1 - abs(x - column)) * wide[n, row, column]
    np.testing.assert_allclose(augment.rotation(KEY, before, 50.0), expected, atol=2e-5)


@pytest.mark.parametrize("pixels", [1, 4, 5, 40])
def test_cutout_fills_one_square_an_image_with_the_mean_of_the_data(pixels):
    before = images(64, 12, 12)
    after = np.asarray(augment.cutout(KEY, before, pixels, (0.2, 0.4, 0.6)))
    changed = (after != np.asarray(before)).any(-1)
    np.testing.assert_array_equal(after[changed], np.tile(np.float32([0.2, 0.4, 0.6]), (changed.sum(), 1)))
    for hole in changed:
        rows, columns = hole.any(1), hole.any(0)
        np.testing.assert_array_equal(hole, rows[:, None] & columns)
        assert max(rows.sum(), columns.sum()) <= min(pixels, 12)
        assert rows.sum() == pixels or rows[0] or rows[-1]  # smaller only where the border cuts it
    assert (changed.sum((1, 2)) == min(pixels, 12) ** 2).any()


def test_inner_cutouts_square_lies_in_the_image_at_every_place_alike():
    after = np.asarray(augment.inner_cutout(KEY, jnp.zeros((4000, 9, 12, 1)), 5, (0.5,)))[..., 0] > 0
    assert (after.sum((1, 2)) == 25).all()
    tops, lefts = after.any(2).argmax(1), after.any(1).argmax(1)
    for found, places in ((tops, 5), (lefts, 8)):
        counts = np.bincount(found, minlength=places)
        assert len(counts) == places
        assert np.abs(counts / 4000 - 1 / places).max() < 0.03
    whole = np.asarray(augment.inner_cutout(KEY, jnp.zeros((2, 4, 6, 3)), 9, (0.2, 0.4, 0.6)))
    np.testing.assert_allclose(whole, np.broadcast_to([0.2, 0.4, 0.6], whole.shape), rtol=1e-6)


def test_cutouts_square_stands_about_any_pixel():
    """So the border is covered by as many squares on one side as on the other: 3 of 12 of 5 pixels, the middle by 5."""
    after = np.asarray(augment.cutout(KEY, jnp.zeros((4000, 12, 12, 1)), 5, (0.5,)))[..., 0] > 0
    rows, columns = after.any(2).mean(0), after.any(1).mean(0)
    expected = np.array([3, 4, 5, 5, 5, 5, 5, 5, 5, 5, 4, 3]) / 12
    np.testing.assert_allclose(np.stack([rows, columns]), np.stack([expected] * 2), atol=4 * 0.5 / np.sqrt(4000))
    assert after[:, 0, 0].mean() == pytest.approx(1 / 16, abs=0.02)  # rows and columns are drawn apart


def test_random_erasing_replaces_rectangles_of_the_papers_area_and_aspect_by_noise():
    before = jnp.full((600, 32, 32, 3), 0.5)  # no noise is: it is a multiple of 1 / 255
    after = np.asarray(augment.random_erasing(KEY, before, 0.5))
    changed = (after != 0.5).any(-1)
    erased = changed.any((1, 2))
    assert abs(erased.mean() - 0.5) < 4 * 0.5 / np.sqrt(600)
    for hole in changed[erased]:
        rows, columns = hole.any(1), hole.any(0)
        np.testing.assert_array_equal(hole, rows[:, None] & columns)
        assert 0.3 * 0.7 < rows.sum() / columns.sum() < 1.43 / 0.3  # but for whole pixels
    areas = changed[erased].mean((1, 2))
    assert 0.01 < areas.min() < 0.04
    assert 0.3 < areas.max() < 0.42
    noise = after[changed]
    assert abs(noise.mean() - 0.5) < 0.01
    assert abs(noise.std() - 12**-0.5) < 0.01
    assert len(np.unique(noise)) == 256
    assert (noise[:, 0] == noise[:, 1]).mean() < 0.02  # a number for each channel
    ratios = np.array([hole.any(1).sum() / hole.any(0).sum() for hole in changed[erased]])
    assert ratios.min() < 0.5
    assert ratios.max() > 2.2
    for covered in changed[erased].mean((0, 2)), changed[erased].mean((0, 1)):  # anywhere in the image
        np.testing.assert_allclose(covered, covered[::-1], atol=0.07)


def test_mixup_is_the_papers_sum_with_a_share_for_each_image():
    before = np.float64(images())
    share = np.float64(jax.random.beta(KEY, 0.4, 0.4, (16, 1)))
    seen, targets = augment.mixup(KEY, images(), 0.4, TARGETS)
    wide = share[..., None, None]
    np.testing.assert_allclose(seen, wide * before + (1 - wide) * np.roll(before, 1, 0), atol=1e-6)
    np.testing.assert_allclose(targets, share * TARGETS + (1 - share) * np.roll(TARGETS, 1, 0), atol=1e-6)
    shares = np.asarray(jax.random.beta(KEY, 0.4, 0.4, (4000,)))  # the variance of Beta(a, a) is 1 / (8 a + 4)
    assert shares.var() == pytest.approx(1 / 7.2, rel=0.05)


def test_cutmix_pastes_a_rectangle_and_weighs_the_targets_by_its_pixels():
    before = images(300, 12, 12)
    targets = jax.nn.one_hot(jnp.arange(300), 300)
    seen, mixed = (np.asarray(part) for part in augment.cutmix(KEY, before, 1.0, targets))
    pasted = (seen != np.asarray(before)).any(-1)
    np.testing.assert_array_equal(seen[pasted], np.roll(before, 1, 0)[pasted])
    for number, hole in enumerate(pasted):
        np.testing.assert_array_equal(hole, hole.any(1)[:, None] & hole.any(0))
        assert mixed[number, number] == pytest.approx(1 - hole.mean(), abs=1e-6)
        assert mixed[number, number - 1] == pytest.approx(hole.mean(), abs=1e-6)
    random, expected = np.random.RandomState(0), np.zeros((12, 12))
    for side in np.sqrt(random.uniform(size=4000)):  # 1 - Beta(1, 1) is uniform
        inside = np.abs(np.arange(12) - random.randint(0, 12, (2, 1)) + 0.25) <= int(side * 12) / 2
        expected += inside[0][:, None] & inside[1]
    assert pasted.mean() == pytest.approx(expected.mean() / 4000, abs=0.04)
    np.testing.assert_allclose(pasted.mean(0), expected / 4000, atol=4 * 0.5 / np.sqrt(300))


@pytest.mark.parametrize("augmentation", ["mixup", "cutmix"])
def test_training_accuracy_counts_the_original_label(augmentation):
    """A model that ignores the image and always answers class 2 is right as often as that label is there."""
    recipe = made.recipe({f"augment.{augmentation}": 1.0})
    state, data = made.init(recipe), made.split()
    params = jax.tree.map(jnp.zeros_like, state.params)
    params["head"]["bias"] = jnp.array([0.0, 0.0, 1.0, 0.0])
    _, sums = made.step(recipe)(state.replace(params=params), data.images[:8], data.labels[:8])
    assert int(sums["correct"]) == np.sum(data.labels[:8] == 2)


def pillow(name, amount, values):
    image = Image.fromarray(values)
    height, width, _ = values.shape
    fill = (51, 102, 153)
    affine = lambda *matrix: image.transform(image.size, Image.Transform.AFFINE, matrix, fillcolor=fill)
    operations = {
        "identity": lambda: image,
        "shear_x": lambda: affine(1, amount, 0, 0, 1, 0),
        "shear_y": lambda: affine(1, 0, 0, amount, 1, 0),
        "translate_x": lambda: affine(1, 0, -int(amount * width), 0, 1, 0),
        "translate_y": lambda: affine(1, 0, 0, 0, 1, -int(amount * height)),
        "rotate": lambda: image.rotate(amount, fillcolor=fill),
        "brightness": lambda: ImageEnhance.Brightness(image).enhance(1 + amount),
        "color": lambda: ImageEnhance.Color(image).enhance(1 + amount),
        "contrast": lambda: ImageEnhance.Contrast(image).enhance(1 + amount),
        "sharpness": lambda: ImageEnhance.Sharpness(image).enhance(1 + amount),
        "posterize": lambda: ImageOps.posterize(image, 8 - round(amount)),
        "solarize": lambda: ImageOps.solarize(image, 256 * (1 - amount)),
        "autocontrast": lambda: ImageOps.autocontrast(image),
        "equalize": lambda: ImageOps.equalize(image),
    }
    return np.asarray(operations[name]()).astype(int)


def textured(batch=5, height=16, width=20):
    """Smooth walks of grey values, none of which fills 0..255."""
    steps = np.random.RandomState(2).normal(size=(batch, height, width, 3)) * 9
    return np.clip(steps.cumsum(1) + 120, 20, 230).astype(np.uint8)


@pytest.mark.parametrize(("number", "name"), [(number, name) for number, (name, *_) in enumerate(OPERATIONS)])
@pytest.mark.parametrize("share", [0.0, 0.37, 0.9])
@pytest.mark.parametrize("space", [1, 2], ids=["randaugment", "trivial_augment"])
def test_an_operation_is_pillows(number, name, share, space):
    largest, signed = OPERATIONS[number][space], OPERATIONS[number][3]
    for amount in {share * largest, -share * largest if signed else share * largest}:
        before = textured()
        after = apply(jnp.full(5, number), jnp.full(5, amount), before / np.float32(255), (0.2, 0.4, 0.6))
        expected = np.stack([pillow(name, amount, image) for image in before])
        difference = np.abs(np.rint(np.asarray(after) * 255) - expected).max(-1)
        # What float64 and float32 round to different sides; a rotation may then take the next pixel.
        assert name == "rotate" or difference.max() <= 1
        assert (difference > 0).mean() < 0.03


def test_every_image_takes_its_own_operation():
    before = jnp.asarray(textured(14) / np.float32(255))
    operation, amount = jnp.arange(14), jnp.array([0.6 * largest for _, largest, _, _ in OPERATIONS])
    together = apply(operation, amount, before)
    for number in range(14):
        alone = apply(operation[number : number + 1], amount[number : number + 1], before[number : number + 1])
        np.testing.assert_array_equal(together[number], alone[0])
    changed = np.abs(together - before).max((1, 2, 3)) > 1e-6
    np.testing.assert_array_equal(changed, [name != "identity" for name, *_ in OPERATIONS])


def test_the_policies_draw_every_operation():
    """On one image the results of TrivialAugment fall apart into as many kinds as it has operations, and signs."""
    before = jnp.tile(jnp.asarray(textured(1) / np.float32(255)), (2000, 1, 1, 1))
    seen = np.asarray(jax.jit(lambda images: AUGMENTATIONS["trivial_augment"](KEY, images, 1.0))(before))
    kinds = {image.tobytes() for image in seen}
    assert 14 < len(kinds) <= 1 + 2 * 31 * 9 + 31 * 2 + 2
    for name in ("autocontrast", "equalize"):
        expected = pillow(name, 0, textured(1)[0])
        same = (np.abs(np.rint(seen * 255) - expected).max((1, 2, 3)) <= 1).mean()
        assert abs(same - 1 / 14) < 4 * np.sqrt(1 / 14 * 13 / 14 / 2000) + 0.01


def test_the_policies_go_as_far_as_their_papers():
    """In their units, for images of 32 pixels: Cubuk et al. 2019, table 6 (translations as torchvision scales them),
    and Müller & Hutter 2021, table 6, "wide": bits that posterize keeps, the threshold from which solarize inverts."""
    far = {name: (small, wide) for name, small, wide, _ in OPERATIONS}
    assert [round(32 * amount, 1) for amount in far["translate_x"]] == [14.5, 32]
    assert far["translate_x"] == far["translate_y"]
    assert far["shear_x"] == far["shear_y"] == (0.3, 0.99)
    assert far["rotate"] == (30, 135)
    assert [8 - bits for bits in far["posterize"]] == [4, 2]
    assert [256 * (1 - share) for share in far["solarize"]] == [0, 0]
    assert {far[name] for name in ("brightness", "color", "contrast", "sharpness")} == {(0.9, 0.99)}
    signed = {name for name, *_, either in OPERATIONS if either}
    assert set(far) - signed == {"identity", "posterize", "solarize", "autocontrast", "equalize"}


def writes_down(operation, amount, images, mean):
    """In place of `apply`: shifts the operation and its amount into the images, which are [B, 1, W, 1]."""
    return jnp.concatenate([images[:, :, 2:], jnp.stack([operation, amount], 1)[:, None, :, None]], 2)


def assert_drawn_evenly(numbers, kinds):
    counts = np.bincount(np.asarray(numbers).astype(int), minlength=kinds)
    assert len(counts) == kinds
    assert np.abs(counts / len(numbers) - 1 / kinds).max() < 4 * np.sqrt(1 / kinds / len(numbers))


def test_randaugment_takes_two_operations_an_image_of_its_magnitude_and_either_sign(monkeypatch):
    monkeypatch.setattr(policies, "apply", writes_down)
    first, one, second, two = np.asarray(policies.randaugment(KEY, jnp.zeros((8000, 1, 4, 1)), 3.0))[:, 0, :, 0].T
    assert_drawn_evenly(14 * first + second, 14 * 14)
    for operation, amount in ((first, one), (second, two)):
        for number, (name, largest, _, signed) in enumerate(OPERATIONS):
            drawn, counts = np.unique(amount[operation == number], return_counts=True)
            expected = [-0.3 * largest, 0.3 * largest] if signed else [0.3 * largest]
            np.testing.assert_allclose(drawn, expected, rtol=1e-6, err_msg=name)
            assert counts.min() > 0.4 * counts.sum()


def test_trivial_augment_takes_one_operation_an_image_of_any_magnitude(monkeypatch):
    monkeypatch.setattr(policies, "apply", writes_down)
    drawn = policies.trivial_augment(KEY, jnp.zeros((20000, 1, 4, 1)), 0.5)
    none, nothing, operation, amount = np.asarray(drawn)[:, 0, :, 0].T
    assert not none.any()
    assert not nothing.any()
    assert_drawn_evenly(operation, 14)
    for number, (name, _, largest, signed) in enumerate(OPERATIONS):
        own = amount[operation == number]
        if largest:
            assert_drawn_evenly(np.rint(np.abs(own) / (0.5 * largest) * 30), 31)
        assert (own < 0).mean() == pytest.approx(15 / 31 if signed else 0, abs=0.06), name


@pytest.mark.parametrize("size", [(1, 1), (1, 5)])
@pytest.mark.parametrize(("name", "strength"), [case for case in CASES if case[1] == max(STRENGTHS[case[0]])])
def test_images_of_a_single_row_or_column_pass(name, strength, size):
    seen, targets = run(name, strength, images(16, *size))
    assert seen.shape == (16, *size, 3)
    assert np.isfinite(seen).all()
    assert np.isfinite(targets).all()


def numpy_views(batch):
    mirror = lambda x: x[:, :, ::-1]
    up = np.pad(batch, [(0, 0), (1, 1), (1, 1), (0, 0)], mode="reflect")[:, :-2, :-2]
    down = np.pad(batch, [(0, 0), (1, 1), (1, 1), (0, 0)], mode="reflect")[:, 2:, 2:]
    return {
        "one": [(1, batch)],
        "mirror": [(1 / 2, batch), (1 / 2, mirror(batch))],
        "flips": [(1 / 4, view) for x in (batch, batch[:, ::-1]) for view in (x, mirror(x))],
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


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_images_and_targets_keep_their_dtype_with_64_bit_values(dtype):
    fields = made.recipe().augment
    section = {name: type(fields[name])(1) for name in [*AUGMENTATIONS, *MIXTURES]}
    given = {"index": np.arange(4), "epoch": 0, "mean": (0.1, 0.2, 0.3)}

    def prepared(images, targets, coin):
        images, targets = augment.augment(section, jax.random.key(0), images, targets, coin=coin, **given)
        return normalise(images, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)), targets

    with jax.enable_x64(True):
        found = jax.eval_shape(prepared, np.zeros((4, 8, 8, 3), dtype), np.eye(4, dtype=dtype), jax.random.key(1))
    assert {str(array.dtype) for array in found} == {dtype}
