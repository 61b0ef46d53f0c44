"""The embedding of an image: the input of the model's last layer, which every architecture names `head`."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cifar_jax.errors import InputError

HEAD = "head"
COLLECTION = "embedding"


def embed(module: nn.Module, variables: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The logits [B, classes] of normalised images [B, H, W, C] in evaluation mode, and the embeddings [B, D].

    Embeddings are float32, or float64 where the model computes in float64. The module itself is not changed: the input
    of `head` is recorded by an interceptor that is active during this call only.

    Raises InputError where the module has no top-level submodule `head`, or its input is no [B, D].
    """

    def record(call: Any, arguments: Any, keywords: Any, context: Any) -> Any:
        if context.module.path == (HEAD,) and context.method_name == "__call__":
            context.module.sow(COLLECTION, "inputs", [*arguments, *keywords.values()][0])
        return call(*arguments, **keywords)

    apply: Any = module.apply
    with nn.intercept_methods(record):
        logits, recorded = apply(variables, images, train=False, mutable=[COLLECTION])
    name = type(module).__name__
    if HEAD not in recorded.get(COLLECTION, {}):
        raise InputError(
            f"model '{name}' has no module named '{HEAD}', whose input would be the embedding; name its last layer"
            f" '{HEAD}', as in nn.Dense(num_classes, name='{HEAD}')"
        )
    (inputs, *_) = recorded[COLLECTION][HEAD]["inputs"]
    if inputs.ndim != 2:
        raise InputError(
            f"model '{name}' gives its module '{HEAD}' an input of shape {inputs.shape}; an embedding is [B, D], so"
            " reduce the other dimensions before it"
        )
    return logits, inputs.astype(jnp.promote_types(inputs.dtype, jnp.float32))
