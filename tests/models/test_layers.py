"""The layers against the library's own formulations, for values and gradients."""

import itertools
from statistics import NormalDist

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from cifar_jax.errors import InputError
from cifar_jax.models import kernels, layers
from cifar_jax.runs.devices import jit


def normal(seed, shape, dtype=np.float32):
    return jnp.asarray(np.random.RandomState(seed).normal(size=shape).astype(np.float32)).astype(dtype)


def plain(images, kernel, strides, padding):
    return lax.conv_general_dilated(images, kernel, strides, padding, dimension_numbers=kernels.LAYOUT)


def assert_close(actual, expected, tolerance):
    """The largest error, as a share of the largest magnitude: what a sum in another order may change."""
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    if expected.size:
        assert np.abs(actual - expected).max() <= tolerance * np.abs(expected).max()


def value_and_gradients(function):
    """(images, kernel) -> value and both gradients, under a cotangent that differs at every position."""

    def both(images, kernel):
        value, pull = jax.vjp(function, images, kernel)
        cotangent = jnp.cos(jnp.arange(value.size, dtype=jnp.float32)).reshape(value.shape).astype(value.dtype)
        return value, *pull(cotangent)

    return both


def compare(images, kernel, strides, padding, tolerance=1e-5):
    @jit
    def programs(images, kernel):
        own = lambda images, kernel: kernels.convolution(images, kernel, strides, padding)
        reference = lambda images, kernel: plain(images, kernel, strides, padding)
        return value_and_gradients(own)(images, kernel), value_and_gradients(reference)(images, kernel)

    own, reference = programs(images, kernel)
    for actual, expected in zip(own, reference, strict=True):
        assert_close(actual, expected, tolerance)


CASES = [  # size, window, strides, padding
    ((8, 8), (3, 3), (1, 1), "SAME"),
    ((7, 9), (3, 3), (2, 2), "SAME"),
    ((8, 8), (3, 3), (2, 2), "SAME"),
    ((9, 6), (3, 2), (2, 1), "SAME"),
    ((8, 8), (5, 5), (1, 1), "VALID"),
    ((9, 8), (4, 2), (2, 2), "VALID"),
    ((8, 7), (2, 2), (1, 1), "SAME"),
    ((8, 8), (3, 3), (3, 2), "VALID"),  # strides that leave rows unseen
    ((6, 7), (3, 3), (2, 1), ((0, 2), (3, 1))),
    ((5, 5), (2, 3), (1, 2), ((2, 0), (0, 1))),
    ((8, 8), (1, 1), (1, 1), "SAME"),
    ((7, 8), (1, 1), (2, 2), "SAME"),
    ((7, 7), (1, 1), (2, 1), "VALID"),
    ((5, 6), (1, 1), (1, 2), ((1, 0), (2, 1))),
    ((3, 2), (5, 4), (1, 1), ((2, 2), (1, 2))),  # a kernel larger than the image
    ((2, 3), (5, 5), (2, 2), "SAME"),
    ((1, 1), (3, 3), (1, 1), "SAME"),
]


@pytest.mark.parametrize(("size", "window", "strides", "padding"), CASES)
def test_convolution_and_its_gradients_are_the_librarys(size, window, strides, padding):
    compare(normal(0, (2, *size, 3)), normal(1, (*window, 3, 4)), strides, padding)


@pytest.mark.parametrize(("size", "window", "strides", "padding"), [CASES[1], CASES[8], CASES[11]])
def test_convolution_in_bfloat16(size, window, strides, padding):
    images, kernel = normal(0, (2, *size, 3), jnp.bfloat16), normal(1, (*window, 3, 4), jnp.bfloat16)
    compare(images, kernel, strides, padding, tolerance=2**-7)  # bfloat16 has 8 bits


def test_convolution_in_bfloat16_compiled_as_in_training():
    """With oneDNN (xla_cpu_experimental_onednn_custom_call of jaxlib 0.12.0.1) the kernel's gradient has nothing to do
    with the right one for batches below 16; smaller images do not show it."""
    images, kernel = normal(0, (4, 32, 32, 8), jnp.bfloat16), normal(1, (3, 3, 8, 10), jnp.bfloat16)
    both = value_and_gradients(kernels.convolution)
    wide = images.astype(jnp.float32), kernel.astype(jnp.float32)
    for actual, expected in zip(jit(both, "bfloat16")(images, kernel), jit(both)(*wide), strict=True):
        assert_close(actual.astype(jnp.float32), expected, tolerance=2**-6)


