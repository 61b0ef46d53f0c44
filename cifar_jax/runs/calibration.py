"""Are the probabilities right? Temperature scaling, and what it changes (Guo et al. 2017, arXiv 1706.04599).

probabilities are float [N, C], labels int [N]. A temperature T divides the logits; of probabilities, whose logits are
known up to a constant, it is p ** (1 / T), normalised.
"""

from dataclasses import dataclass

import numpy as np
from scipy import optimize

from cifar_jax.errors import InputError

BINS = 15  # Guo et al. 2017, section 4
LEAST = 1e-12  # of a probability whose logarithm is taken: float32 probabilities may be 0
FEWEST = 20  # images that a temperature is fitted on
RANGE = (0.05, 20.0)  # in which the temperature is sought


@dataclass(frozen=True)
class Calibration:
    """`loss` is the negative log-likelihood in nats, `brier_score` the squared error summed over the classes."""

    temperature: float
    loss: float
    brier_score: float
    expected_calibration_error: float
    accuracy: float


@dataclass(frozen=True)
class Reliability:
    """The images in bins of equal width of their highest probability. Empty bins have confidence and accuracy 0."""

    counts: np.ndarray  # int64 [bins]
    confidences: np.ndarray  # float64 [bins], means
    accuracies: np.ndarray  # float64 [bins]

    @property
    def error(self) -> float:
        """The expected calibration error (eq. 3): the mean over all images of |accuracy - confidence| of their bin."""
        return float((np.abs(self.accuracies - self.confidences) * self.counts).sum() / max(1, self.counts.sum()))


def scale(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """The probabilities at another temperature, float64 [N, C]."""
    logits = np.log(np.maximum(np.asarray(probabilities, np.float64), LEAST)) / temperature
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def reliability(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> Reliability:
    confidence, correct = probabilities.max(-1).astype(np.float64), probabilities.argmax(-1) == labels
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    counts = np.bincount(place, minlength=bins)
    mean = lambda values: np.bincount(place, values, minlength=bins) / np.maximum(counts, 1)
    return Reliability(counts, mean(confidence), mean(correct.astype(np.float64)))


def calibration(probabilities: np.ndarray, labels: np.ndarray, temperature: float = 1.0) -> Calibration:
    """The figures at a temperature."""
    scaled = scale(probabilities, temperature)
    one_hot = np.eye(scaled.shape[1])[labels]
    return Calibration(
        temperature=float(temperature),
        loss=float(-np.log(np.maximum(scaled[np.arange(len(labels)), labels], LEAST)).mean()),
        brier_score=float(((scaled - one_hot) ** 2).sum(-1).mean()),
        expected_calibration_error=reliability(scaled, labels).error,
        accuracy=float((scaled.argmax(-1) == labels).mean()),
    )


def fit_temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The temperature with the lowest negative log-likelihood, which is convex in 1 / T.

    Raises InputError on fewer than 20 images.
    """
    if len(labels) < FEWEST:
        remedy = "hold out more (data.validation; of a folder data.validation_share)"
        raise InputError(f"a temperature needs at least {FEWEST} images, and the split has {len(labels)}; {remedy}")
    loss = lambda logarithm: calibration(probabilities, labels, float(np.exp(logarithm))).loss
    bounds = (float(np.log(RANGE[0])), float(np.log(RANGE[1])))
    return float(np.exp(optimize.minimize_scalar(loss, bounds=bounds, method="bounded").x))
