"""Logits over views, and sums over padded batches in which every image counts exactly once."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from cifar_jax.models.embedding import embed
from cifar_jax.models.kernels import at_least_float32
from cifar_jax.recipe import build
from cifar_jax.training import augment
from cifar_jax.training.losses import LOSSES
from cifar_jax.training.metrics import CALIBRATION_BINS
from cifar_jax.training.state import model, model_inputs

Array = jax.Array


Weights = dict[str, Any]  # {"params", "batch_stats"}; those of a state: `state.evaluated_weights`


def logits(recipe: Any, weights: Weights, images: Array, views: str = "one") -> Array:
    """images uint8 [B, H, W, C] -> float32 [B, classes], the weighted mean over the views' logits.

    Raises InputError on unknown views.
    """
    inputs = images.astype(at_least_float32(recipe.dtype)) / 255
    apply: Any = lambda view: model(recipe).apply(weights, model_inputs(recipe, view(inputs)), train=False)
    return jnp.sum(jnp.stack([weight * apply(view) for weight, view in augment.views(views)]), axis=0)


def embeddings(recipe: Any, weights: Weights, images: Array) -> Array:
    """images uint8 [B, H, W, C] -> float32 [B, D], the input of the model's `head`, of the images alone.

    Raises InputError where the model has no module of that name.
    """
    return embed(model(recipe), weights, model_inputs(recipe, images.astype(at_least_float32(recipe.dtype)) / 255))[1]


def logits_and_embeddings(recipe: Any, weights: Weights, images: Array, views: str = "one") -> tuple[Array, Array]:
    """`logits` and `embeddings` of the same images in one program; the first view is the image itself.

    Raises InputError on unknown views, and where the model has no module `head`.
    """
    inputs = images.astype(at_least_float32(recipe.dtype)) / 255
    module, chosen = model(recipe), augment.views(views)
    seen = [embed(module, weights, model_inputs(recipe, view(inputs))) for _, view in chosen]
    scores = jnp.stack([weight * each for (weight, _), (each, _) in zip(chosen, seen, strict=True)])
    return jnp.sum(scores, axis=0), seen[0][1]


def sums(*arguments: Any, **options: Any) -> dict[str, Array]:
    """The sums of `sums_and_probabilities`; a program that uses no probabilities does not compute them."""
    return sums_and_probabilities(*arguments, **options)[0]


def sums_and_probabilities(
    recipe: Any,
    weights: Weights,
    images: Array,
    labels: Array,
    views: str,
    *,
    constrain: Callable[[Any], Any] = lambda batch: batch,
    devices: int = 1,
    before: dict[str, Array] | None = None,
) -> tuple[dict[str, Array], Array]:
    """Sums over images uint8 [N, H, W, C] and labels int32 [N], in batches of evaluation.batch_size, and the
    probabilities of each image, [N, C]. The sums:

    loss_sum (the recipe's loss), top5, confusion int32 [C, C] by (true, predicted), and calibration [15, 3]: images,
    summed confidence and correct answers in each bin of the highest probability. `constrain` places a batch on so many
    `devices`; `before` are the sums that these are added to.
    """
    count, classes = len(images), recipe.data.num_classes
    size = -(-min(recipe.evaluation.batch_size, count) // devices) * devices  # splits evenly over the devices
    batches = jnp.arange(-(-count // size) * size).reshape(-1, size)

    def body(total: dict[str, Array], index: Array) -> tuple[dict[str, Array], Array]:
        weight = (index < count).astype(jnp.float32)  # the last batch is padded with images of weight 0
        batch = images[jnp.minimum(index, count - 1)], labels[jnp.minimum(index, count - 1)]
        batch = constrain(batch)
        scores = logits(recipe, weights, batch[0], views)
        seen = _batch_sums(recipe, scores, batch[1], weight)
        return jax.tree.map(jnp.add, total, seen), jax.nn.softmax(scores)

    start = {
        "loss_sum": jnp.zeros((), at_least_float32(recipe.dtype)),
        "top5": jnp.int32(0),
        "confusion": jnp.zeros((classes, classes), jnp.int32),
        "calibration": jnp.zeros((CALIBRATION_BINS, 3), at_least_float32(recipe.dtype)),
    }
    total, probabilities = jax.lax.scan(body, before or start, batches)
    return total, probabilities.reshape(-1, classes)[:count]


def _batch_sums(recipe: Any, scores: Array, labels: Array, weight: Array) -> dict[str, Array]:
    """The sums of a batch; `weight` is 0 for padding, otherwise 1."""
    classes = scores.shape[-1]
    true = jax.nn.one_hot(labels, classes, dtype=scores.dtype)
    predicted = jax.nn.one_hot(scores.argmax(-1), classes, dtype=scores.dtype)
    confidence = jax.nn.softmax(scores).max(-1)
    bins = jax.nn.one_hot(
        jnp.minimum(confidence * CALIBRATION_BINS, CALIBRATION_BINS - 1).astype(int),
        CALIBRATION_BINS,
        dtype=scores.dtype,
    )
    correct = (true * predicted).sum(-1)
    own = jnp.take_along_axis(scores, labels[:, None], -1)
    behind = (scores < own) | ((scores == own) & (jnp.arange(classes) > labels[:, None]))  # as argmax breaks ties
    ahead = classes - 1 - behind.sum(-1)  # a NaN is behind nothing
    losses = build(LOSSES, recipe.loss, "loss", logits=scores, targets=true)
    return {
        "loss_sum": (weight * losses).sum(),
        "top5": (weight * (ahead < 5)).sum().astype(jnp.int32),
        "confusion": jnp.einsum("b,bt,bp->tp", weight, true, predicted, precision="highest").astype(jnp.int32),
        "calibration": jnp.einsum(
            "b,bk,bf->kf", weight, bins, jnp.stack([weight, confidence, correct], -1), precision="highest"
        ),
    }