pads = st.tuples(st.integers(0, 2), st.integers(0, 2))


@settings(deadline=None, max_examples=20, derandomize=True)
@given(
    size=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    window=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.one_of(st.just("SAME"), st.just("VALID"), st.tuples(pads, pads)),
    channels=st.tuples(st.integers(1, 3), st.integers(1, 3)),
)
def test_convolution_of_any_shape(size, window, strides, padding, channels):
    if padding == "VALID":
        size = tuple(max(n, k) for n, k in zip(size, window, strict=True))
    elif padding != "SAME":
        size = tuple(max(n, k - low - high) for n, k, (low, high) in zip(size, window, padding, strict=True))
    compare(normal(0, (2, *size, channels[0])), normal(1, (*window, *channels)), strides, padding)


def test_the_canonical_gradients_are_what_the_cpu_uses(monkeypatch):
    images, kernel = normal(0, (2, 7, 6, 3)), normal(1, (3, 2, 3, 4))
    pads = ((1, 1), (0, 1))
    expected = value_and_gradients(lambda *inputs: plain(*inputs, (2, 1), pads))(images, kernel)
    nothing = lambda strides, pads, images, kernel, gradient: (jnp.zeros_like(images), jnp.zeros_like(kernel))
    own = lambda *inputs: kernels.convolution(*inputs, (2, 1), pads)
    monkeypatch.setattr(kernels, "_gradients_by_autodiff", nothing)
    for actual, reference in zip(jit(value_and_gradients(own))(images, kernel), expected, strict=True):
        assert_close(actual, reference, 1e-5)
    monkeypatch.setattr(kernels, "_gradients_canonical", nothing)
    assert not any(np.any(gradient) for gradient in jit(value_and_gradients(own))(images, kernel)[1:])


@pytest.mark.parametrize(("size", "window", "strides", "padding"), [CASES[1], CASES[9], CASES[11], CASES[14]])
def test_both_forms_of_the_gradients_agree(size, window, strides, padding):
    """Neither is taken on every platform, so each is compared directly."""
    images, kernel = normal(0, (2, *size, 3)), normal(1, (*window, 3, 4))
    pads = kernels._pads(padding, size, window, strides)
    gradient = normal(2, plain(images, kernel, strides, pads).shape)
    canonical = jit(lambda *arrays: kernels._gradients_canonical(strides, pads, *arrays))(images, kernel, gradient)
    automatic = jit(lambda *arrays: kernels._gradients_by_autodiff(strides, pads, *arrays))(images, kernel, gradient)
    for actual, expected in zip(canonical, automatic, strict=True):
        assert_close(actual, expected, 1e-5)


def in_scan(function):
    return lambda images, kernels: lax.scan(lambda _, pair: (None, function(*pair)), None, (images, kernels))[1]


def over_images(function):
    return lambda images, kernels: jax.vmap(lambda image: function(image, kernels[0]))(images)


def over_kernels(function):
    return lambda images, kernels: jax.vmap(lambda kernel: function(images[0], kernel))(kernels)


@pytest.mark.parametrize("transform", [in_scan, over_images, over_kernels, lambda function: jax.vmap(function)])
@pytest.mark.parametrize("window", [(3, 3), (1, 1)])
def test_convolution_inside_scan_and_vmap(transform, window):
    images, several = normal(0, (2, 2, 7, 6, 3)), normal(1, (2, *window, 3, 4))
    own = transform(value_and_gradients(lambda *inputs: kernels.convolution(*inputs, (2, 2), "SAME")))
    reference = transform(value_and_gradients(lambda *inputs: plain(*inputs, (2, 2), "SAME")))
    for actual, expected in zip(jit(own)(images, several), jit(reference)(images, several), strict=True):
        assert_close(actual, expected, 1e-5)


@pytest.mark.parametrize("use_bias", [True, False])
def test_convolution_module_is_linens_with_the_same_parameters(use_bias):
    images = normal(0, (2, 7, 8, 3))
    own = layers.Convolution(4, (3, 2), (2, 1), use_bias=use_bias)
    params = own.init(jax.random.key(0), images)["params"]
    assert set(params) == ({"kernel", "bias"} if use_bias else {"kernel"})
    if use_bias:
        assert not params["bias"].any()
        params = {**params, "bias": normal(3, (4,))}
    linen = nn.Conv(4, (3, 2), (2, 1), use_bias=use_bias)
    assert_close(own.apply({"params": params}, images), linen.apply({"params": params}, images), 1e-6)


