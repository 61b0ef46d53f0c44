"""The function that is exported: preprocessing, the model, its views, the softmax."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import export as jax_export

from cifar_jax.errors import InputError
from cifar_jax.recipe import freeze, override
from cifar_jax.runs.classifier import Classifier
from cifar_jax.training import evaluation

Outputs = dict[str, jax.Array]  # "probabilities" float32 [B, classes], and "embedding" float32 [B, D]


def inference(classifier: Classifier, dtype: str = "float32") -> Callable[[Any, jax.Array], Outputs]:
    """(weights, images uint8 [B, H, W, C]) -> the outputs over the recipe's views and at the temperature, computed in
    `dtype`.

    They are those of `Classifier.probabilities` and `Classifier.embeddings`; a model without a module `head` has no
    embedding.
    """
    recipe = freeze(override(classifier.recipe, {"dtype": dtype}))
    views, temperature = recipe.evaluation.views, classifier.temperature

    def outputs(weights: Any, images: jax.Array) -> Outputs:
        try:
            scores, features = evaluation.logits_and_embeddings(recipe, weights, images, views)
        except InputError:
            return {"probabilities": softmax(evaluation.logits(recipe, weights, images, views))}
        return {"probabilities": softmax(scores), "embedding": features.astype(jnp.float32)}

    def softmax(scores: jax.Array) -> jax.Array:
        return jax.nn.softmax(scores.astype(jnp.float32) / jnp.float32(temperature))

    return outputs


def dtype_on(platform: str, recipe: Any) -> str:
    """The dtype that an exported program computes in: the recipe's on an accelerator, otherwise float32.

    On the CPU float32 is faster than the half precisions, and jaxlib 0.12.0.1 was seen to compute ResNet-18 wrongly in
    bfloat16 there. float64 is float32 too: few readers have switched it on.
    """
    return recipe.dtype if platform != "cpu" and recipe.dtype in ("bfloat16", "float16") else "float32"


def symbolic_images(classifier: Classifier) -> jax.ShapeDtypeStruct:
    """uint8 [batch, H, W, C]: the images of a program for batches of any size."""
    (batch,) = jax_export.symbolic_shape("batch")
    return jax.ShapeDtypeStruct((batch, *classifier.recipe.data.image_shape), jnp.uint8)
