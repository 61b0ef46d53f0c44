"""Folds what follows a convolution into it: factors and offsets of each channel, such as bias and normalisation.

ONNX Runtime does so only for graphs in NCHW; without it, it makes three more passes over the images at every
normalisation.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

NHWC = [0, 2, 3, 1]  # the transpose that stands behind a convolution


def fold(nodes: Iterable[Any], arrays: Mapping[str, np.ndarray]) -> tuple[list[Any], dict[str, np.ndarray]]:
    """The nodes and constants, where Add, Sub and Mul by a constant behind Conv and Transpose have gone into the
    convolution's weights; constants that no node uses are left out."""
    nodes, arrays = list(nodes), dict(arrays)
    uses = Counter(name for node in nodes for name in node.input)
    kept: dict[str, Any] = {}  # output -> node, in order
    for node in nodes:
        found = _behind_convolution(node, kept, arrays, uses)
        if found is None:
            kept[node.output[0]] = node
            continue
        convolution, transpose, constant = found
        kept[convolution.output[0]] = _changed(convolution, node.op_type, constant, arrays)
        del kept[transpose.output[0]]
        moved = type(transpose)()
        moved.CopyFrom(transpose)
        moved.output[0] = node.output[0]
        kept[node.output[0]] = moved
    used = {name for node in kept.values() for name in node.input}
    return list(kept.values()), {name: array for name, array in arrays.items() if name in used}


def _behind_convolution(node: Any, kept: Mapping[str, Any], arrays: Mapping[str, np.ndarray], uses: Any) -> Any:
    """The Conv and the Transpose that only this node sees, and the constant applied; None otherwise."""
    if node.op_type not in ("Add", "Sub", "Mul"):
        return None
    pair = list(node.input)
    if pair[0] in arrays and node.op_type != "Sub":
        pair.reverse()
    if pair[0] in arrays or pair[1] not in arrays:
        return None
    transpose = kept.get(pair[0])
    if transpose is None or transpose.op_type != "Transpose" or list(transpose.attribute[0].ints) != NHWC:
        return None
    convolution = kept.get(transpose.input[0])
    values = arrays[pair[1]]
    alone = uses[transpose.output[0]] == 1 and uses[transpose.input[0]] == 1
    of_channels = values.size in (1, values.shape[-1] if values.ndim else 1)
    if convolution is None or convolution.op_type != "Conv" or not alone or not of_channels:
        return None
    return (convolution, transpose, pair[1]) if convolution.input[1] in arrays else None


def _changed(convolution: Any, operation: str, constant: str, arrays: dict[str, np.ndarray]) -> Any:
    """The convolution with other weights, which are added to the arrays.

    Their names say what they were made of: convolutions of the same weights, one for each view, share them.
    """
    kernel, *rest = convolution.input[1:]
    bias = rest[0] if rest else f"{kernel}_bias"
    weights, offsets = arrays[kernel].astype(np.float64), arrays.get(bias, np.zeros(len(arrays[kernel])))
    values = np.broadcast_to(arrays[constant].astype(np.float64).reshape(-1), len(weights))
    new_kernel, new_bias = kernel, f"{bias}_{operation.lower()}_{constant}"
    if operation == "Mul":
        new_kernel = f"{kernel}_mul_{constant}"
        arrays[new_kernel] = np.asarray(weights * values.reshape(-1, 1, 1, 1), np.float32)
        offsets = offsets * values
    else:
        offsets = offsets + values if operation == "Add" else offsets - values
    arrays[new_bias] = np.asarray(offsets, np.float32)
    changed = type(convolution)()
    changed.CopyFrom(convolution)
    del changed.input[1:]
    changed.input.extend([new_kernel, new_bias])
    return changed
