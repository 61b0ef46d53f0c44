"""The conversion to ONNX: every model, every activation, every primitive, against JAX; what has no form is named."""

import functools
from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export as jax_export
from jax import lax

import cifar_jax as cj
from cifar_jax.models.layers import ACTIVATIONS
from cifar_jax.runs.classifier import Classifier
from tests import made
from tests.models.test_models import TINY

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")

from cifar_jax.inference import onnx_convert  # noqa: E402
from cifar_jax.inference.onnx_graph import Graph  # noqa: E402
from cifar_jax.inference.onnx_operations import OPERATIONS  # noqa: E402

IMAGES = np.random.RandomState(0).randint(0, 256, (5, 8, 8, 3)).astype(np.uint8)


def classifier(model, **changes):
    recipe = made.recipe({"model": model, **changes})
    return Classifier(recipe, made.weights(recipe), made.split().classes, 1.5)


def assert_agrees(given, images=IMAGES):
    """For two batch sizes by one file."""
    model = onnx_convert.to_onnx(given)
    onnx.checker.check_model(model, full_check=True)
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["batch", *images.shape[1:]]
    expected = given.probabilities(images), given.embeddings(images)
    assert expected[0].std() > 1e-4  # they say something
    for count in (len(images), 1):
        found = session.run(["probabilities", "embedding"], {"images": images[:count]})
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other[:count], rtol=0, atol=1e-5 * max(1, np.abs(other).max()))


@pytest.mark.parametrize("name", TINY)
def test_every_model(name):
    assert_agrees(classifier({"name": name, **TINY[name]}))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation(name):
    assert_agrees(classifier({"name": "mlp", "widths": (8,), "activation": name}))


@pytest.mark.parametrize(
    "changes",
    [
        {"evaluation.views": "mirror"},
        {"evaluation.views": "mirror_shift"},
        {"data.input_size": 12},
        {"data.mean": (0.4, 0.5, 0.6), "data.std": (0.2, 0.3, 0.4)},
    ],
    ids=str,
)
def test_the_preprocessing_and_the_views_are_inside(changes):
    assert_agrees(classifier({"name": "cnn", "width": 4, "kernel_size": 3, "hidden": 8}, **changes))


@pytest.mark.parametrize(
    "model",
    [
        {"name": "resnet18", "stages": (1, 1), "width": 4, "stem": "imagenet"},
        {"name": "resnet18", "stages": (1, 1), "width": 4, "remat": True},
        {"name": "vgg11_bn", "stages": (1, 1), "width": 2, "classifier": "hidden"},
    ],
    ids=str,
)
def test_variants(model):
    assert_agrees(classifier(model))


def test_images_of_odd_size():
    images = np.random.RandomState(0).randint(0, 256, (3, 7, 9, 3)).astype(np.uint8)
    assert_agrees(classifier({"name": "convnet", "widths": (4, 6)}, **{"data.image_shape": (7, 9, 3)}), images)


def test_half_precision_is_exported_in_float32():
    given = classifier({"name": "cnn", "width": 4, "kernel_size": 3, "hidden": 8}, dtype="float16")
    exact = replace(given, recipe=classifier(dict(given.recipe.model)).recipe)
    model = onnx_convert.to_onnx(given)
    session = runtime.InferenceSession(model.SerializeToString())
    np.testing.assert_allclose(session.run(None, {"images": IMAGES})[1], exact.probabilities(IMAGES), atol=1e-5)


def run_converted(function, x):
    """A function of one array by its conversion, for a batch of symbolic size."""
    (batch,) = jax_export.symbolic_shape("batch")
    closed = jax.make_jaxpr(function)(jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype))
    graph = Graph()
    (output,) = onnx_convert.convert(graph, closed, [graph.input("x", (batch, *x.shape[1:]), x.dtype)])
    model = graph.model({"y": output}, "test")
    onnx.checker.check_model(model, full_check=True)
    return runtime.InferenceSession(model.SerializeToString()).run(["y"], {"x": x})[0]