def test_convolution_module_keeps_float32_weights_and_their_variance():
    own = layers.Convolution(256, (3, 3), dtype=jnp.bfloat16)
    outputs, variables = own.init_with_output(jax.random.key(0), normal(0, (1, 4, 4, 16)))
    kernel = variables["params"]["kernel"]
    assert outputs.dtype == jnp.bfloat16
    assert kernel.dtype == jnp.float32
    assert np.var(kernel) == pytest.approx(2 / (3 * 3 * 256), rel=0.05)


def first_maximum(images, window, strides, pads, cotangent):
    """The plain loop: (largest value of each window, gradient); the first of equals takes all of it."""
    images, cotangent = np.asarray(images, np.float64), np.asarray(cotangent, np.float64)
    batch, height, width, channels = images.shape
    values, gradient = np.empty(cotangent.shape), np.zeros(images.shape)
    for b, i, j, c in itertools.product(range(batch), *map(range, cotangent.shape[1:3]), range(channels)):
        best = None
        for row, column in itertools.product(range(window[0]), range(window[1])):
            y, x = i * strides[0] + row - pads[0][0], j * strides[1] + column - pads[1][0]
            inside = 0 <= y < height and 0 <= x < width
            if inside and (best is None or images[b, y, x, c] > images[b, *best, c]):
                best = y, x
        values[b, i, j, c] = images[b, *best, c]
        gradient[b, *best, c] += cotangent[b, i, j, c]
    return values, gradient


POOLS = [  # size, window, strides, padding
    ((8, 8), (2, 2), None, "VALID"),
    ((7, 9), (2, 2), None, "VALID"),
    ((9, 7), (3, 2), None, "VALID"),
    ((7, 8), (2, 2), None, "SAME"),
    ((8, 8), (3, 3), (2, 2), "SAME"),
    ((7, 7), (3, 3), (2, 2), "VALID"),
    ((6, 7), (3, 2), (1, 3), "VALID"),
    ((7, 6), (2, 3), (3, 1), "SAME"),
    ((5, 6), (3, 3), (1, 1), ((1, 0), (2, 1))),
]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("size", "window", "strides", "padding"), POOLS)
def test_max_pool_and_its_gradient(size, window, strides, padding, dtype):
    """Small integers: most windows hold equals, and every sum is exact."""
    images = jnp.asarray(np.random.RandomState(0).randint(-2, 2, (2, *size, 3)), dtype)
    expected = nn.max_pool(images, window, strides or window, padding)
    cotangent = jnp.asarray(np.random.RandomState(1).randint(1, 9, expected.shape), dtype)

    @jit
    def pool(images, cotangent):
        value, pull = jax.vjp(lambda images: kernels.max_pool(images, window, strides, padding), images)
        return kernels.max_pool(images, window, strides, padding), value, *pull(cotangent)

    alone, value, gradient = pool(images, cotangent)
    assert value.dtype == gradient.dtype == expected.dtype
    np.testing.assert_array_equal(alone, expected)
    np.testing.assert_array_equal(value, expected)
    pads = kernels._pads(padding, size, window, strides or window)
    looped, reference = first_maximum(images, window, strides or window, pads, cotangent)
    np.testing.assert_array_equal(value, looped)
    np.testing.assert_array_equal(gradient, reference)


@pytest.mark.parametrize("strides", [None, (1, 1)])
def test_max_pool_of_a_window_with_more_than_128_positions(strides):
    images, window = normal(0, (1, 2, 70, 2)), (2, 66)

    @jit
    def pool(images):
        value, pull = jax.vjp(lambda images: kernels.max_pool(images, window, strides), images)
        return value, *pull(jnp.ones_like(value))

    value, gradient = pool(images)
    looped, reference = first_maximum(images, window, strides or window, ((0, 0), (0, 0)), np.ones(value.shape))
    np.testing.assert_array_equal(value, looped.astype(np.float32))
    np.testing.assert_array_equal(gradient, reference)


