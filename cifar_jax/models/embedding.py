"""The embedding of an image: the input of the last module of an architecture, which is named `head`."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cifar_jax.errors import InputError


def embed(module: nn.Module, variables: Any, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(logits, embeddings float32 [B, D]) in evaluation mode.

    Raises InputError where the architecture has no module named `head`.
    """
    seen: list[jax.Array] = []

    def record(call: Any, arguments: Any, keywords: Any, context: nn.module.InterceptorContext) -> Any:
        if context.module.path == ("head",) and context.method_name == "__call__":
            seen.append(arguments[0])
        return call(*arguments, **keywords)

    with nn.intercept_methods(record):
        logits: Any = module.apply(variables, inputs, train=False)
    if not seen:
        raise InputError(
            f"model '{type(module).__name__}' has no module named 'head', whose input would be the embedding; name its"
            " last layer so: nn.Dense(self.num_classes, name='head')"
        )
    embeddings = seen[0].astype(jnp.promote_types(seen[0].dtype, jnp.float32))
    return logits, embeddings.reshape(len(embeddings), -1)