X = np.random.RandomState(3).normal(size=(3, 4, 5, 2)).astype(np.float32)
ROW = np.random.RandomState(4).normal(size=(5, 2)).astype(np.float32)
PRIMITIVES = {
    "arithmetic": lambda x: (x + ROW) * 2 - x / (ROW + 9) + jnp.maximum(x, ROW) - jnp.minimum(x, 0.1),
    "signs": lambda x: jnp.abs(x) + jnp.sign(x) - jnp.floor(x) + jnp.ceil(-x),
    "powers": lambda x: jnp.abs(x) ** 1.5 + x**3 + jnp.square(x) + lax.rsqrt(jnp.abs(x) + 1) + jnp.sqrt(jnp.abs(x)),
    "exponentials": lambda x: jnp.exp(x) + jnp.expm1(x) + jnp.log(jnp.abs(x) + 1) + jnp.log1p(jnp.abs(x)),
    "functions": lambda x: lax.erf(x) + lax.erfc(x) + jnp.tanh(x) + lax.logistic(x) + jnp.sin(x) + jnp.cos(x),
    "comparisons": lambda x: jnp.where((x > 0) & ~(x >= 1) | (x < -1) | (x <= -2), x, 2.0),
    "equality": lambda x: jnp.where((jnp.sign(x) == 1) | (x != x), x, -x),
    "clamp": lambda x: lax.clamp(-0.5, x, 0.5),
    "conversion": lambda x: (x * 10).astype(jnp.int32).astype(jnp.float32),
    "reductions": lambda x: x.sum((1, 2)) + x.max((1, 2)) - x.min((1, 2)),
    "reduction of a repeated constant": lambda x: x + jnp.broadcast_to(ROW, x.shape).sum((1, 2), keepdims=True),
    "reshape, transpose": lambda x: x.reshape(x.shape[0], 4, 10).transpose(0, 2, 1),
    "batch inside": lambda x: x.transpose(1, 0, 2, 3) * 2,
    "squeeze": lambda x: jnp.squeeze(x[:, :1], 1),
    "pad": lambda x: jnp.pad(x, [(0, 0), (1, 2), (0, 0), (0, 3)], constant_values=7.0),
    "crop by pad": lambda x: lax.pad(x, np.float32(0), [(0, 0, 0), (-1, 0, 0), (0, -2, 0), (0, 0, 0)]),
    "slice": lambda x: lax.slice_in_dim(lax.slice_in_dim(x, 1, 4, 2, axis=1), 1, 5, axis=2),
    "strided index": lambda x: x[:, ::2, 1::2],
    "index": lambda x: x[:, 2, 3] + x[:, 0, -1],
    "mirror": lambda x: x[:, :, ::-1],
    "permutation": lambda x: x[:, np.array([2, 0, 3, 1, 1])],
    "concatenate": lambda x: jnp.concatenate([x, jnp.broadcast_to(ROW, x.shape), x + 1], -1),
    "stack": lambda x: jnp.stack([x, 2 * x], 2),
    "matrix product": lambda x: x @ np.ones((2, 7), np.float32),
    "constant on the left": lambda x: jnp.einsum("hk,bkwc->bhwc", np.arange(8, dtype=np.float32).reshape(2, 4), x),
    "batched product": lambda x: jnp.einsum("bhwc,bhvc->bhwv", x, x),
    "two contractions": lambda x: jnp.einsum("bhwc,wcd->bhd", x, np.ones((5, 2, 3), np.float32)),
    "convolution": lambda x: lax.conv_general_dilated(
        x, np.ones((3, 2, 2, 4), np.float32), (2, 1), [(1, 0), (2, 1)], dimension_numbers=("NHWC", "HWIO", "NHWC")
    ),
    "dilated convolution of NCHW": lambda x: lax.conv_general_dilated(
        x, np.ones((3, 4, 2, 1), np.float32), (1, 1), "SAME", rhs_dilation=(1, 2)
    ),
    "max-pool": lambda x: lax.reduce_window(
        x, -np.inf, lax.max, (1, 3, 2, 1), (1, 2, 1, 1), ((0, 0), (1, 1), (0, 1), (0, 0))
    ),
    "average-pool": lambda x: lax.reduce_window(
        x, 0.0, lax.add, (1, 3, 2, 1), (1, 2, 1, 1), ((0, 0), (1, 1), (0, 1), (0, 0))
    ),
    "no gradient": lambda x: lax.stop_gradient(x) + 1,
    "a function within": lambda x: jax.jit(lambda y: jax.checkpoint(jnp.tanh)(y))(x) + jax.nn.relu(x),
}


@pytest.mark.parametrize("function", PRIMITIVES.values(), ids=PRIMITIVES)
def test_primitives(function):
    np.testing.assert_allclose(run_converted(function, X), jax.jit(function)(X), rtol=1e-5, atol=1e-5)


