"""An ONNX graph that is being built: tensors, nodes, constants. What a JAX operation becomes: onnx_operations.py."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cifar_jax.errors import InputError
from cifar_jax.inference.onnx_fold import fold

OPSET = 18  # of 2022: ONNX Runtime 1.14 and later
IR_VERSION = 9  # the oldest that carries it with all its types


class Unsupported(InputError):
    """A part of the model that this converter has no ONNX form for; the message says which."""


@dataclass(frozen=True)
class Tensor:
    """A value of the graph.

    `shape` is the one that JAX gives it, with the symbol of the batch; `held` is the one that it has in the graph: an
    axis along which all values are equal may be held as 1, because ONNX broadcasts. A constant has its array.
    """

    shape: tuple[Any, ...]
    held: tuple[Any, ...]
    dtype: np.dtype
    name: str | None = None  # in the graph; None of a constant that no node uses yet
    array: np.ndarray | None = None  # of a constant, in the shape `held`


def constant(array: Any, shape: Sequence[Any] | None = None) -> Tensor:
    """A constant tensor; `shape` where it stands for a larger one that repeats it."""
    array = np.asarray(array)
    return Tensor(tuple(array.shape if shape is None else shape), array.shape, array.dtype, array=array)


def is_static(shape: Sequence[Any]) -> bool:
    return all(isinstance(size, int) for size in shape)


def numbers(shape: Sequence[Any]) -> list[int]:
    """The shape for ONNX's Reshape, in which -1 stands for the size that depends on the batch.

    Raises Unsupported where two sizes do.
    """
    known = [size if isinstance(size, int) else -1 for size in shape]
    if known.count(-1) > 1:
        raise Unsupported(f"the shape {tuple(map(str, shape))} depends on the batch size in two places")
    return known


class Graph:
    """Collects nodes; `model` makes the file's content of them."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: dict[tuple[Any, ...], str] = {}  # (shape, dtype, bytes) -> name
        self.arrays: dict[str, np.ndarray] = {}
        self.inputs: list[Tensor] = []

    def input(self, name: str, shape: Sequence[Any], dtype: Any) -> Tensor:
        tensor = Tensor(tuple(shape), tuple(shape), np.dtype(dtype), name)
        self.inputs.append(tensor)
        return tensor

    def name_of(self, tensor: Tensor) -> str:
        """The tensor's name in the graph; equal constants are stored once."""
        if tensor.array is None:
            assert tensor.name is not None
            return tensor.name
        array = np.ascontiguousarray(tensor.array)
        key = (array.shape, array.dtype.str, array.tobytes())
        if key not in self.constants:
            self.constants[key] = f"constant{len(self.constants)}"
            self.arrays[self.constants[key]] = array
        return self.constants[key]

    def node(
        self,
        operation: str,
        inputs: Sequence[Tensor],
        shape: Sequence[Any],
        dtype: Any = None,
        held: Sequence[Any] | None = None,
        **attributes: Any,
    ) -> Tensor:
        """The output of a new node: of the first input's dtype, and held in its own shape, unless that is said."""
        from onnx import helper

        name = f"{operation.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(operation, [self.name_of(each) for each in inputs], [name], **attributes))
        return Tensor(tuple(shape), tuple(shape if held is None else held), np.dtype(dtype or inputs[0].dtype), name)

    def reshape(self, tensor: Tensor, shape: Sequence[Any]) -> Tensor:
        tensor = self.whole(tensor)
        if tensor.shape == tuple(shape):
            return tensor
        if tensor.array is not None and is_static(shape):
            return constant(tensor.array.reshape(tuple(shape)))
        return self.node("Reshape", [tensor, constant(np.array(numbers(shape), np.int64))], shape)

    def transpose(self, tensor: Tensor, order: Sequence[int]) -> Tensor:
        order = [int(axis) for axis in order]
        if order == sorted(order):
            return tensor
        shape, held = [tensor.shape[axis] for axis in order], [tensor.held[axis] for axis in order]
        if tensor.array is not None:
            return constant(tensor.array.transpose(order), shape)
        return self.node("Transpose", [tensor], shape, held=held, perm=order)

    def whole(self, tensor: Tensor) -> Tensor:
        """The tensor held in its own shape."""
        if tensor.held == tensor.shape:
            return tensor
        if tensor.array is not None and is_static(tensor.shape):
            return constant(np.broadcast_to(tensor.array, tensor.shape))
        return self.node("Expand", [tensor, self._shape(tensor.shape)], tensor.shape)

    def _shape(self, shape: Sequence[Any]) -> Tensor:
        """The shape as a tensor, with the batch size of the input at run time."""
        if is_static(shape):
            return constant(np.array(shape, np.int64))
        images = self.inputs[0]
        if any(not isinstance(size, int) and size != images.shape[0] for size in shape):
            raise Unsupported(f"the shape {tuple(map(str, shape))} is a function of the batch size")
        batch = self.node("Shape", [images], (1,), np.int64, start=0, end=1)
        parts = [constant(np.array([size], np.int64)) if isinstance(size, int) else batch for size in shape]
        return self.node("Concat", parts, (len(shape),), np.int64, axis=0)

    def model(self, outputs: dict[str, Tensor], producer: str) -> Any:
        """The ModelProto; `outputs` by name."""
        from onnx import helper, numpy_helper

        for name, tensor in outputs.items():
            self.nodes.append(helper.make_node("Identity", [self.name_of(self.whole(tensor))], [name]))
        infos = [(tensor.name, tensor) for tensor in self.inputs], list(outputs.items())
        inputs, results = ([self._info(*info) for info in part] for part in infos)
        nodes, arrays = fold(self.nodes, self.arrays)
        stored = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
        graph = helper.make_graph(nodes, "cifar_jax", inputs, results, stored)
        opset = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION, producer_name=producer)

    def _info(self, name: Any, tensor: Tensor) -> Any:
        from onnx import helper

        shape = [size if isinstance(size, int) else str(size) for size in tensor.shape]
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(tensor.dtype), shape)
