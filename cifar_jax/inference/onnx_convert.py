"""From the jaxpr of inference to ONNX: what is constant is computed now, the rest becomes nodes.

The model is traced in `forward_mode`, where pooling is `reduce_window` and the depthwise convolution is a grouped one,
for a batch of symbolic size. Everything that depends on the weights alone is computed here by JAX, so the file holds
the factor and offset of a normalisation and not its statistics.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr

import cifar_jax
from cifar_jax.errors import InputError
from cifar_jax.inference.onnx_graph import Graph, Tensor, Unsupported, constant, is_static
from cifar_jax.inference.onnx_operations import OPERATIONS
from cifar_jax.inference.program import inference, symbolic_images
from cifar_jax.models.kernels import forward_mode
from cifar_jax.runs.classifier import Classifier
from cifar_jax.runs.files import write_bytes

FILE = "model.onnx"
# Primitives that call a jaxpr: the parameter that holds it.
CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "core_call": "call_jaxpr", "remat2": "jaxpr",
         "checkpoint": "jaxpr", "custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr"}  # fmt: skip


def write_onnx(path: Path, classifier: Classifier) -> None:
    """Writes the model: "images" uint8 [batch, H, W, C] -> "probabilities" and "embedding", float32.

    It is checked by `onnx.checker`. Raises InputError where onnx is missing, and where a part of the model has no ONNX
    form.
    """
    onnx, _ = libraries()
    model = to_onnx(classifier)
    onnx.checker.check_model(model, full_check=True)
    write_bytes(path, model.SerializeToString())


def run_onnx(path: Path, images: np.ndarray) -> dict[str, np.ndarray]:
    """The outputs of the file by name, computed by ONNX Runtime on the CPU."""
    _, runtime = libraries()
    session = runtime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"images": images}), strict=True))


def libraries() -> tuple[Any, Any]:
    """onnx and onnxruntime. Raises InputError where one is missing."""
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        remedy = "install it with pip install -c constraints.txt -e '.[export]', or choose other --formats"
        raise InputError(f"{FILE} needs the library {error.name}, which is not installed; {remedy}") from error
    return onnx, onnxruntime


def to_onnx(classifier: Classifier) -> Any:
    """The ModelProto of the classifier."""
    closed, weights, names = traced(classifier)
    graph = Graph()
    images = graph.input("images", closed.in_avals[-1].shape, closed.in_avals[-1].dtype)
    try:
        results = convert(graph, closed, [*map(constant, weights), images])
    except Unsupported as error:
        raise InputError(f"{FILE} cannot be written: {error}") from error
    return graph.model(dict(zip(names, results, strict=True)), f"cifar_jax {cifar_jax.__version__}")


def traced(classifier: Classifier) -> tuple[Any, list[np.ndarray], list[str]]:
    """The closed jaxpr of (*weights, images) -> outputs, the weights, and the names of the outputs."""
    leaves, structure = jax.tree.flatten(jax.device_get(dict(classifier.weights)))
    function = inference(classifier)
    flat = lambda *arguments: function(jax.tree.unflatten(structure, arguments[:-1]), arguments[-1])
    with forward_mode():
        shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
        closed, outputs = jax.make_jaxpr(flat, return_shape=True)(*shapes, symbolic_images(classifier))
    return closed, leaves, sorted(outputs)


def convert(graph: Graph, closed: Any, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The outputs of a closed jaxpr on tensors of the graph. Raises Unsupported."""
    jaxpr = closed.jaxpr
    values: dict[Any, Tensor] = dict(zip(jaxpr.constvars, map(constant, closed.consts), strict=True))
    values |= zip(jaxpr.invars, inputs, strict=True)
    literal = lambda atom: constant(np.asarray(atom.val, atom.aval.dtype))
    read = lambda atom: literal(atom) if hasattr(atom, "val") else values[atom]
    for equation in jaxpr.eqns:
        outputs = _equation(graph, equation, [read(atom) for atom in equation.invars])
        values |= zip(equation.outvars, outputs, strict=True)
    return [read(atom) for atom in jaxpr.outvars]


def _equation(graph: Graph, equation: Any, inputs: list[Tensor]) -> list[Tensor]:
    name, shapes = equation.primitive.name, [each.aval.shape for each in equation.outvars]
    if name in CALLS:
        inner = equation.params[CALLS[name]]
        return convert(graph, inner if hasattr(inner, "consts") else ClosedJaxpr(inner, ()), inputs)
    if all(map(is_static, shapes)) and all(each.array is not None and each.held == each.shape for each in inputs):
        return _computed(equation, inputs)
    if name not in OPERATIONS:
        raise Unsupported(
            f"JAX's primitive '{name}' has no ONNX form here; add it to OPERATIONS in inference/onnx_operations.py"
        )
    return [OPERATIONS[name](graph, inputs, _parameters(equation))]


def _computed(equation: Any, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The outputs of an operation on constants, computed by JAX."""
    results = equation.primitive.bind(*(each.array for each in inputs), **equation.params)
    return [constant(result) for result in (results if equation.primitive.multiple_results else [results])]


def _parameters(equation: Any) -> Mapping[str, Any]:
    """The parameters of the operation, and the `shape` and `dtype` of its output."""
    aval = equation.outvars[0].aval
    return {**equation.params, "shape": aval.shape, "dtype": np.dtype(aval.dtype), "primitive": equation.primitive.name}