def test_every_primitive_of_the_table_is_tested():
    (batch,) = jax_export.symbolic_shape("batch")
    seen = set()

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            seen.add(equation.primitive.name)
            for inner in jax.extend.core.jaxprs_in_params(equation.params):
                walk(inner)

    for function in PRIMITIVES.values():
        walk(jax.make_jaxpr(function)(jax.ShapeDtypeStruct((batch, *X.shape[1:]), X.dtype)).jaxpr)
    # `copy` stands in GELU only (test_every_model); `stack` is a primitive of later versions of JAX.
    assert OPERATIONS.keys() - seen <= {"copy", "stack"}


REFUSED = {
    "an unknown primitive": (lambda x: jnp.sort(x, axis=1), "primitive 'sort' has no ONNX form"),
    "pad between entries": (lambda x: lax.pad(x, np.float32(0), [(0, 0, 0), (0, 0, 1), (0, 0, 0), (0, 0, 0)]), "'pad'"),
    "places that the images decide": (
        lambda x: jnp.take_along_axis(x, (x > 0).astype(jnp.int32), 1),
        "'gather'",
    ),
    "a transposed convolution": (
        lambda x: lax.conv_transpose(x, np.ones((3, 3, 2, 2), np.float32), (2, 2), "SAME"),
        "dilates its input",
    ),
    "pooling of channels": (
        lambda x: lax.reduce_window(x, -np.inf, lax.max, (1, 1, 1, 2), (1, 1, 1, 2), "VALID"),
        "for pooling of images only",
    ),
    "a function of the batch size": (
        lambda x: jnp.concatenate([x, jnp.broadcast_to(ROW, (2 * x.shape[0], 4, 5, 2))]),
        "is a function of the batch size",
    ),
}


@pytest.mark.parametrize(("function", "told"), REFUSED.values(), ids=REFUSED)
def test_what_has_no_form_is_named(function, told):
    with pytest.raises(cj.InputError) as error:
        run_converted(function, X)
    assert told in str(error.value)


class Sorted(nn.Module):
    @nn.compact
    def __call__(self, images, *, train):
        return nn.Dense(4, name="head")(jnp.sort(images.reshape(images.shape[0], -1), axis=-1))


def test_an_unknown_primitive_of_a_model_is_named():
    recipe = made.resolved(cj.override(made.recipe(), {"model.name": Sorted()}))
    given = Classifier(recipe, made.weights(recipe), made.split().classes)
    with pytest.raises(cj.InputError, match=r"^model.onnx cannot be written: JAX's primitive 'sort' has no ONNX form"):
        onnx_convert.to_onnx(given)


@pytest.mark.parametrize("name", ["resnet18", "vgg11_bn", "convnet"])
def test_normalisations_go_into_the_convolutions(name):
    """What is left between a convolution and the next are the activation, the pooling and the residual sum."""
    nodes = onnx_convert.to_onnx(classifier({"name": name, **TINY[name]})).graph.node
    made_by = {node.output[0]: node.op_type for node in nodes}
    behind = [node for node in nodes if any(made_by.get(name) == "Transpose" for name in node.input)]
    assert "Conv" in {node.op_type for node in nodes}
    assert not {node.op_type for node in behind} & {"Sub", "Mul"}


def test_a_convolution_that_two_nodes_see_stays_as_it_is():
    """Its outputs with the factor and without it are both needed."""

    def both(x):
        y = lax.conv_general_dilated(
            x, np.ones((1, 1, 2, 2), np.float32), (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return y * np.float32(3) + jnp.tanh(y) - np.array([1, 2], np.float32)

    np.testing.assert_allclose(run_converted(both, X), both(X), rtol=1e-5, atol=1e-5)


def test_weights_that_are_equal_are_stored_once():
    given = classifier({"name": "cnn", "width": 4, "kernel_size": 3, "hidden": 8}, **{"evaluation.views": "mirror"})
    one = classifier({"name": "cnn", "width": 4, "kernel_size": 3, "hidden": 8})
    size = lambda each: len(onnx_convert.to_onnx(each).SerializeToString())
    assert size(given) < 1.5 * size(one)
    assert functools.reduce(lambda total, leaf: total + leaf.nbytes, jax.tree.leaves(one.weights), 0) < size(one)
