"""What a model costs: its parameters, and the multiply-adds of one image, counted without computing anything."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend.core import jaxprs_in_params


def counts(module: nn.Module, image_shape: tuple[int, int, int] = (32, 32, 3)) -> tuple[int, int]:
    """The module's parameters, and the multiply-adds of its convolutions and matrix products for one image [H, W, C].

    A training step takes three times as many an image: forward, and the gradients of inputs and of weights.
    """
    start = lambda: module.init_with_output(jax.random.key(0), jnp.zeros((1, *image_shape)), train=False)
    jaxpr, (_, variables) = jax.make_jaxpr(start, return_shape=True)()
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"])), multiply_adds(jaxpr.jaxpr)


def multiply_adds(jaxpr: Any) -> int:
    """Of the convolutions and matrix products of a traced function: every output is a sum of so many products."""
    total = 0
    for equation in jaxpr.eqns:
        inputs, size = [value.aval.shape for value in equation.invars], equation.outvars[0].aval.size
        if equation.primitive.name == "conv_general_dilated":
            total += size * math.prod(inputs[1][:3])
        elif equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            total += size * math.prod(inputs[0][axis] for axis in contracted)
        elif equation.primitive.name == "custom_vjp_call" and _function(equation) == "_depthwise":
            total += size * math.prod(inputs[1][:2])  # layers.depthwise_convolution, a sum of shifted products
        else:
            total += sum(multiply_adds(inner) for inner in jaxprs_in_params(equation.params))
    return total


def _function(equation: Any) -> str:
    return equation.params["call_jaxpr"].jaxpr.debug_info.func_name
