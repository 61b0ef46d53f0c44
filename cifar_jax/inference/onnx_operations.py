"""What each JAX primitive is in ONNX: (graph, inputs, parameters of the equation) -> output, one function a primitive.

`parameters` also hold the `shape` and `dtype` of the output, and the name of the `primitive`. Of most elementwise
primitives the ONNX operator has another name only; `ELEMENTWISE` lists them. JAX's layouts are any, ONNX's convolution
and pooling are NCHW: transposes stand around them, which ONNX Runtime cancels against each other.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from cifar_jax.inference.onnx_graph import Graph, Tensor, Unsupported, constant

Parameters = Mapping[str, Any]
LAST = np.iinfo(np.int64).min  # the end of a Slice that goes backwards to the first entry

ELEMENTWISE = {
    "add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "min": "Min", "pow": "Pow",
    "neg": "Neg", "abs": "Abs", "sign": "Sign", "floor": "Floor", "ceil": "Ceil",
    "exp": "Exp", "log": "Log", "sqrt": "Sqrt", "tanh": "Tanh", "logistic": "Sigmoid", "erf": "Erf",
    "sin": "Sin", "cos": "Cos", "eq": "Equal", "lt": "Less", "le": "LessOrEqual", "gt": "Greater",
    "ge": "GreaterOrEqual", "and": "And", "or": "Or", "not": "Not",
}  # fmt: skip


def elementwise(graph: Graph, inputs: Sequence[Tensor], parameters: Parameters) -> Tensor:
    return _each(graph, ELEMENTWISE[parameters["primitive"]], inputs, parameters)


def _each(graph: Graph, operation: str, inputs: Sequence[Tensor], parameters: Parameters, **attributes: Any) -> Tensor:
    """An operator that broadcasts: an axis along which all inputs are held as 1 stays so."""
    shape, full = parameters["shape"], [each for each in inputs if each.shape]  # of no axes: the same for all entries
    sizes = zip(*(each.held for each in full), strict=True)
    held = [next((size for size in axis if not (isinstance(size, int) and size == 1)), 1) for axis in sizes]
    if operation in ("And", "Or", "Not") and inputs[0].dtype.kind != "b":
        raise Unsupported(f"JAX's primitive '{parameters['primitive']}' on integers has no ONNX form here")
    return graph.node(operation, inputs, shape, parameters["dtype"], held, **attributes)


def _number(value: float, like: Tensor) -> Tensor:
    return constant(np.array(value, like.dtype))


def identity(graph: Graph, inputs: Sequence[Tensor], parameters: Parameters) -> Tensor:
    return inputs[0]


def convert_element_type(graph: Graph, inputs: Sequence[Tensor], parameters: Parameters) -> Tensor:
    from onnx import helper

    kind = helper.np_dtype_to_tensor_dtype(parameters["dtype"])
    return _each(graph, "Cast", inputs, parameters, to=kind)


def rsqrt(graph: Graph, inputs: Sequence[Tensor], parameters: Parameters) -> Tensor:
    return _each(graph, "Reciprocal", [_each(graph, "Sqrt", inputs, parameters)], parameters)


def erfc(graph: Graph, inputs: Sequence[Tensor], parameters: Parameters) -> Tensor:
    (x,) = inputs
    return _each(graph, "Sub", [_number(1, x), _each(graph, "Erf", inputs, parameters)], parameters)


def expm1(graph: Graph, inputs: Sequence[Tensor], parameters: Parameters) -> Tensor:
    (x,) = inputs
    return _each(graph, "Sub", [_each(graph, "Exp", inputs, parameters), _number(1, x)], parameters)


def log1p(graph: Graph, inputs: Sequence[Tensor], parameters: Parameters) -> Tensor:
    (x,) = inputs
    return _each(graph, "Log", [_each(graph, "Add", [x, _number(1, x)], parameters)], parameters)


def square(graph: Graph, inputs: Sequence[Tensor], parameters: Parameters) -> Tensor:
    return _each(graph, "Mul", [*inputs, *inputs], parameters)


def integer_pow(graph: Graph, inputs: Sequence[Tensor], parameters: Parameters) -> Tensor:
    return _each(graph, "Pow", [*inputs, _number(parameters["y"], inputs[0])], parameters)


def ne(graph: Graph, inputs: Sequence[Tensor], parameters: Parameters) -> Tensor:
    return _each(graph, "Not", [_each(graph, "Equal", inputs, parameters)], parameters)


def select_n(graph: Graph, inputs: Sequence[Tensor], parameters: Parameters) -> Tensor:
    which, *cases = inputs
    if which.dtype != bool or len(cases) != 2:
        raise Unsupported("JAX's primitive 'select_n' has an ONNX form here for two cases by a bool only")
    return _each(graph, "Where", [which, cases[1], cases[0]], parameters)


def max_(graph: Graph, inputs: Sequence[Tensor], parameters: Parameters) -> Tensor:
    """Relu where it is one: ONNX Runtime joins it with the convolution before it."""
    for x, bound in (inputs, inputs[::-1]):
        zero = bound.array is not None and bound.array.size == 1 and bound.array.item() == 0
        if zero and x.array is None and x.dtype.kind == "f":
            return _each(graph, "Relu", [x], parameters)
    return _each(graph, "Max", inputs, parameters)


def clamp(graph: Graph, inputs: Sequence[Tensor], parameters: Parameters) -> Tensor:
    low, x, high = inputs
    return _each(graph, "Min", [_each(graph, "Max", [x, low], parameters), high], parameters)


def broadcast_in_dim(graph: Graph, inputs: Sequence[Tensor], parameters: Parameters) -> Tensor:
    """Only the new axes are made, held as 1: the operators that follow broadcast."""
    (x,), held = inputs, [1] * len(parameters["shape"])
    for size, axis in zip(x.held, parameters["broadcast_dimensions"], strict=True):
        held[axis] = size
    if x.array is not None:
        return constant(x.array.reshape(held), parameters["shape"])
    if list(x.held) != held:
        x = graph.reshape(Tensor(x.held, x.held, x.dtype, x.name), held)
    return Tensor(tuple(parameters["shape"]), tuple(held), x.dtype, x.name)


def reshape(graph: Graph, inputs: Sequence[Tensor], parameters: Parameters) -> Tensor:
    return graph.reshape(inputs[0], parameters["shape"])


def transpose(graph: Graph, inputs: Sequence[Tensor], parameters: Parameters) -> Tensor:
    return graph.transpose(inputs[0], parameters["permutation"])


def concatenate(graph: Graph, inputs: Sequence[Tensor], parameters: Parameters) -> Tensor:
    return graph.node("Concat", [*map(graph.whole, inputs)], parameters["shape"], axis=parameters["dimension"])


def stack(graph: Graph, inputs: Sequence[Tensor], parameters: Parameters) -> Tensor:
    axis, shape = parameters["axis"], list(parameters["shape"])
    shape[axis] = 1
    parts = [graph.reshape(each, shape) for each in inputs]
    return graph.node("Concat", parts, parameters["shape"], axis=axis)


def pad(graph: Graph, inputs: Sequence[Tensor], parameters: Parameters) -> Tensor:
    sides = [*zip(*parameters["padding_config"], strict=True)]
    if any(sides[2]):
        raise Unsupported("JAX's primitive 'pad' has no ONNX form here where it pads between entries")
    amounts = constant(np.array([*sides[0], *sides[1]], np.int64))
    return graph.node("Pad", [graph.whole(inputs[0]), amounts, inputs[1]], parameters["shape"])


def slice_(graph: Graph, inputs: Sequence[Tensor], parameters: Parameters) -> Tensor:
    starts, ends = parameters["start_indices"], parameters["limit_indices"]
    steps = parameters["strides"] or [1] * len(starts)
    chosen = [
        (axis, *bounds)
        for axis, bounds in enumerate(zip(starts, ends, steps, strict=True))
        if bounds != (0, inputs[0].shape[axis], 1)
    ]
    if not all(isinstance(number, int) for bounds in chosen for number in bounds):
        raise Unsupported("JAX's primitive 'slice' has no ONNX form here where it cuts the batch")
    return _sliced(graph, inputs[0], chosen, parameters["shape"])


def _sliced(graph: Graph, x: Tensor, chosen: Sequence[tuple[int, ...]], shape: Sequence[Any]) -> Tensor:
    """x cut along axes: (axis, start, end, step) each."""
    if not chosen:
        return x
    axes, starts, ends, steps = (constant(np.array(part, np.int64)) for part in zip(*chosen, strict=True))
    return graph.node("Slice", [graph.whole(x), starts, ends, axes, steps], shape)


def rev(graph: Graph, inputs: Sequence[Tensor], parameters: Parameters) -> Tensor:
    chosen = [(axis, -1, LAST, -1) for axis in parameters["dimensions"]]
    return _sliced(graph, inputs[0], chosen, parameters["shape"])


def gather(graph: Graph, inputs: Sequence[Tensor], parameters: Parameters) -> Tensor:
    """Whole rows, columns, ... at constant places, each axis on its own: what x[:, ::2, 0] and x[:, places] are."""
    x, places = inputs
    numbers, shape = parameters["dimension_numbers"], parameters["shape"]
    axes = list(numbers.start_index_map)
    whole = [1 if axis in axes else size for axis, size in enumerate(x.shape)]
    if places.array is not None and not numbers.collapsed_slice_dims and places.array.ndim == 1:
        starts = {axis: int(start) for axis, start in zip(axes, places.array, strict=True)}
        sizes = parameters["slice_sizes"]  # a block, as of x[:, 2:4]
        return _sliced(graph, x, [(axis, start, start + sizes[axis], 1) for axis, start in starts.items()], shape)
    plain = places.array is not None and [*numbers.collapsed_slice_dims] == sorted(axes)
    if not plain or list(parameters["slice_sizes"]) != whole or numbers.operand_batching_dims:
        raise Unsupported("JAX's primitive 'gather' has an ONNX form here only for whole slices at constant places")
    indices = np.broadcast_to(places.array, places.shape)
    order: dict[int, int] = {}  # axis of the indices -> the axis of x that it goes along
    for number, axis in enumerate(axes):
        line, along = _line(indices[..., number])
        if not ((line >= 0) & (line < x.shape[axis])).all() or along in order:
            raise Unsupported("JAX's primitive 'gather' has no ONNX form here for these places")
        if along is not None:
            order[along] = axis
        size = [len(line) if each == axis else known for each, known in enumerate(x.shape)]
        x = graph.node("Gather", [graph.whole(x), constant(line.astype(np.int64))], size, axis=axis)
    dropped = [axis for axis in axes if axis not in order.values()]
    offsets, batches = iter(axis for axis in range(len(x.shape)) if axis not in axes), iter(sorted(order))
    if len(order) != indices.ndim - 1:
        raise Unsupported("JAX's primitive 'gather' has no ONNX form here for these places")
    of_output = [next(offsets) if at in numbers.offset_dims else order[next(batches)] for at in range(len(shape))]
    return graph.reshape(graph.transpose(x, [*of_output, *dropped]), shape)


def _line(places: np.ndarray) -> tuple[np.ndarray, int | None]:
    """The places along one axis of x as a line, and the axis of the indices along which they vary; None if none."""
    varying = [axis for axis, size in enumerate(places.shape) if size > 1 and (places != places.take([0], axis)).any()]
    if not varying and not places.ndim:
        return places.reshape(1), None
    if len(varying) > 1:
        raise Unsupported("JAX's primitive 'gather' has no ONNX form here for these places")
    along = varying[0] if varying else 0
    first = [0] * places.ndim
    index = tuple(slice(None) if axis == along else start for axis, start in enumerate(first))
    return places[index], along


def _reduced(operation: str) -> Callable[[Graph, Sequence[Tensor], Parameters], Tensor]:
    def reduce(graph: Graph, inputs: Sequence[Tensor], parameters: Parameters) -> Tensor:
        axes = constant(np.array(parameters["axes"], np.int64))
        return graph.node(operation, [graph.whole(inputs[0]), axes], parameters["shape"], keepdims=0)

    return reduce


def dot_general(graph: Graph, inputs: Sequence[Tensor], parameters: Parameters) -> Tensor:
    """A MatMul of [batch..., M, K] and [batch..., K, N], which several axes may stand for."""
    contracted, batched = parameters["dimension_numbers"]
    sides, free = [], []
    for side, x in enumerate(map(graph.whole, inputs)):
        inner, batch = list(contracted[side]), list(batched[side])
        outer = [axis for axis in range(len(x.shape)) if axis not in (*inner, *batch)]
        free.append([x.shape[axis] for axis in outer])
        order = [*batch, *outer, *inner] if side == 0 else [*batch, *inner, *outer]
        sizes = [_product(x.shape[axis] for axis in axes) for axes in (outer, inner)]
        shape = [*(x.shape[axis] for axis in batch), *(sizes if side == 0 else reversed(sizes))]
        sides.append(graph.reshape(graph.transpose(x, order), shape))
    shape = [*sides[0].shape[:-1], sides[1].shape[-1]]
    return graph.reshape(graph.node("MatMul", sides, shape, parameters["dtype"]), parameters["shape"])


def _product(sizes: Any) -> Any:
    result = 1
    for size in sizes:
        result = result * size
    return result


def conv_general_dilated(graph: Graph, inputs: Sequence[Tensor], parameters: Parameters) -> Tensor:
    numbers = parameters["dimension_numbers"]
    if set(parameters["lhs_dilation"]) != {1} or parameters["batch_group_count"] != 1:
        raise Unsupported("JAX's primitive 'conv_general_dilated' has no ONNX form here where it dilates its input")
    images = graph.transpose(graph.whole(inputs[0]), numbers.lhs_spec)
    kernel = graph.transpose(graph.whole(inputs[1]), numbers.rhs_spec)
    outputs = graph.node(
        "Conv",
        [images, kernel],
        [parameters["shape"][axis] for axis in numbers.out_spec],
        kernel_shape=kernel.shape[2:],
        strides=parameters["window_strides"],
        dilations=parameters["rhs_dilation"],
        pads=_pads(parameters["padding"]),
        group=parameters["feature_group_count"],
    )
    return graph.transpose(outputs, np.argsort(numbers.out_spec).tolist())


def _pads(sides: Sequence[tuple[int, int]]) -> list[int]:
    """((top, bottom), (left, right)) as ONNX has it: [top, left, bottom, right]."""
    return [amount for side in zip(*sides, strict=True) for amount in side]


def _window(parameters: Parameters) -> dict[str, Any]:
    """The attributes of a pooling of images [B, H, W, C] over H and W."""
    names = ("window_dimensions", "window_strides", "window_dilation", "base_dilation")
    window, strides, dilations, base = (tuple(parameters[name]) for name in names)
    trivial = all(each[axis] == 1 for each in (window, strides) for axis in (0, -1))
    if len(window) != 4 or not trivial or set(base) != {1} or set(dilations) != {1}:
        raise Unsupported(f"JAX's primitive '{parameters['primitive']}' has an ONNX form for pooling of images only")
    return {"kernel_shape": window[1:3], "strides": strides[1:3], "pads": _pads(parameters["padding"][1:3])}


NCHW, NHWC = (0, 3, 1, 2), (0, 2, 3, 1)


def reduce_window_max(graph: Graph, inputs: Sequence[Tensor], parameters: Parameters) -> Tensor:
    images = graph.transpose(graph.whole(inputs[0]), NCHW)
    shape = [parameters["shape"][axis] for axis in NCHW]
    return graph.transpose(graph.node("MaxPool", [images], shape, **_window(parameters)), NHWC)


def reduce_window_sum(graph: Graph, inputs: Sequence[Tensor], parameters: Parameters) -> Tensor:
    images, window = graph.transpose(graph.whole(inputs[0]), NCHW), _window(parameters)
    shape = [parameters["shape"][axis] for axis in NCHW]
    means = graph.node("AveragePool", [images], shape, count_include_pad=1, **window)
    count = _number(float(np.prod(window["kernel_shape"])), means)
    return graph.transpose(graph.node("Mul", [means, count], shape), NHWC)


OPERATIONS: dict[str, Callable[[Graph, Sequence[Tensor], Parameters], Tensor]] = {
    **dict.fromkeys(ELEMENTWISE, elementwise),
    **dict.fromkeys(("copy", "stop_gradient"), identity),
    "convert_element_type": convert_element_type,
    "rsqrt": rsqrt,
    "erfc": erfc,
    "expm1": expm1,
    "log1p": log1p,
    "square": square,
    "integer_pow": integer_pow,
    "max": max_,
    "ne": ne,
    "select_n": select_n,
    "clamp": clamp,
    "broadcast_in_dim": broadcast_in_dim,
    "reshape": reshape,
    "squeeze": reshape,
    "transpose": transpose,
    "concatenate": concatenate,
    "stack": stack,
    "pad": pad,
    "slice": slice_,
    "rev": rev,
    "gather": gather,
    "reduce_sum": _reduced("ReduceSum"),
    "reduce_max": _reduced("ReduceMax"),
    "reduce_min": _reduced("ReduceMin"),
    "dot_general": dot_general,
    "conv_general_dilated": conv_general_dilated,
    "reduce_window_max": reduce_window_max,
    "reduce_window_sum": reduce_window_sum,
}