def test_max_pool_of_minus_infinity_and_nan():
    """-inf is a value like any other; a NaN makes its windows NaN and no other, and no gradient is lost."""
    images = np.full((1, 4, 4, 1), -np.inf, np.float32)
    images[0, 3, 0, 0], images[0, 1, 3, 0] = 1, np.nan
    value = kernels.max_pool(jnp.asarray(images))
    np.testing.assert_array_equal(value[0, :, :, 0], [[-np.inf, np.nan], [1, -np.inf]])
    np.testing.assert_array_equal(value, nn.max_pool(images, (2, 2), (2, 2)))
    gradient = jit(lambda images: jax.vjp(kernels.max_pool, images)[1](jnp.ones((1, 2, 2, 1)))[0])(images)[0, :, :, 0]
    assert gradient[0, 0] == gradient[3, 0] == gradient[2, 2] == 1
    assert gradient[:2, 2:].sum() == 1
    assert gradient.sum() == 4


@pytest.mark.parametrize("strides", [(2, 2), (1, 1)])
def test_max_pool_inside_scan_and_vmap(strides):
    images = normal(0, (2, 1, 5, 5, 3))
    gradient = jax.grad(lambda images: jnp.sum(kernels.max_pool(images, (2, 2), strides) ** 2))
    expected = jnp.stack([jit(gradient)(image) for image in images])
    np.testing.assert_array_equal(jit(jax.vmap(gradient))(images), expected)
    np.testing.assert_array_equal(jit(lambda x: lax.map(gradient, x))(images), expected)


@pytest.mark.parametrize(("size", "window", "strides", "padding"), POOLS)
def test_average_pool_and_its_gradient(size, window, strides, padding):
    images = normal(0, (2, *size, 3))

    @jit
    def programs(images):
        own = lambda images: kernels.average_pool(images, window, strides, padding)
        linen = lambda images: nn.avg_pool(images, window, strides or window, padding)
        squares = lambda function: jax.value_and_grad(lambda images: jnp.sum(function(images) ** 2))(images)[1]
        return (own(images), squares(own)), (linen(images), squares(linen))

    for actual, expected in zip(*programs(images), strict=True):
        assert_close(actual, expected, 1e-6)


def test_average_pool_in_bfloat16_stays_there():
    images = normal(0, (2, 6, 6, 3), jnp.bfloat16)
    assert_close(kernels.average_pool(images), nn.avg_pool(images, (2, 2), (2, 2)), 2**-7)


def test_activations_are_those_of_their_names():
    x = jnp.linspace(-3, 9, 25)
    expected = {
        "relu": np.maximum(x, 0),
        "relu6": np.clip(x, 0, 6),
        "leaky_relu": np.where(x > 0, x, 0.01 * x),
        "elu": np.where(x > 0, x, np.expm1(x)),
        "gelu": x * np.vectorize(NormalDist().cdf)(x),
        "silu": x / (1 + np.exp(-x)),
        "mish": x * np.tanh(np.log1p(np.exp(x))),
        "tanh": np.tanh(x),
    }
    assert set(layers.ACTIVATIONS) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(layers.activation(name)(x), values, rtol=1e-5, atol=1e-6, err_msg=name)


def test_an_unknown_activation_is_answered_with_the_nearest():
    with pytest.raises(InputError, match="activation 'rellu' is unknown; did you mean 'relu'"):
        layers.activation("rellu")


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gelus_gradient_is_that_of_its_formula(dtype):
    x, cotangent = jnp.linspace(-5, 5, 41).astype(dtype), jnp.linspace(1, 2, 41).astype(dtype)
    (found,) = jax.vjp(kernels.gelu, x)[1](cotangent)
    normal = NormalDist()
    slope = [normal.cdf(value) + value * normal.pdf(value) for value in np.float64(x)]
    assert found.dtype == dtype
    np.testing.assert_allclose(
        np.float64(found), slope * np.float64(cotangent), atol=2e-6 if dtype == jnp.float32 else 0.02
    )


