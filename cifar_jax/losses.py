"""Losses: logits [B, C] and targets [B, C], each row a distribution over the classes -> loss of each example [B]."""

import jax
import jax.numpy as jnp

from cifar_jax.recipe import Table


def cross_entropy(logits: jax.Array, targets: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
    """-sum_c t_c log p_c, with t = (1 - s) targets + s / C (Szegedy et al. 2016, section 7), in nats."""
    targets = (1 - label_smoothing) * targets + label_smoothing / targets.shape[-1]
    return -jnp.sum(targets * jax.nn.log_softmax(logits), axis=-1)


LOSSES: Table = {
    "cross_entropy": cross_entropy,
}
