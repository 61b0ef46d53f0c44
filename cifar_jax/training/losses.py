"""Losses: logits [B, C] and targets [B, C], each row a distribution over the classes -> loss of each example,
float32 [B], or float64 for logits in float64.

`class_weights`, one number per class, multiply the term of each class: () weighs none. They are taken as they are, and
the loss of a batch stays the sum over its examples divided by their number, not by their weights; weights whose mean
over the training set is 1 leave the scale of the loss, and so the learning rate, as it was. In a recipe, "balanced"
stands for the `balanced_weights` of the training set.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from cifar_jax.errors import InputError
from cifar_jax.models.kernels import at_least_float32
from cifar_jax.recipe import Table


def cross_entropy(
    logits: jax.Array,
    targets: jax.Array,
    label_smoothing: float = 0.0,
    class_weights: tuple[float, ...] = (),
) -> jax.Array:
    """-sum_c w_c t_c log p_c, with t = (1 - s) targets + s / C (Szegedy et al. 2016, section 7), in nats."""
    targets = (1 - label_smoothing) * targets + label_smoothing / targets.shape[-1]
    return -jnp.sum(_weighted(targets, class_weights) * _log_probabilities(logits), axis=-1)


def focal(
    logits: jax.Array, targets: jax.Array, gamma: float = 2.0, class_weights: tuple[float, ...] = ()
) -> jax.Array:
    """-sum_c w_c t_c (1 - p_c)^gamma log p_c (Lin et al. 2017, eq. 5), in nats; gamma 0 is the cross-entropy."""
    log_probabilities = _log_probabilities(logits)
    # Where p is 1 the loss is 0, but for a gamma below 1 the power has no finite gradient there.
    missing = jnp.maximum(-jnp.expm1(log_probabilities), 1e-12)
    return -jnp.sum(_weighted(targets, class_weights) * missing**gamma * log_probabilities, axis=-1)


def balanced_weights(labels: np.ndarray, classes: int) -> tuple[float, ...]:
    """N / (classes * N_c), so that every class has the same share of the loss (King & Zeng 2001); their mean over the
    examples is 1. Raises InputError where a class has no example."""
    counts = np.bincount(labels, minlength=classes)
    if not counts.all():
        raise InputError(
            f"class {int(np.argmin(counts))} has no training image, so loss.class_weights cannot be 'balanced'"
        )
    return tuple(float(weight) for weight in len(labels) / (classes * counts))


def _log_probabilities(logits: jax.Array) -> jax.Array:
    return jax.nn.log_softmax(logits.astype(at_least_float32(logits.dtype)))


def _weighted(targets: jax.Array, class_weights: tuple[float, ...]) -> jax.Array:
    if not len(class_weights):
        return targets
    count = targets.shape[-1]
    if len(class_weights) != count or not all(0 <= weight < math.inf for weight in class_weights):
        raise InputError(
            f"recipe field 'loss.class_weights' is {class_weights!r}; it takes (), 'balanced', or one finite number"
            f" of at least 0 for each of the {count} classes"
        )
    return targets * jnp.asarray(class_weights, targets.dtype)


LOSSES: Table = {
    "cross_entropy": cross_entropy,
    "focal": focal,
}