@pytest.mark.parametrize("use_scale", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 0.02)])
@pytest.mark.parametrize("shape", [(6, 5, 3, 4), (8, 4)])
def test_batch_norm_is_linens(shape, dtype, tolerance, use_scale):
    """In training, with all gradients and the running statistics, and in evaluation."""
    x, cotangent = (3 + normal(0, shape)).astype(dtype), normal(1, shape, dtype)
    fields = {"momentum": 0.7, "epsilon": 1e-3, "dtype": dtype, "use_scale": use_scale}
    params = {"bias": normal(2, (4,)), **({"scale": 1 + 0.3 * normal(3, (4,))} if use_scale else {})}
    running = {"mean": normal(4, (4,)), "var": 1 + normal(5, (4,)) ** 2}

    def answers(module, params, x):
        run = lambda params, x: module(False, **fields).apply(
            {"params": params, "batch_stats": running}, x, mutable=["batch_stats"]
        )
        outputs, pull, updated = jax.vjp(run, params, x, has_aux=True)
        evaluated = module(True, **fields).apply({"params": params, "batch_stats": running}, x)
        return outputs, pull(cotangent), updated, evaluated

    found, expected = jit(lambda *given: [answers(module, *given) for module in (layers.BatchNorm, nn.BatchNorm)])(
        params, x
    )
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(lambda one, other: assert_close(one, other, tolerance), found, expected)
    first, other = (module(False, **fields).init(jax.random.key(0), x) for module in (layers.BatchNorm, nn.BatchNorm))
    jax.tree.map(np.testing.assert_array_equal, first, other)


def test_batch_norm_of_equal_values_stays_finite():
    """The difference of the mean square and the squared mean may come out below zero."""
    x = jnp.full((64, 3), 1000.3)
    module = layers.BatchNorm(False, epsilon=1e-12, use_scale=False)
    variables = module.init(jax.random.key(0), x)
    value, gradient = jax.value_and_grad(lambda x: module.apply(variables, x, mutable=["batch_stats"])[0].sum())(x)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


DEPTHWISE = [case for case in CASES if case[1] != (1, 1)]


@pytest.mark.parametrize(("size", "window", "strides", "padding"), DEPTHWISE)
def test_depthwise_convolution_is_the_grouped_one(size, window, strides, padding):
    images, kernel = normal(0, (2, *size, 3)), normal(1, (*window, 1, 3))
    grouped = lambda images, kernel: lax.conv_general_dilated(
        images, kernel, strides, padding, dimension_numbers=kernels.LAYOUT, feature_group_count=3
    )
    own = lambda images, kernel: kernels.depthwise_convolution(images, kernel, strides, padding)
    programs = jit(lambda *arguments: (value_and_gradients(own)(*arguments), value_and_gradients(grouped)(*arguments)))
    for actual, expected in zip(*programs(images, kernel), strict=True):
        assert_close(actual, expected, 1e-5)


def test_depthwise_convolution_in_bfloat16_rounds_once():
    images, kernel = normal(0, (2, 8, 8, 4), jnp.bfloat16), normal(1, (5, 5, 1, 4), jnp.bfloat16)
    rough = jit(value_and_gradients(kernels.depthwise_convolution))(images, kernel)
    exact = value_and_gradients(kernels.depthwise_convolution)(images.astype(jnp.float32), kernel.astype(jnp.float32))
    for actual, expected in zip(rough, exact, strict=True):
        assert_close(actual, expected.astype(jnp.bfloat16), 0.01)


def test_drop_path_drops_whole_images_and_keeps_the_mean():
    x = jnp.ones((4000, 2, 3))
    drop = layers.DropPath(0.25)
    kept = np.asarray(drop.apply({}, x, True, rngs={"dropout": jax.random.key(0)}))
    assert np.ptp(kept, axis=(1, 2)).max() == 0
    assert set(np.unique(kept)) == {np.float32(0), np.float32(1 / 0.75)}
    assert (kept[:, 0, 0] == 0).mean() == pytest.approx(0.25, abs=0.03)
    np.testing.assert_array_equal(drop.apply({}, x, False), x)
    assert layers.drop_path_rates(0.4, 4) == pytest.approx([0.1, 0.2, 0.3, 0.4])


@pytest.mark.parametrize(("height", "width"), [(1, 2), (3, 5), (7, 7), (14, 9)])
def test_adaptive_average_pool_takes_the_windows_of_its_definition(height, width):
    x = np.random.RandomState(0).normal(size=(2, height, width, 3)).astype(np.float32)
    pooled = kernels.adaptive_average_pool(x, (7, 4))
    assert pooled.shape == (2, 7, 4, 3)
    for i, j in np.ndindex(7, 4):
        rows = slice(int(np.floor(i * height / 7)), int(np.ceil((i + 1) * height / 7)))
        columns = slice(int(np.floor(j * width / 4)), int(np.ceil((j + 1) * width / 4)))
        np.testing.assert_allclose(pooled[:, i, j], x[:, rows, columns].mean((1, 2)), rtol=1e-5, atol=1e-6)
