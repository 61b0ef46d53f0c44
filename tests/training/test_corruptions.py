"""Corruptions against SciPy, Pillow, colorsys and the statistics that they promise."""

import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage, stats

from cifar_jax.training.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from tests import made

KEY = jax.random.key(0)
IMAGES = np.repeat(np.repeat(np.random.RandomState(0).randint(0, 256, (6, 16, 16, 3)), 2, 1), 2, 2).astype(np.uint8)
SCALED = IMAGES / np.float32(255)
FLAT = np.full((4, 64, 64, 3), 0.5, np.float32)


def applied(name, severity, images=SCALED):
    corruption = CORRUPTIONS[name]
    return np.asarray(corruption.function(KEY, jnp.asarray(images), *corruption.parameters[severity - 1]))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_corruption_grows_with_its_severity(name):
    """uint8 of the same shape; the mean change of severity 5 is above that of 1. `saturate` changes its direction."""
    small = IMAGES[:2]
    seen = [np.asarray(corrupt(name, severity, KEY, jnp.asarray(small))) for severity in SEVERITIES]
    changes = [np.abs(image.astype(float) - small).mean() for image in seen]
    assert {image.dtype for image in seen} == {np.dtype(np.uint8)}
    assert {image.shape for image in seen} == {small.shape}
    assert changes[-1] > 1
    if name != "saturate":
        assert changes[-1] > changes[0]


def test_rounding_leaves_an_image_that_is_not_changed_as_it_is():
    every = jnp.arange(256, dtype=jnp.uint8).reshape(1, 16, 16, 1)
    np.testing.assert_array_equal(corrupt("defocus_blur", 1, KEY, jnp.full_like(every, 77)), np.full(every.shape, 77))
    added = np.asarray(corrupt("brightness", 1, KEY, every)).astype(int) - np.asarray(every)
    assert set(np.unique(added[every < 230])) <= {12, 13}  # 0.05 * 255 = 12.75


@pytest.mark.parametrize("severity", SEVERITIES)
def test_gaussian_blur_is_scipys(severity):
    deviation = CORRUPTIONS["gaussian_blur"].parameters[severity - 1][0]
    expected = ndimage.gaussian_filter(SCALED, (0, deviation, deviation, 0), mode="nearest")
    np.testing.assert_allclose(applied("gaussian_blur", severity), expected, atol=1e-5)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_pixelate_is_pillows_box_filter(severity):
    size = int(32 * CORRUPTIONS["pixelate"].parameters[severity - 1][0])
    for image, found in zip(IMAGES, applied("pixelate", severity), strict=True):
        small = Image.fromarray(image).resize((size, size), Image.Resampling.BOX)
        expected = np.asarray(small.resize((32, 32), Image.Resampling.BOX))
        assert np.abs(expected - found * 255).max() <= 1.01  # Pillow rounds twice


@pytest.mark.parametrize("severity", SEVERITIES)
def test_brightness_and_saturation_are_those_of_hsv(severity):
    added = CORRUPTIONS["brightness"].parameters[severity - 1][0]
    factor, more = CORRUPTIONS["saturate"].parameters[severity - 1]
    pixels = SCALED[0, ::4, ::4].reshape(-1, 3)
    pixels = np.concatenate([pixels, [[0.3, 0.3, 0.3], [0, 0, 0], [1, 1, 1]]]).astype(np.float32)

    def changed(change):
        return np.array([colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*map(float, pixel)))) for pixel in pixels])

    brighter = changed(lambda h, s, v: (h, s, min(v + added, 1)))
    saturated = changed(lambda h, s, v: (h, min(s * factor + more, 1), v))
    np.testing.assert_allclose(applied("brightness", severity, pixels[None, None])[0, 0], brighter, atol=1e-5)
    np.testing.assert_allclose(applied("saturate", severity, pixels[None, None])[0, 0], saturated, atol=1e-5)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_noise_has_the_spread_that_it_promises(severity):
    parameter = {name: CORRUPTIONS[name].parameters[severity - 1][0] for name in CORRUPTIONS}
    assert applied("gaussian_noise", severity, FLAT).std() == pytest.approx(parameter["gaussian_noise"], rel=0.05)
    assert applied("speckle_noise", severity, FLAT).std() == pytest.approx(parameter["speckle_noise"] / 2, rel=0.05)
    photons = parameter["shot_noise"]
    assert applied("shot_noise", severity, FLAT).std() == pytest.approx((0.5 / photons) ** 0.5, rel=0.05)
    impulses = applied("impulse_noise", severity, FLAT)
    assert (impulses != 0.5).mean() == pytest.approx(parameter["impulse_noise"], rel=0.2)
    assert (impulses == 1).sum() == pytest.approx((impulses == 0).sum(), rel=0.3)


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("value", [0, 1, 64, 255])
def test_shot_noise_is_poissons(value, severity):
    """Pearson's statistic, over counts that are expected at least 20 times."""
    photons = CORRUPTIONS["shot_noise"].parameters[severity - 1][0]
    flat = np.full((20, 32, 32, 1), value / 255, np.float32)
    counts = np.rint(applied("shot_noise", severity, flat) * photons).astype(int)
    seen = np.bincount(counts.ravel(), minlength=int(2 * photons) + 20)
    expected = flat.size * stats.poisson.pmf(np.arange(len(seen)), value / 255 * photons)
    common = expected >= 20
    rest = np.array([[seen[~common].sum(), max(expected[~common].sum(), 1e-9)]])
    pairs = np.concatenate([np.stack([seen, expected], -1)[common], rest])
    statistic = ((pairs[:, 0] - pairs[:, 1]) ** 2 / pairs[:, 1]).sum()
    assert stats.chi2.sf(statistic, max(1, len(pairs) - 1)) > 1e-4


def test_blurs_keep_the_mean_and_what_is_flat():
    for name in ("gaussian_blur", "defocus_blur", "motion_blur", "zoom_blur"):
        for severity in SEVERITIES:
            np.testing.assert_allclose(applied(name, severity, FLAT[:1, :32, :32]), 0.5, atol=1e-5)
    point = np.zeros((1, 33, 33, 1), np.float32)
    point[0, 16, 16] = 1
    for name in ("gaussian_blur", "defocus_blur", "motion_blur"):
        assert applied(name, 5, point).sum() == pytest.approx(1, abs=1e-4)


def test_zoom_blur_of_the_largest_factor_is_the_mean_of_scipys_zooms():
    smooth = ndimage.gaussian_filter(SCALED[:1], (0, 2, 2, 0))
    rows = np.arange(32)
    expected = smooth.copy()
    factors = np.arange(1, 1.26, 0.01)
    for factor in factors:
        at = (rows + 0.5 - 16) / factor + 16 - 0.5
        grid = np.meshgrid(at, at, indexing="ij")
        expected[0] += np.stack(
            [ndimage.map_coordinates(smooth[0, ..., c], grid, order=1, mode="nearest") for c in range(3)], -1
        )
    np.testing.assert_allclose(applied("zoom_blur", 5, smooth), expected / (len(factors) + 1), atol=1e-4)


def test_the_noise_of_an_image_does_not_depend_on_the_others_of_its_batch():
    whole = corrupt("gaussian_noise", 3, KEY, jnp.asarray(made.split(8).images))
    other = corrupt("gaussian_noise", 3, KEY, jnp.asarray(made.split(8).images).at[1:].set(0))
    np.testing.assert_array_equal(whole[0], other[0])
