"""The speedruns' networks: whitening from data, the identities they start from, and what stays frozen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cifar_jax import train
from cifar_jax.devices import jit
from cifar_jax.models import MODELS, speedrun
from tests import made

TINY = {"name": "speedrun94", "widths": (4, 8)}


def pictures(count=40, channels=3):
    """Neighbouring pixels and channels alike, as in photographs."""
    noise = np.random.RandomState(0).normal(size=(count, 10, 10, channels))
    smooth = noise + np.roll(noise, 1, 1) + np.roll(noise, 1, 2) + 0.8 * noise[..., :1]
    return ((smooth - smooth.mean()) / smooth.std() + 0.1).astype(np.float32)


def numpy_patches(images):
    windows = np.lib.stride_tricks.sliding_window_view(images.astype(np.float64), (2, 2), (1, 2))
    return windows.transpose(0, 1, 2, 4, 5, 3).reshape(-1, 4 * images.shape[-1])


@pytest.mark.parametrize("channels", [1, 3])
def test_whitening_is_that_of_numpy_in_float64(channels):
    images = pictures(channels=channels)
    filters = np.asarray(jit(speedrun.whitening_filters)(images))
    assert filters.shape == (2, 2, channels, 8 * channels)
    assert filters.dtype == np.float32
    values, vectors = np.linalg.eigh(np.cov(numpy_patches(images).T, bias=True))
    expected = (vectors / np.sqrt(values + 5e-4))[:, ::-1]
    half = 4 * channels
    columns = filters.reshape(half, 2 * half)
    np.testing.assert_array_equal(columns[:, half:], -columns[:, :half])
    # An eigenvector may come with either sign.
    signs = np.sign((columns[:, :half] * expected).sum(0))
    np.testing.assert_allclose(columns[:, :half] * signs, expected, atol=1e-4 * np.abs(expected).max())


def test_whitened_patches_are_uncorrelated_and_of_variance_one():
    images = pictures()
    filters = np.asarray(speedrun.whitening_filters(images)).reshape(12, 24)[:, :12]
    covariance = np.cov((numpy_patches(images) @ filters).T)
    np.testing.assert_allclose(covariance, np.eye(12), atol=0.02)


def test_patches_are_those_that_the_convolution_sees():
    images = pictures(2)
    np.testing.assert_allclose(speedrun.patches(images), numpy_patches(images), rtol=1e-6)


@pytest.mark.parametrize(("channels", "features"), [(3, 5), (4, 4), (5, 3)])
def test_dirac_passes_the_channels_on(channels, features):
    kernel = speedrun.dirac(jax.random.key(0), (3, 3, channels, features))
    images = np.random.RandomState(0).normal(size=(2, 6, 6, channels)).astype(np.float32)
    same = min(channels, features)
    outputs = speedrun.convolution(images, kernel)
    np.testing.assert_array_equal(outputs[..., :same], images[..., :same])
    rest, bound = np.asarray(kernel[..., same:]), (9 * channels) ** -0.5
    assert np.abs(rest).max(initial=0) <= bound
    assert rest.size == 0 or rest.std() == pytest.approx(bound / 3**0.5, rel=0.2)


@pytest.mark.parametrize(("name", "bound"), [("speedrun94", 3**0.5), ("speedrun96", 512**-0.5)])
def test_the_head_starts_uniform(name, bound):
    model = MODELS[name](num_classes=100, widths=MODELS[name](num_classes=1).widths[-1:])
    params = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False)["params"]
    kernel = np.asarray(params["head"]["kernel"])
    assert bound * 0.99 < np.abs(kernel).max() <= bound * (1 + 1e-6)
    assert kernel.std() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert set(params["head"]) == {"kernel"}
    assert not [path for path, _ in jax.tree.leaves_with_path(params) if "scale" in jax.tree_util.keystr(path)]


def test_no_step_moves_the_whitening():
    recipe = made.recipe({"optimizer.weight_decay": 0.1, "average.decay": 0.0}, model=TINY)
    state, data = made.init(recipe), made.split(8)
    after, _ = made.step(recipe)(state, data.images, data.labels)
    made.assert_same(after.batch_stats["whitening"], state.batch_stats["whitening"])
    assert np.any(after.params["whitening_bias"] != state.params["whitening_bias"])
    assert "whitening" not in after.params


def test_given_filters_are_used():
    recipe = made.recipe(model=TINY)
    state, images = made.init(recipe), pictures(4)
    apply = jit(lambda variables: train.model(recipe).apply(variables, images, train=False))
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    filters = {"whitening": speedrun.whitening_filters(images)}
    given = {"params": state.params, "batch_stats": state.batch_stats | filters}
    assert np.abs(apply(variables) - apply(given)).max() > 1e-5
