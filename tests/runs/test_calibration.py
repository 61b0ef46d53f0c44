"""Temperature scaling: what it finds, what it changes, and the figures against scikit-learn and by hand."""

import numpy as np
import pytest
from sklearn.metrics import log_loss

from cifar_jax.errors import InputError
from cifar_jax.runs.calibration import calibration, fit_temperature, reliability, scale

CLASSES = 5


def softmax(logits):
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def drawn(count=4000, overconfidence=1.0, seed=0):
    """Probabilities, and labels that are drawn from them; then the logits are multiplied."""
    random = np.random.RandomState(seed)
    logits = random.normal(size=(count, CLASSES)) * 1.5
    labels = np.array([random.choice(CLASSES, p=row) for row in softmax(logits)])
    return softmax(overconfidence * logits).astype(np.float32), labels


@pytest.mark.parametrize("overconfidence", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_a_factor_on_the_logits(overconfidence):
    probabilities, labels = drawn(overconfidence=overconfidence)
    temperature = fit_temperature(probabilities, labels)
    assert temperature == pytest.approx(overconfidence, rel=0.05)
    np.testing.assert_allclose(scale(probabilities, overconfidence), drawn()[0], rtol=1e-3, atol=1e-6)


def test_what_scaling_changes_and_what_not():
    probabilities, labels = drawn(overconfidence=3.0)
    before, after = calibration(probabilities, labels), calibration(probabilities, labels, 3.0)
    assert before.accuracy == after.accuracy
    assert after.loss < before.loss
    assert after.brier_score < before.brier_score
    assert after.expected_calibration_error < 0.03 < 0.1 < before.expected_calibration_error


def test_the_figures_are_those_of_the_definitions():
    probabilities, labels = drawn(300)
    found = calibration(probabilities, labels)
    assert found.loss == pytest.approx(log_loss(labels, scale(probabilities, 1.0), labels=range(CLASSES)))
    by_hand = [
        sum((p - (k == label)) ** 2 for k, p in enumerate(row))
        for row, label in zip(probabilities, labels, strict=True)
    ]
    assert found.brier_score == pytest.approx(np.mean(by_hand))
    diagram = reliability(probabilities, labels, 10)
    assert diagram.counts.sum() == 300
    inside = (probabilities.max(-1) >= 0.5) & (probabilities.max(-1) < 0.6)
    assert diagram.accuracies[5] == pytest.approx((probabilities.argmax(-1) == labels)[inside].mean())
    assert diagram.confidences[5] == pytest.approx(probabilities.max(-1)[inside].mean())


def test_certain_predictions_have_finite_figures():
    """A probability of 1 for the wrong class is a loss of 27.6 nats, not infinity."""
    probabilities = np.eye(2, dtype=np.float32)[[0] * 30]
    found = calibration(probabilities, np.array([0] * 29 + [1]))
    assert np.isfinite(found.loss)
    assert np.isfinite(fit_temperature(probabilities, np.array([0] * 29 + [1])))
    with pytest.raises(InputError, match="a temperature needs at least 20 images, and the split has 3"):
        fit_temperature(probabilities[:3], np.zeros(3, int))
