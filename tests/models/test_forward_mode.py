"""Derivatives in forward mode, for every model and every kernel."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from cifar_jax.models import kernels
from cifar_jax.models.kernels import forward_mode
from cifar_jax.runs.devices import jit
from cifar_jax.training.losses import cross_entropy
from tests.models.test_layers import POOLS, first_maximum, normal
from tests.models.test_models import build, every_model, images, variables

REFUSED = r"can't apply forward-mode autodiff \(jvp\) to a custom_vjp function\."


def assert_close(actual, expected, tolerance):
    """The largest error, as a share of the largest magnitude of each leaf and of the whole tree."""
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    for (path, leaf), other in zip(jax.tree.leaves_with_path(expected), jax.tree.leaves(actual), strict=True):
        np.testing.assert_allclose(other, leaf, rtol=0, atol=tolerance * scale, err_msg=jax.tree_util.keystr(path))


def gradients_of(name, given):
    """A function of the parameters: the gradients of the mean loss in training mode."""
    model, targets = build(name), jax.nn.one_hot(jnp.arange(4), 5)

    def loss(params):
        logits, _ = model.apply({**given, "params": params}, images(), train=True, mutable=["batch_stats"])
        return cross_entropy(logits, targets).mean()

    return jax.grad(loss)


@every_model
def test_every_model_can_be_traced(name):
    """Forward-over-reverse without computing anything: nothing is left that JAX refuses when it comes to compute."""
    given = jax.eval_shape(lambda: build(name).init(jax.random.key(0), images(), train=False))

    def product(given):
        return jax.jvp(gradients_of(name, given), (given["params"],), (given["params"],))[1]

    assert (name == "mlp") != ("custom_lin" in {found for found, _ in primitives(product, given)})
    with forward_mode():
        assert "custom_lin" not in {found for found, _ in primitives(product, given)}


# Between them they have every kernel and layer of ours; compiling the products of all models takes a minute.
@pytest.mark.parametrize("name", ["cnn", "convnet", "resnet18", "mobilenet_v2", "vit", "convmixer256_8", "speedrun94"])
def test_hessian_vector_products(name):
    """Forward-over-reverse inside the context is reverse-over-reverse of the normal kernels; the logits agree too."""
    model, given, random = build(name), variables(name), np.random.RandomState(2)
    gradients_at = gradients_of(name, given)
    vector = jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(np.float32), given["params"])

    def product(params, vector):
        gradients = gradients_at(params)
        return sum(jnp.vdot(*pair) for pair in zip(*map(jax.tree.leaves, (gradients, vector)), strict=True))

    @jit
    def both(params, vector):
        evaluate = lambda: model.apply({**given, "params": params}, images(), train=False)
        normal = jax.grad(product)(params, vector), evaluate()
        with forward_mode():
            return (jax.jvp(gradients_at, (params,), (vector,))[1], evaluate()), normal

    plain, normal = both(given["params"], vector)
    assert_close(plain[0], normal[0], 1e-3)
    assert_close(plain[1], normal[1], 1e-5)


KERNELS = {
    "gelu": lambda x: kernels.gelu(x),
    "convolution": lambda x: kernels.convolution(x, normal(1, (3, 2, 3, 4)), (2, 1)),
    "depthwise": lambda x: kernels.depthwise_convolution(x, normal(1, (3, 3, 1, 3)), (2, 1)),
    "max_pool": lambda x: kernels.max_pool(x, (3, 2), (2, 1), "SAME"),
    "batch_norm": lambda x: kernels.normalised(1e-3, x, jnp.arange(1.0, 4), jnp.ones(3))[0],
}


@pytest.mark.parametrize("name", KERNELS)
def test_forward_mode_derivatives_of_a_kernel(name):
    """Refused outside, as the docstring quotes; inside they are the transpose of the normal kernel's."""
    x, tangent = normal(0, (2, 5, 6, 3)), normal(2, (2, 5, 6, 3))
    with pytest.raises(TypeError, match=REFUSED):
        jax.jvp(KERNELS[name], (x,), (tangent,))
    value, pull = jax.vjp(KERNELS[name], x)
    cotangent = normal(3, value.shape)
    with forward_mode():
        plain, derivative = jax.jvp(KERNELS[name], (x,), (tangent,))
        _, linear = jax.linearize(KERNELS[name], x)
    np.testing.assert_allclose(plain, value, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(linear(tangent), derivative, rtol=1e-5, atol=1e-5)
    assert float(jnp.vdot(derivative, cotangent)) == pytest.approx(
        float(jnp.vdot(tangent, *pull(cotangent))), rel=1e-4, abs=1e-4
    )


def test_batch_norms_statistics_are_constants_in_both_modes():
    statistics = lambda x: sum(part.sum() for part in kernels.normalised(1e-3, x, jnp.ones(3), jnp.zeros(3))[1:])
    x = normal(0, (4, 3))
    with forward_mode():
        assert jax.jvp(statistics, (x,), (x,))[1] == 0
    assert not np.any(jax.grad(statistics)(x))


@pytest.mark.parametrize(("size", "window", "strides", "padding"), [POOLS[1], POOLS[4], POOLS[6], POOLS[8]])
def test_max_pool_gives_the_derivative_to_the_first_of_equals(size, window, strides, padding):
    images = jnp.asarray(np.random.RandomState(0).randint(-2, 2, (2, *size, 3)), jnp.float32)
    pads = kernels._pads(padding, size, window, strides or window)
    with forward_mode():
        value, pull = jax.vjp(lambda images: kernels.max_pool(images, window, strides, padding), images)
        cotangent = jnp.asarray(np.random.RandomState(1).randint(1, 9, value.shape), jnp.float32)
        (gradient,) = pull(cotangent)
    looped, expected = first_maximum(images, window, strides or window, pads, cotangent)
    np.testing.assert_array_equal(value, looped)
    np.testing.assert_array_equal(gradient, expected)


@pytest.mark.parametrize(("size", "window", "strides", "padding"), [POOLS[1], POOLS[4], POOLS[6], POOLS[8]])
def test_average_pool_is_the_normal_one(size, window, strides, padding):
    images = normal(0, (2, *size, 3))
    expected = kernels.average_pool(images, window, strides, padding)
    with forward_mode():
        np.testing.assert_allclose(kernels.average_pool(images, window, strides, padding), expected, atol=1e-6)


def primitives(function, *arguments):
    """The primitives of a traced function and of all it calls, custom rules included."""

    def visit(jaxpr):
        for equation in jaxpr.eqns:
            yield equation.primitive.name, equation.params
            for inner in jaxprs_in_params(equation.params):
                yield from visit(inner)

    return list(visit(jax.make_jaxpr(function)(*arguments).jaxpr))


def test_the_operations_are_those_that_exporters_know():
    def network(x):
        x = kernels.max_pool(kernels.depthwise_convolution(x, jnp.ones((3, 3, 1, 3))), (3, 3), (2, 2), "SAME")
        return kernels.average_pool(kernels.gelu(x), padding="SAME")

    x = jnp.ones((1, 8, 8, 3))
    assert {"custom_vjp_call"} <= {name for name, _ in primitives(network, x)}
    with forward_mode():
        found = primitives(network, x)
    names = [name for name, _ in found]
    assert "custom_vjp_call" not in names
    assert names.count("reduce_window_max") == names.count("reduce_window_sum") == 1
    assert [given["feature_group_count"] for name, given in found if name == "conv_general_dilated"] == [3]


def test_a_function_traced_before_is_traced_again_and_the_normal_kernels_return():
    """After the context, after an exception in it, and after one inside another."""
    traced = []

    @jax.jit
    def activate(x):
        traced.append(plain := kernels._plain.value)
        return kernels.gelu(x) + 0 * plain

    derivative = functools.partial(jax.jvp, activate, (jnp.ones(3),), (jnp.ones(3),))
    activate(jnp.ones(3))
    activate(jnp.ones(3))
    assert traced == [False]
    with forward_mode():
        with forward_mode():
            derivative()
        derivative()
        assert traced == [False, True]
    activate(jnp.ones(3))
    with pytest.raises(TypeError, match=REFUSED):
        derivative()
    with pytest.raises(ZeroDivisionError), forward_mode():
        _ = 1 / 0
    with pytest.raises(TypeError, match=REFUSED):
        derivative()
    assert traced == [False, True]
