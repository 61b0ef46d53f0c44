"""What a model costs: parameters, multiply-adds of one image, and memory; counted without computing anything."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend.core import jaxprs_in_params

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Layer:
    """One module of a model: its own costs, without those of its submodules."""

    path: str  # names of the modules that lead to it, "conv2_1/Convolution_0"; "" is the model itself
    kind: str  # class of the module
    output_shape: tuple[int, ...] | None  # of one image, without the batch; None where the output is not one array
    parameters: int
    multiply_adds: int  # for one image


def counts(module: nn.Module, image_shape: Shape = (32, 32, 3)) -> tuple[int, int]:
    """The module's parameters, and the multiply-adds of its convolutions and matrix products for one image [H, W, C].

    A training step takes three times as many an image: forward, and the gradients of inputs and of weights.
    """
    jaxpr, variables = _initialisation(module, image_shape)
    return sum(leaf.size for leaf in jax.tree.leaves(variables.get("params", {}))), multiply_adds(jaxpr)


def layers(module: nn.Module, image_shape: Shape = (32, 32, 3)) -> list[Layer]:
    """The modules that have parameters or multiply-adds of their own, in the order of their first call.

    The sums over all rows are those of `counts`. A module that is called several times has one row, with the
    multiply-adds of all calls and the output shape of the last.
    """
    called: dict[tuple[str, ...], tuple[str, tuple[int, ...] | None]] = {}

    def record(call: Any, arguments: Any, keywords: Any, context: Any) -> Any:
        if context.method_name == "setup":
            return call(*arguments, **keywords)
        path = context.module.path
        called.setdefault(path, ("", None))
        with jax.named_scope(f"layer{list(called).index(path)}_"):
            output = call(*arguments, **keywords)
        called[path] = type(context.module).__name__, output.shape[1:] if isinstance(output, jax.Array) else None
        return output

    with nn.intercept_methods(record):
        jaxpr, variables = _initialisation(module, image_shape)
    products, parameters = [0] * len(called), [0] * len(called)
    for scope, number in _products(jaxpr):
        products[int(re.findall(r"layer(\d+)_", scope)[-1])] += number
    paths = list(called)
    for path, leaf in jax.tree.leaves_with_path(variables.get("params", {})):
        names = tuple(part.key for part in path)
        owner = max((start for start in paths if names[: len(start)] == start), key=len)
        parameters[paths.index(owner)] += leaf.size
    rows = [Layer("/".join(path), *called[path], *own) for path, *own in zip(paths, parameters, products, strict=True)]
    return [row for row in rows if row.parameters or row.multiply_adds]


def memory(module: nn.Module, image_shape: Shape = (32, 32, 3), batch_size: int = 1) -> dict[str, int]:
    """Bytes of the module's "parameters", and of the "activations" that a training step saves for its gradients.

    The activations are an estimate: what JAX's reverse mode saves, without the parameters and the batch of images. XLA
    needs memory for intermediate results besides, and may compute an activation again instead of saving it. Its CPU
    compiler reserved 0.96 times the estimate for resnet20 (batch 64), 1.2 for vit (16), 3.0 for cnn (128) and 5.3 for
    convmixer256_8 (16). Gradients, the state of the optimiser and the data set are not included.
    """
    images = jax.ShapeDtypeStruct((batch_size, *image_shape), jnp.float32)
    _, variables = _initialisation(module, image_shape)

    def saved(variables: Any, images: jax.Array) -> Any:
        params, rest = variables["params"], {name: tree for name, tree in variables.items() if name != "params"}

        def forward(params: Any) -> tuple[Any, Any]:
            given, rngs = {**rest, "params": params}, {"dropout": jax.random.key(0)}
            logits, changed = module.apply(given, images, train=True, mutable=list(rest), rngs=rngs)
            return logits, changed

        return jax.vjp(forward, params, has_aux=True)[1]  # a tree whose leaves are the saved arrays

    jaxpr = jax.make_jaxpr(saved)(variables, images).jaxpr
    results = {value for equation in jaxpr.eqns for value in equation.outvars}
    kept = {value for value in jaxpr.outvars if not hasattr(value, "val") and value in results}
    return {
        "parameters": sum(_size(leaf) for leaf in jax.tree.leaves(variables["params"])),
        "activations": sum(_size(value.aval) for value in kept),
    }


def multiply_adds(jaxpr: Any) -> int:
    """Of the convolutions and matrix products of a traced function: every output is a sum of so many products."""
    return sum(number for _, number in _products(jaxpr))


def _initialisation(module: nn.Module, image_shape: Shape) -> tuple[Any, Any]:
    """The traced first call of the module with one image, and the shapes of its variables."""
    start = lambda: module.init_with_output(jax.random.key(0), jnp.zeros((1, *image_shape)), train=False)
    jaxpr, (_, variables) = jax.make_jaxpr(start, return_shape=True)()
    return jaxpr.jaxpr, variables


def _products(jaxpr: Any, scope: str = "") -> Iterator[tuple[str, int]]:
    """(names of the scopes, multiply-adds) of each convolution and each matrix product."""
    for equation in jaxpr.eqns:
        inputs, size = [value.aval.shape for value in equation.invars], equation.outvars[0].aval.size
        inner_scope = f"{scope}/{equation.source_info.name_stack}"
        if equation.primitive.name == "conv_general_dilated":
            yield inner_scope, size * math.prod(inputs[1][:3])
        elif equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            yield inner_scope, size * math.prod(inputs[0][axis] for axis in contracted)
        elif equation.primitive.name == "custom_vjp_call" and _function(equation) == "_depthwise":
            yield inner_scope, size * math.prod(inputs[1][:2])  # a sum of shifted products
        else:
            for inner in jaxprs_in_params(equation.params):
                yield from _products(inner, inner_scope)


def _function(equation: Any) -> str:
    return equation.params["call_jaxpr"].jaxpr.debug_info.func_name


def _size(array: Any) -> int:
    return array.size * array.dtype.itemsize
