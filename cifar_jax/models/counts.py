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


def layers(
    module: nn.Module, image_shape: tuple[int, int, int] = (32, 32, 3)
) -> list[tuple[str, str, tuple[int, ...], int]]:
    """(path, class, output shape of one image, parameters) of each submodule that has parameters of its own, in the
    order in which they are first called."""
    outputs: dict[tuple[str, ...], tuple[str, tuple[int, ...]]] = {}

    def record(call: Any, arguments: Any, keywords: Any, context: Any) -> Any:
        result = call(*arguments, **keywords)
        if context.method_name == "__call__" and hasattr(result, "shape"):
            outputs.setdefault(context.module.path, (type(context.module).__name__, result.shape[1:]))
        return result

    def start() -> Any:
        with nn.intercept_methods(record):
            return module.init(jax.random.key(0), jnp.zeros((1, *image_shape)), train=False)

    params = jax.eval_shape(start)["params"]
    owned: dict[tuple[str, ...], int] = {}
    for path, leaf in jax.tree.leaves_with_path(params):
        owner = tuple(part.key for part in path[:-1])
        owned[owner] = owned.get(owner, 0) + leaf.size
    called = [path for path in outputs if path in owned]
    return [("/".join(path) or "(model)", *outputs[path], owned[path]) for path in called]


def saved_bytes(module: nn.Module, image_shape: tuple[int, int, int], batch_size: int) -> int:
    """Bytes that the forward pass of a training step keeps for the backward pass, weights not counted, as JAX records
    them: an upper estimate, because the compiler removes some."""
    images = jax.ShapeDtypeStruct((batch_size, *image_shape), jnp.float32)
    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, *image_shape)), train=False))
    rest = {name: value for name, value in variables.items() if name != "params"}

    def forward(params: Any, rest: Any, images: Any) -> Any:
        apply = lambda params: module.apply(
            {"params": params, **rest}, images, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)}
        )
        return jax.vjp(apply, params, has_aux=True)[1]

    residuals = jax.tree.leaves(jax.eval_shape(forward, variables["params"], rest, images))
    weights = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(variables["params"]))
    return max(0, sum(leaf.size * leaf.dtype.itemsize for leaf in residuals) - weights)
