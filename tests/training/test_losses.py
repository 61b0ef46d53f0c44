"""Losses against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cifar_jax.errors import InputError
from cifar_jax.recipe import parameters
from cifar_jax.training.check import check
from cifar_jax.training.losses import LOSSES, cross_entropy, focal
from tests import made

RANDOM = np.random.RandomState(0)
LOGITS = RANDOM.normal(size=(9, 5)).astype(np.float32) * 4
LABELS = RANDOM.randint(0, 5, 9)
ONE_HOT = np.eye(5, dtype=np.float32)[LABELS]
MIXED = 0.7 * ONE_HOT + 0.3 * np.roll(ONE_HOT, 2, -1)


def reference(logits, targets, smoothing):
    logits, targets = np.float64(logits), np.float64(targets)
    log_probabilities = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    smooth = (1 - smoothing) * targets + smoothing * np.full(targets.shape, 1 / targets.shape[1])
    return np.array([-np.dot(*pair) for pair in zip(smooth, log_probabilities, strict=True)])


@pytest.mark.parametrize("targets", [ONE_HOT, MIXED], ids=["one-hot", "mixed"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_cross_entropy_is_the_formula(targets, smoothing):
    losses = cross_entropy(jnp.asarray(LOGITS), jnp.asarray(targets), smoothing)
    assert losses.shape == (9,)
    assert losses.dtype == jnp.float32
    np.testing.assert_allclose(losses, reference(LOGITS, targets, smoothing), rtol=2e-6)


def test_label_smoothing_is_off_by_default():
    np.testing.assert_array_equal(cross_entropy(LOGITS, ONE_HOT), cross_entropy(LOGITS, ONE_HOT, 0.0))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_gradient_is_probabilities_minus_targets(smoothing):
    gradient = jax.grad(lambda logits: cross_entropy(logits, MIXED, smoothing).sum())(LOGITS)
    probabilities = np.exp(np.float64(LOGITS)) / np.exp(np.float64(LOGITS)).sum(-1, keepdims=True)
    np.testing.assert_allclose(gradient, probabilities - (0.8 * MIXED + 0.04 if smoothing else MIXED), atol=1e-6)


def test_cross_entropy_of_a_sure_mistake_is_large_and_finite():
    logits = jnp.array([[1000.0, -1000.0]])
    np.testing.assert_array_equal(cross_entropy(logits, jnp.array([[0.0, 1.0]])), [2000.0])
    np.testing.assert_array_equal(cross_entropy(logits, jnp.array([[1.0, 0.0]])), [0.0])


WEIGHTS = (0.5, 2.0, 0.0, 1.0, 3.0)


def weighted_focal(logits, targets, gamma, weights):
    logits, targets = np.float64(logits), np.float64(targets)
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    return -(np.array(weights or 1.0) * targets * (1 - probabilities) ** gamma * np.log(probabilities)).sum(-1)


@pytest.mark.parametrize("targets", [ONE_HOT, MIXED], ids=["one-hot", "mixed"])
@pytest.mark.parametrize("weights", [(), WEIGHTS], ids=["even", "weighted"])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
def test_focal_is_the_formula(targets, weights, gamma):
    expected = weighted_focal(LOGITS, targets, gamma, weights)
    np.testing.assert_allclose(focal(LOGITS, targets, gamma, weights), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_class_weights_multiply_each_classs_term(smoothing):
    targets = (1 - smoothing) * MIXED + smoothing / 5
    expected = weighted_focal(LOGITS, targets, 0, WEIGHTS)
    np.testing.assert_allclose(cross_entropy(LOGITS, MIXED, smoothing, WEIGHTS), expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(cross_entropy(LOGITS, ONE_HOT, 0.0, (2.0,) * 5), 2 * cross_entropy(LOGITS, ONE_HOT))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_and_its_gradient_are_finite_where_the_model_is_sure(gamma):
    logits, targets = jnp.array([[1000.0, -1000.0], [1000.0, -1000.0]]), jnp.eye(2)
    assert np.isfinite(focal(logits, targets, gamma)).all()
    assert np.isfinite(jax.grad(lambda logits: focal(logits, targets, gamma).sum())(logits)).all()


@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if "class_weights" in parameters(loss)])
@pytest.mark.parametrize(
    "weights", [(1.0, 2.0, 3.0), (1.0, -1.0, 1.0, 1.0), (1, 1, float("inf"), 1), (float("nan"),) * 4]
)
def test_class_weights_must_be_one_for_each_class(name, weights):
    with pytest.raises(InputError, match=r"'loss\.class_weights' is .* each of the 4 classes"):
        check(made.recipe(loss={"name": name, "class_weights": weights}))
    check(made.recipe(loss={"name": name, "class_weights": (1.0, 2.0, 3.0, 4.0)}))


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_of_bfloat16_logits_is_computed_in_float32(name):
    rough = jnp.asarray(LOGITS, jnp.bfloat16)
    losses = LOSSES[name](rough, jnp.asarray(ONE_HOT))
    assert losses.dtype == jnp.float32
    np.testing.assert_array_equal(losses, LOSSES[name](rough.astype(jnp.float32), jnp.asarray(ONE_HOT)))


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_one_number_an_example_that_depends_on_its_own_row_only(name):
    whole = LOSSES[name](jnp.asarray(LOGITS), jnp.asarray(ONE_HOT))
    assert whole.shape == (9,)
    changed = LOSSES[name](jnp.asarray(LOGITS).at[3].add(RANDOM.normal(size=5)), jnp.asarray(ONE_HOT))
    np.testing.assert_array_equal(np.flatnonzero(changed != whole), [3])
